"""What a classifier was fitted on is told apart from what is new, whose share of right answers alone counts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import OPTIONS, encoder_file, images

import twofold
from sound_files import RATE, speech_folder, tone, write
from twofold import cli
from twofold.data import DataConfig, content, open_source
from twofold.data.content import example_digests, labelled_digests
from twofold.data.sources.subset import subset
from twofold.encoders import SpeechEncoder, load_part, save_encoder
from twofold.errors import UserError
from twofold.evaluation import predictor


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


def folder(root, n, seed):
    for i, (image, label) in enumerate(zip(*images(n, seed=seed), strict=True)):
        place = root / ("bar", "disc")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{seed}-{i:02d}.png")
    return root


def test_the_share_of_right_answers_is_of_new_files(file, tmp_path, capsys):
    photos = folder(tmp_path / "photos", 20, 2)
    kept = twofold.evaluate(file, photos, keep_classifier=True).kept_in
    own = twofold.predict(kept, photos)
    assert all(row.learned for row in own.rows)
    assert set(own.metrics) == {"top1"}
    told = f"fitted on all 20 of these with a class of their own: that {own.metrics['top1']:.2%} are as it says"
    assert told in own.text()
    # moved and renamed it is the same file; one that is saved anew is another
    mixed = tmp_path / "mixed"
    (mixed / "bar").mkdir(parents=True)
    (mixed / "disc").mkdir()
    for i, path in enumerate(sorted((photos / "bar").iterdir())[:3]):
        (mixed / "bar" / f"renamed{i}.png").write_bytes(path.read_bytes())
    folder(mixed, 8, 5)
    wrong = next((mixed / "disc").glob("5-*"))
    wrong.rename(mixed / "bar" / wrong.name)  # a wrong answer at last
    out = tmp_path / "p.csv"
    assert cli.main(["predict", str(kept), str(mixed), "--out", str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr().out.replace("\n", "")
    rows = list(csv.DictReader(out.open()))
    assert {row["name"] for row in rows if row["learned"] == "True"} == {f"bar/renamed{i}.png" for i in range(3)}
    new = [row["label"] == row["given"] for row in rows if row["learned"] == "False"]
    assert len(new) == 8
    assert 0 < np.mean(new) < 1
    assert f"fitted on 3 of these files; of the 8 others with a class of their own {np.mean(new):.2%} are as it" in told
    again = twofold.predict(kept, mixed)
    assert again.metrics["top1_new"] == pytest.approx(np.mean(new))
    assert again.metrics["top1"] == pytest.approx(
        np.mean([*new, *(row.label == row.given for row in again.rows if row.learned)])
    )
    assert "fitted on" not in twofold.predict(kept, folder(tmp_path / "new", 6, 9)).text()


def test_what_was_held_out_from_a_fine_tuning_is_new(tmp_path):
    run = twofold.pretrain(images(), tmp_path / "base", report=False, **OPTIONS | {"epochs": 1}).path
    photos = folder(tmp_path / "photos", 20, 2)
    twofold.finetune(run, photos, out=tmp_path / "tuned", epochs=1, batch=8, **{"training.device": "cpu"})
    rows = twofold.predict(tmp_path / "tuned", photos).rows
    assert [row.learned for row in rows].count(True) == 16
    assert [row.learned for row in rows].count(False) == 4


def test_a_file_that_does_not_say_is_not_trusted(file, monkeypatch):
    monkeypatch.setattr(content, "READ_WHOLE", 0)
    x, y = images(20, seed=2)
    kept = twofold.evaluate(file, (x, y), keep_classifier=True).kept_in
    assert "learned" not in load_part(kept, "prediction").tensors
    result = twofold.predict(kept, (x, y))
    assert {row.learned for row in result.rows} == {None}
    assert "of the 20 with a class of their own as it says, it may have been fitted on some of them" in result.text()


def test_arrays_by_their_pixels_and_recordings_by_their_files(file, tmp_path):
    x, y = images(20, seed=2)
    y[:4] = -1  # without a label: not fitted on
    kept = twofold.evaluate(file, (x, y), keep_classifier=True).kept_in
    assert [row.learned for row in twofold.predict(kept, (x, y)).rows] == [False] * 4 + [True] * 16
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    save_encoder(tmp_path / "encoder.safetensors", net.eval())
    clips = speech_folder(tmp_path / "clips", 2, 6)
    kept = twofold.evaluate(tmp_path / "encoder.safetensors", clips, keep_classifier=True).kept_in
    write(clips / "word0" / "new.wav", tone(300.0))
    rows = twofold.predict(kept, clips).rows
    assert [row.name for row in rows if row.learned is False] == ["word0/new.wav"]
    assert sum(row.learned is True for row in rows) == 12


def test_digests_of_parts_pieces_and_what_cannot_be_read(tmp_path):
    photos = folder(tmp_path / "photos", 12, 2)
    whole = open_source(photos, DataConfig())
    digests = example_digests(whole, np.arange(12))
    assert len(set(digests.tolist())) == 12
    part = subset(whole, [3, 5])
    np.testing.assert_array_equal(labelled_digests(part), digests[[3, 5]])
    tiles = open_source(photos, DataConfig(tile=8))
    np.testing.assert_array_equal(example_digests(tiles, np.arange(len(tiles))), digests.repeat(4))
    broken = [whole.path(2), whole.path(7)]
    for path in broken:
        Path(path).unlink()
    now = example_digests(whole, np.arange(12))
    assert set(np.flatnonzero(now != digests).tolist()) == {2, 7}
    assert now[2] != now[7]
    assert len(example_digests(whole, np.arange(0))) == 0


def test_test_examples_among_the_training_ones_are_told(file, tmp_path, capsys):
    photos = folder(tmp_path / "photos", 20, 2)
    test = folder(tmp_path / "test", 8, 7)
    twofold.evaluate(file, photos, test=test, protocol="knn", baselines=False)
    assert "byte for byte" not in capsys.readouterr().out
    (test / "bar" / "same.png").write_bytes(next((photos / "bar").iterdir()).read_bytes())
    twofold.evaluate(file, photos, test=test, protocol="knn", baselines=False)
    told = capsys.readouterr().out.replace("\n", " ")
    assert "warning: 1 of 9 test images is among the training images, byte for byte" in told
    twofold.evaluate(file, photos, test=photos, protocol="knn", baselines=False)
    assert "warning: 20 of 20 test images are among the training images" in capsys.readouterr().out.replace("\n", " ")


def test_damaged_digests_are_refused(file, monkeypatch):
    x, y = images(20, seed=2)
    kept = twofold.evaluate(file, (x, y), keep_classifier=True).kept_in
    part = load_part(kept, "prediction")
    part.tensors["learned"] = part.tensors["learned"].float()
    monkeypatch.setattr(predictor, "load_part", lambda _, name: part if name == "prediction" else None)
    with pytest.raises(UserError, match="digests"):
        twofold.predict(kept, x)
