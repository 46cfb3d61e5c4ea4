"""The colour operators against tf.image (golden vectors), torchvision and pixel loops.

Tolerances. Single operators 1e-6: float32 values of up to 2 have a spacing of 2.4e-7, and the reference itself is
within 5e-7 of float64. Whole jitters 4e-6: four operators, of which hue after saturation magnifies what came before
(the reference's own error is 1.8e-6).
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision_ops
from view_helpers import nchw, some_images

from fidelity import agree
from golden_data import golden
from twofold.views import color
from twofold.views import rows as rows_module
from twofold.views.rows import operator_groups, update_rows

ONE, FOUR = 1e-6, 4e-6
OPERATORS = {
    "brightness_add": lambda x, f: color.brightness(x, f, "additive"),
    "brightness_mul": color.brightness,
    "contrast": color.contrast,
    "saturation": color.saturation,
    "hue": color.hue,
    "rgb_to_grayscale": lambda x, _: color.luma(x),
    "to_grayscale": lambda x, _: color.luma(x).expand_as(x),
}
DATA = golden("color.npz")
SINGLE = sorted(key for key in DATA.arrays if key.startswith("op/"))


@pytest.mark.parametrize("key", SINGLE)
def test_single_operators_equal_the_reference(key: str) -> None:
    _, image, operator, factor = key.split("/")
    x = nchw(DATA[f"image/{image}"])
    got = OPERATORS[operator](x, torch.tensor([float(factor)]))
    agree("Colour operators", got, nchw(DATA[key]), ONE)


@pytest.mark.parametrize("image", DATA.meta["images"])
@pytest.mark.parametrize("case", DATA.meta["jitter"], ids=lambda case: case["id"])
def test_jitter_equals_the_reference(case: dict[str, Any], image: str) -> None:
    factors = torch.tensor([[case[name] for name in ("brightness", "contrast", "saturation", "hue")]])
    rule = "additive" if case["impl"] == "simclrv1" else "multiplicative"
    got = color.jitter(nchw(DATA[f"image/{image}"]), torch.tensor(case["order"]), factors, rule)
    agree("Colour jitter, both brightness rules", got, nchw(DATA[f"{case['id']}/{image}"]), FOUR)


def by_pixel(x: Tensor, change: Any) -> Tensor:
    """Change each pixel's (h, s, v) in a loop, in float64."""
    out = torch.empty_like(x)
    for i, row, column in np.ndindex(len(x), *x.shape[2:]):
        hsv = change(i, *colorsys.rgb_to_hsv(*x[i, :, row, column].double().tolist()))
        out[i, :, row, column] = torch.tensor(colorsys.hsv_to_rgb(*hsv))
    return out


def test_saturation_and_hue_equal_a_round_trip_through_hsv() -> None:
    x = some_images(4, height=9) / 255
    factor = torch.tensor([0.0, 0.4, 1.7, 30.0])
    turns = torch.tensor([0.5, -0.3, 0.11, -0.9])
    np.testing.assert_allclose(
        color.saturation(x, factor), by_pixel(x, lambda i, h, s, v: (h, min(s * float(factor[i]), 1), v)), atol=ONE
    )
    np.testing.assert_allclose(
        color.hue(x, turns), by_pixel(x, lambda i, h, s, v: ((h + float(turns[i])) % 1, s, v)), atol=ONE
    )


def test_a_pixel_whose_channels_are_all_negative_has_no_saturation_to_scale() -> None:
    """HSV's S is 0 where V is not positive. Bicubic overshoot next to black makes such pixels."""
    x = torch.tensor([-0.05, -0.02, -0.04]).view(1, 3, 1, 1)
    for factor in (0.5, 1.5):
        np.testing.assert_allclose(color.saturation(x, torch.tensor([factor])), -0.02, rtol=0, atol=ONE)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_torchvision_rule_is_torchvisions(name: str, channels: int) -> None:
    """torchvision clamps after each operator, so that is done here too. Hue 3e-6: torchvision divides by V."""
    if channels == 1 and name in ("saturation", "hue"):
        pytest.skip("no such operator on one channel")
    x = some_images(3, channels) / 255
    for factor in (-0.2, 0.05, 0.2) if name == "hue" else (0.2, 0.9, 1.8):
        expected = getattr(torchvision_ops, f"adjust_{name}")(x, factor)
        rule = {"rule": "torchvision"} if name in ("contrast", "saturation") else {}
        got = getattr(color, name)(x, torch.full((3,), factor), **rule).clamp(0, 1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


def test_the_two_rules_differ() -> None:
    x = some_images(3) / 255
    for operator in (color.contrast, color.saturation):
        difference = operator(x, torch.full((3,), 0.5), "tf") - operator(x, torch.full((3,), 0.5), "torchvision")
        assert difference.abs().max() > 0.01


def test_jitter_clips_after_each_operator() -> None:
    x = torch.full((1, 3, 2, 2), 0.8)
    factors = torch.tensor([[2.0, 0.5, 1.0, 0.0]])
    x[:, :, 0] = 0.1
    brighter = (x * 2).clamp(0, 1)
    expected = brighter.mean() + 0.5 * (brighter - brighter.mean())
    np.testing.assert_allclose(color.jitter(x, torch.tensor([0, 1, 2, 3]), factors), expected, atol=ONE)


def test_operators_leave_their_input_alone() -> None:
    x = some_images(5) / 255
    before = x.clone()
    factors = torch.rand(5, 4)
    color.jitter(x, torch.tensor([2, 0, 3, 1]), factors)
    color.luma(x)
    color.jitter(x, torch.tensor([3, 1, 0, 2]), factors, "additive", "torchvision")
    assert (x == before).all()


@pytest.mark.parametrize("many", [0, 10**9])
@pytest.mark.parametrize("channels", [1, 3])
def test_groups_hold_each_row_under_its_own_operators(
    many: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_MANY", many)
    x, order = torch.zeros(300, channels, 2, 2), torch.rand(300, 4).argsort(1)
    chosen = torch.arange(0, 300, 2)
    seen: list[list[int]] = [[] for _ in order]
    groups = list(operator_groups(x, chosen, order))
    for operators, rows in groups:
        for row in rows.tolist():
            seen[row] += operators.tolist()
    wanted = [[operator for operator in row if channels == 3 or operator < 2] for row in order.tolist()]
    assert seen == [row if i % 2 == 0 else [] for i, row in enumerate(wanted)]
    assert len(groups) == {(0, 3): 24, (0, 1): 2, (10**9, 3): 16, (10**9, 1): 4}[many, channels]


def test_update_rows_changes_the_rows_it_is_given() -> None:
    x = torch.zeros(1000, 1, 40, 40)  # more than one part
    rows = torch.rand(1000) < 0.5
    amount = torch.rand(1000)
    update_rows(x, rows, lambda part, a: part + a[:, None, None, None], amount)
    assert (x[:, 0, 3, 3] == amount * rows).all()
    update_rows(x, torch.zeros(1000, dtype=torch.bool), lambda part: part + 1)
    assert (x[:, 0, 3, 3] == amount * rows).all()
