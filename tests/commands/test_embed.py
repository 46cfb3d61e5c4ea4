"""`twofold embed`: features with names, of images and of recordings by one path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import images

import twofold
from sound_files import RATE, speech_folder, tone, write
from twofold import cli
from twofold.commands.embed import embed
from twofold.data import open_source
from twofold.encoders import ResNet, SpeechEncoder, Waves, save_encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead


def saved(path, encoder, head=None):
    save_encoder(path, encoder.eval(), head, extra={"options": {"views": {"size": 16}}})
    return path


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    torch.manual_seed(0)
    net = ResNet(10, 0.125, stem="cifar")
    return saved(tmp_path_factory.mktemp("images") / "encoder.safetensors", net, ProjectionHead(64, HeadConfig()))


@pytest.fixture(scope="module")
def of_speech(tmp_path_factory):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    return saved(tmp_path_factory.mktemp("speech") / "encoder.safetensors", net)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """train/disc, train/bar and test/...: ten images each, and one that is none."""
    root = tmp_path_factory.mktemp("photos")
    for i, (image, label) in enumerate(zip(*images(40), strict=True)):
        place = root / ("train" if i < 20 else "test") / ("bar", "disc")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:02d}.png")
    (root / "train" / "disc" / "broken.png").write_bytes(b"no image")
    return root


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_images(of_images, photos, tmp_path, capsys):
    assert cli.main(["embed", str(of_images), str(photos), "--out", str(tmp_path / "f.npz"), "--device", "cpu"]) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    found = read(tmp_path / "f.npz")
    assert found["features"].shape == (20, 64)
    assert found["features"].dtype == np.float32
    assert found["names"][0] == "train/bar/00.png"
    assert found["classes"][found["labels"]].tolist() == [name.split("/")[1] for name in found["names"]]
    assert "1 file(s) left out" in told
    assert "broken.png" in told
    with torch.no_grad():
        pixels = np.asarray(Image.open(photos / found["names"][7])).copy()
        alone = twofold.load(of_images)(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(torch.from_numpy(found["features"][7:8]), alone, rtol=1e-4, atol=1e-5)
    tested = embed(of_images, photos, tmp_path / "t.npz", features="z", **{"data.split": "test"})
    assert tested.shape == (20, 128)
    assert all(name.startswith("test/") for name in read(tested.file)["names"])


def test_sounds(of_speech, tmp_path):
    folder = speech_folder(tmp_path / "clips", 2, 3)
    write(folder / "word1" / "silent.wav", np.zeros(RATE, np.float32))
    (folder / "list.csv").write_text("path\nword0/2.wav\nword1/1.wav\n")
    done = embed(of_speech, folder, tmp_path / "f.npz", **{"data.max_skipped": 0.5})
    found = read(done.file)
    assert found["names"].tolist() == [f"word{w}/{i}.wav" for w in range(2) for i in range(3)]
    assert found["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert "1 file(s) left out" in done.text()
    assert "silent" in done.text()
    source = open_source(folder).at_rate(RATE)
    with torch.no_grad():
        alone = twofold.load(of_speech)(Waves.of([torch.from_numpy(source.read(4))]))
    torch.testing.assert_close(torch.from_numpy(found["features"][4:5]), alone, rtol=1e-4, atol=1e-5)
    listed = read(embed(of_speech, folder / "list.csv", tmp_path / "m.npz").file)
    assert listed["names"].tolist() == ["word0/2.wav", "word1/1.wav"]  # relative to the manifest
    assert "labels" not in listed


def test_arrays_have_positions_for_names(of_images, tmp_path):
    x, y = images(12)
    found = read(embed(of_images, (x, y), tmp_path / "f.npz").file)
    assert found["names"].tolist() == [str(i) for i in range(12)]
    assert found["labels"].tolist() == y.tolist()
    assert "classes" not in found


def test_what_cannot_be_done_is_told(of_images, of_speech, photos, tmp_path):
    (tmp_path / "there.npz").write_bytes(b"mine")
    recordings = write(tmp_path / "s" / "0.wav", tone()).parent
    write(recordings / "1.wav", tone(1))
    for run, data, out, options, told in (
        (of_images, photos, "there.npz", {}, "exists already"),
        (of_images, photos, "f.npy", {}, "ends in .npz"),
        (of_images, photos, "f.npz", {"batch": 0}, "--batch 0"),
        (of_images, recordings, "f.npz", {}, "holds recordings"),
        (of_speech, recordings, "f.npz", {"size": 32}, "--size 32 is for images"),
        (of_speech, recordings, "f.npz", {"features": "z"}, "holds no projection head"),
        (of_speech, photos, "f.npz", {}, "holds images"),
    ):
        with pytest.raises(UserError, match=told):
            embed(run, data, tmp_path / out, **options)
    assert (tmp_path / "there.npz").read_bytes() == b"mine"
    assert not (tmp_path / "f.npz").exists()


def test_sounds_are_not_packed(tmp_path, capsys):
    folder = speech_folder(tmp_path / "clips", 2, 2)
    assert cli.main(["shard", str(folder), "--out", str(tmp_path / "shards")]) == 2
    assert "holds recordings, and `twofold shard` packs images" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
