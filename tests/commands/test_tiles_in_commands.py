"""Every command reads the tiles that the encoder was trained on, and says of what files they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny import OPTIONS

import twofold
from twofold import cli
from twofold.commands.distill import distill
from twofold.commands.embed import embed
from twofold.commands.finetune import finetune
from twofold.commands.labels import labels
from twofold.commands.shard import shard
from twofold.data import DataConfig, open_source
from twofold.errors import UserError

READ = {"data.workers": 0}
SHORT = {"epochs": 1, "batch": 8, "training.device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 32 x 48 pixels: fine stripes and dots, that tiles of 16 show as well."""
    root, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for i in range(count):
            pixels = rng.integers(0, 80, (32, 48, 3)).astype(np.uint8)
            pixels[(slice(None), slice(None, None, 8)) if i % 2 else (slice(None, None, 5), slice(None, None, 5))] = 255
            path = root / part / ("dots", "bars")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    options = OPTIONS | {"epochs": 1, "batch": 8, "monitor": {"every": 0}, "data": {"tile": 16, "workers": 0}}
    return twofold.pretrain(folder, tmp_path_factory.mktemp("runs") / "tiles", **options).path


def test_pretraining_says_how_many_there_are(folder, tmp_path, capsys):
    words = ["--epochs", "1", "--batch", "8", "--encoder.name", "resnet10", "--encoder.width", "0.125"]
    words += ["--data.tile", "16", "--data.workers", "0", "--training.device", "cpu", "--views.size", "16"]
    assert cli.main(["pretrain", str(folder), "--out", str(tmp_path / "run"), *words]) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "10 files, 60 tiles" in told
    assert told.index("10 files, 60 tiles") < told.index("chosen for 60 images of about 16x16")
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_evaluation_reads_tiles(folder, run):
    result = twofold.evaluate(run, folder, protocol="knn", k=3, **READ)
    assert "10 files, 60 tiles" in result.words
    assert "24 test images" in result.text()
    whole = twofold.evaluate(run, folder, protocol="knn", k=3, **READ, **{"data.tile": None})
    assert "4 test images" in whole.text()
    assert "tiles" not in whole.words


def test_embed_names_tiles_and_means_files(folder, run, tmp_path):
    embed(run, folder, tmp_path / "tiles.npz", **READ)
    told = embed(run, folder, tmp_path / "files.npz", per_file=True, **READ).text()
    tiles, files = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("tiles", "files"))
    assert tiles["names"][:4].tolist() == [f"train/bars/1.png#{x},{y}" for y, x in ((0, 0), (0, 16), (0, 32), (16, 0))]
    assert files["names"].tolist() == [name.split("#")[0] for name in tiles["names"][::6]]
    np.testing.assert_allclose(files["features"], tiles["features"].reshape(10, 6, -1).mean(1), rtol=1e-5, atol=1e-6)
    assert files["labels"].tolist() == [0] * 5 + [1] * 5
    assert "10 files, 60 tiles" in told
    with pytest.raises(UserError, match="--per_file is for tiles and frames"):
        embed(run, folder, tmp_path / "none.npz", per_file=True, **READ, **{"data.tile": None})


def test_training_on_labels_reads_tiles(folder, run, tmp_path, capsys):
    tuned = finetune(run, folder, tmp_path / "tuned", **SHORT, **READ)
    assert "(60 labels, 24 test images)" in tuned.text()
    assert "10 files, 60 tiles" in tuned.text()
    small = {"encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"}}
    taught = distill(tmp_path / "tuned", folder, tmp_path / "student", **SHORT, **READ, **small)
    assert "on 24 images" in taught.text()
    assert "10 files, 60 tiles" in capsys.readouterr().out.replace("\n", " ")
    curve = labels(run, folder, out=str(tmp_path / "labels"), counts=[8], epochs=1, batch=8, draws=1, **READ)
    tiles = open_source(folder, DataConfig(tile=16, channels=3, split="test"))
    assert tiles.fingerprint() in curve.file.read_text()


def test_packed_tiles_train_as_they_do_in_files(folder, run, tmp_path):
    shard(folder, tmp_path / "packed", **{"data.tile": 16})
    packed = open_source(tmp_path / "packed")
    assert len(packed) == 60
    assert len(set(packed.groups)) == 10
    plain = twofold.evaluate(run, folder, protocol="knn", k=3, **READ)
    assert twofold.evaluate(run, tmp_path / "packed", protocol="knn", k=3, **READ).scores == plain.scores
