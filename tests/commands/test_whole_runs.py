"""A report, a print or the name of a file never fails a run that is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import twofold
from twofold.commands import pretrain as command
from twofold.encoders import adapt, load_encoder
from twofold.errors import UserError
from twofold.text import printable

CPU = {"device": "cpu", "precision": "fp32"}
SHORT: dict[str, Any] = {"epochs": 1.0, "batch": 8, "training": CPU, "views.size": 16}
NET = {"name": "resnet10", "width": 0.125, "stem": "cifar"}


def pixels(channels: int = 3, count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, channels), dtype=np.uint8)


def test_what_steers_a_terminal_or_cannot_be_encoded_is_escaped() -> None:
    assert printable("a\x1b[31m\x9b1m\udce9é\n\t[b]\u3000") == "a\\x1b[31m\\x9b1m\\udce9é\n\t[b]\u3000"


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_images_of_any_number_of_channels_have_a_report(channels: int, tmp_path: Path) -> None:
    result = twofold.pretrain(pixels(channels), tmp_path / "run", encoder=NET, **SHORT)
    assert result.page is not None
    assert result.page.exists()


def test_a_loaded_encoder_is_trained_on_and_resumed(tmp_path: Path) -> None:
    twofold.pretrain(pixels(), tmp_path / "first", encoder=NET, report=False, **SHORT)
    for _ in range(2):
        encoder = twofold.load(tmp_path / "first")
        result = twofold.pretrain(pixels(), tmp_path / "on", encoder=encoder, resume=True, **SHORT)
        assert result.page is not None
    own = adapt(Flat(), size=16)
    twofold.pretrain(pixels(), tmp_path / "own", encoder=own, **SHORT)
    again = load_encoder(tmp_path / "own" / "encoder.safetensors", own)
    assert twofold.pretrain(pixels(), tmp_path / "more", encoder=again, **SHORT).page is not None


def Flat() -> Any:
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8))


def test_without_a_page_the_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_args: Any, **_more: Any) -> Path:
        raise ZeroDivisionError("no picture")

    monkeypatch.setattr(command, "write_run_report", fails)
    result = twofold.pretrain(pixels(), tmp_path / "run", encoder=NET, **SHORT)
    assert (result.page, result.encoder_file.exists()) == (None, True)
    assert "no report: ZeroDivisionError: no picture; the run itself is whole" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["[red]x", "\x1b[31mred", os.fsdecode(b"caf\xe9")])
def test_names_of_files_are_shown_and_change_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    for i, image in enumerate(pixels()):
        place = folder / f"{name}{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{name}{i}.png")
    (place / f"bad{name}.png").write_bytes(b"no image")
    options = {"data": {"workers": 0}}
    result = twofold.pretrain(folder, tmp_path / "run", encoder=NET, **SHORT, **options)
    assert result.page is not None
    assert os.fsencode(name) in (result.path / "skipped.tsv").read_bytes()
    scores = twofold.evaluate(result.path, folder, **options)
    assert 0 <= scores.metrics["top1"] <= 1
    tuned = twofold.finetune(result.path, folder, tmp_path / "tuned", epochs=1, **{"training.device": "cpu"}, **options)
    assert 0 <= tuned.metrics["top1"] <= 1
    twofold.embed(result.path, folder, tmp_path / "features.npz", **options)
    assert name in str(np.load(tmp_path / "features.npz")["names"][0])
    shown = capsys.readouterr().out
    assert printable(name) in shown
    assert "\x1b[31m" not in shown


def test_a_folder_that_libraries_cannot_open_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a name that is not UTF-8"):
        twofold.pretrain(pixels(), tmp_path / os.fsdecode(b"caf\xe9"), encoder=NET, **SHORT)
