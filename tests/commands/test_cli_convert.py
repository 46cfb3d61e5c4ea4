"""Checkpoint to number through the shell: convert, then evaluate --protocol imagenet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

from simclr_files import write_small


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A narrow net of 10 classes, as the official code would save it after fine-tuning."""
    write_small(tmp_path / "checkpoint", step=751)
    return tmp_path / "checkpoint"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(10):
        (tmp_path / "val" / f"n{k:08d}").mkdir(parents=True)
        pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val" / f"n{k:08d}" / "image.png")
    return tmp_path / "val"


def test_two_commands(checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "net")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "TF1 checkpoint: ResNet-18 0.125x, cifar stem" in said
    assert "fine-tuned on 1 % of the labels" in said
    assert (tmp_path / "net" / "conversion.json").exists()
    assert main(["evaluate", str(tmp_path / "net"), str(images), "--protocol", "imagenet"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "top-1" in said
    assert "10 images of 10 classes" in said
    assert "classifier on output 1 of the projection head" in said
    assert len(list((tmp_path / "net" / "evaluations").glob("imagenet-*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "ema"], "--weights ema: "),
        (["--weights", "best"], "weights"),
        (["--classifier-layer", "9"], "cannot read output 9 (given)"),
        (["--widths", "2"], "there is no option '--widths'"),
    ],
)
def test_mistakes_in_convert(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "net"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "net").exists()


def test_no_out(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(checkpoint)]) == 2
    assert "--out is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "imagenet", "--k", "3"], "--k 3 has no effect with --protocol imagenet"),
        (["--protocol", "imagenet", "--data.split", "val"], "--data.split val has no effect with --protocol imagenet"),
        (["--protocol", "imagenet", "--test", "x"], "--test x has no effect with --protocol imagenet"),
        (
            ["--protocol", "knn", "--classifier_layer", "1"],
            "--classifier_layer 1 has no effect with --protocol knn: leave it out, or choose imagenet",
        ),
    ],
)
def test_options_that_do_not_belong(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "net")]) == 0
    assert main(["evaluate", str(tmp_path / "net"), str(images), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_other_protocols_know_the_size(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A converted encoder says which images its net was trained on."""
    for folder in images.iterdir():
        pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image.png")
        Image.fromarray(pixels // 2).save(folder / "other.png")
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "net")]) == 0
    assert (
        main(["evaluate", str(tmp_path / "net"), str(images), "--protocol", "knn", "--held_out", "0.5", "--k", "3"])
        == 0
    )
    assert "resized to 32 x 32 (tf1)" in " ".join(capsys.readouterr().out.split())


def test_options_of_the_data_stand_beside_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder and the group of options are both called data."""
    for command in (["pretrain", "nowhere", "--out", str(tmp_path / "run")], ["evaluate", str(tmp_path), "nowhere"]):
        assert main([*command, "--data.split", "val"]) == 2
        said = capsys.readouterr().err
        assert "nowhere" in said or "holds no encoder.safetensors" in said
    assert main(["pretrain"]) == 2
    assert "required: data" in capsys.readouterr().err
