"""Crop and resize as two batched products with interpolation matrices, for three kinds of bicubic interpolation.
A fourth kind is bilinear.

Each output pixel is a weighted sum of a few input pixels along one axis. Written as a matrix, a batch of boxes of any
sizes is resized by two matrix products, on any device, and the rule is nothing but the entries:

- ``"tf2"``: tf.image.resize in tf2/data_util.py. Half-pixel centres, cubic with a = -0.5, no antialiasing, the fraction
  rounded to 1/1024 (TensorFlow looks it up in a table), taps outside the image dropped and the rest renormalised.
- ``"tf1"``: tf.compat.v1.image.resize_bicubic in data_util.py. Source = i * scale without the half-pixel shift,
  a = -0.75, the same table, indices clamped to the image.
- ``"antialias"``: as Pillow and torch's ``interpolate(antialias=True)``: a = -0.5, the kernel widened when shrinking.
- ``"bilinear"``: as Pillow, and so torchvision by default (MoCo's code): a triangle, widened when shrinking. Of bytes
  it is Pillow's to the bit, rounded to bytes as there (see `bilinear`); of floats it is not rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from twofold.views.bilinear import crop_resize_bytes, resize_bytes
from twofold.views.rows import to_device

Resample = Literal["tf2", "tf1", "antialias", "bilinear"]
Size = int | tuple[int, int]

_TILE = 32
"""Most outputs that share a window of inputs. A window is narrow where an axis is long: at 224 pixels it saves three
quarters of the operations. Up to this size there is one. (A multiple of 8, which matrix kernels like.)"""

_PART = 2**17
"""Values of the images that a CPU takes through both products at a time, for each window: few, so that they stay in its
cache, but more where a window does less."""


def crop_resize(
    images: Tensor, boxes: Tensor, size: Size, resample: Resample = "antialias", out: Tensor | None = None
) -> Tensor:
    """Cut a box out of each image and resize it.

    Args:
        images: uint8 (0..255) or float [n, C, H, W].
        boxes: int [n, 4] top, left, height, width in pixels, on the CPU. Pixels outside the box have no influence.
        size: height and width of the result in pixels, or one number for both.
        resample: see above.
        out: where to write the result, if given.

    Returns:
        float32 [n, C, height, width]; uint8 is scaled to [0, 1]. Bicubic interpolation overshoots; nothing is clipped.
    """
    n, channels, rows, columns = images.shape
    height, width = as_pair(size)
    if out is None:
        out = torch.empty(n, channels, height, width, device=images.device)
    if not n:
        return out
    if resample == "bilinear" and images.dtype == torch.uint8:
        return crop_resize_bytes(images, boxes, (height, width), out)
    across = _windows(boxes[:, 1], boxes[:, 3], width, columns, resample, images.device)
    down = _windows(boxes[:, 0], boxes[:, 2], height, rows, resample, images.device)
    if images.dtype == torch.uint8:
        down = [window._replace(matrix=window.matrix / 255) for window in down]
    largest = channels * max(rows * columns, height * width)
    part = max(1, _PART * len(down) // largest) if images.device.type == "cpu" else n
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, n, part):
            some = slice(start, start + part)
            # Each product leaves the axis it made last, so that the next one again gathers whole rows.
            between = images.new_empty(len(images[some]), channels, columns, height, dtype=torch.float32)
            _combine(images[some], down, some, between)
            _combine(between, across, some, out[some])
    return out


class _Window(NamedTuple):
    """A run of outputs along one axis, and the inputs that they are made of."""

    outputs: slice
    first: Tensor  # [n] the first input of each image's window, on the images' device
    matrix: Tensor  # [n, outputs, inputs]


def _combine(images: Tensor, windows: list[_Window], some: slice, out: Tensor) -> None:
    """[m, C, L, K] -> `out` [m, C, K, outputs]: combine the rows of each image, and transpose."""
    m, channels, length, width = images.shape
    row = torch.arange(m * channels, device=images.device).view(m, 1, channels) * length
    rows, product = images.reshape(-1, width), out.view(m, channels * width, -1)
    for window in windows:
        inputs = torch.arange(window.matrix.shape[2], device=images.device)
        take = row + (window.first[some, None] + inputs)[:, :, None]  # [m, inputs, C]
        taken = rows.index_select(0, take.flatten()).view(m, len(inputs), channels * width).float()
        weights = window.matrix[some].transpose(1, 2)
        torch.bmm(taken.transpose(1, 2), weights, out=product[:, :, window.outputs])


def _windows(
    start: Tensor, extent: Tensor, size: int, length: int, resample: Resample, device: torch.device
) -> list[_Window]:
    """The interpolation of `extent` inputs from `start` on to `size` outputs, for each image, as windows of `_TILE`.

    What decides on shapes is computed on the CPU, where the boxes are: a GPU is never waited for.
    """
    tap_count = _tap_count(extent, size, resample)
    index, weight = taps(
        to_device(start, device),
        to_device(extent, device),
        torch.arange(size, device=device),
        size,
        resample,
        tap_count,
    )
    windows = []
    for begin in range(0, size, _TILE):
        outputs = slice(begin, min(begin + _TILE, size))
        ends = torch.tensor([outputs.start, outputs.stop - 1])
        reach, _ = taps(start, extent, ends, size, resample, tap_count)
        # One input to spare on either side: another device may round a position to the other side of an integer.
        first = (reach.amin((1, 2)) - 1).clamp_min(0)
        inputs = min(int((reach.amax((1, 2)) + 2 - first).max()), length)
        first = to_device(first.clamp_max(length - inputs), device)
        here = (index[:, outputs] - first[:, None, None]).clamp_(0, inputs - 1)
        matrix = weight.new_zeros(len(start), here.shape[1], inputs)
        windows.append(_Window(outputs, first, matrix.scatter_add_(2, here, weight[:, outputs])))
    return windows


def _tap_count(extent: Tensor, size: int, resample: Resample) -> int:
    if resample not in _REACH:
        return 4
    return int(2 * _REACH[resample] * max(1.0, int(extent.max()) / size)) + 1


_REACH = {"antialias": 2.0, "bilinear": 1.0}
"""Of the kernels that are widened when shrinking: half their width, in pixels of the smaller grid."""


def taps(
    start: Tensor, extent: Tensor, outputs: Tensor, size: int, resample: Resample, count: int
) -> tuple[Tensor, Tensor]:
    """Which inputs make an output, and how much of each, along one axis.

    Args:
        start, extent: [n] the part of the axis that is resized to `size` outputs.
        outputs: [k] which of the outputs.
        count: how many taps: 4, or as many as the widened kernel spans.

    Returns:
        index int64 [n, k, count] within the axis, and weight float32 [n, k, count], whose sum over taps is 1.
    """
    scale = (extent.float() / size)[:, None]  # float32, as TensorFlow computes it
    shift = 0.0 if resample == "tf1" else 0.5
    centre = (outputs.float() + shift) * scale - shift
    step = torch.arange(count, device=start.device)
    if resample in _REACH:
        stretch = scale.clamp_min(1)
        offset = (centre - _REACH[resample] * stretch).ceil()[..., None] + step
        distance = (offset - centre[..., None]) / stretch[..., None]
        weight = _cubic(distance, -0.5) if resample == "antialias" else (1 - distance.abs()).clamp_min(0)
    else:
        floor = centre.floor()
        fraction = ((centre - floor) * 1024).round() / 1024
        offset = floor[..., None] + (step - 1)
        weight = _cubic((step - 1) - fraction[..., None], -0.75 if resample == "tf1" else -0.5)
    last = (extent - 1)[:, None, None]
    inside = offset.clamp_min(0).minimum(last.float())
    if resample == "tf1":
        # Add what falls outside to the tap at the edge. Summed here: a GPU's scatter would add in no fixed order.
        weight = ((inside[..., None, :] == offset[..., :, None]) * weight[..., None, :]).sum(-1)
    else:
        weight = weight * (inside == offset)
        weight = weight / weight.sum(-1, keepdim=True)
    return start[:, None, None] + inside.long(), weight


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel ("Cubic convolution interpolation", 1981), zero from a distance of 2 on."""
    d = distance.abs().clamp_max(2)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d < 1, near, far)


