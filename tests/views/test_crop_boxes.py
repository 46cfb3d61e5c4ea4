"""Crop boxes: in distribution against the recorded draws of TensorFlow and of torchvision, one by one against loops.

Two samples of 20,000 are compared by the Kolmogorov-Smirnov distance. It must stay below 1.95 * sqrt(2 / 20000) =
0.0195, the 0.1 % point for continuous distributions; for the pixel counts compared here the test is stricter still.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop
from view_helpers import kolmogorov_smirnov

from fidelity import record
from golden_data import golden
from twofold.randomness import Key, uniforms
from twofold.views.boxes import crop_boxes

DRAWS = 20_000
CRITICAL = 1.95 * math.sqrt(2 / DRAWS)
DATA = golden("crop_sampling.npz")
SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (7, 5), (32, 32), (30, 200), (200, 30), (375, 500)]


def assert_same_distribution(ours: NDArray[Any], theirs: NDArray[Any], component: str | None = None) -> None:
    """Both [n, 4] top, left, height, width."""
    for name, of in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: box[:, 3] / box[:, 2],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }.items():
        distance = kolmogorov_smirnov(of(ours), of(theirs))
        if component is not None:
            record(component, distance, CRITICAL, unit="distance of the distributions")
        assert distance < CRITICAL, f"{component}, {name}: {distance:.4f}"


@pytest.mark.parametrize("case", DATA.meta["cases"], ids=lambda case: case["id"])
def test_the_tf_rule_draws_as_the_reference(case: dict[str, Any]) -> None:
    options = case["op_args"]
    theirs = np.concatenate([DATA[f"{case['id']}/{name}"] for name in ("begin_yx", "size_hw")], axis=1).astype(np.int64)
    area, aspect = tuple(options["area_range"]), tuple(options["aspect_ratio_range"])
    rows = np.arange(len(theirs))
    ours = crop_boxes(Key(0, 0), "a/crop", rows, case["H"], case["W"], rule="tf", area=area, aspect=aspect)
    assert_same_distribution(ours, theirs, "Crop boxes (distribution)")


@pytest.mark.parametrize(("height", "width"), [(224, 224), (40, 150)])
def test_the_torchvision_rule_draws_as_torchvision(height: int, width: int) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)])
    ours = crop_boxes(Key(0, 0), "a/crop", np.arange(DRAWS), height, width, rule="torchvision")
    assert_same_distribution(ours, theirs)


def test_the_two_rules_differ() -> None:
    tf, torchvision = (
        crop_boxes(Key(0, 0), "a/crop", np.arange(DRAWS), 224, 224, rule=rule) for rule in ("tf", "torchvision")
    )
    assert kolmogorov_smirnov(tf[:, 2] * tf[:, 3], torchvision[:, 2] * torchvision[:, 3]) > 3 * CRITICAL


def loop_tf(u: NDArray[np.float64], height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]):
    """One image, attempt by attempt, following SampleDistortedBoundingBoxV2; u [attempts, 4]."""
    whole = height * width
    for numbers in u:
        ratio = aspect[0] + (aspect[1] - aspect[0]) * numbers[0]
        tallest = round(math.sqrt(area[1] * whole / ratio))
        if round(tallest * ratio) > width:
            tallest = int((width + 0.5 - 1e-7) / ratio)
            if round(tallest * ratio) > width:
                tallest -= 1
        tallest = min(tallest, height)
        tall = min(round(math.sqrt(area[0] * whole / ratio)), tallest)
        tall += int(numbers[1] * (tallest - tall + 1))
        if tall * round(tall * ratio) < area[0] * whole:
            tall += 1
        if tall * round(tall * ratio) > area[1] * whole:
            tall -= 1
        wide = round(tall * ratio)
        if not (0 < tall <= height and 0 < wide <= width and area[0] * whole <= tall * wide <= area[1] * whole):
            continue
        if tall * wide < 0.1 * whole:
            continue
        return int(numbers[2] * (height - tall)), int(numbers[3] * (width - wide)), tall, wide
    return 0, 0, height, width


def loop_torchvision(u, height, width, area, aspect):
    """One image, as RandomResizedCrop's own loop; u [attempts, 4]."""
    for numbers in u:
        size = height * width * (area[0] + (area[1] - area[0]) * numbers[0])
        ratio = math.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * numbers[1])
        wide, tall = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(numbers[2] * (height - tall + 1)), int(numbers[3] * (width - wide + 1)), tall, wide
    tall, wide = height, width
    if width / height < aspect[0]:
        tall = round(width / aspect[0])
    elif width / height > aspect[1]:
        wide = round(height * aspect[1])
    return (height - tall) // 2, (width - wide) // 2, tall, wide


@pytest.mark.parametrize("rule", ["tf", "torchvision"])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.4, 0.5), (0.97, 1.0)])
def test_boxes_equal_a_loop_over_attempts(rule: str, area: tuple[float, float]) -> None:
    heights, widths = np.array(SIZES * 20).T
    rows = np.arange(len(heights))
    aspect = (3 / 4, 4 / 3)
    boxes = crop_boxes(Key(3, 1), "b", rows, heights, widths, rule=rule, area=area, aspect=aspect)
    loop, attempts = (loop_tf, 100) if rule == "tf" else (loop_torchvision, 10)
    u = uniforms(Key(3, 1), "b", rows, 4 * attempts).reshape(len(rows), attempts, 4)
    for i in rows:
        assert tuple(boxes[i]) == loop(u[i], int(heights[i]), int(widths[i]), area, aspect), SIZES[i % len(SIZES)]


@pytest.mark.parametrize("rule", ["tf", "torchvision"])
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    low=st.floats(0.01, 1),
    high=st.floats(0.1, 1),
    aspect=st.floats(0.2, 5),
    stretch=st.floats(1, 4),
    seed=st.integers(0, 2**63),
)
def test_boxes_lie_in_the_image(
    rule: str, height: int, width: int, low: float, high: float, aspect: float, stretch: float, seed: int
) -> None:
    area = (min(low, high), high)
    boxes = crop_boxes(
        Key(seed, 0), "a", np.arange(50), height, width, rule=rule, area=area, aspect=(aspect, aspect * stretch)
    )
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()


@pytest.mark.parametrize("rule", ["tf", "torchvision"])
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 499), min_size=1, max_size=20))
def test_a_rows_box_does_not_depend_on_the_other_rows(rule: str, rows: list[int]) -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 100, (2, 500))
    whole = crop_boxes(Key(1, 1), "a", np.arange(500), heights, widths, rule=rule)
    part = crop_boxes(Key(1, 1), "a", rows, heights[rows], widths[rows], rule=rule)
    assert (part == whole[rows]).all()
