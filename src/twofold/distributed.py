"""The single place that knows of processes: ranks, differentiable collectives, batch normalisation over all ranks.

Everything here works with and without an initialised process group. Gradients follow one convention: what a rank gets
is the gradient of the *sum* over ranks of their losses, as TensorFlow's differentiable all_reduce gives it to the
reference implementation (google-research/simclr, tf2/objective.py: tpu_cross_replica_concat). DistributedDataParallel
averages parameter gradients over ranks, which turns that sum into the gradient of the mean loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twofold.errors import UserError


def world_size() -> int:
    """The number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's position among them, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def started_first() -> bool:
    """Whether this is the first of the processes that were started together, also when their group is dissolved."""
    return rank() == 0 and int(os.environ.get("RANK", "0")) == 0


def local_world_size() -> int:
    """The number of these processes on this machine, as torchrun and accelerate tell it; else all of them."""
    return min(world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))


def is_distributed() -> bool:
    """Whether more than one process trains together."""
    return world_size() > 1


def speaks_of_partners(error: BaseException) -> bool:
    """Whether an error, raised where several processes train, may come of one that is gone."""
    if not is_distributed() or not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    words, text = ("gloo", "nccl", "connection", "peer", "socket", "broken pipe", "timed out"), str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in words)


_control: tuple[Any, Any] | None = None
"""The group of all processes, and the one beside it that talks through main memory."""


