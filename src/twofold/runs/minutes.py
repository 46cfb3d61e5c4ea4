"""Epochs from a budget of time: how many fit into some minutes here, by a short trial of the very run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from twofold.console import duration
from twofold.distributed import all_reduce_mean, highest
from twofold.errors import UserError
from twofold.text import counted
from twofold.training.loop import AnyTraining

SHARE, LONGEST, FEWEST, UNTIMED = 0.05, 30.0, 10, 2
"""Of the trial: share of the budget, most seconds, fewest steps, and first steps that are never timed."""
LOOKS = 22
"""How often monitors look where their distance is left open: before a run, at every twentieth of it, and at its end."""


@dataclass(frozen=True)
class Rate:
    """What a trial found.

    Attributes:
        step: seconds of a step.
        look: seconds of one look by the monitors.
        spent: seconds of the trial, which the budget pays.
        steps: that were timed.
    """

    step: float
    look: float
    spent: float
    steps: int


def check_minutes(minutes: float) -> None:
    """Raise a UserError for no time at all, or no end of it."""
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes {minutes:g}: give minutes above 0, such as 10")


def measure_rate(training: AnyTraining, minutes: float, clock: Callable[[], float] = time.monotonic) -> Rate:
    """Train for a twentieth of the budget, half a minute at most, and keep nothing but the time that it took.

    The later half of the steps is timed, the first two never: they start workers and kernels, and read what is kept
    from then on. The weights and the optimiser of `training` are
    those of a run that has begun: it is not to be used for anything else. Nothing is written.

    Args:
        training: a run of many more steps than a trial takes, or as many as there are.
        minutes: the budget.
        clock: seconds, from anywhere.
    """
    device, begun, times = training.accelerator.device, clock(), list[float]()
    limit = min(LONGEST, 60 * SHARE * minutes)
    model, optimizer = training.accelerator.prepare(training.method, training.optimizer)
    try:
        for batch in training.loader.iterate(0, training.steps):
            training.update(model, optimizer, batch)  # type: ignore[arg-type]  # its own loader's batches
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock())
            enough = len(times) >= FEWEST and times[-1] - begun >= limit
            if highest(int(enough))[0]:  # every rank has to do as many steps
                break
        done = clock()
        look = 0.0
        if training.monitors:
            training.run_monitors()
            look = clock() - done
    finally:
        training.loader.close()
        training.accelerator.free_memory()
    gaps = [later - earlier for earlier, later in pairwise([begun, *times])]
    timed = gaps[max(UNTIMED, len(gaps) // 2) :] or gaps
    found = torch.tensor([sum(timed) / len(timed), look, clock() - begun], device=device, dtype=torch.float64)
    step, look, spent = all_reduce_mean(found.float()).tolist()
    return Rate(step, look, spent, len(timed))


def epochs_within(
    minutes: float, rate: Rate, steps_per_epoch: float, monitor_every: int, looking_share: float = 1.0
) -> tuple[float, str]:
    """How many epochs fit into a budget, to three digits and rounded down, and what they follow from, in words.

    Args:
        minutes: the budget, of which the trial has spent some.
        rate: of the trial.
        steps_per_epoch: of the run.
        monitor_every: epochs between two looks of the monitors; 0 where that is left open.
        looking_share: most of the time that they take in the run, which looks at fewer examples than the trial.

    Returns:
        At least as many epochs as make one step, however little time there is.
    """
    left, every = 60 * minutes - rate.spent, rate.step
    if monitor_every:
        each = rate.look / (monitor_every * steps_per_epoch)
        every += min(each, every * looking_share / (1 - looking_share)) if looking_share < 1 else each
    else:
        left -= min(LOOKS * rate.look, looking_share * max(left, 0.0))
    least = 1 / steps_per_epoch
    epochs = _to_three_digits(max(left / every, 0.0) / steps_per_epoch, math.floor)
    told = (
        f"{counted(minutes, 'minute')}: {rate.step * 1000:.3g} ms a step in {counted(rate.steps, 'step')} of a trial "
        f"of {duration(rate.spent)}, {counted(steps_per_epoch, 'step')} an epoch"
    )
    told += f", {rate.look:.2g} s for each look of the monitors" if rate.look else ""
    if epochs < least:
        return _to_three_digits(least, math.ceil), f"{told}; not even one step fits, and one is made"
    return epochs, told


def _to_three_digits(value: float, whole: Callable[[float], int]) -> float:
    """A number with three digits, rounded by `whole`: floor or ceil."""
    if not value > 0:
        return 0.0
    place = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{whole(value / place) * place:.12g}")
