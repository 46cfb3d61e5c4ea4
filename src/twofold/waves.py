"""A batch of recordings of different lengths: what speech encoders and the views of waveforms take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from twofold.errors import UserError


@dataclass(frozen=True)
class Waves:
    """Mono waveforms, padded with zeros to the longest.

    It moves between devices as a tensor does (`to`, `contiguous`), so that the training loop need not know which of the
    two it holds.
    """

    samples: Tensor
    """float32 [n, S], usually in [-1, 1]; 0 beyond the lengths."""
    lengths: Tensor
    """int64 [n] samples of each, at most S."""
    random: Tensor | None = None
    """[n, K] uniform numbers in [0, 1) for what a method does after the front end, drawn with the view."""

    @classmethod
    def of(cls, waves: Sequence[Tensor]) -> Waves:
        """Pad a list of [samples] to a batch."""
        lengths = torch.tensor([len(wave) for wave in waves], dtype=torch.int64)
        samples = torch.zeros(len(waves), int(lengths.max()) if len(waves) else 0)
        for row, wave in zip(samples, waves, strict=True):
            row[: len(wave)] = wave
        return cls(samples, lengths)

    @staticmethod
    def cat(parts: Sequence[Waves]) -> Waves:
        """All rows of several batches, padded to the longest."""
        longest = max(part.samples.shape[1] for part in parts)
        padded = [F.pad(part.samples, (0, longest - part.samples.shape[1])) for part in parts]
        drawn = [part.random for part in parts if part.random is not None]
        numbers = None
        if len(drawn) == len(parts):
            count = min(part.shape[1] for part in drawn)
            numbers = torch.cat([part[:, :count] for part in drawn])
        return Waves(torch.cat(padded), torch.cat([part.lengths for part in parts]), numbers)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: slice | Tensor) -> Waves:
        return self._map(lambda values: values[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Waves:
        """The same on another device."""
        return self._map(lambda values: values.to(device, non_blocking=non_blocking))

    def contiguous(self, **layout: Any) -> Waves:  # noqa: ARG002  # an image's order of channels means nothing here
        """Itself: there is one layout."""
        return self

    def pin_memory(self) -> Waves:
        """The same in page-locked memory."""
        return self._map(lambda values: values.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Waves:
        return Waves(change(self.samples), change(self.lengths), None if self.random is None else change(self.random))

    def check(self) -> None:
        """Raise a UserError for wrong shapes, lengths or types."""
        if self.samples.ndim != 2 or self.lengths.shape != self.samples.shape[:1]:
            shapes = tuple(self.samples.shape), tuple(self.lengths.shape)
            raise UserError(f"waveforms must be [n, samples] with lengths [n], got {shapes[0]} and {shapes[1]}")
        if not self.samples.is_floating_point():
            raise UserError(f"waveforms must be floats in [-1, 1], got {self.samples.dtype}; divide int16 by 32768")
        if torch.compiler.is_compiling():  # torch.export and torch.compile cannot follow a look at the values
            return
        if len(self) and not 0 <= int(self.lengths.min()) <= int(self.lengths.max()) <= self.samples.shape[1]:
            raise UserError(f"lengths must lie in 0 .. {self.samples.shape[1]}, got {self.lengths.tolist()}")


def as_waves(waves: Waves | Tensor | NDArray[Any] | Sequence[Any], lengths: Tensor | None = None) -> Waves:
    """Waves of a padded tensor or array [n, S] with lengths [n] (all of it without), of a list of [samples], or
    themselves."""
    if isinstance(waves, Waves):
        return waves
    if isinstance(waves, np.ndarray):
        waves = torch.from_numpy(waves)
    if isinstance(waves, Tensor):
        if waves.ndim != 2:
            hint = "; of one recording give wave[None]" if waves.ndim == 1 else ""
            raise UserError(f"a speech encoder takes waveforms [n, samples], got {tuple(waves.shape)}{hint}")
        if lengths is None:
            lengths = torch.full((len(waves),), waves.shape[1], device=waves.device)
        return Waves(waves, lengths)
    rows = [torch.as_tensor(wave) for wave in waves]
    if (wrong := next((row for row in rows if row.ndim != 1 or not row.is_floating_point()), None)) is not None:
        raise UserError(
            f"a list of waveforms holds {wrong.dtype} {tuple(wrong.shape)}: give floats [samples] in [-1, 1]; divide "
            "int16 by 32768"
        )
    return Waves.of([row.float() for row in rows])
