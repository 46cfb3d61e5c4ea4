"""Both views of a batch: the whole pipeline against the reference, and the promises of addressed randomness.

Tolerance of the whole training view 4e-6: bicubic resize (1e-6) through a jitter (see test_color_views.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from view_helpers import nchw, some_images

from fidelity import agree
from golden_data import golden
from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views import ImageDraw, ImageViews, ViewsConfig, crop_resize_image, rows

DATA = golden("crop_resize.npz")
RULES: list[dict[str, Any]] = [
    {},
    {"resample": "tf2", "crop_rule": "tf", "color_rule": "tf", "blur_padding": "zero", "blur_sigma_per": "batch"},
    {"resample": "tf1", "brightness_rule": "additive", "jitter_order": "fixed", "rotation": 20.0},
    {"crop_rule": "torchvision", "color_rule": "torchvision", "blur_padding": "reflect"},
]


def views_of(size: int = 32, **options: Any) -> ImageViews:
    return ImageViews(ViewsConfig(size=size, **options))


def assert_same_draw(a: ImageDraw, b: ImageDraw) -> None:
    for field in dataclasses.fields(a):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


@pytest.mark.parametrize("case", DATA.meta["preprocess_train"], ids=lambda case: case["id"])
def test_a_training_view_equals_the_reference(case: dict[str, Any]) -> None:
    jitter = case["jitter"]
    draw = ImageDraw(
        box=torch.tensor([case["box"]]),
        flip=torch.tensor([case["flip"]]),
        angle=torch.zeros(1),
        jitter=torch.tensor([case["apply_jitter"]]),
        order=torch.tensor([jitter["order"]]),
        factors=torch.tensor([[jitter[name] for name in ("brightness", "contrast", "saturation", "hue")]]),
        gray=torch.tensor([case["apply_gray"]]),
        blur=torch.tensor([False]),
        sigma=torch.ones(1),
    )
    images = nchw(DATA[f"{case['id']}/image_u8"])
    a, b = views_of(case["height"], resample="tf2").apply(images, (draw, draw))
    agree("Training view, every draw given", a, nchw(DATA[f"{case['id']}/out"]), 4e-6)
    assert torch.equal(a, b)


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [24, 96])
def test_views_are_floats_in_range_and_the_images_stay(options: dict[str, Any], channels: int, size: int) -> None:
    views, images = views_of(size, **options), some_images(20, channels, 40, 36)
    before = images.clone()
    a, b = views.apply(images, views.draw(Key(0, 0), np.arange(20), 40, 36))
    for view in (a, b):
        assert view.shape == (20, channels, size, size)
        assert view.dtype == torch.float32
        assert 0 <= view.min() <= view.max() <= 1
    assert (a - b).abs().mean() > 0.05
    assert torch.equal(images, before)


@settings(max_examples=40, deadline=None)
@given(
    chosen=st.lists(st.integers(0, 99), min_size=1, max_size=12),
    step=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**64 - 1),
    options=st.sampled_from(RULES),
)
def test_the_draw_of_a_subset_is_the_subset_of_the_draw(
    chosen: list[int], step: int, seed: int, options: dict[str, Any]
) -> None:
    heights, widths = np.random.default_rng(0).integers(20, 60, (2, 100))
    views = views_of(**options)
    whole = views.draw(Key(seed, step), np.arange(100), heights, widths)
    part = views.draw(Key(seed, step), chosen, heights[chosen], widths[chosen])
    for some, every in zip(part, whole, strict=True):
        assert_same_draw(some, every[torch.tensor(chosen)])


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(10)), options=st.sampled_from(RULES), channels=st.sampled_from([1, 3, 4]))
def test_apply_commutes_with_permutations(order: list[int], options: dict[str, Any], channels: int) -> None:
    """2e-6, as other neighbours change the shapes, and so the order of the sums, of the matrix products."""
    views, images = views_of(**options), some_images(10, channels, 48)
    draws = views.draw(Key(0, 1), np.arange(10), 48, 48)
    permuted = views.apply(images[order], (draws[0][order], draws[1][order]))
    for got, expected in zip(permuted, views.apply(images, draws), strict=True):
        np.testing.assert_allclose(got, expected[order], rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize(("channels", "side"), [(3, 40), (1, 28), (4, 50), (3, 130)])
def test_a_batch_is_its_images_one_by_one(options: dict[str, Any], channels: int, side: int) -> None:
    """2e-6: see above. 130 pixels take the blur's other path and more than one window."""
    views, images = views_of(side, **options), some_images(14, channels, side)
    draws = views.draw(Key(5, 2), np.arange(14), side, side)
    whole = views.apply(images, draws)
    for i in range(14):
        alone = views.apply(images[i : i + 1], (draws[0][[i]], draws[1][[i]]))
        for got, expected in zip(alone, whole, strict=True):
            np.testing.assert_allclose(got[0], expected[i], rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", RULES)
def test_both_ways_to_group_the_jitter_are_one(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    views, images = views_of(**options), some_images(40)
    draws = views.draw(Key(0, 3), np.arange(40), 32, 32)
    several = torch.cat(views.apply(images, draws))
    monkeypatch.setattr(rows, "_MANY", 0)
    np.testing.assert_allclose(torch.cat(views.apply(images, draws)), several, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", RULES)
def test_crop_then_photometric_is_apply(options: dict[str, Any]) -> None:
    views, images = views_of(**options), some_images(12)
    draws = views.draw(Key(0, 0), np.arange(12), 32, 32)
    for draw, view in zip(draws, views.apply(images, draws), strict=True):
        crop = views.crop(images, draw)
        before = crop.clone()
        np.testing.assert_allclose(views.photometric(crop, draw), view, rtol=0, atol=1e-6)
        assert torch.equal(crop, before)


def test_crops_made_in_workers_are_finished_as_a_batch() -> None:
    """0.05: bytes instead of floats, through brightness, contrast and saturation of up to 1.8 each."""
    views, images = views_of(resample="antialias"), some_images(12, height=45)
    draws = views.draw(Key(0, 0), np.arange(12), 45, 45)
    crops = torch.stack(
        [
            torch.stack(
                [
                    crop_resize_image(image.permute(1, 2, 0).numpy(), box.tolist(), 32, "antialias")
                    for image, box in zip(images, draw.box, strict=True)
                ]
            )
            for draw in draws
        ]
    )
    before = crops.clone()
    for got, expected in zip(views.apply(crops, draws), views.apply(images, draws), strict=True):
        assert (got - expected).abs().mean() < 0.01
        assert (got - expected).abs().quantile(0.99) < 0.05
    assert torch.equal(crops, before)


def test_draws_follow_the_configured_distributions() -> None:
    """Shares within 5 standard deviations at 20,000 draws."""
    n = 20_000
    config = ViewsConfig(size=32, flip=0.3, jitter=0.6, grayscale=0.1, blur=0.4, color_strength=0.5, rotation=10)
    a, b = ImageViews(config).draw(Key(0, 0), np.arange(n), 32, 32)
    for name, share in {"flip": 0.3, "jitter": 0.6, "gray": 0.1, "blur": 0.4}.items():
        for draw in (a, b):
            assert abs(getattr(draw, name).double().mean() - share) < 5 * math.sqrt(share * (1 - share) / n), name
        together = (getattr(a, name) & getattr(b, name)).double().mean()
        assert abs(together - share**2) < 5 * math.sqrt(share**2 / n), name
    low, high = torch.tensor([0.6, 0.6, 0.6, -0.1]), torch.tensor([1.4, 1.4, 1.4, 0.1])
    uniform = (a.factors - low) / (high - low)
    for values in (*uniform.T, (a.sigma - 0.1) / 1.9, (a.angle + 10) / 20):
        assert 0 <= values.min() < 0.001
        assert 0.999 < values.max() <= 1
        assert abs(values.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    kinds = torch.unique(a.order, dim=0, return_counts=True)[1]
    assert len(kinds) == 24
    assert (kinds - n / 24).abs().max() < 5 * math.sqrt(n / 24)
    columns = np.column_stack([uniform, a.flip, a.jitter, a.gray, a.blur, a.sigma, a.angle, a.box, b.flip, b.box])
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    boxes = [range(10, 14), range(15, 19)]  # of one box the numbers depend on each other
    for i, j in itertools.product(range(columns.shape[1]), repeat=2):
        if not any(i in box and j in box for box in boxes):
            assert abs(correlation[i, j]) < 5 / math.sqrt(n), (i, j)


def test_additive_brightness_and_fixed_order() -> None:
    views = views_of(brightness_rule="additive", jitter_order="fixed", color_strength=2.0)
    draw, _ = views.draw(Key(0, 0), np.arange(2000), 32, 32)
    assert -1.6 <= draw.factors[:, 0].min() < -1.5
    assert 1.5 < draw.factors[:, 0].max() <= 1.6
    assert 0 <= draw.factors[:, 1].min() < 0.1  # 1 - 1.6 would invert the image
    assert (draw.order == torch.arange(4)).all()


def test_no_strength_is_no_colour() -> None:
    for strength in (0.0, -1.0):
        draw, _ = views_of(color_strength=strength).draw(Key(0, 0), np.arange(100), 32, 32)
        assert not draw.jitter.any()
        assert not draw.gray.any()


def test_one_sigma_for_a_batch_is_known_to_every_rank() -> None:
    views = views_of(blur_sigma_per="batch")
    a, b = views.draw(Key(0, 7), np.arange(8), 32, 32)
    other_rank = views.draw(Key(0, 7), np.arange(8, 16), 32, 32)
    assert a.sigma.unique().tolist() == other_rank[0].sigma.unique().tolist()
    assert len(b.sigma.unique()) == 1
    assert b.sigma[0] != a.sigma[0]
    per_image = views_of(blur_sigma_per="image").draw(Key(0, 7), np.arange(8), 32, 32)[0]
    assert len(per_image.sigma.unique()) == 8
    assert per_image.sigma[0] == a.sigma[0]


def test_a_draw_can_be_cut_and_joined() -> None:
    a, b = views_of().draw(Key(0, 0), np.arange(10), 32, 32)
    assert len(ImageDraw.cat([a, b])) == 20
    assert_same_draw(ImageDraw.cat([a[:4], a[4:]]), a)
    assert_same_draw(ImageDraw.cat([a[[3, 1]], b[torch.tensor([2])]])[2:], b[[2]])
    assert_same_draw(a.to("cpu"), a)


def test_grey_images_are_grey_and_one_channel_is_left_alone() -> None:
    views = views_of(jitter=0.0, grayscale=1.0, blur=0.0)
    for channels in (1, 3, 4):
        images = some_images(6, channels)
        draws = views.draw(Key(0, 0), np.arange(6), 32, 32)
        a, _ = views.apply(images, draws)
        spread = (a.amax(1) - a.amin(1)).max()
        assert spread == 0 if channels == 3 else torch.equal(a, as_cropped(views, images, draws[0]))


def as_cropped(views: ImageViews, images: Tensor, draw: ImageDraw) -> Tensor:
    crop = views.crop(images, draw).clamp(0, 1)
    return torch.where(draw.flip[:, None, None, None], crop.flip(3), crop)


def test_autocast_and_layout_do_not_matter() -> None:
    views, images = views_of(96), some_images(6, height=96)
    draws = views.draw(Key(0, 0), np.arange(6), 96, 96)
    expected = torch.cat(views.apply(images, draws))
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(torch.cat(views.apply(images, draws)), expected, rtol=0, atol=1e-6)
    other = images.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(torch.cat(views.apply(other, draws)), expected, rtol=0, atol=1e-6)
    crop = views.crop(images, draws[0]).to(memory_format=torch.channels_last)
    assert views.photometric(crop, draws[0]).is_contiguous()


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"flip": 1.5},
        {"jitter": -0.1},
        {"crop_area": (0.5, 0.2)},
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.01, 0.05)},
        {"crop_aspect": (0.0, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
        {"jitter_ranges": (0.8, 0.8, 0.8)},
        {"resample": "nearest"},
        {"crop_rule": "TF"},
        {"rotation": -1.0},
    ],
)
def test_impossible_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"views\.{next(iter(options))} = .* will not do: give"):
        ViewsConfig(**options)


def test_the_size_must_be_known() -> None:
    with pytest.raises(UserError, match=r"views\.size is not set"):
        ImageViews(ViewsConfig())
    assert ViewsConfig(crop_area=(0.01, 0.05), crop_rule="torchvision").crop_area == (0.01, 0.05)
