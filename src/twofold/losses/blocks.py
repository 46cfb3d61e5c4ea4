"""NT-Xent block by block: the dense loss's value and gradient without its matrix.

With S_ij = z_i . z_j / tau, i a local anchor and j over all ranks' views, and P_ij = exp(S_ij - logsumexp_k!=i S_ik):

    loss             = mean_i  logsumexp_j S_ij - S_i,partner(i)
    2n tau dL / dz_i = sum_j (w_i P_ij + w_j P_ji) z_j  -  2 w_i z_partner(i)

where L sums the ranks' losses and w_i is the gradient that reaches the loss of the rank of i. As S is symmetric,
P_ji = exp(S_ij - logsumexp_j): a rank that knows everyone's logsumexp finds its rows' whole gradient by itself. So two
numbers a view are exchanged, where a differentiable gather sums gradients of shape [2N, d] over the ranks.

A block is computed, used for its rows and, where its mirror image lies on this rank too, for its columns, and
forgotten. Memory beside z and its gradient: two blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twofold import gpu
from twofold.distributed import all_gather, rank, world_size
from twofold.errors import UserError

# Measured, d = 128, 2N = 2048 to 16384. One CPU thread: 512 is the fastest of 128..4096 (256 and 1024 cost 5-20 % more,
# 128 and 2048 40-55 %), as two float32 blocks fit a core's cache. Two threads: 512 and 1024 are equal, and 1024 makes
# threads wait for each other a quarter as often, which counts where other processes want the cores too.
# Elsewhere a block costs a handful of kernel launches, so it is larger; 4096 bounds memory to 128 MB; not tuned.
ONE_THREAD_BLOCK, CPU_BLOCK, DEVICE_BLOCK = 512, 1024, 4096


def block_nt_xent(z: Tensor, temperature: float, block: int | None = None) -> Tensor:
    """The mean NT-Xent of this rank's anchors.

    Args:
        z: [2n, d] float32 or float64, normalised already if it is to be: view a's rows, then view b's.
        temperature: tau > 0.
        block: side of a block; by default the one measured best. Any gives the same loss up to rounding.

    Returns:
        Scalar, as `dense_nt_xent` gives it. Differentiable once.
    """
    if block is None:
        on_cpu = CPU_BLOCK if torch.get_num_threads() > 1 else ONE_THREAD_BLOCK
        block = on_cpu if z.device.type == "cpu" else DEVICE_BLOCK
    loss: Tensor = _BlockNTXent.apply(z, temperature, block)
    return loss


def large_nt_xent(z: Tensor, temperature: float, implementation: str = "auto") -> Tensor:
    """The same for many views: by kernels ("kernel"), by blocks ("blocks"), or by what was measured best ("auto").

    Raises:
        UserError: there are no kernels for such projections.
    """
    kernels = gpu.kernels("twofold.losses.kernels", z) if implementation != "blocks" else None
    if kernels is not None and (implementation == "kernel" or kernels.measured_best(z)):
        loss: Tensor = kernels.kernel_nt_xent(z, temperature)
        return loss
    if implementation == "kernel":
        raise UserError(f"implementation = kernel needs float32 projections on a GPU, got {z.dtype} on {z.device.type}")
    return block_nt_xent(z, temperature)


class _BlockNTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, block: int) -> Tensor:
        everyone = all_gather(z)  # [2N, d]
        # Each row's largest logit m and sum of exp(S - m), kept apart: their logsumexp would round P by |m| * 2^-24.
        largest = z.new_full((len(z),), torch.finfo(z.dtype).min)  # [2n]
        total, positive = torch.zeros_like(largest), torch.zeros_like(largest)
        for tile in _tiles(z, everyone, temperature, block):
            for k in tile.partners:
                result = tile.logits.diagonal(k)
                positive[tile.rows][max(-k, 0) :][: len(result)] = result
                if tile.mirror:
                    positive[tile.mirror][max(k, 0) :][: len(result)] = result
            _merge(largest, total, tile.rows, tile.logits, tile.spare)
            if tile.mirror:
                _merge(largest, total, tile.mirror, tile.logits.T, tile.spare.T)
        ctx.save_for_backward(z, everyone, largest, total, all_gather(largest))
        ctx.temperature, ctx.block = temperature, block
        return (largest - positive + total.log()).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, everyone, largest, total, largest_everyone = ctx.saved_tensors
        weight = grad / total  # [2n]
        weight_everyone = all_gather(weight)  # [2N]
        result = torch.zeros_like(z)
        for tile in _tiles(z, everyone, ctx.temperature, ctx.block):
            p = torch.sub(tile.logits, largest[tile.rows, None], out=tile.spare).exp_().mul_(weight[tile.rows, None])
            p += tile.logits.sub_(largest_everyone[tile.columns]).exp_().mul_(weight_everyone[tile.columns])
            for k in tile.partners:  # not from the sums: near agreement P is 1, and what is left must not round
                p.diagonal(k).sub_(2 * grad)
            result[tile.rows].addmm_(p, everyone[tile.columns])
            if tile.mirror:
                result[tile.mirror].addmm_(p.T, z[tile.rows])
        return result / (len(z) * ctx.temperature), None, None


def _merge(largest: Tensor, total: Tensor, rows: slice, logits: Tensor, spare: Tensor) -> None:
    """Take a block of logits [r, c] into its rows' running maximum and sum."""
    new = torch.maximum(largest[rows], logits.amax(1))
    total[rows] *= (largest[rows] - new).exp_()
    total[rows] += torch.sub(logits, new[:, None], out=spare).exp_().sum(1)
    largest[rows] = new


class _Tile(NamedTuple):
    """A block of S. The next one overwrites its two tensors."""

    logits: Tensor  # [r, c], minus infinity where an anchor meets itself
    spare: Tensor  # [r, c], space to compute in
    rows: slice  # where its rows lie among this rank's
    columns: slice  # where its columns lie among all ranks'
    partners: tuple[int, ...]  # its diagonals (offsets) on which anchors meet their partners
    mirror: slice | None  # where its columns lie among this rank's rows, if it stands for its mirror image too


def _tiles(z: Tensor, everyone: Tensor, temperature: float, block: int) -> Iterator[_Tile]:
    """The blocks of S = z everyone^T / tau, without those that mirror an earlier one."""
    n = len(z)
    spaces = z.new_empty(2, min(block, n) ** 2)
    for i in range(0, n, block):
        rows = slice(i, min(i + block, n))
        anchors = z[rows]
        for owner in range(world_size()):
            here = owner == rank()
            for j in range(i if here else 0, n, block):
                end = min(j + block, n)
                columns = slice(owner * n + j, owner * n + end)
                shape = len(anchors), end - j
                logits, spare = (space[: shape[0] * shape[1]].view(shape) for space in spaces)
                torch.addmm(logits, anchors, everyone[columns].T, beta=0, alpha=1 / temperature, out=logits)
                if here and j == i:
                    logits.fill_diagonal_(float("-inf"))
                # Row i + r meets column j + c where c - r = i - j + n/2, or - n/2, if the block reaches that far
                partners = tuple(k for k in (i - j + n // 2, i - j - n // 2) if here and -shape[0] < k < shape[1])
                yield _Tile(logits, spare, rows, columns, partners, slice(j, end) if here and j > i else None)
