"""What a run makes of the user's data and module, and how it goes on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from twofold.commands.pretrain import pretrain
from twofold.encoders import adapt, load_encoder, read_header
from twofold.errors import UserError
from twofold.evaluation.monitors import hold_out

CPU = {"device": "cpu", "precision": "fp32"}
SHORT: dict[str, Any] = {"epochs": 1.0, "batch": 8, "training": CPU, "report": False}
NET = {"name": "resnet10", "width": 0.125, "stem": "cifar"}


def photos(folder: Path, count: int = 16, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"class{i % 2}" / f"{i}.bmp")  # one length, whatever is on it
    return folder


def test_files_that_hold_something_else_are_other_data(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    options = SHORT | {"encoder": NET, "views.size": 16, "data.workers": 0}
    first = pretrain(folder, tmp_path / "run", **options)
    assert pretrain(folder, tmp_path / "run", resume=True, **options).steps == first.steps
    photos(folder, seed=1)
    with pytest.raises(UserError, match=r"the data has changed .* began: .*class0.0.bmp and 15 more of 16 files"):
        pretrain(folder, tmp_path / "run", resume=True, **options)


def test_a_run_says_what_it_made_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos" / "train")
    photos(tmp_path / "photos" / "test", 8)
    options = SHORT | {"encoder": NET, "views.size": 16, "data.workers": 0}
    pretrain(tmp_path / "photos", tmp_path / "run", **options)
    told = " ".join(capsys.readouterr().out.split())  # a terminal wraps it
    assert "16 images in train, 2 classes (class0, class1); other parts: test" in told


def test_the_probe_knows_classes_that_only_queries_have(tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    labels[17] = 5
    seed = next(seed for seed in range(1000) if 17 in hold_out(labels, seed, 0.1, 5000)[1])
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    options = SHORT | {"encoder": NET, "views.size": 16, "seed": seed, "monitor.every": 1}
    row = pretrain((images, labels), tmp_path / "run", **options).metrics
    assert 0 <= row["probe_top1"] <= 1


class Flat(nn.Module):
    """Takes images of one side."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * side * side, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


def test_a_module_that_takes_one_side_is_given_that_of_the_views(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), dtype=np.uint8)
    pretrain(images, tmp_path / "run", encoder=Flat(20), **SHORT, **{"views.size": 20})
    file = tmp_path / "run" / "encoder.safetensors"
    assert read_header(file)["spec"]["size"] == 20
    assert load_encoder(file, Flat(20)).features(torch.rand(2, 3, 20, 20)).shape == (2, 6)
    with pytest.raises(UserError, match=r"Flat does not run on images of 3 channel.*at 24 px"):
        pretrain(images, tmp_path / "other", encoder=Flat(20), **SHORT, **{"views.size": 24})


def test_features_that_grow_with_the_image_are_of_one_side_and_averaged_ones_are_not() -> None:
    assert adapt(nn.Flatten(), image_size=20).input.size == 20
    assert adapt(nn.Flatten(), image_size=20).feature_dim == 1200
    free = adapt(nn.Conv2d(3, 5, 3), image_size=20)
    assert (free.input.size, free.feature_dim) == (None, 5)
