"""Where the random crop of each image lies: TensorFlow's sampling rule and torchvision's.

They differ in distribution, not only in numbers. TensorFlow draws the aspect ratio uniformly and then the *height*
uniformly (mean area 0.42 of a square image), and refuses boxes under a tenth of the image. torchvision draws the
*area* uniformly and the logarithm of the aspect ratio (mean area 0.48 with three quarters to four thirds).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twofold.randomness import Key, uniforms

CropRule = Literal["tf", "torchvision"]
Floats = NDArray[np.float64]

TF_MIN_COVERED = 0.1
"""tf2/data_util.py asks for `min_object_covered=0.1` with the whole image as the object: no box under 10 % of it."""

_TF_ATTEMPTS = 100
_TORCHVISION_ATTEMPTS = 10


def crop_boxes(
    key: Key,
    stream: str,
    rows: ArrayLike,
    heights: ArrayLike,
    widths: ArrayLike,
    *,
    rule: CropRule = "tf",
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> NDArray[np.int64]:
    """Draw one crop box for each row.

    Args:
        key, stream, rows: the address of the numbers (see `randomness.uniforms`); rows [n].
        heights, widths: of the images in pixels; one for all, or [n].
        rule: ``"tf"`` as `tf.image.sample_distorted_bounding_box` in tf2/data_util.py: 100 attempts, else the whole
            image. ``"torchvision"`` as `RandomResizedCrop`: 10 attempts, else the largest central box within `aspect`.
        area: range of the box's share of the image's area.
        aspect: range of width / height.

    Returns:
        [n, 4] top, left, height, width in pixels, inside the image.
    """
    rows = np.asarray(rows, dtype=np.int64).reshape(-1)
    height = np.broadcast_to(np.asarray(heights, dtype=np.int64), rows.shape)
    width = np.broadcast_to(np.asarray(widths, dtype=np.int64), rows.shape)
    propose, limit = (_propose_tf, _TF_ATTEMPTS) if rule == "tf" else (_propose_torchvision, _TORCHVISION_ATTEMPTS)
    boxes = _whole(height, width) if rule == "tf" else _central(height, width, aspect)
    pending = np.arange(len(rows))
    # Attempt k of a row uses its numbers 4k..4k+3 whatever the others do. Most first attempts succeed, so few are made
    # for every row and all of them only for the rows that need them.
    for attempts in (2, 10, limit):
        draws = uniforms(key, stream, rows[pending], 4 * attempts).reshape(-1, attempts, 4)
        proposed, accepted = propose(draws, height[pending, None], width[pending, None], area, aspect)
        first, result = accepted.argmax(axis=1), accepted.any(axis=1)
        boxes[pending[result]] = proposed[result, first[result]]
        pending = pending[~result]
        if not len(pending):
            break
    return boxes


def _propose_tf(
    draws: Floats,
    height: NDArray[np.int64],
    width: NDArray[np.int64],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """[n, attempts, 4] boxes and whether each is accepted, as TensorFlow's SampleDistortedBoundingBoxV2."""
    ratio = aspect[0] + (aspect[1] - aspect[0]) * draws[..., 0]
    least, most = area[0] * height * width, area[1] * height * width
    tallest = np.rint(np.sqrt(most / ratio))
    too_wide = np.rint(tallest * ratio) > width
    fitted = np.floor((width + 0.5 - 1e-7) / ratio)
    fitted -= np.rint(fitted * ratio) > width
    tallest = np.minimum(np.where(too_wide, fitted, tallest), height)
    shortest = np.minimum(np.rint(np.sqrt(least / ratio)), tallest)
    tall = shortest + np.floor(draws[..., 1] * (tallest - shortest + 1))  # uniform in height, not in area
    # Rounding may leave the area just outside its range: TensorFlow then moves the height by one pixel.
    tall += np.rint(tall * ratio) * tall < least
    tall -= np.rint(tall * ratio) * tall > most
    wide = np.rint(tall * ratio)
    size = tall * wide
    accepted = (size >= np.maximum(least, TF_MIN_COVERED * height * width)) & (size <= most)
    accepted &= (wide <= width) & (tall <= height) & (wide > 0) & (tall > 0)
    # Offsets come from [0, H - h), not [0, H - h]: a smaller box never touches the bottom or the right edge.
    top = np.floor(draws[..., 2] * np.maximum(height - tall, 0))
    left = np.floor(draws[..., 3] * np.maximum(width - wide, 0))
    return np.stack([top, left, tall, wide], axis=-1).astype(np.int64), accepted


def _propose_torchvision(
    draws: Floats,
    height: NDArray[np.int64],
    width: NDArray[np.int64],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """[n, attempts, 4] boxes and whether each fits, as torchvision.transforms.v2.RandomResizedCrop."""
    size = height * width * (area[0] + (area[1] - area[0]) * draws[..., 0])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(low + (high - low) * draws[..., 1])
    wide, tall = np.rint(np.sqrt(size * ratio)), np.rint(np.sqrt(size / ratio))
    accepted = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    top = np.floor(draws[..., 2] * (np.maximum(height - tall, 0) + 1))
    left = np.floor(draws[..., 3] * (np.maximum(width - wide, 0) + 1))
    return np.stack([top, left, tall, wide], axis=-1).astype(np.int64), accepted


def _whole(height: NDArray[np.int64], width: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([np.zeros_like(height), np.zeros_like(width), height, width], axis=-1)


def _central(height: NDArray[np.int64], width: NDArray[np.int64], aspect: tuple[float, float]) -> NDArray[np.int64]:
    """torchvision's way out: the largest central box whose aspect ratio lies in the range, of one pixel at least."""
    tall = np.where(width / height < aspect[0], np.maximum(np.rint(width / aspect[0]), 1), height).astype(np.int64)
    wide = np.where(width / height > aspect[1], np.maximum(np.rint(height * aspect[1]), 1), width).astype(np.int64)
    return np.stack([(height - tall) // 2, (width - wide) // 2, tall, wide], axis=-1)