def as_pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def crop_resize_image(image: NDArray[np.uint8], box: Sequence[int], size: Size, resample: Resample) -> Tensor:
    """Cut a box out of one image and resize it: what a data-loading worker does with a file.

    Args:
        image: uint8 [H, W, C].
        box: top, left, height, width.

    Returns:
        uint8 [C, height, width]: rounded and clipped, so an overshoot of the bicubic rules is lost here.
    """
    top, left, height, width = (int(side) for side in box)
    cut = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None]
    if resample == "antialias":
        # torch has a vectorised path for bytes, measured 2 to 8 times faster than Pillow's resize.
        return F.interpolate(cut, as_pair(size), mode="bicubic", antialias=True)[0].contiguous()
    if resample == "bilinear":
        part = image[top : top + height, left : left + width]
        return torch.from_numpy(resize_bytes(part, as_pair(size))).permute(2, 0, 1).contiguous()
    whole = torch.tensor([[0, 0, height, width]])
    return crop_resize(cut, whole, size, resample)[0].mul_(255).round_().clamp_(0, 255).byte()


def central_box(height: int, width: int, size: Size, proportion: float = 0.875) -> tuple[int, int, int, int]:
    """The central box (top, left, height, width) that tf2/data_util.py's center_crop cuts out before it resizes.

    It has the aspect ratio of `size` and `proportion` of the largest such box; halves round to even, offsets round up.
    """
    target_height, target_width = as_pair(size)
    aspect = np.float32(target_width / target_height)
    share = np.float32(proportion)
    if aspect > np.float32(width / height):
        tall, wide = np.rint(share / aspect * np.float32(width)), np.rint(share * np.float32(width))
    else:
        tall, wide = np.rint(share * np.float32(height)), np.rint(share * aspect * np.float32(height))
    return (height - int(tall) + 1) // 2, (width - int(wide) + 1) // 2, int(tall), int(wide)


