"""Large batches on small machines: the encoder runs in chunks whose activations are thrown away and computed again.

Gradients are those of the whole batch, as the loss sees all projections at once (GradCache, arXiv 2101.06983, has the
same aim; here torch's activation checkpointing does the bookkeeping, so that any method and DDP go through unchanged).
What a chunk of m images changes is batch normalisation in the encoder: it takes statistics of the chunk ("ghost"
statistics, over all ranks' chunks), and the running averages move once a step, towards the mean of the chunks'.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from twofold.distributed import batch_norm_alone, keep_batch_norm_local, world_size
from twofold.errors import UserError
from twofold.methods import Method, MoCo
from twofold.text import counted
from twofold.training.loop import AnyTraining

_Done = TypeVar("_Done")


def run_in_chunks(method: Method, batch: int, micro_batch: int, compiled: bool = False) -> None:
    """Let the encoders of `method` run in chunks of `micro_batch` images in training mode; nothing else changes.

    Args:
        method: its `encoder`, and a `momentum_encoder` if it has one. MoCo's splits of batch norm become splits of a
            chunk, or chunks where these are smaller.
        batch: images per step over all devices.
        micro_batch: images of a chunk; both views of each go through together, as in the whole batch.
        compiled: compile what runs on a chunk.

    Raises:
        UserError: if chunks do not divide the batch of a device, or do not agree with MoCo's splits.
    """
    rows = batch // world_size()
    if rows % micro_batch:
        raise UserError(
            f"--micro-batch {micro_batch} does not divide the {counted(rows, 'image')} of a device's batch: give one "
            f"of {', '.join(str(m) for m in range(1, rows + 1) if rows % m == 0)}"
        )
    chunks = rows // micro_batch
    if isinstance(method, MoCo):
        if method.bn_splits % chunks and chunks % method.bn_splits:
            raise UserError(
                f"--micro-batch {micro_batch} makes {chunks} chunks, which --method.bn_splits {method.bn_splits} does "
                "not agree with: one must divide the other"
            )
        encoders = [method.encoder, method.momentum_encoder]
        keep_batch_norm_local(nn.ModuleList(encoders), max(1, method.bn_splits // chunks))
    else:
        encoders = [module for module in (method.encoder, getattr(method, "momentum_encoder", None)) if module]
    for body in (encoder.body() for encoder in encoders):
        forward = torch.compile(body.forward) if compiled else body.forward
        body.forward = _in_chunks(body, forward, rows, chunks)


def train_or_advise(training: AnyTraining, micro_batch: int | None) -> bool:
    """`training.fit`; when a device's memory runs out, the error names a --micro-batch that was seen to fit."""
    return or_advise(training.fit, training, micro_batch)


def or_advise(work: Callable[[], _Done], training: AnyTraining, micro_batch: int | None) -> _Done:
    """What `work` gives, which takes steps of `training`; with the same advice when a device's memory runs out."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        spent = error
    # Out of the except block, whose traceback would keep the step's tensors alive.
    spent.__traceback__ = None
    training.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    encoder, cause = training.method.encoder, str(spent).splitlines()[0]
    tried = f"--micro-batch {micro_batch}" if micro_batch else f"--batch {training.batch}"
    if encoder.input.kind == "audio":
        remedy = "a smaller --micro-batch" if _learns(encoder) else "a smaller --batch"
        raise UserError(
            f"the device's memory ran out with {tried}: give {remedy}, or fewer --data.audio.max_seconds ({cause})"
        )
    if not _learns(encoder) or training.size is None:
        raise UserError(f"the device's memory ran out with {tried}: choose a smaller --batch or --views.size ({cause})")
    size, channels, each = training.size, encoder.input.channels, training.make_inputs.each
    rows = training.batch // world_size()
    view, weights = channels * size**2, sum(p.numel() for part in training.method.trained() for p in part.parameters())
    # What a step holds beside a chunk: the views and their copy in one tensor, gradients, the optimiser's averages.
    beside = 4 * (2 * each * rows * view + 3 * weights)
    fits = fitting_micro_batch(
        training.method, (channels, size, size), micro_batch or rows, training.accelerator.autocast, beside, each
    )
    remedy = (
        f"--micro-batch {fits} fits: the encoder then runs in chunks, with the same batch and "
        f"{'negatives' if each == 2 else 'gradients'}"
        if fits
        else "not even one image at a time fits: choose a smaller --batch, --encoder.width or --views.size"
    )
    raise UserError(f"the device's memory ran out with {tried}; {remedy} ({cause})")


def _learns(encoder: nn.Module) -> bool:
    """Whether a gradient reaches any of the encoder's weights."""
    return any(parameter.requires_grad for parameter in encoder.parameters())


