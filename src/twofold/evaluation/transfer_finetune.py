"""Fine-tuning on a data set of the transfer study: a grid of rates and decays, the best one once more on all images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from twofold.errors import UserError
from twofold.evaluation.finetune import FinetuneResult, finetune
from twofold.evaluation.scores import ManyScores
from twofold.evaluation.transfer import Parts
from twofold.evaluation.transfer_sets import SETS, Metric
from twofold.views.resample import Resample

RATES = tuple(float(v) for v in np.logspace(-4, -1, 7))
DECAYS = (0.0, *(float(v) for v in np.logspace(-6, -3, 7)))


@dataclass(frozen=True)
class Budget:
    """How much fine-tuning each cell of the grid gets: as published, unless told otherwise."""

    steps: int = 20_000
    """Steps of each run."""
    batch: int = 256
    """Images a step."""
    rates: tuple[float, ...] = RATES
    """Learning rates to try."""
    decays: tuple[float, ...] = DECAYS
    """Weight decays to try, each divided by the learning rate as published."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise UserError(f"--budget.steps and --budget.batch must be at least 1, got {self.steps}, {self.batch}")
        if not self.rates or min(self.rates) <= 0 or not self.decays or min(self.decays) < 0:
            raise UserError("--budget.rates must be above 0 and --budget.decays at least 0, one or more of each")


def finetune_grid(
    encoder_file: Path, name: str, parts: Parts, out: Path, budget: Budget, size: int, resample: Resample,
    seed: int = 0, module: nn.Module | None = None,
) -> tuple[float, float, dict[str, float], str]:  # fmt: skip
    """Fine-tune with each rate and decay, take the best on the validation images, fine-tune anew on all, score once.

    Args:
        encoder_file: what is fine-tuned.
        name: of the data set.
        parts: it, divided.
        out: folder of the runs, each of which is resumable.
        budget: steps, batch and grid.
        size, resample: of the images.
        seed: of the runs.
        module: your own module, if the encoder was made from one.

    Returns:
        Test result, validation result, settings, and the protocol in words.

    Raises:
        UserError: see `finetune`.
    """
    metric, values = SETS[name].metric, {}
    for place, (rate, decay) in enumerate(grid(budget)):
        options = run_options(budget, rate, decay, len(parts.fit), size, resample, seed)
        result = finetune(encoder_file, parts.fit, parts.validation, out / f"{place:02}", options, module=module)
        values[rate, decay] = value_of(result, metric)
    best = max(values, key=lambda pair: values[pair])
    options = run_options(budget, *best, len(parts.whole), size, resample, seed)
    result = finetune(encoder_file, parts.whole, parts.test, out / "final", options, module=module)
    settings = {"rate": best[0], "decay": best[1]}
    return value_of(result, metric), values[best], settings, (
        f"{result.text}; rate {best[0]:.3g} and decay {best[1]:.3g} (divided by the rate) chosen among {len(values)} "
        f"pairs, {parts.words}; fine-tuned anew on {len(parts.whole)} images"
    )  # fmt: skip


def grid(budget: Budget) -> Iterator[tuple[float, float]]:
    """(rate, decay) of each run."""
    for rate in budget.rates:
        for decay in budget.decays:
            yield rate, decay


def run_options(
    budget: Budget, rate: float, decay: float, images: int, size: int, resample: Resample, seed: int
) -> dict[str, Any]:
    """The published settings as options of `finetune`: Nesterov 0.9, crop and flip, a moving average of s steps."""
    batch = min(budget.batch, images)
    steps_per_epoch = images / batch
    return {
        "batch": batch,
        "epochs": budget.steps * batch / images,
        "seed": seed,
        "preprocessing": "crop",  # short side to 256, centre 224
        # Decay max(1 - 10 / s, 0.9) of the moving averages is a share min(10 / s, 0.1) of each batch.
        "bn_momentum": min(10 / steps_per_epoch, 0.1),
        "views": {"size": size, "resample": resample, "crop_area": [0.08, 1.0], "flip": 0.5},
        "optim": {
            "name": "sgd", "lr": rate, "lr_rule": "none", "momentum": 0.9, "nesterov": True, "schedule": "cosine",
            "warmup_epochs": 0.0, "weight_decay": decay / rate,
        },
    }  # fmt: skip


def value_of(result: FinetuneResult, metric: Metric) -> float:
    """The metric of a finished run; UserError if it was stopped."""
    if result.scores is None:
        raise UserError("fine-tuning was stopped; the same command goes on where it ended")
    if isinstance(result.scores, ManyScores):
        return result.scores.map11
    return float(getattr(result.scores, metric))
