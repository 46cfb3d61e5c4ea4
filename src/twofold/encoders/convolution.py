"""Convolutions of tiny maps on a CPU: faster as plain matrices where the batch is large, and right in bfloat16.

oneDNN's gradient of a kernel in bfloat16 leaves those taps unset that reach no pixel of any map, only padding (3 x 3 of
stride 2 on one position, 7 x 7 on two): they hold what was in memory, infinities too (torch 2.15, AMD EPYC). Such maps
are so small that float32 costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_PAIRS, _ROWS = 64, 64
"""Most pairs of an input and an output position, and fewest images, for which the matrix was measured to be faster.

Two cores with AMX, bfloat16, forward and backward of 512 images (64): 512 filters on 2 x 2 positions take 166 ms (30)
as a convolution and 18 ms (10) so; 512 filters from 256 on 4 x 4 positions to 2 x 2 take 85 ms (13) and 25 ms (12)."""


class Conv2d(nn.Conv2d):
    """torch's; in bfloat16 on a CPU, maps of a few positions go through one matrix of all positions and channels."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, O, H', W']."""
        if not self._tiny(x):
            return convolve(self, x)
        x, weight = x.to(torch.bfloat16), self.weight.to(torch.bfloat16)
        taps = _taps(x.shape[2:], self.kernel_size, self.stride, self.padding)
        y: Tensor = _AsMatrix.apply(x.permute(0, 2, 3, 1).flatten(1), weight, taps)
        sides = [(side + 2 * p - k) // s + 1 for side, p, k, s in self._sides(x)]
        return y.view(len(x), *sides, self.out_channels).permute(0, 3, 1, 2)  # channels last, as x should be

    def _sides(self, x: Tensor) -> Any:
        return zip(x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)

    def _tiny(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or x.device.type != "cpu" or len(x) < _ROWS:  # asked first: a look fixes n
            return False
        plain = self.groups == 1 and self.bias is None and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if _kind(x) != torch.bfloat16 or not plain or isinstance(self.padding, str) or self.kernel_size == (1, 1):
            return False
        outputs = 1
        for side, p, k, s in self._sides(x):
            outputs *= (side + 2 * p - k) // s + 1
        return 0 < outputs * x.shape[2] * x.shape[3] <= _PAIRS


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution of torch's gives; in float32 where it would be in bfloat16 on a CPU and taps see no pixel.

    Args:
        layer: the convolution.
        x: [n, C, H, W].

    Returns:
        [n, O, H', W'], of the type that the layer alone would give.
    """
    if x.device.type == "cpu" and layer.groups == 1 and _kind(x) == torch.bfloat16:
        reach = zip(x.shape[2:], layer.kernel_size, layer.dilation, strict=True)
        if any(side <= (k - 1) * d // 2 for side, k, d in reach):
            bias = None if layer.bias is None else layer.bias.float()
            with torch.autocast("cpu", enabled=False):
                y: Tensor = layer._conv_forward(x.float(), layer.weight.float(), bias)
                return y.to(torch.bfloat16)
    return nn.Conv2d.forward(layer, x)


def _kind(x: Tensor) -> torch.dtype:
    """The type that a convolution of x computes in."""
    lowered = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if lowered else x.dtype


def _taps(sides: Any, kernel: Any, stride: Any, padding: Any) -> list[list[tuple[int, int] | None]]:
    """[outputs][inputs] the tap of the kernel through which an input position reaches an output position, if any."""
    axes = []
    for side, k, s, p in zip(sides, kernel, stride, padding, strict=True):
        starts = [out * s - p for out in range((side + 2 * p - k) // s + 1)]
        axes.append([[at - start if 0 <= at - start < k else None for at in range(side)] for start in starts])
    return [
        [None if a is None or b is None else (a, b) for a in row for b in column]
        for row in axes[0]
        for column in axes[1]
    ]


class _AsMatrix(torch.autograd.Function):
    """y [n, outputs * O] = x [n, inputs * C] times the matrix whose blocks are the kernel's taps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, taps: list[list[tuple[int, int] | None]]) -> Tensor:
        o, c = weight.shape[:2]
        matrix = weight.new_zeros(len(taps), o, len(taps[0]), c)
        for out, row in enumerate(taps):
            for at, tap in enumerate(row):
                if tap is not None:
                    matrix[out, :, at] = weight[:, :, tap[0], tap[1]]
        matrix = matrix.view(len(taps) * o, -1)
        ctx.save_for_backward(x, matrix)
        ctx.taps, ctx.shape = taps, weight.shape
        return x @ matrix.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, matrix = ctx.saved_tensors
        o, c = ctx.shape[:2]
        blocks = (grad.T @ x).view(len(ctx.taps), o, len(ctx.taps[0]), c)
        kind = torch.promote_types(grad.dtype, torch.float32)  # of sums of several blocks
        weight = torch.zeros(*ctx.shape[2:], o, c, dtype=kind)
        for out, row in enumerate(ctx.taps):
            for at, tap in enumerate(row):
                if tap is not None:
                    weight[tap] += blocks[out, :, at]
        return grad @ matrix if ctx.needs_input_grad[0] else None, weight.permute(2, 3, 0, 1).to(grad.dtype), None
