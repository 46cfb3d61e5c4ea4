"""The learning rate of a run to which epochs were added after it had come to its end.

A cosine has reached 0 by then, and training at that rate would change nothing. It begins anew: the rate rises to its
peak again and falls over the added steps, as in warm restarts (arXiv 1608.03983, section 3; arXiv 2403.08763 does so
where pretraining goes on). Schedules without an end go on as if the run had been longer from the start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twofold.errors import UserError
from twofold.optim.other_schedules import EpochCosine
from twofold.optim.schedules import WarmupCosine
from twofold.text import counted


@dataclass(frozen=True)
class Restarted:
    """Schedules one after another, each of which counts steps from its own beginning.

    Args:
        parts: (first step, schedule) in order; the first begins at 0.
    """

    parts: tuple[tuple[int, Callable[[int], float]], ...]

    def __call__(self, step: int) -> float:
        begin, schedule = next(part for part in reversed(self.parts) if part[0] <= step)
        return schedule(step - begin)


def extended(schedule: Callable[[int], float], ends: Sequence[int], epochs: Sequence[float]) -> Callable[[int], float]:
    """The learning rate of a run and its extensions.

    A cosine per step warms up over a tenth of an extension's steps, but no longer than the run itself did, and falls
    to 0 over the rest; a cosine per epoch (MoCo) begins anew over the added epochs. Steps, a constant and the inverse
    root go on.

    Args:
        schedule: of the run as it was planned.
        ends: steps after which the run, and then each extension, ends.
        epochs: of each extension; one fewer than `ends`.

    Raises:
        UserError: an extension that is too short to have a step, or one that learns.
    """
    for begin, end, more in zip(ends[:-1], ends[1:], epochs, strict=True):
        if end <= begin:
            raise UserError(f"{more:g} more epochs are not one step of this run's batch: give --extend more")
    if not epochs or not isinstance(schedule, WarmupCosine | EpochCosine):
        return schedule
    parts: list[tuple[int, Callable[[int], float]]] = [(0, schedule)]
    for begin, end, more in zip(ends[:-1], ends[1:], epochs, strict=True):
        parts.append((begin, _anew(schedule, end - begin, more)))
    return Restarted(tuple(parts))


def _anew(schedule: WarmupCosine | EpochCosine, steps: int, epochs: float) -> Callable[[int], float]:
    if isinstance(schedule, EpochCosine):
        if epochs <= schedule.first_epoch:
            raise UserError(
                f"{counted(epochs, 'more epoch')} would have the learning rate 0 throughout, as the last epoch has "
                f"with --optim.first_epoch {schedule.first_epoch}: give --extend more"
            )
        return dataclasses.replace(schedule, epochs=epochs)
    return WarmupCosine(schedule.peak, min(schedule.warmup, max(1, steps // 10), steps - 1), steps)


def in_words(schedule: Callable[[int], float], begin: int, end: int) -> str:
    """What the learning rate does in the extension of the steps begin <= step < end."""
    last = schedule.parts[-1][1] if isinstance(schedule, Restarted) else schedule
    if isinstance(last, WarmupCosine):
        unit = "step" if last.warmup == 1 else "steps"
        rise = (
            f"rises from 0 to {last.peak:g} over {last.warmup:,} {unit}" if last.warmup else f"begins at {last.peak:g}"
        )
        return f"{rise} and falls to 0 on a cosine over the added steps"
    if isinstance(last, EpochCosine):
        return f"begins anew at {schedule(begin):g} and falls on a cosine over the added epochs"
    return f"goes on as in a longer run, from {schedule(begin):g} to {schedule(end - 1):g}"
