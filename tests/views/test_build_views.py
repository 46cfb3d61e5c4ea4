"""The views that options ask for: operators by name and parameters, on one view or both, with a crop shared or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from view_helpers import some_images

from twofold.errors import UserError
from twofold.randomness import Key
from twofold.runs.config import build
from twofold.views import OPERATORS, ImageViews, StudyViews, ViewsConfig, build_views
from twofold.views.studies.operators import Cutout, Noise

FIGURE_5: dict[str, Any] = {"operators_on": "first", "shared_crop": True, "color_strength": 0.0, "blur": 0.0}


def views_of(**options: Any) -> ImageViews:
    return build_views(build({"views": {"size": 24, **options}}).views)


def test_simclr_s_views_unless_a_study_is_asked_for() -> None:
    assert type(views_of()) is ImageViews
    assert isinstance(views_of(shared_crop=True), StudyViews)
    assert isinstance(views_of(operators=["sobel"]), StudyViews)


def test_operators_take_parameters() -> None:
    views = views_of(operators=["cutout", {"name": "noise", "sigma": [0, 0.5], "probability": 0.25}])
    assert isinstance(views, StudyViews)
    assert views.operators == [Cutout(), Noise(0.25, (0.0, 0.5))]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("channels", [1, 3])
def test_on_the_first_view_alone_with_one_crop_for_both(name: str, channels: int) -> None:
    """Figure 5: what the first view is made of is the second view."""
    images = some_images(40)[:, :channels]
    views = views_of(operators=[name], **FIGURE_5)
    a, b = views.apply(images, views.draw(Key(0, 0), np.arange(len(images)), *images.shape[2:]))
    plain = views_of(shared_crop=True, color_strength=0.0, blur=0.0)
    c, d = plain.apply(images, plain.draw(Key(0, 0), np.arange(len(images)), *images.shape[2:]))
    assert torch.equal(c, d)
    assert torch.equal(b, d)
    if channels == 3 or name != "drop":  # grey images have no colour to lose
        assert not torch.equal(a, b)
    assert a.shape == b.shape == (len(images), channels, 24, 24)


def test_on_both_views_with_crops_of_their_own() -> None:
    images = some_images(8)
    views = views_of(operators=[{"name": "cutout", "side": 1.0, "fill": 0.5}], color_strength=0.0, blur=0.0)
    first, second = views.draw(Key(0, 0), np.arange(8), *images.shape[2:])
    assert not torch.equal(first.box, second.box)
    for view in views.apply(images, (first, second)):
        assert bool(((view - 0.5).abs() < 1e-6).flatten(1).any(1).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operators": ["sobble"]}, ["views.operators", "sobble", "sobel"]),
        ({"operators": [{"name": "cutout", "size": 2}]}, ["views.operators", "cutout", "size", "side"]),
        ({"operators": [{"side": 0.5}]}, ["views.operators", "None", "cutout"]),
        ({"operators": [{"name": "cutout", "side": "big"}]}, ["cutout", "side", "big", "numbers"]),
        ({"operators": [{"name": "cutout", "side": [0.1, 0.2]}]}, ["cutout", "side", "numbers"]),
        ({"operators": [{"name": "noise", "sigma": 0.5}]}, ["noise", "sigma", "0.5", "range"]),
        ({"operators": [{"name": "noise", "sigma": [0.5, 0.1]}]}, ["noise", "sigma", "range"]),
        ({"operators": [{"name": "crop", "rule": "keras"}]}, ["crop", "rule", "keras", "torchvision"]),
        ({"operators": [{"name": "crop", "area": [0.01, 0.05]}]}, ["crop", "area", "0.1"]),
        ({"operators": [{"name": "crop", "area": [0, 1]}]}, ["crop", "area", "(0, 1]"]),
        ({"operators": [{"name": "sobel", "probability": 2}]}, ["probability", "2"]),
        ({"operators_on": "first"}, ["views.operators_on", "first", "views.operators"]),
        ({"operators": ["sobel"], "operators_on": "second"}, ["operators_on", "second", "first"]),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build({"views": options})
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_help_lists_every_operator() -> None:
    import inspect

    text = inspect.getsource(ViewsConfig).split("operators: tuple")[1].split("operators_on")[0]
    assert all(name in text for name in OPERATORS)
