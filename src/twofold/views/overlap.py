"""Do two crops of one image show anything in common? Told before a run that would compare what shares nothing."""

from __future__ import annotations

import numpy as np

from twofold.randomness import Key
from twofold.views.boxes import crop_boxes
from twofold.views.config import CROP_AREA, ViewsConfig

_PAIRS = 4000
_FEWEST = 0.25
"""Share of pairs with a pixel in common below which a run is warned. SimCLR's crops have one in 97 of 100 pairs; crops
of 5 to 14 % of an image by torchvision's rule, as small as the local ones of methods with several crops, in 36 to 46 by
the image's size; crops of 1 to 2 % in 4 to 7."""


def overlapping(views: ViewsConfig, height: int, width: int) -> float:
    """The share of pairs of two views' crops of an image of this size, in pixels, that have a pixel in common."""
    if views.shared_crop:
        return 1.0
    one, other = (
        crop_boxes(
            Key(0, 0), f"overlap/{name}", np.arange(_PAIRS), height, width, rule=views.crop_rule,
            area=views.crop_area or CROP_AREA, aspect=views.crop_aspect,
        )
        for name in ("one", "other")
    )  # fmt: skip
    first = np.maximum(one[:, :2], other[:, :2])
    last = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    return float((last > first).all(axis=1).mean())


def told_apart(views: ViewsConfig, height: int, width: int) -> str:
    """A warning where two crops of an image mostly share nothing, in words; else empty.

    Then colour and light, which the whole of an image has, are all that makes a pair: the contrast may be solved by
    them, and nothing seems wrong, while shapes are not learned.
    """
    share = overlapping(views, height, width)
    if share >= _FEWEST:
        return ""
    area = [float(f"{value:g}") for value in views.crop_area or CROP_AREA]
    return (
        f"of --views.crop_area {area} two crops of an image of {width}x{height} have a pixel in common in {share:.0%} "
        "of cases: what an image is of cannot make a pair of them, only its colours and light can. Try larger "
        "--views.crop_area, [0.08, 1] is SimCLR's"
    )
