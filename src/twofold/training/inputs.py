"""From a batch to what the method is given: two views; one view and its labels; one view and what a teacher says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from twofold.data.batches.base import Batch, Draw, Examples
from twofold.methods import Inputs
from twofold.waves import Waves

DrawTaken = TypeVar("DrawTaken", contravariant=True)


class Views(Protocol[Examples, DrawTaken]):
    """Makes views of examples with numbers that were drawn before."""

    def apply(self, examples: Examples, draws: tuple[DrawTaken, DrawTaken], /) -> tuple[Examples, Examples]:
        """Both views of a batch's examples, on their device."""

    def one(self, examples: Examples, draw: DrawTaken, /) -> Examples:
        """One view."""


@dataclass(frozen=True)
class MakeInputs(Generic[Examples, Draw]):
    """Base of what turns a batch into the inputs of a method.

    Args:
        views: make views of the batch's examples.
        device: where the method computes.
        memory_format: of images and kernels.
    """

    each: ClassVar[int] = 1
    """Views of each example."""

    views: Views[Examples, Draw]
    device: torch.device
    memory_format: torch.memory_format

    def __call__(self, batch: Batch[Examples, Draw]) -> Inputs:
        """The inputs of one step, on the device."""
        raise NotImplementedError(f"{type(self).__name__} makes nothing of a batch")

    def first_view(self, batch: Batch[Examples, Draw]) -> Examples:
        """The first view of every example."""
        examples = batch.of_one_view().to(self.device, non_blocking=True)
        return self.views.one(examples, batch.draws[0]).contiguous(memory_format=self.memory_format)


@dataclass(frozen=True)
class TwoViews(MakeInputs[Examples, Draw]):
    """Both views: what is contrasted."""

    each: ClassVar[int] = 2

    def __call__(self, batch: Batch[Examples, Draw]) -> Inputs:
        """Both views."""
        a, b = self.views.apply(batch.examples.to(self.device, non_blocking=True), batch.draws)
        return Inputs(
            a.contiguous(memory_format=self.memory_format), b.contiguous(memory_format=self.memory_format)
        )  # fmt: skip


@dataclass(frozen=True)
class LabelledView(MakeInputs[Examples, Draw]):
    """The first view and its labels."""

    def __call__(self, batch: Batch[Examples, Draw]) -> Inputs:
        """The first view and its labels; every example of the data must have one."""
        assert batch.labels is not None
        view = self.first_view(batch)
        return Inputs(view, labels=batch.labels.to(self.device, non_blocking=True))


class Teacher(Protocol):
    """Says something of examples."""

    def __call__(self, view: Tensor | Waves, index: Tensor, /) -> Tensor:
        """Logits [n, K] of examples by their view and by their index in the data."""


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher that sees the very view that its student sees.

    Args:
        net: views -> logits [n, K], in inference mode.
        autocast: gives the context of mixed precision.
    """

    net: nn.Module
    autocast: Callable[[], AbstractContextManager[Any]]

    @torch.no_grad()
    def __call__(self, view: Tensor | Waves, index: Tensor) -> Tensor:  # noqa: ARG002 (a cached one needs it)
        """What it says of the view."""
        with self.autocast():
            logits: Tensor = self.net(view)
        return logits


@dataclass(frozen=True)
class CachedTeacher:
    """What a teacher said of each example as it is.

    Args:
        logits: [N, K] of every example of the data, on the CPU.
    """

    logits: Tensor

    def __call__(self, view: Tensor | Waves, index: Tensor) -> Tensor:  # noqa: ARG002 (an online one needs it)
        """What it said, on the CPU."""
        return self.logits[index]


@dataclass(frozen=True)
class TaughtView(MakeInputs[Examples, Draw]):
    """The first view, what a teacher says of the example, and its label where one is known.

    Args:
        teacher: gives the logits.
        known: labels [N] of every example of the data, -1 where unknown; None: no labels are used.
    """

    teacher: Teacher
    known: Tensor | None

    def __call__(self, batch: Batch[Examples, Draw]) -> Inputs:
        """The first view, the teacher's logits, and the known labels."""
        view = self.first_view(batch)
        labels = None if self.known is None else self.known[batch.index].to(self.device)
        return Inputs(view, labels=labels, teacher_logits=self.teacher(view, batch.index).to(self.device))