def center_crop(images: Tensor, size: Size, proportion: float = 0.875, resample: Resample = "tf2") -> Tensor:
    """The reference's view of a test image: central box, bicubic resize, clip to [0, 1] (tf2/data_util.py).

    The reference leaves sets of images of 32 pixels and less as they are: divide those by 255 instead.

    Args:
        images: uint8 or float in [0, 1], [n, C, H, W] or one image [C, H, W].
        size: of the result in pixels.
        proportion: how much of the largest box to keep.

    Returns:
        float32 [n, C, height, width] or [C, height, width].
    """
    batch = images if images.dim() == 4 else images[None]
    box = central_box(batch.shape[2], batch.shape[3], size, proportion)
    out = crop_resize(batch, torch.tensor([box]).expand(len(batch), 4), size, resample).clamp_(0, 1)
    return out if images.dim() == 4 else out[0]


def letterbox(images: Tensor, size: int, resample: Resample = "antialias") -> Tensor:
    """Whole images of any shape in squares: the longer side resized to `size`, bars of each image's mean colour beside.

    Args:
        images: uint8 or float in [0, 1], [n, C, H, W].
        size: side of the result in pixels.

    Returns:
        float32 [n, C, size, size] in [0, 1].
    """
    n, channels, height, width = images.shape
    longer = max(height, width)
    tall, wide = (max(1, round(side * size / longer)) for side in (height, width))
    whole = torch.tensor([[0, 0, height, width]]).expand(n, 4)
    inside = crop_resize(images, whole, (tall, wide), resample).clamp_(0, 1)
    out = inside.mean((2, 3), keepdim=True).expand(n, channels, size, size).clone()
    top, left = (size - tall) // 2, (size - wide) // 2
    out[:, :, top : top + tall, left : left + wide] = inside
    return out


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image anticlockwise about its centre, bilinear, mirrored beyond the border.

    Args:
        x: float [n, C, H, W].
        degrees: [n].
    """
    height, width = x.shape[2:]
    angle = torch.deg2rad(degrees).to(x)[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    # grid_sample counts both axes from -1 to 1: an oblong image needs its sides' ratio to keep the angle.
    across, down = ((torch.arange(n, device=x.device, dtype=x.dtype) * 2 + 1) / n - 1 for n in (width, height))
    down = down[:, None]
    grid = [across * cos - down * (sin * height / width), across * (sin * width / height) + down * cos]
    # By broadcasting: on a CPU F.affine_grid takes several times as long for small images.
    return F.grid_sample(x, torch.stack(grid, 3), padding_mode="reflection", align_corners=False)
