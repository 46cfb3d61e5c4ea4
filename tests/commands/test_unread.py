"""Files that cannot be read are told by every command that leaves them out, each with its reason in plain words."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from tiny import OPTIONS, images

import twofold
from sound_files import RATE, speech_folder
from twofold import cli
from twofold.encoders import SpeechEncoder, save_encoder

SHORT = {"epochs": 1, "batch": 8, "views": {"size": 16}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **OPTIONS).path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of twenty pictures, one of which is gone and one of which is none."""
    root = tmp_path_factory.mktemp("data")
    lines = []
    for i, (image, label) in enumerate(zip(*images(20, seed=2), strict=True)):
        Image.fromarray(image).save(root / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{('bar', 'disc')[label]}")
    (root / "bad.png").write_bytes(b"no picture")
    (root / "list.csv").write_text("\n".join(["path,label", *lines, "gone.png,bar", "bad.png,disc"]) + "\n")
    return root / "list.csv"


def checked(told, places):
    where = [line for line in told.splitlines() if line.startswith("  ")]
    assert "2 file(s) could not be read:" in told
    assert f"  {places / 'gone.png'}: No such file or directory" in where  # neither number nor path again
    assert f"  {places / 'bad.png'}: not an image of a format that Pillow reads" in where


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_an_evaluation_tells(run, table, protocol):
    done = twofold.evaluate(run, table, protocol=protocol, baselines=False)
    checked(done.text(), table.parent)
    document = json.loads(done.file.read_text())
    assert sorted(path.rsplit("/")[-1] for path, _ in document["skipped"]) == ["bad.png", "gone.png"]
    assert document["train"]["skipped"] == 2
    again = twofold.evaluate(run, table, protocol=protocol, baselines=False)  # from features that were kept
    checked(again.text(), table.parent)


def test_training_with_labels_tells(run, table, tmp_path):
    tuned = twofold.finetune(run, table, tmp_path / "tuned", report=False, **SHORT)
    checked(tuned.text(), table.parent)
    assert len(tuned.to_dict()["skipped"]) == 2
    assert "test images)" in tuned.text()
    student = twofold.distill(tmp_path / "tuned", table, tmp_path / "student", report=False, **SHORT)
    checked(student.text(), table.parent)


def test_nothing_is_said_where_all_can_be_read(run):
    assert "could not be read" not in twofold.evaluate(run, images(20), baselines=False).text()


def test_recordings_are_called_recordings(tmp_path, capsys):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0).eval()
    save_encoder(tmp_path / "encoder.safetensors", net)
    folder = speech_folder(tmp_path / "clips", 2, 5)
    lines = [f"word{c}/{i}.wav,{c}" for c in range(2) for i in range(5)]
    (folder / "list.csv").write_text("\n".join(["path,label", *lines, "gone.wav,0"]) + "\n")
    words = ["finetune", str(tmp_path / "encoder.safetensors"), str(folder / "list.csv"), "--epochs", "1"]
    assert cli.main([*words, "--batch", "99", "--out", str(tmp_path / "a")]) == 2
    assert "8 recordings have a label; give 1..8" in capsys.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path / "b"), "--report", "false"]) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "2 test recordings)" in told
    assert "the test recordings were scored once" in told
    assert "image" not in told
    assert "gone.wav: No such file or directory" in told