def _in_chunks(module: nn.Module, forward: Callable[..., Tensor], rows: int, chunks: int) -> Callable[..., Tensor]:
    def chunked(*inputs: Tensor) -> Tensor:  # one tensor of images, or frames and their numbers
        if not module.training or len(inputs[0]) % rows:
            return forward(*inputs)
        # row i of each view goes with row i of the others
        views = zip(*(x.unflatten(0, (-1, rows)).chunk(chunks, 1) for x in inputs), strict=True)
        averages, outputs = Averages(module), []
        for parts in views:
            joined = [part.flatten(0, 1) for part in parts]
            with averages.of_one_pass():
                if torch.is_grad_enabled():
                    # (the numbers that dropout draws are kept by checkpoint; the averages must not move twice)
                    output = checkpoint(
                        forward, *joined, use_reentrant=False,
                        context_fn=lambda: (nullcontext(), averages.untouched()),
                    )  # fmt: skip
                else:
                    output = forward(*joined)
            outputs.append(output.unflatten(0, (parts[0].shape[0], -1)))
        averages.settle()
        return torch.cat(outputs, 1).flatten(0, 1)

    return chunked


class Averages:
    """The running averages of a module through several passes that stand for one.

    Each pass starts from the same values; `settle` gives the mean of where they led, so that with momentum m the
    averages become (1 - m) * before + m * mean of the passes' statistics, for any kind of averaging layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = list(module.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self._sums: list[Tensor] | None = None
        self._passes = 0

    @contextmanager
    def of_one_pass(self) -> Iterator[None]:
        """Start from the first values, and add up where they led."""
        self._write(self._before)
        yield
        after = [buffer.clone() for buffer in self._buffers]
        self._sums = after if self._sums is None else [s.add_(x) for s, x in zip(self._sums, after, strict=True)]
        self._passes += 1

    def untouched(self) -> AbstractContextManager[Any]:
        """Leave the averages as they are found."""
        return _restored(self._buffers)

    def settle(self) -> None:
        """The mean of the passes; counters, which are whole numbers, count one pass."""
        if self._sums:
            self._write([s / self._passes if s.is_floating_point() else s // self._passes for s in self._sums])

    def _write(self, values: list[Tensor]) -> None:
        _write(self._buffers, values)


@contextmanager
def _restored(buffers: list[Tensor]) -> Iterator[None]:
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        _write(buffers, before)


def _write(buffers: list[Tensor], values: list[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.data.copy_(value)  # past autograd: a kernel may have kept the buffer, whose values it does not use


def fitting_micro_batch(
    method: Method, shape: tuple[int, ...], most: int, autocast: Callable[[], Any], beside: int = 0,
    each: int = 2,
) -> int | None:  # fmt: skip
    """The largest power of two below `most` whose chunk of all views goes through forward and backward in memory.

    Args:
        method: in training mode, its encoder not in chunks yet or in larger ones.
        shape: [C, S, S] of a view.
        most: images of the chunk that did not fit.
        autocast: gives the context of mixed precision.
        beside: bytes that a GPU has to hold at the same time.
        each: views of an image.

    Returns:
        Images of a chunk, or None if not even one fits.
    """
    size = 1 << max(most - 1, 1).bit_length() - 1
    while size >= 1:
        if _fits(method, (each * size, *shape), autocast, beside):
            return size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size //= 2
    return None


def _fits(method: Method, shape: tuple[int, ...], autocast: Callable[[], Any], beside: int) -> bool:
    """Whether views [n, C, S, S] go forward and backward while so many bytes are held."""
    parameter = next(parameter for parameter in method.encoder.parameters() if parameter.requires_grad)
    try:
        held = torch.empty(beside if parameter.is_cuda else 0, dtype=torch.uint8, device=parameter.device)
        # Another rank may have room, and would not answer: no batch norm over ranks.
        with Averages(method.encoder).untouched(), autocast(), batch_norm_alone(method.encoder):
            h = type(method.encoder).forward(method.encoder, torch.rand(shape, device=parameter.device))
        torch.autograd.grad(h.float().sum(), parameter)
        del held
    except torch.OutOfMemoryError:
        return False
    return True
