"""What a step is given, whatever the examples are: a batch, the order that examples come in, and what loads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from numpy import int64
from numpy.typing import NDArray
from torch import Tensor

from twofold.waves import Waves

Examples = TypeVar("Examples", Tensor, Waves)
"""What holds the examples of a batch: a tensor of images, or waves of recordings."""
Draw = TypeVar("Draw")
"""What holds the random numbers of one view."""


@dataclass
class Batch(Generic[Examples, Draw]):
    """One rank's part of one step's batch, on the CPU."""

    step: int
    rows: Tensor
    """int64 [n] positions in the global batch: this rank's block of it."""
    index: Tensor
    """int64 [n] examples, after substitution of unreadable ones."""
    examples: Examples
    """Recordings, or images as uint8 [n, C, H, W]: whole ones for `views.apply`, or [2, n, C, S, S], both views' crops
    for `views.photometric`."""
    labels: Tensor | None
    """int64 [n] or [n, K]."""
    draws: tuple[Draw, Draw]
    """Each view's random numbers."""
    skipped: list[tuple[str, str]]
    """(path, reason) of the files that could not be read and were substituted."""

    @property
    def cropped(self) -> bool:
        """`examples` holds crops of images."""
        return isinstance(self.examples, Tensor) and self.examples.ndim == 5

    def of_one_view(self) -> Examples:
        """What the first view is made of: the examples, or of crops [2, n, ...] the first view's, [1, n, ...]."""
        return self.examples[:1] if self.cropped else self.examples


class BatchOrder(Protocol):
    """Which examples make a step's global batch: a pure function of the step."""

    batch: int
    """Examples a step, over all ranks."""

    @property
    def steps_per_epoch(self) -> float: ...

    def indices(self, step: int) -> NDArray[int64]:
        """[batch] examples of one step."""

    def steps(self, epochs: float) -> int:
        """Whole steps in so many epochs."""


class BatchLoader(Protocol[Examples, Draw]):
    """Makes the batches of an order."""

    @property
    def watched(self) -> bool:
        """Whether examples are read in processes that are ended and started again where they hang."""

    def iterate(self, start: int, stop: int) -> Iterator[Batch[Examples, Draw]]:
        """The batches of the steps start <= step < stop, each a pure function of its step."""

    def name(self, index: int) -> str:
        """What one example is called in messages: its file."""

    def close(self) -> None:
        """Stop what runs beside the training."""
