"""How often the monitors of a run look, and at how many images: within a twentieth of its time, by counting.

No clock takes part. Which looks there are decides which checkpoint is the best, and so the same run has to have the
same looks on any machine, and after any stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twofold.evaluation.monitors import MonitorConfig

LOOKING_SHARE = 0.05
"""Most of a run's time that looks take where their distance or their size is left open."""
TRAINED = 4
"""Passes forward that a training example costs at least: one view forward and backward, which takes twice as long, and
the other one forward (MoCo); two views forward and backward are 6."""
READ = 4
"""Passes forward that it costs to read an image for the first look and bring it to its size, by measurement on small
encoders; large ones need less."""
BEFORE = 1
"""Looks before the first step, which tell what random weights show."""
MOST_LOOKS, FEW_LOOKS = 20, 5
"""Looks of a run that can afford them, and those below which fewer images are looked at rather."""
MOST, LEAST = 5000, 64
"""Images that a look takes at most from each of bank and queries, and in all as few as that even where it costs more:
from fewer nothing can be read."""


@dataclass(frozen=True)
class Looks:
    """How a run is watched.

    Attributes:
        every: epochs from one look to the next.
        bank, queries: images that are taken of each, at most.
    """

    every: float
    bank: int
    queries: int


def plan_looks(config: MonitorConfig, epochs: float, examples: int, bank: int, queries: int) -> Looks:
    """The looks of a run.

    A look costs a pass forward for each of its images, and reading them costs `READ` more, once; there is one look
    `BEFORE` the first step.

    Args:
        config: `every` and `samples` are kept where they are given.
        epochs: of the run.
        examples: that the run trains on, repetitions included.
        bank, queries: images that could be taken of each.
    """
    most = MOST if config.samples is None else config.samples
    bank, queries = min(bank, most), min(queries, most)
    whole, budget, fixed = bank + queries, LOOKING_SHARE * TRAINED * examples, READ + BEFORE
    if config.every is not None:
        every = float(config.every)
    else:
        fewest = FEW_LOOKS if config.samples is None else 1
        affordable = budget / whole - fixed
        affordable = affordable if affordable >= fewest else min(fewest, budget / min(whole, LEAST) - fixed)
        looks = max(1, min(MOST_LOOKS, math.floor(affordable)))
        every = max(1.0, float(round(epochs / looks) if looks == MOST_LOOKS else math.ceil(epochs / looks)))
    if config.samples is not None:
        return Looks(every, bank, queries)
    looks = max(1, math.ceil(epochs / every))
    most = min(whole, max(LEAST, math.floor(budget / (looks + fixed))))
    asked = min(queries, max(most // 4, math.ceil(most * queries / whole)))
    return Looks(every, min(bank, most - asked), asked)