def highest(*numbers: int) -> tuple[int, ...]:
    """The largest of each number over all ranks, which must ask at the same place; 0..255.

    The message goes through main memory, by gloo, so that nobody waits for a GPU: 0.1 ms on one machine.
    """
    global _control
    if not is_distributed():
        return numbers
    world: Any = dist.group.WORLD
    if _control is None or _control[0] is not world:
        _control = world, world if "gloo" in dist.get_backend_config() else dist.new_group(backend="gloo")
    told = torch.tensor(numbers, dtype=torch.uint8)
    dist.all_reduce(told, dist.ReduceOp.MAX, _control[1])
    return tuple(told.tolist())


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        gathered = x.new_empty((world_size() * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.narrow(0, rank() * ctx.rows, ctx.rows)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 (the signature is autograd's)
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


def all_gather(x: Tensor) -> Tensor:
    """Join every rank's rows, differentiably.

    Args:
        x: [n, ...], of the same shape and type on every rank.

    Returns:
        [world_size * n, ...]; rank r's rows are at r*n .. (r+1)*n. Its gradient is summed over the ranks, so a rank
        learns what its rows did to every rank's loss.
    """
    return _AllGather.apply(x) if is_distributed() else x


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over ranks of a tensor of equal shape on each, differentiably (the gradient is summed over ranks too)."""
    return _AllReduceSum.apply(x) if is_distributed() else x


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean over ranks of a tensor of equal shape on each, differentiably."""
    return all_reduce_sum(x) / world_size()


def _moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel of this rank's rows in at least float32, and the values a channel."""
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    count = x.numel() // x.shape[1]
    if count == 0:  # a rank without rows adds nothing
        return x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1]), 0
    variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    return mean, variance, count


class _NormalizeOverRanks(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias with the moments of all ranks' rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _moments(x)
        packed = torch.cat([mean, variance, mean.new_full((1,), float(count))])[None]
        everyone = packed.new_empty((world_size(), packed.shape[1]))
        dist.all_gather_into_tensor(everyone, packed)
        means, variances, counts = everyone[:, : len(mean)], everyone[:, len(mean) : -1], everyone[:, -1:]
        total = counts.sum()
        share = counts / total  # [ranks, 1]: ranks may hold unequal numbers of rows
        mean = (share * means).sum(0)
        # Variance of the whole = mean of the parts' variances + variance of their means. E[x^2] - E[x]^2, the
        # reference's form, is equal but cancels in float32.
        variance = (share * (variances + (means - mean) ** 2)).sum(0)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps, ctx.has_bias = eps, bias is not None
        ctx.mark_non_differentiable(mean, variance, total)
        # (torch's kernels divide by the number of rows, which may be 0 here)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps) if count else x.clone()
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight, mean, variance, total = ctx.saved_tensors
        dy = grads[0]
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        if x.numel():
            # The native kernel of inference mode gives this rank's two sums, of dy * xhat and of dy. (It does not use
            # what stands for the saved moments, but on a GPU insists on being given them.)
            saved = mean, torch.rsqrt(variance + ctx.eps)
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, variance, *saved, False, ctx.eps, [False, True, True]
            )
        sums = torch.stack([grad_bias, grad_weight]).to(mean.dtype)
        dist.all_reduce(sums)
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = weight * inverse
        # dx = scale * (dy - mean(dy) - xhat * mean(dy * xhat)), means over all ranks' rows, as a*dy - b*x - c
        b = scale * inverse * sums[1] / total
        c = scale * sums[0] / total - b * mean
        channels = [1, -1] + [1] * (x.ndim - 2)
        dx = scale.view(channels) * dy - b.view(channels) * x - c.view(channels)
        return dx.to(x.dtype), grad_weight, grad_bias if ctx.has_bias else None, None


def _normalize_over_ranks(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if weight is None:
        weight = torch.ones(x.shape[1], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    y, mean, variance, total = _NormalizeOverRanks.apply(x, weight, bias, eps)
    return y, mean, variance, total / (total - 1).clamp(min=1)


def _normalize_here(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    count = x.numel() // x.shape[1]
    if count < 2:
        raise UserError(
            f"batch normalisation in training mode needs at least two values a channel, got an input of shape "
            f"{tuple(x.shape)}; use a batch of two or more, or call .eval()"
        )
    dtype = torch.promote_types(x.dtype, torch.float32) if weight is None else weight.dtype
    # Averages with momentum 1 are this batch's own statistics, in one native pass and without cancellation.
    mean = torch.zeros(x.shape[1], device=x.device, dtype=dtype)
    variance = torch.zeros_like(mean)
    y = F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=1.0, eps=eps)
    return y, mean, variance * ((count - 1) / count), count / (count - 1)  # the kernel gives the unbiased variance


def _normalize_splits(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, splits: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    if len(x) % splits:
        raise UserError(f"a batch of {len(x)} rows does not split into {splits} equal runs for batch normalisation")
    ys, means, variances, corrections = zip(
        *(_normalize_here(run, weight, bias, eps) for run in x.chunk(splits)), strict=True
    )
    return torch.cat(ys), torch.stack(means).mean(0), torch.stack(variances).mean(0), corrections[0]


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    unbiased: bool = False,
    synchronized: bool = True,
    splits: int = 1,
) -> Tensor:
    """Batch normalisation in training mode, over the rows of all ranks; updates the running averages in place.

    Args:
        x: [n, channels, ...]; n may differ between ranks and may be 0 on some.
        running_mean, running_var: [channels] averages to update, or None.
        weight, bias: [channels] or None.
        momentum: share of this batch in the running averages.
        eps: added to the variance.
        unbiased: average the unbiased variance, n/(n-1) times the biased one that normalises (torch's convention).
        synchronized: take the statistics of all ranks' rows, or of this rank's alone.
        splits: above 1, normalise each of so many equal runs of this rank's rows by itself, as if each were a rank's,
            and average their statistics.

    Raises:
        UserError: the rows do not split evenly, or there are fewer than two values a channel in the one process or
            split, whose variance is no estimate.
    """
    correction: Tensor | float
    if splits > 1:
        y, mean, variance, correction = _normalize_splits(x, weight, bias, eps, splits)
    elif synchronized and is_distributed():
        y, mean, variance, correction = _normalize_over_ranks(x, weight, bias, eps)
    else:
        y, mean, variance, correction = _normalize_here(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * correction if unbiased else variance).to(running_var.dtype), momentum)
    return y


class BatchNorm(nn.Module):
    """Batch normalisation of [n, channels] or [n, channels, H, W] over the global batch.

    Statistics in training mode are those of all ranks' rows, weighted by their counts, on any backend; in one process
    torch's native kernels do the work. They are kept in float32 or better, whatever the type of x.

    Args:
        channels: number of features.
        bias: whether there is a bias (beta). The last layer of SimCLR's projection head has none.
        eps: added to the variance.
        momentum: share of a batch in the running averages: 1 - the reference's decay of 0.9.
        unbiased: keep the running average of the unbiased variance as torch does. The reference, with global batch
            norm, keeps the biased one (tf2/resnet.py: SyncBatchNormalization), which is the default here.
        synchronized: take statistics over all ranks. False: over this rank's rows alone (the reference's
            global_bn=False).
    """

    def __init__(
        self,
        channels: int,
        bias: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
        unbiased: bool = False,
        synchronized: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.unbiased, self.synchronized, self.splits, self.averaged = unbiased, synchronized, 1, False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [n, channels] or [n, channels, H, W] by the batch (training) or the running averages (eval)."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.momentum,
            self.eps,
            self.unbiased,
            self.synchronized,
            self.splits,
        )

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.channels}, bias={self.bias is not None}, eps={self.eps}, momentum={self.momentum}"


@contextmanager
def batch_norm_alone(module: nn.Module) -> Iterator[None]:
    """Let the batch norm layers of `module` ask no other rank, for a pass that this rank makes by itself."""
    asking = [part for part in module.modules() if getattr(part, "synchronized", False)]
    for part in asking:
        part.synchronized = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in asking:
            part.synchronized = True  # type: ignore[assignment]


def keep_batch_norm_local(module: nn.Module, splits: int = 1, averaged: bool = False) -> None:
    """Let the batch norm layers of `module` take statistics of this rank's rows alone, and of each split by itself.

    Args:
        module: any; its layers are told by what they are: `BatchNorm`, or an adapted library's.
        splits: see `batch_norm`; each rank's rows must divide by it.
        averaged: `average_running_statistics` takes the mean of the ranks' running averages (SimCLR). False: they are
            the first rank's, which DistributedDataParallel hands to the others (MoCo).

    Raises:
        UserError: splits above 1, and a batch norm layer that cannot split, or none at all.
    """
    ours = [part for part in module.modules() if hasattr(part, "synchronized") and hasattr(part, "splits")]
    for part in ours:
        part.synchronized, part.splits, part.averaged = False, splits, averaged  # type: ignore[assignment]
    deaf = [name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and part not in ours]
    if splits > 1 and (deaf or not ours):
        result = f"it cannot be split in {', '.join(deaf[:3])}" if deaf else "this encoder has none"
        raise UserError(f"batch normalisation in {splits} splits: {result}; leave the option out")


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """All batch norm layers of `module`: `BatchNorm`, torch's, and libraries' that extend torch's."""
    return [part for part in module.modules() if isinstance(part, BatchNorm | _BatchNorm)]


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Let layers that `keep_batch_norm_local` left `averaged` hold the mean over ranks of their running averages.

    The averages are linear in each step's statistics, so that the mean of where the ranks' own averages led is what
    the mean of the ranks' statistics leads to: the aggregation of tf2/resnet.py under MirroredStrategy. One message.
    """
    if not is_distributed():
        return
    layers = [part for part in module.modules() if getattr(part, "averaged", False)]
    buffers = [buffer for part in layers for buffer in (part.running_mean, part.running_var)]
    if not buffers:
        return
    means = all_reduce_mean(torch.cat([buffer.flatten() for buffer in buffers]))  # type: ignore[operator]
    for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):  # type: ignore[operator]
        buffer.copy_(mean)  # type: ignore[operator]
