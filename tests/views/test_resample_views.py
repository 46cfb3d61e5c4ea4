"""Crop and resize against tf.image (golden vectors, TF1 and TF2), torch's antialiased resize, and the formula in loops.

Tolerance 1e-6: sums of at most 16 products of float32 numbers, weights up to 1.1 (the reference is within 2.3e-7 of
float64, and its bytes are scaled before the sums, ours in them).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from view_helpers import nchw, some_images

from fidelity import agree
from golden_data import golden
from twofold.views import resample as module
from twofold.views.resample import center_crop, central_box, crop_resize, crop_resize_image, rotate

TOLERANCE = 1e-6
RULES = ["tf2", "tf1", "antialias"]
"""Bilinear, which rounds to bytes, has tests of its own (test_bilinear_views.py)."""
DATA = golden("crop_resize.npz")
OUTPUTS = [("tf2", "out"), ("tf1", "out_tf1")]
RESIZE = {"tf2": "Crop and bicubic resize, TF2", "tf1": "Crop and bicubic resize, TF1"}


def cases(name: str) -> Any:
    return pytest.mark.parametrize("case", DATA.meta[name], ids=lambda case: case["id"])


def size_of(case: dict[str, Any]) -> tuple[int, int]:
    return case["height"], case["width"]


@cases("resize")
@pytest.mark.parametrize(("rule", "output"), OUTPUTS)
def test_resize_equals_the_reference(case: dict[str, Any], rule: str, output: str) -> None:
    whole = torch.tensor([[0, 0, case["H"], case["W"]]])
    got = crop_resize(nchw(DATA[f"{case['id']}/image"]), whole, size_of(case), rule)
    agree(RESIZE[rule], got, nchw(DATA[f"{case['id']}/{output}"]), TOLERANCE)


@cases("crop_and_resize")
@pytest.mark.parametrize(("rule", "output"), OUTPUTS)
def test_crop_and_resize_equals_the_reference(case: dict[str, Any], rule: str, output: str) -> None:
    got = crop_resize(nchw(DATA[f"{case['id']}/image_u8"]), torch.tensor([case["box"]]), size_of(case), rule)
    agree(RESIZE[rule], got, nchw(DATA[f"{case['id']}/{output}"]), TOLERANCE)


@cases("center_crop")
@pytest.mark.parametrize(("rule", "output"), OUTPUTS)
def test_center_crop_equals_the_reference(case: dict[str, Any], rule: str, output: str) -> None:
    name, share = case["id"], case["crop_proportion"]
    images = nchw(DATA[f"{name}/image_u8"])
    box = central_box(case["H"], case["W"], size_of(case), share)
    assert list(box) == DATA[f"{name}/box"].tolist()
    unclipped = crop_resize(images, torch.tensor([box]), size_of(case), rule)
    agree(RESIZE[rule], unclipped, nchw(DATA[f"{name}/{output}"]), TOLERANCE)
    got = center_crop(images, size_of(case), share, rule)
    np.testing.assert_allclose(got, nchw(DATA[f"{name}/{output}"]).clamp(0, 1), rtol=0, atol=TOLERANCE)


@cases("center_crop")
def test_the_test_time_view_equals_the_reference(case: dict[str, Any]) -> None:
    if f"{case['id']}/preprocess_for_eval" not in DATA:
        pytest.skip("not recorded for this case")
    got = center_crop(nchw(DATA[f"{case['id']}/image_u8"])[0], size_of(case))
    expected = nchw(DATA[f"{case['id']}/preprocess_for_eval"])[0]
    agree("Test-time view", got, expected, TOLERANCE)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(40, 50, 32), (100, 70, 32), (20, 20, 224), (300, 200, (64, 100)), (7, 3, 9), (64, 64, 64)],
)
def test_antialias_is_torchs(height: int, width: int, size: Any) -> None:
    """2e-6: a shrunk axis sums more products."""
    x = torch.rand(2, 4, height, width)
    got = crop_resize(x, torch.tensor([[0, 0, height, width]]).expand(2, 4), size, "antialias")
    expected = F.interpolate(x, size, mode="bicubic", antialias=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def line_by_formula(line: np.ndarray, size: int, rule: str) -> np.ndarray:
    """One axis in float64, output by output and tap by tap."""
    a = -0.75 if rule == "tf1" else -0.5
    scale = len(line) / size
    stretch = max(scale, 1.0) if rule == "antialias" else 1.0
    out = []
    for i in range(size):
        centre = i * scale if rule == "tf1" else (i + 0.5) * scale - 0.5
        if rule != "antialias":
            centre = math.floor(centre) + round((centre - math.floor(centre)) * 1024) / 1024
        total = weights = 0.0
        for j in range(math.floor(centre - 2 * stretch) - 1, math.ceil(centre + 2 * stretch) + 2):
            d = abs(j - centre) / stretch
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            weight = near if d <= 1 else far if d < 2 else 0.0
            if rule != "tf1" and not 0 <= j < len(line):
                continue
            total += weight * line[min(max(j, 0), len(line) - 1)]
            weights += weight
        out.append(total / weights)
    return np.array(out)


@pytest.mark.parametrize("rule", RULES)
def test_resizing_follows_the_formula(rule: str) -> None:
    """1e-3 where a fraction lies so close to halfway between two entries of the table that float32 picks the other."""
    for length, size in [(1, 5), (2, 7), (9, 4), (31, 32), (32, 31), (50, 96), (200, 33), (97, 70)]:
        line = np.random.default_rng(length).random(length)
        x = torch.from_numpy(line).float()[None, None, None].expand(1, 1, 3, length)
        got = crop_resize(x, torch.tensor([[0, 0, 3, length]]), (3, size), rule)[0, 0, 1].numpy()
        difference = np.abs(got - line_by_formula(line, size, rule))
        assert difference.max() < 1e-3
        assert np.quantile(difference, 0.9) < 2e-6


def random_boxes(n: int, height: int, width: int) -> Tensor:
    rng = np.random.default_rng(n)
    tall, wide = rng.integers(1, height + 1, n), rng.integers(1, width + 1, n)
    return torch.from_numpy(
        np.stack([rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1), tall, wide], 1)
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 70), (4, 17)])
def test_a_batch_is_its_images_one_by_one(rule: str, channels: int, size: int) -> None:
    images = some_images(12, channels, 53, 80)
    boxes = random_boxes(12, 53, 80)
    whole = crop_resize(images, boxes, size, rule)
    for i, (top, left, tall, wide) in enumerate(boxes.tolist()):
        alone = images[i : i + 1, :, top : top + tall, left : left + wide]
        expected = crop_resize(alone, torch.tensor([[0, 0, tall, wide]]), size, rule)
        np.testing.assert_allclose(whole[i], expected[0], rtol=0, atol=TOLERANCE)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("rule", RULES)
def test_windows_and_parts_change_nothing(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, boxes = some_images(9, 3, 90, 75), random_boxes(9, 90, 75)
    expected = crop_resize(images, boxes, 100, rule)
    monkeypatch.setattr(module, "_TILE", 1000)
    monkeypatch.setattr(module, "_PART", 1)
    np.testing.assert_allclose(crop_resize(images, boxes, 100, rule), expected, rtol=0, atol=TOLERANCE)
    monkeypatch.setattr(module, "_TILE", 7)
    np.testing.assert_allclose(crop_resize(images, boxes, 100, rule), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80), size=st.integers(1, 70), seed=st.integers(0, 10**6))
def test_a_flat_image_stays_flat(rule: str, height: int, width: int, size: int, seed: int) -> None:
    box = random_boxes(1 + seed % 7, height, width)
    images = torch.full((len(box), 1, height, width), 0.5)
    np.testing.assert_allclose(crop_resize(images, box, size, rule), 0.5, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rule", RULES)
def test_layout_and_kind_of_the_input_do_not_matter(rule: str) -> None:
    images, boxes = some_images(4, 3, 40, 44), random_boxes(4, 40, 44)
    before = images.clone()
    expected = crop_resize(images, boxes, 24, rule)
    for same in (images.to(memory_format=torch.channels_last), images.float() / 255, images.double() / 255):
        np.testing.assert_allclose(crop_resize(same, boxes, 24, rule), expected, rtol=0, atol=TOLERANCE)
    with torch.autocast("cpu", torch.bfloat16):
        assert (crop_resize(images, boxes, 24, rule) == expected).all()
    assert (images == before).all()
    assert crop_resize(images[:0], boxes[:0], 24, rule).shape == (0, 3, 24, 24)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_workers_crop_is_the_batchs_in_bytes(rule: str, channels: int) -> None:
    """Within half a level of rounding; torch's byte path for antialias rounds and clips between the axes too, and an
    overshoot that is clipped there costs up to two levels more."""
    images, boxes = some_images(8, channels, 60, 47), random_boxes(8, 60, 47)
    exact = crop_resize(images, boxes, 32, rule).clamp(0, 1) * 255
    for image, box, expected in zip(images, boxes, exact, strict=True):
        got = crop_resize_image(image.permute(1, 2, 0).contiguous().numpy(), box.tolist(), 32, rule)
        assert got.dtype == torch.uint8
        assert got.is_contiguous()
        difference = (got.float() - expected).abs()
        assert difference.max() < (2.5 if rule == "antialias" else 0.501)
        assert difference.mean() < 0.4


def test_rotation_turns_anticlockwise_and_small_angles_match_quarter_turns() -> None:
    """1e-5: positions of the bilinear samples are rounded to float32."""
    x = torch.rand(3, 2, 33, 33)
    turned = rotate(x, torch.tensor([90.0, 180.0, 0.0]))
    expected = torch.stack([x[0].rot90(1, (1, 2)), x[1].rot90(2, (1, 2)), x[2]])
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-5)
    oblong = torch.zeros(1, 1, 21, 41)
    oblong[0, 0, 10, :] = 1
    slope = rotate(oblong, torch.tensor([45.0]))[0, 0]
    assert slope[10 - 6, 20 + 6] > 0.5
    assert slope[10 + 6, 20 + 6] < 0.1
