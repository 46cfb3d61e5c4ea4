"""Learning rates as pure functions of the step. Step 0 is the first update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twofold.errors import UserError
from twofold.text import counted


def scaled_lr(base: float, batch: int, rule: Literal["linear", "sqrt", "none"]) -> float:
    """The peak learning rate for a global batch: base * batch / 256, base * sqrt(batch), or base."""
    if rule not in ("linear", "sqrt", "none"):
        raise UserError(f"lr_rule must be linear, sqrt or none, got {rule!r}")
    return base * {"linear": batch / 256, "sqrt": math.sqrt(batch), "none": 1.0}[rule]


@dataclass(frozen=True)
class WarmupCosine:
    """SimCLR's: linear from 0 to `peak` over `warmup` steps, then a cosine to 0 at step `total`; 0 from there on.

    With a warm-up, the first update has lr 0. Source: WarmUpAndCosineDecay, tf2/model.py of google-research/simclr.
    """

    peak: float
    warmup: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.total:
            raise UserError(
                f"the warm-up takes {self.warmup} of the run's {counted(self.total, 'step')}: lower "
                "--optim.warmup_epochs (or --optim.warmup_steps), or train longer"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * step / self.warmup
        progress = min(step - self.warmup, self.total - self.warmup) / (self.total - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_steps(images: int, batch: int, epochs: float) -> int:
    """Whole batches in so many epochs, floor(images * epochs / batch): the reference's count of warm-up steps."""
    return int(images * epochs // batch)


def train_steps(images: int, batch: int, epochs: float) -> int:
    """One more than that: the reference's count of training steps (get_train_steps in tf2/model.py)."""
    return warmup_steps(images, batch, epochs) + 1
