"""The study operators against Pillow, numpy, scipy and their definitions; the protocol of figure 5.

Tolerance 1e-6 unless a test says otherwise: sums of a few products of float32 numbers in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy import ndimage, stats
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from view_helpers import some_images

from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views import OPERATORS, ImageDraw, ImageViews, Operator, StudyDraw, StudyViews, ViewsConfig, left_out
from twofold.views.studies import operators as ops
from twofold.views.studies.operators import make_operator

TOLERANCE = 1e-6
BARE = ViewsConfig(size=32, color_strength=0.0, blur=0.0)
ROWS = np.arange(24)


def draw_and_apply(operator: Operator, x: torch.Tensor, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = operator.draw(Key(0, step), "a/0", np.arange(len(x)), x.shape[2])
    return drawn, operator.apply(x, drawn)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_operators_keep_shape_range_and_input(name: str, channels: int) -> None:
    x = some_images(12, channels) / 255
    before = x.clone()
    if name == "autoaugment" and channels == 4:
        with pytest.raises(UserError, match="1 or 3 channels, and these have 4"):
            draw_and_apply(OPERATORS[name](), x)
        return
    drawn, out = draw_and_apply(OPERATORS[name](), x)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(x, before)
    grey_or_one_channel = name in ("drop",) and channels != 3
    assert torch.equal(out, x) == grey_or_one_channel
    assert drawn.dtype == torch.float32


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.integers(0, 23), min_size=1, max_size=8))
def test_a_rows_result_does_not_depend_on_the_other_rows(name: str, rows: list[int]) -> None:
    x, operator = some_images(24) / 255, OPERATORS[name](probability=0.7)
    whole = operator.draw(Key(0, 1), "a", ROWS, 32)
    part = operator.draw(Key(0, 1), "a", np.array(rows), 32)
    assert torch.equal(part, whole[rows])
    np.testing.assert_allclose(operator.apply(x[rows], part), operator.apply(x, whole)[rows], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_probability_is_the_share_of_changed_images(name: str) -> None:
    x = some_images(400, height=20, seed=3)[1:] / 255
    drawn, out = draw_and_apply(OPERATORS[name](probability=0.25), x)
    untouched = (out == x).flatten(1).all(1)
    assert untouched[drawn[:, 0] == 0].all()
    assert abs(drawn[:, 0].mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 399)
    assert draw_and_apply(OPERATORS[name](probability=0.0), x)[1] is x
    with pytest.raises(UserError, match="probability = 2"):
        OPERATORS[name](probability=2)


def test_equalize_and_solarize_are_pillows() -> None:
    images = some_images(8, height=25)
    images[1] = 77  # one level
    images[2, 0, :, :12] = 255
    x = images / 255
    for operator, pillow in (
        (ops.Equalize(), ImageOps.equalize),
        (ops.Solarize(threshold=(0.5, 0.5)), ImageOps.solarize),
    ):
        expected = [np.asarray(pillow(Image.fromarray(i.permute(1, 2, 0).numpy()))) for i in images]
        got = draw_and_apply(operator, x)[1].permute(0, 2, 3, 1) * 255
        np.testing.assert_allclose(got, np.stack(expected), rtol=0, atol=1e-4)  # 255 times 4e-7


def test_sobel_is_the_gradients_magnitude() -> None:
    x = some_images(4)[1:] / 255
    _, out = draw_and_apply(ops.Sobel(), x)
    for image, got in zip(x.numpy(), out, strict=True):
        gradients = [[ndimage.sobel(channel, axis, mode="nearest") for axis in (0, 1)] for channel in image]
        magnitude = np.array([np.hypot(*pair) for pair in gradients])
        np.testing.assert_allclose(got, magnitude / magnitude.max(), rtol=0, atol=TOLERANCE)


def test_rotation_is_by_quarter_turns_each_as_often() -> None:
    x = some_images(2000, height=6) / 255
    drawn, out = draw_and_apply(ops.Rotate(), x)
    counts = np.bincount(drawn[:, 1].long(), minlength=4)
    assert (np.abs(counts - 500) < 5 * math.sqrt(500)).all()
    for image, got, turns in zip(x[:50], out, drawn[:, 1], strict=False):
        assert np.array_equal(got, np.rot90(image.numpy(), int(turns), (1, 2)))


def test_cutout_hides_one_square_around_its_centre() -> None:
    x = torch.rand(500, 3, 32, 32) * 0.4  # never the fill
    drawn, out = draw_and_apply(ops.Cutout(side=0.5), x)
    hidden = (out == 0.5).all(1)
    assert torch.equal(torch.where(hidden[:, None], x, out), x)
    for mask, row in zip(hidden[:100], drawn, strict=False):
        top, left = (int(row[1 + axis] * 32) - 8 for axis in (0, 1))
        expected = torch.zeros(32, 32, dtype=torch.bool)
        expected[max(top, 0) : top + 16, max(left, 0) : left + 16] = True
        assert torch.equal(mask, expected)
    assert hidden.float().mean(0).std() < 0.2  # centres are everywhere


def test_noise_is_normal_white_and_addressed() -> None:
    x = torch.full((60, 3, 32, 32), 0.5)
    operator = ops.Noise(sigma=(0.05, 0.05))
    drawn, out = draw_and_apply(operator, x)
    noise = ((out - 0.5) / 0.05).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").statistic < 1.95 / math.sqrt(noise.numel())  # 0.1 % point
    assert abs(noise.mean(0)).max() < 5.5 / math.sqrt(60)
    flat = noise.flatten(1)
    assert np.abs(np.corrcoef(flat.numpy()) - np.eye(60)).max() < 6 / math.sqrt(flat.shape[1])
    assert abs((flat[:, 1:] * flat[:, :-1]).mean()) < 5 / math.sqrt(flat.numel())
    assert torch.equal(operator.apply(x, drawn), out)
    assert not torch.equal(draw_and_apply(operator, x, step=1)[1], out)
    spread = (draw_and_apply(ops.Noise(), x)[1] - 0.5).flatten(1).std(1)
    assert spread.min() < 0.02
    assert 0.08 < spread.max() < 0.105


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_is_torchvisions_and_leaves_its_generator_alone(policy: str) -> None:
    x = some_images(6)
    drawn = make_operator({"name": "autoaugment", "policy": policy}).draw(Key(0, 0), "a/0", np.arange(6), 32)
    torch.manual_seed(5)
    out = make_operator({"name": "autoaugment", "policy": policy}).apply(x / 255, drawn)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    change = AutoAugment(AutoAugmentPolicy(policy))
    for i in range(6):
        torch.manual_seed(int(drawn[i, 1]) << 24 | int(drawn[i, 2]))
        assert torch.equal((out[i] * 255).round(), change(x[i].to(torch.uint8)).float())


def test_motion_blur_smears_along_its_direction_and_keeps_the_sum() -> None:
    x = torch.zeros(6, 1, 41, 41)
    x[:, :, 20, 20] = 1
    operator = ops.MotionBlur(length=0.2)
    drawn, out = draw_and_apply(operator, x)
    np.testing.assert_allclose(out.sum((1, 2, 3)), 1, atol=1e-5)
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    for image, angle in zip(out[:, 0], drawn[:, 1], strict=True):
        along = rows * angle.sin() + columns * angle.cos()
        across = rows * angle.cos() - columns * angle.sin()
        assert (image * along**2).sum() > 4  # a line of half length 4: 16 / 3
        assert (image * across**2).sum() < 0.5
    flat = torch.full((3, 3, 20, 20), 0.3)
    np.testing.assert_allclose(draw_and_apply(operator, flat)[1], 0.3, atol=TOLERANCE)


def test_jitter_and_drop_and_blur_are_the_pipelines() -> None:
    x = some_images(40) / 255
    views = ImageViews(ViewsConfig(size=32, flip=0.0))
    plain, _ = views.draw(Key(0, 0), np.arange(40), 32, 32)
    never = dataclasses.replace(plain, flip=plain.flip & False, blur=plain.blur & False, gray=plain.gray & False)
    drawn, out = draw_and_apply(ops.ColorJitter(), x)
    order, factors = drawn[:, 1:5].long(), drawn[:, 5:]
    same = dataclasses.replace(never, jitter=~never.jitter | True, order=order, factors=factors)
    np.testing.assert_allclose(out, views.photometric(x, same), rtol=0, atol=TOLERANCE)
    drop = dataclasses.replace(never, jitter=never.jitter & False, gray=~never.gray | True)
    np.testing.assert_allclose(
        draw_and_apply(ops.ColorDrop(), x)[1], views.photometric(x, drop), rtol=0, atol=TOLERANCE
    )
    drawn, out = draw_and_apply(ops.Blur(), x)
    soft = dataclasses.replace(never, jitter=never.jitter & False, blur=~never.blur | True, sigma=drawn[:, 1])
    np.testing.assert_allclose(out, views.photometric(x, soft), rtol=0, atol=TOLERANCE)


def test_figure_5_shares_the_crop_and_leaves_one_branch_alone() -> None:
    views, images = StudyViews(BARE, ["rotate", "cutout"]), some_images(24, height=40)
    draws = views.draw(Key(0, 0), ROWS, 40, 40)
    a, b = views.apply(images, draws)
    assert torch.equal(draws[0].box, draws[1].box)
    assert torch.equal(draws[0].flip, draws[1].flip)
    plain = ImageViews(BARE)
    draw, _ = plain.draw(Key(0, 0), ROWS, 40, 40)
    expected, _ = plain.apply(images, (draw, draw))
    np.testing.assert_allclose(b, expected, rtol=0, atol=TOLERANCE)
    first = draws[0].operators
    by_hand = ops.Cutout().apply(ops.Rotate().apply(b, first[:, :2]), first[:, 2:])
    np.testing.assert_allclose(a, by_hand, rtol=0, atol=TOLERANCE)
    other_order, _ = StudyViews(BARE, ["cutout", "rotate"]).apply(
        images, StudyViews(BARE, ["cutout", "rotate"]).draw(Key(0, 0), ROWS, 40, 40)
    )
    assert not torch.equal(a, other_order)


def test_operators_can_extend_the_usual_pipeline_on_both_branches() -> None:
    policy = [ops.Sobel(0.1), ops.Equalize(0.2), ops.Solarize(0.2), ops.MotionBlur(0.3)]
    views = StudyViews(ViewsConfig(size=32), policy, branch="both", shared_crop=False)
    a, b = views.draw(Key(0, 0), np.arange(300), 40, 40)
    assert not torch.equal(a.box, b.box)
    for draw in (a, b):
        shares = draw.operators[:, [0, 1, 2, 4]].mean(0)  # Solarize has a threshold beside it
        np.testing.assert_allclose(shares, [0.1, 0.2, 0.2, 0.3], atol=0.12)
    assert not torch.equal(a.operators, b.operators)
    plain = ImageViews(ViewsConfig(size=32)).draw(Key(0, 0), np.arange(300), 40, 40)
    assert torch.equal(plain[1].factors, b.factors)


@pytest.mark.parametrize("operators", [[], ["color"], list(OPERATORS)])
def test_study_views_stand_in_for_image_views(operators: list[Any]) -> None:
    views, images = StudyViews(BARE, operators), some_images(24)
    draws = views.draw(Key(0, 0), ROWS, 32, 32)
    whole = views.apply(images, draws)
    rows = torch.tensor([5, 2, 17])
    part = views.apply(images[rows], (draws[0][rows], draws[1][rows]))
    crops = torch.stack([views.crop(images, draw) for draw in draws])
    cropped = views.apply(crops, draws)
    for got, expected, after_crop in zip(part, whole, cropped, strict=True):
        np.testing.assert_allclose(got, expected[rows], rtol=0, atol=1e-5)  # Sobel divides by small gradients
        np.testing.assert_allclose(after_crop, expected, rtol=0, atol=1e-6)
    assert isinstance(ImageDraw.cat(draws), StudyDraw)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="no study operator 'sobble': choose from crop, cutout"):
        StudyViews(BARE, ["sobble"])
    with pytest.raises(UserError, match=r"views\.operators has blur, which does nothing at views\.size 16"):
        StudyViews(ViewsConfig(size=16), ["blur"])
    with pytest.raises(TypeError, match="its own draw"):
        StudyViews(BARE, ["sobel"]).apply(some_images(2), ImageViews(BARE).draw(Key(0, 0), [0, 1], 32, 32))


@pytest.mark.parametrize("channels", [1, 3, 5, 13])
def test_channel_jitter_scales_each_channel_by_its_own_factor(channels: int) -> None:
    x = 0.1 + some_images(24, channels) / 255 * 0.4  # nothing is clipped below a factor of 2
    drawn, out = draw_and_apply(ops.ChannelJitter(strength=0.4), x)
    factors = (out.sum((2, 3)) / x.sum((2, 3))).numpy()
    np.testing.assert_allclose(out.numpy(), x.numpy() * factors[:, :, None, None], atol=1e-6)
    assert 0.6 <= factors.min() < 0.7 < 1.3 < factors.max() <= 1.4
    assert len(np.unique(factors.round(5))) == 24 * channels
    assert stats.kstest(factors.reshape(-1), stats.uniform(0.6, 0.8).cdf).pvalue > 0.01
    alone = ops.ChannelJitter(strength=0.4).apply(x[5:6], drawn[5:6])
    assert torch.equal(alone, out[5:6])
    assert torch.equal(ops.ChannelJitter(strength=0.0).apply(x, drawn), x)


@pytest.mark.parametrize(
    ("options", "channels", "told"),
    [
        ({}, 3, False),
        ({}, 1, False),
        ({}, 4, True),
        ({}, 2, True),
        ({"color_strength": 0.0}, 4, False),
        ({"grayscale": 0.0, "jitter": 0.0}, 4, False),
        ({"grayscale": 0.0, "jitter_ranges": (0.8, 0.8, 0.0, 0.0)}, 4, False),
        ({"color_strength": 0.0, "operators": ("color",)}, 4, True),
        ({"color_strength": 0.0, "operators": ("channel_jitter",)}, 4, False),
    ],
)
def test_what_is_defined_for_rgb_alone_is_told(options: dict[str, Any], channels: int, told: bool) -> None:
    words = left_out(ViewsConfig(size=32, **options), channels)
    assert bool(words) == told
    if told:
        assert words.startswith(f"the images have {channels} channels: of the views saturation, hue and grayscale")


def test_an_operator_that_would_do_nothing_is_refused() -> None:
    config = ViewsConfig(size=32, operators=("cutout", "drop"))
    assert left_out(config, 3) == ""
    with pytest.raises(UserError, match=r"views.operators has drop, .* images have 5 channels: leave it out"):
        left_out(config, 5)


@pytest.mark.parametrize("rule", ["tf", "torchvision"])
def test_jitter_of_five_channels_is_brightness_and_contrast_alike_for_all(rule: str) -> None:
    """Against the formulas: x * b, then the distance to each channel's mean ("tf") or to that of all."""
    config = ViewsConfig(
        size=32,
        jitter=1.0,
        grayscale=1.0,
        blur=0.0,
        flip=0.0,
        jitter_order="fixed",
        color_rule=rule,
        color_strength=0.5,
    )
    x = some_images(8, 5) / 255
    views = ImageViews(config)
    draw, _ = views.draw(Key(0, 0), np.arange(8), 32, 32)
    b, c = (draw.factors[:, i, None, None, None] for i in (0, 1))
    bright = (x * b).clamp(0, 1)
    mean = bright.mean((2, 3), keepdim=True) if rule == "tf" else bright.mean((1, 2, 3), keepdim=True)
    np.testing.assert_allclose(
        views.photometric(x, draw).numpy(), (mean + c * (bright - mean)).clamp(0, 1).numpy(), atol=1e-6
    )
