"""The learning rates of MoCo, of the speech transformer, and none at all. Step 0 is the first update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from twofold.errors import UserError


@dataclass(frozen=True)
class EpochCosine:
    """MoCo's: a cosine that moves once an epoch, peak * (1 + cos(pi * e / epochs)) / 2; 0 from e = epochs on.

    The first epoch is e = 0 (main_moco.py of facebookresearch/moco), or 1 in its CIFAR-10 demo, whose last epoch
    therefore has lr 0.
    """

    peak: float
    epochs: float
    steps_per_epoch: int
    first_epoch: int = 0

    def __call__(self, step: int) -> float:
        epoch = min(step // self.steps_per_epoch + self.first_epoch, self.epochs)
        return self.peak * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


@dataclass(frozen=True)
class StepDecay:
    """Multiply by `factor` at the start of each epoch in `milestones`, the first epoch being 0."""

    peak: float
    milestones: tuple[int, ...]
    steps_per_epoch: int
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        epoch = step // self.steps_per_epoch
        return self.peak * self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Constant:
    """`peak` at every step, after a linear rise from 0 over `warmup` steps."""

    peak: float
    warmup: int = 0

    def __call__(self, step: int) -> float:
        return self.peak * min(1.0, step / self.warmup) if self.warmup else self.peak


@dataclass(frozen=True)
class InverseSqrt:
    """The transformer's: peak * min(t / warmup, sqrt(warmup / t)) with t = step + 1 (arXiv 1706.03762, section 5.3).

    The published peak is 1 / sqrt(width * warmup), width being the transformer's.
    """

    peak: float
    warmup: int

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise UserError(f"the inverse square root starts from a warm-up of at least one step, got {self.warmup}")

    def __call__(self, step: int) -> float:
        t = step + 1
        return self.peak * min(t / self.warmup, math.sqrt(self.warmup / t))
