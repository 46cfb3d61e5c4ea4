"""Which checkpoint is the best, where something watches the run."""

from __future__ import annotations

from collections.abc import Mapping

SCORES = ("knn_top1", "probe_top1")
"""What is compared, in this order, as monitors call it: a share in 0..1, more is better."""


class Best:
    """The best of the checkpoints that were written, each by the last look before it.

    Attributes:
        step: of the best checkpoint; None before the first look.
        value: its score.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.value = 0.0
        self._seen: float | None = None

    def look(self, row: Mapping[str, float]) -> None:
        """Take note of what the monitors saw."""
        self._seen = next((float(row[name]) for name in SCORES if name in row), None)

    @property
    def waiting(self) -> bool:
        """Whether a look waits for the checkpoint that it is to judge."""
        return self._seen is not None

    def consider(self, step: int) -> None:
        """A checkpoint of `step` is being written: it is the best if it scores more than all before."""
        if self._seen is not None and (self.step is None or self._seen > self.value):
            self.step, self.value = step, self._seen
        self._seen = None

    def state(self) -> list[float] | None:
        """For the checkpoint."""
        return None if self.step is None else [self.step, self.value]

    def load_state(self, state: list[float] | None) -> None:
        """Go on from what a checkpoint holds; those of earlier versions hold nothing."""
        if state is not None:
            self.step, self.value = int(state[0]), float(state[1])
