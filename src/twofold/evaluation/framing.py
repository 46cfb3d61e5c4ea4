"""Which part of an image an encoder is given: the central square, the whole with bars beside it, or several squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from twofold.errors import UserError
from twofold.text import counted
from twofold.views.resample import Resample, center_crop, crop_resize, letterbox

Preprocessing = Literal["auto", "none", "resize", "crop", "letterbox", "squares"]
CROP = 0.875  # tf2/data_util.py, CROP_PROPORTION
SMALL = 32  # tf2/data_util.py crops at test time only above this side
LONG = 2.0
"""Sides' ratio above which a central square shows less than half of an image, and that is told."""
MOST_SQUARES = 16
"""Squares of one image: of longer ones they stand apart."""


class Framing:
    """Applies one rule of preprocessing to images of any size and remembers in words what it did.

    Args:
        rule: see `Extractor`.
        size: side S of the squares; None where images stay as they are.
        resample: how they are resized.
    """

    def __init__(self, rule: Preprocessing, size: int | None, resample: Resample = "antialias") -> None:
        if rule not in get_args(Preprocessing):
            raise UserError(f"preprocessing {rule!r}: choose one of {', '.join(get_args(Preprocessing))}")
        if rule not in ("auto", "none") and size is None:
            raise UserError(f"preprocessing '{rule}' needs the size to resize to: give size")
        self.rule, self.size, self.resample = rule, size, resample
        self.used: dict[str, set[int]] = {}
        self.seen: set[int] = set()
        self.long: set[int] = set()

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W] -> uint8 of the same size, or float [n * k, C, S, S] in [0, 1], k squares of each image
        side by side."""
        height, width = images.shape[2:]
        rule = self.choose(height, width)
        if rule == "none" or self.size is None:
            return images
        if rule == "letterbox":
            return letterbox(images, self.size, self.resample)
        if rule == "squares":
            boxes = torch.tensor(squares(height, width))
            each = images.repeat_interleave(len(boxes), dim=0)
            return crop_resize(each, boxes.repeat(len(images), 1), self.size, self.resample).clamp_(0, 1)
        return center_crop(images, self.size, CROP if rule == "crop" else 1.0, self.resample)

    def note(self, index: int, height: int, width: int) -> None:
        """Take note of the sides of one image, by its place in the source, and of the rule that they ask for."""
        self.seen.add(index)
        self.used.setdefault(self.choose(height, width), set()).add(index)
        if max(height, width) > LONG * min(height, width):
            self.long.add(index)

    def choose(self, height: int, width: int) -> Preprocessing:
        """The rule for images of this size."""
        if self.rule != "auto":
            return self.rule
        if self.size is None or height == width == self.size:
            return "none"
        return "resize" if min(self.size, height, width) <= SMALL else "crop"

    def count(self, height: int, width: int) -> int:
        """How many squares an image of this size gives."""
        return len(squares(height, width)) if self.rule == "squares" else 1

    def framed(self) -> dict[str, int]:
        """What was done, in words, and to how many images; recordings are not counted."""
        side = f"{self.size} x {self.size}"
        words = {
            "none": "images as they are",
            "recordings": "whole recordings, of overlong ones the beginning",
            "resize": f"central square resized to {side} ({self.resample})",
            "crop": f"central square of {CROP:g} of the shorter side resized to {side} ({self.resample})",
            "letterbox": f"whole images resized into {side}, with bars of their mean colour ({self.resample})",
            "squares": f"squares along the longer side resized to {side} ({self.resample}), their features averaged",
        }
        return {words[rule]: len(self.used[rule]) for rule in words if rule in self.used}

    def cut(self) -> tuple[int, int]:
        """Images of which only the middle was seen, and all that were."""
        return (len(self.long) if self.used.keys() & {"resize", "crop"} else 0), len(self.seen)


SHOWS_ALL = "--preprocessing letterbox or squares (of evaluate, embed and search) shows all"
"""What to do about images of which only the middle is seen, where that can be chosen."""


def together(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """What was done to several parts, and to how many images of them all (see `Framing.framed`)."""
    found: dict[str, int] = {}
    for part in parts:
        for words, count in part.items():
            found[words] = found.get(words, 0) + count
    return found


def framed_in_words(framed: Mapping[str, int]) -> str:
    """What was done, and where that differs to how many, most of them first (see `Framing.framed`)."""
    if len(framed) < 2:
        return next(iter(framed), "")
    ordered = sorted(framed.items(), key=lambda item: -item[1])
    each = ", ".join(f"{count:,}: {words}" for words, count in ordered)
    return f"of {counted(sum(framed.values()), 'image')} {each}"


def cut_in_words(cut: int, seen: int, remedy: str = SHOWS_ALL) -> str:
    """What to say of so many images of which only the middle was seen, after other words; empty where there are none.

    Args:
        cut, seen: see `Framing.cut`.
        remedy: what to do about it.
    """
    if not cut:
        return ""
    are, them = ("is", "it") if cut == 1 else ("are", "them")
    return (
        f"; {cut:,} of {counted(seen, 'image')} {are} more than twice as long as wide, and of {them} only the middle "
        f"is seen: {remedy}"
    )


def squares(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """As few squares (top, left, height, width) of the shorter side as cover an image, evenly along the longer one.

    An image that is nearly square gets one, the central one, and none gets more than 16.
    """
    side, longer = min(height, width), max(height, width)
    count = min(MOST_SQUARES, -(-longer // side) if longer >= 1.1 * side else 1)
    starts = [(longer - side) // 2] if count == 1 else [round(k * (longer - side) / (count - 1)) for k in range(count)]
    return [(0, start, side, side) if width >= height else (start, 0, side, side) for start in starts]
