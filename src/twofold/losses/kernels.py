"""NT-Xent on a GPU in two Triton kernels, one for the value and one for the gradient: no block leaves the chip.

The formulas are those of losses/blocks.py, and so is what ranks exchange. A program holds some anchors and goes over
all views of all ranks; S is computed from products of three TF32 parts, which is as exact as float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from twofold.distributed import all_gather, rank

Config = tuple[int, int, int, int, str]
"""Anchors and views of a tile, warps, stages of its pipeline, precision of its products."""

# Measured on an H200 at d = 128 (benchmarks/loss_gpu.py): large tiles take x0.6 of the time where all of it is busy.
SMALL, LARGE, LARGE_FROM = (64, 64, 4, 3, "tf32x3"), (128, 64, 8, 2, "tf32x3"), 16384


@triton.jit
def _logits(z, everyone, rows, columns, d, n_rows, n_columns, scale, D: tl.constexpr, PRECISION: tl.constexpr):
    """S [R, C] of some anchors and some views, their sides padded with zeros to D."""
    k = tl.arange(0, D)
    a = tl.load(z + rows[:, None] * d + k[None, :], mask=(rows[:, None] < n_rows) & (k[None, :] < d), other=0.0)
    b = tl.load(
        everyone + columns[:, None] * d + k[None, :], mask=(columns[:, None] < n_columns) & (k[None, :] < d), other=0.0
    )
    return tl.dot(a, tl.trans(b), input_precision=PRECISION) * scale, b


@triton.jit
def _forward(
    z, everyone, largest, total, d, n_rows, n_columns, first, scale,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    top = tl.full((R,), -3.0e38, tl.float32)
    summed = tl.zeros((R,), tl.float32)
    for start in range(0, n_columns, C):
        columns = start + tl.arange(0, C)
        s, _ = _logits(z, everyone, rows, columns, d, n_rows, n_columns, scale, D, PRECISION)
        own = rows[:, None] + first == columns[None, :]
        s = tl.where(own | (columns[None, :] >= n_columns), float("-inf"), s)
        new = tl.maximum(top, tl.max(s, 1))
        summed = summed * tl.exp(top - new) + tl.sum(tl.exp(s - new[:, None]), 1)
        top = new
    tl.store(largest + rows, top, mask=rows < n_rows)
    tl.store(total + rows, summed, mask=rows < n_rows)


@triton.jit
def _backward(
    z, everyone, largest, weight, largest_all, weight_all, grad, out, d, n_rows, n_columns, first, scale,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    here = rows < n_rows
    m_row, w_row = tl.load(largest + rows, mask=here, other=0.0), tl.load(weight + rows, mask=here, other=0.0)
    half = n_rows // 2
    partner = first + tl.where(rows < half, rows + half, rows - half)
    twice = 2 * tl.load(grad)
    result = tl.zeros((R, D), tl.float32)
    for start in range(0, n_columns, C):
        columns = start + tl.arange(0, C)
        present = columns < n_columns
        s, b = _logits(z, everyone, rows, columns, d, n_rows, n_columns, scale, D, PRECISION)
        m_column = tl.load(largest_all + columns, mask=present, other=0.0)
        w_column = tl.load(weight_all + columns, mask=present, other=0.0)
        p = tl.exp(s - m_row[:, None]) * w_row[:, None] + tl.exp(s - m_column[None, :]) * w_column[None, :]
        own = rows[:, None] + first == columns[None, :]
        p = tl.where(own | (columns[None, :] >= n_columns), 0.0, p)
        p = tl.where(partner[:, None] == columns[None, :], p - twice, p)
        result += tl.dot(p, b, input_precision=PRECISION)
    k = tl.arange(0, D)
    tl.store(out + rows[:, None] * d + k[None, :], result, mask=here[:, None] & (k[None, :] < d))


class _KernelNTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, config: Config) -> Tensor:
        z = z.contiguous()
        everyone = all_gather(z)
        largest, total = z.new_empty(len(z)), z.new_empty(len(z))
        ctx.plan = _plan(z, everyone, temperature, config)
        _forward[ctx.plan["grid"]](z, everyone, largest, total, *ctx.plan["sizes"], **ctx.plan["meta"])
        ctx.save_for_backward(z, everyone, largest, total, all_gather(largest))
        ctx.temperature = temperature
        positive = (z * z.roll(len(z) // 2, 0)).sum(1) / temperature
        return (largest - positive + total.log()).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, everyone, largest, total, largest_everyone = ctx.saved_tensors
        weight = grad / total
        result = torch.empty_like(z)
        _backward[ctx.plan["grid"]](
            z, everyone, largest, weight, largest_everyone, all_gather(weight), grad.contiguous(), result,
            *ctx.plan["sizes"], **ctx.plan["meta"],
        )  # fmt: skip
        return result / (len(z) * ctx.temperature), None, None


def _plan(z: Tensor, everyone: Tensor, temperature: float, config: Config) -> dict[str, Any]:
    r, c, warps, stages, precision = config
    width = max(16, triton.next_power_of_2(z.shape[1]))
    return {
        "grid": (triton.cdiv(len(z), r),),
        "sizes": (z.shape[1], len(z), len(everyone), rank() * len(z), 1 / temperature),
        "meta": {"R": r, "C": c, "D": width, "PRECISION": precision, "num_warps": warps, "num_stages": stages},
    }


def kernel_nt_xent(z: Tensor, temperature: float, config: Config | None = None) -> Tensor:
    """The mean NT-Xent of this rank's anchors z [2n, d] float32, as `block_nt_xent` gives it.

    Args:
        z, temperature: as for `block_nt_xent`.
        config: how the kernels are cut; by default the one measured best.
    """
    loss: Tensor = _KernelNTXent.apply(z, temperature, config or (LARGE if len(z) >= LARGE_FROM else SMALL))
    return loss


def measured_best(z: Tensor) -> bool:
    """Whether the kernels were seen to be faster than blocks for such projections: on Hopper alone, so far."""
    return z.is_cuda and torch.cuda.get_device_capability(z.device)[0] == 9 and z.shape[1] <= 128


def probe(device: torch.device) -> None:
    """Run the kernels on two anchors."""
    kernel_nt_xent(torch.rand(2, 128, device=device).requires_grad_(), 1.0).backward()
