"""Crops that share nothing are told before a run, by what is drawn; by chance alone, and nothing else is warned of."""

import numpy as np
import pytest
from tiny import OPTIONS, images

import twofold
from twofold.views.config import ViewsConfig
from twofold.views.overlap import overlapping, told_apart


def of_squares(share, side=100_000):
    """The share by counting: two squares of this share of a square, each anywhere in it."""
    edge = np.sqrt(share) * side
    places = np.random.default_rng(0).uniform(0, side - edge, (200_000, 2, 2))
    return (np.abs(places[:, 0] - places[:, 1]) < edge).all(axis=1).mean()


@pytest.mark.parametrize("share", [0.005, 0.05, 0.2])
def test_the_share_is_that_of_squares_drawn_by_hand(share):
    views = ViewsConfig(crop_rule="torchvision", crop_area=(share, share), crop_aspect=(1.0, 1.0))
    assert overlapping(views, 1000, 1000) == pytest.approx(of_squares(share), abs=0.03)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (224, 224), (480, 640), (60, 100)])
@pytest.mark.parametrize("rule", ["tf", "torchvision"])
def test_usual_crops_are_left_in_peace(size, rule):
    for area in ((0.08, 1.0), (0.2, 1.0), (0.3, 1.0), (0.14, 1.0), (0.05, 0.14)):
        assert told_apart(ViewsConfig(crop_rule=rule, crop_area=area), *size) == "", area
    assert told_apart(ViewsConfig(crop_rule="torchvision", crop_area=(0.003, 0.004), shared_crop=True), *size) == ""


@pytest.mark.parametrize("area", [(0.003, 0.004), (0.01, 0.01), (0.005, 0.03)])
def test_crops_that_share_nothing_are_told(area):
    text = told_apart(ViewsConfig(crop_rule="torchvision", crop_area=area), 64, 64)
    assert f"--views.crop_area {list(area)}" in text
    assert "of 64x64" in text


def test_a_run_says_it_once_before_its_first_step(tmp_path, capsys):
    views = {"size": 16, "crop_rule": "torchvision", "crop_area": [0.01, 0.02]}
    pictures, _ = images(32, 16)
    twofold.pretrain(pictures, tmp_path / "run", report=False, **(OPTIONS | {"views": views}))
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("have a pixel in common") == 1
    assert out.index("have a pixel in common") < out.index("step ")
    twofold.pretrain(pictures, tmp_path / "usual", report=False, **OPTIONS)
    assert "in common" not in capsys.readouterr().out
