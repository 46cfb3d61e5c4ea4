"""Colour jitter on a GPU in two Triton kernels: each pixel is read twice and written once, whatever the operators.

The formulas are those of views/color.py, which makes some ten passes over memory for each operator. Contrast needs the
mean of what the operators before it made of the image, which the first kernel finds; the second applies all four.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # pixels of a program


@triton.jit
def _clip(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _saturate(r, g, b, factor, TF: tl.constexpr):
    if TF:
        high, low = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
        ratio = tl.minimum(tl.maximum(high, 0.0) / tl.maximum(high - low, 1e-12), factor)
        r, g, b = high + ratio * (r - high), high + ratio * (g - high), high + ratio * (b - high)
    else:
        grey = r * 0.2989 + g * 0.587 + b * 0.114
        r, g, b = (r - grey) * factor + grey, (g - grey) * factor + grey, (b - grey) * factor + grey
    return r, g, b


@triton.jit
def _ramp(distance, spread, low):
    # Half a turn either way is the same distance, so it does not matter how a tie is rounded.
    distance = tl.abs(distance - tl.floor(distance + 0.5))
    return tl.minimum(tl.maximum(distance, 1 / 6), 1 / 3) * -spread + (spread * (1 / 3) + low)


@triton.jit
def _turn(r, g, b, turns):
    high, low = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    spread = (high - low) * 6
    angle = tl.abs((g + b - r - low) / tl.maximum(spread, 1e-12) + 1 / 6)
    angle = tl.where(g >= b, angle, -angle) + turns
    return _ramp(angle, spread, low), _ramp(angle - 1 / 3, spread, low), _ramp(angle - 2 / 3, spread, low)


@triton.jit
def _jitter(
    x, rows, order, factors, sums, size, ADDITIVE: tl.constexpr, TF: tl.constexpr, MEANS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one image. MEANS: add up each channel before contrast; else apply all, contrast by those sums."""
    i, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    pixels = part * BLOCK + tl.arange(0, BLOCK)
    inside = pixels < size
    at = x + tl.load(rows + i) * 3 * size + pixels
    r, g, b = tl.load(at, inside, 0.0), tl.load(at + size, inside, 0.0), tl.load(at + 2 * size, inside, 0.0)
    steps = 4
    if MEANS:  # those before contrast
        first, second, third = tl.load(order + 4 * i), tl.load(order + 4 * i + 1), tl.load(order + 4 * i + 2)
        steps = tl.where(first == 1, 0, tl.where(second == 1, 1, tl.where(third == 1, 2, 3)))
    for step in range(steps):
        operator = tl.load(order + 4 * i + step)
        factor = tl.load(factors + 4 * i + operator)
        if operator == 0:
            if ADDITIVE:
                r, g, b = r + factor, g + factor, b + factor
            else:
                r, g, b = r * factor, g * factor, b * factor
        elif operator == 1:
            rest = 1 - factor
            mean_r, mean_g = tl.load(sums + 3 * i) / size, tl.load(sums + 3 * i + 1) / size
            mean_b = tl.load(sums + 3 * i + 2) / size
            if not TF:
                mean_r = mean_r * 0.2989 + mean_g * 0.587 + mean_b * 0.114
                mean_g, mean_b = mean_r, mean_r
            r, g, b = r * factor + mean_r * rest, g * factor + mean_g * rest, b * factor + mean_b * rest
        elif operator == 2:
            r, g, b = _saturate(r, g, b, factor, TF)
        else:
            r, g, b = _turn(r, g, b, factor)
        r, g, b = _clip(r), _clip(g), _clip(b)
    if MEANS:
        here = sums + (i * parts + part) * 3
        tl.store(here, tl.sum(tl.where(inside, r, 0.0), 0))
        tl.store(here + 1, tl.sum(tl.where(inside, g, 0.0), 0))
        tl.store(here + 2, tl.sum(tl.where(inside, b, 0.0), 0))
    else:
        tl.store(at, r, inside)
        tl.store(at + size, g, inside)
        tl.store(at + 2 * size, b, inside)


def kernel_jitter(x: Tensor, rows: Tensor, order: Tensor, factors: Tensor, additive: bool, tf: bool) -> None:
    """Apply the four operators to some images, each in its own order.

    Args:
        x: float32 [n, 3, H, W], contiguous, changed in place.
        rows: int64 [m] which images.
        order: int64 [m, 4] of each: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        factors: float32 [m, 4] by operator.
        additive: brightness is added, not multiplied.
        tf: contrast and saturation by TensorFlow's rules, else torchvision's.
    """
    size, m = x.shape[2] * x.shape[3], len(rows)
    parts = triton.cdiv(size, _BLOCK)
    partial = x.new_empty(m, parts, 3)
    rules = {"ADDITIVE": additive, "TF": tf, "BLOCK": _BLOCK}
    _jitter[(m, parts)](x, rows, order, factors, partial, size, MEANS=True, **rules)
    # Summed by torch, in a fixed order: atomic additions would give other last bits in every run.
    _jitter[(m, parts)](x, rows, order, factors, partial.sum(1), size, MEANS=False, **rules)


def probe(device: torch.device) -> None:
    """Run the kernels on two pixels."""
    order = torch.arange(4, device=device)[None]
    kernel_jitter(
        torch.rand(1, 3, 1, 2, device=device), order[0, :1], order, torch.ones(1, 4, device=device), False, True
    )
