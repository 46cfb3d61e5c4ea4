"""Bilinear crop and resize of bytes as Pillow does it, which is what torchvision's transforms of images come to.

Pillow widens the triangle when shrinking, rounds its weights to 22 bits, and rounds to bytes after each of two passes,
the horizontal one first; from Pillow 13 on the vertical one where the height shrinks by more than twice as many pixels
as the width, which moves some bytes by one. All of that is whole numbers, so it is the same on every device to the bit:
on a CPU Pillow itself does it, on others products in double precision, which hold every sum exactly, in the order that
the installed Pillow takes.
"""

from __future__ import annotations

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_BITS = 22
"""Of Pillow's weights: 32 less 8 of the pixels and 2 to spare."""
TWO_ORDERS = int(PIL.__version__.partition(".")[0]) >= 13
"""Whether Pillow chooses which pass is first (its pull request 9549)."""
_PART = 2**25
"""Values that are taken through both products at a time on a device other than the CPU."""


def resize_bytes(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize one image.

    Args:
        image: uint8 [H, W, C].
        size: height and width of the result.

    Returns:
        uint8 [height, width, C].
    """
    whole = (size[1], size[0])
    if image.shape[2] == 3:
        return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(whole, Image.Resampling.BILINEAR))
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, 2, 0)]
    return np.stack([np.asarray(band.resize(whole, Image.Resampling.BILINEAR)) for band in bands], 2)


def crop_resize_bytes(images: Tensor, boxes: Tensor, size: tuple[int, int], out: Tensor) -> Tensor:
    """Cut a box out of each image and resize it.

    Args:
        images: uint8 [n, C, H, W].
        boxes: int [n, 4] top, left, height, width in pixels, on the CPU.
        size: height and width of the result.
        out: float32 [n, C, height, width], which gets bytes divided by 255.
    """
    if _by_pillow(images):
        for image, (top, left, height, width), place in zip(images, boxes.tolist(), out, strict=True):
            cut = image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
            place.copy_(torch.from_numpy(resize_bytes(cut, size)).permute(2, 0, 1))
        return out.div_(255)
    rows, columns = images.shape[2:]
    part = max(1, _PART // (images.shape[1] * max(rows * columns, size[0] * size[1])))
    for start in range(0, len(images), part):
        some = slice(start, start + part)
        down, across = (
            torch.from_numpy(weights(boxes[some, axis], boxes[some, 2 + axis], size[axis], images.shape[2 + axis]))
            for axis in (0, 1)
        )
        first = vertical_first(boxes[some], size)
        out[some] = by_products(images[some], down.to(images.device), across.to(images.device), first)
    return out.div_(255)


def vertical_first(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Of which boxes the vertical pass comes first, bool [n]."""
    saved, other = boxes[:, 2] - size[0], boxes[:, 3] - size[1]
    return (saved > 0) & (saved > 2 * other) & TWO_ORDERS


def _by_pillow(images: Tensor) -> bool:
    """Whether Pillow itself, which knows no other device, does it."""
    return images.device.type == "cpu"


def by_products(images: Tensor, down: Tensor, across: Tensor, first: Tensor) -> Tensor:
    """Both passes as products of whole numbers.

    Args:
        images: uint8 [n, C, H, W].
        down, across: float64 [n, height, H] and [n, width, W], see `weights`.
        first: bool [n], on the CPU, see `vertical_first`.

    Returns:
        float64 [n, C, height, width], whole numbers from 0 to 255.
    """
    x, down, across = images.double(), down[:, None], across.transpose(1, 2)[:, None]
    out = x.new_empty(*x.shape[:2], down.shape[2], across.shape[3])
    with torch.autocast(images.device.type, enabled=False):
        for chosen in (True, False):
            rows = torch.nonzero(first == chosen).flatten().to(images.device)
            if not len(rows):
                continue
            some, tall, wide = x[rows], down[rows], across[rows]
            out[rows] = _to_bytes(_to_bytes(tall @ some) @ wide if chosen else tall @ _to_bytes(some @ wide))
    return out


def _to_bytes(sums: Tensor) -> Tensor:
    """Weighted sums, in units of a weight's last bit, to the nearest byte, halves upwards."""
    return sums.add_(2.0 ** (_BITS - 1)).div_(2.0**_BITS).floor_().clamp_(0, 255)


def weights(start: Tensor, extent: Tensor, size: int, length: int) -> NDArray[np.float64]:
    """How much of each input an output takes along one axis, in units of 2 ** -22.

    Args:
        start, extent: [n] the part of the axis that is resized.
        size: outputs.
        length: of the axis.

    Returns:
        Whole numbers, [n, size, length].
    """
    first, count = (each.numpy().astype(np.float64)[:, None, None] for each in (start, extent))
    scale = count / size
    reach = np.maximum(scale, 1)
    centre = (np.arange(size)[None, :, None] + 0.5) * scale
    at = np.arange(length)[None, None] - first
    low = np.maximum(np.trunc(centre - reach + 0.5), 0)
    high = np.minimum(np.trunc(centre + reach + 0.5), count)
    weight = np.maximum(1 - np.abs((at - centre + 0.5) * (1 / reach)), 0)
    weight = np.where((at >= low) & (at < high), weight, 0)
    total = np.cumsum(weight, 2)[..., -1:]  # one by one, as Pillow adds them
    whole: NDArray[np.float64] = np.trunc(0.5 + weight / total * 2.0**_BITS)
    return whole
