"""Gaussian blur of a batch, each image with its own sigma: separable, as SimCLR's augmentation blurs."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BlurPadding = Literal["zero", "reflect"]

_TILE = 32
"""Outputs that one matrix makes: wider ones hold more zeros."""

_FEW_TAPS = 4
"""Up to this radius shifted sums are faster than matrices (measured at 32 and 64 pixels on a CPU)."""


def blur_radius(height: int) -> int:
    """The kernel's radius for images of this height: a tenth of it, halved (tf2/data_util.py): 1 at 32, 11 at 224.

    The kernel has 2 * radius + 1 taps: 23 at 224 pixels, where the paper says 10 % of the side.
    """
    return height // 10 // 2


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int, padding: BlurPadding = "zero") -> Tensor:
    """Blur each image with its own Gaussian.

    Args:
        x: float [n, C, H, W].
        sigma: [n] standard deviations in pixels, > 0.
        radius: of the kernel, which is cut off there and scaled to sum 1; 0 leaves the images as they are.
        padding: ``"zero"`` as the reference, which darkens the borders; ``"reflect"`` as torchvision's GaussianBlur
            (radius < height and width).

    Returns:
        [n, C, H, W], not clipped.
    """
    kernel = gaussian_kernel(sigma.to(x), radius)
    mode = "constant" if padding == "zero" else "reflect"
    padded = F.pad(x, (radius, radius, radius, radius), mode=mode).contiguous()
    combine = _shifted_sums if radius <= _FEW_TAPS else _matrices
    with torch.autocast(x.device.type, enabled=False):
        return combine(padded, kernel)


def gaussian_kernel(sigma: Tensor, radius: int) -> Tensor:
    """[n, 2 * radius + 1] samples of each Gaussian, scaled to sum 1."""
    distance = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernel = torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    # What no sum shows is none at all: numbers below 1e-38, which far taps of a narrow Gaussian are, take some
    # processors twenty times as long to multiply.
    return torch.where(kernel > 1e-12, kernel, 0.0)


def _shifted_sums(padded: Tensor, kernel: Tensor) -> Tensor:
    """Along each axis the sum of shifted images, one for each pair of taps of equal weight."""
    radius = kernel.shape[1] // 2
    for axis in (3, 2):
        length = padded.shape[axis] - 2 * radius
        shifted = [padded.narrow(axis, i, length) for i in range(2 * radius + 1)]
        weights = kernel[:, :, None, None, None]
        padded = shifted[radius] * weights[:, radius]
        for i in range(radius):
            padded.add_((shifted[i] + shifted[2 * radius - i]).mul_(weights[:, i]))
    return padded


def _matrices(padded: Tensor, kernel: Tensor) -> Tensor:
    """Along each axis a product with a banded matrix, the same for every run of `_TILE` outputs."""
    n, channels, height, width = padded.shape
    taps = kernel.shape[1]
    inputs = _TILE + taps - 1
    matrix = kernel.new_zeros(n, _TILE, inputs)
    # Row i of the matrix holds the kernel from column i on: the diagonal stripe as a strided view.
    matrix.as_strided((n, _TILE, taps), (_TILE * inputs, inputs + 1, 1)).copy_(kernel[:, None].expand(n, _TILE, taps))
    rows = padded.new_empty(n, channels * height, width - taps + 1)
    for start in range(0, rows.shape[2], _TILE):
        size = min(_TILE, rows.shape[2] - start)
        window = padded.view(n, channels * height, width)[:, :, start : start + size + taps - 1]
        torch.bmm(window, matrix[:, :size, : size + taps - 1].transpose(1, 2), out=rows[:, :, start : start + size])
    rows = rows.view(n * channels, height, -1)
    matrix = matrix.repeat_interleave(channels, 0)
    out = rows.new_empty(n * channels, height - taps + 1, rows.shape[2])
    for start in range(0, out.shape[1], _TILE):
        size = min(_TILE, out.shape[1] - start)
        window = rows[:, start : start + size + taps - 1]
        torch.bmm(matrix[:, :size, : size + taps - 1], window, out=out[:, start : start + size])
    return out.view(n, channels, out.shape[1], -1)
