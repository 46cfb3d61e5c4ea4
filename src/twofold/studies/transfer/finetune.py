"""Fine-tuning on a data set of the transfer study: a grid of rates and decays, the best one once more on all images."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from twofold.console import print_rank0
from twofold.data import Source
from twofold.distributed import batch_norm_layers, rank, world_size
from twofold.encoders import load_encoder
from twofold.errors import Diverged, Stopped, UserError
from twofold.evaluation.scores import ManyScores
from twofold.evaluation.splits import check_test_labels
from twofold.runs.finetune import FinetuneResult, finetune, outputs
from twofold.studies.diverging import kept
from twofold.studies.transfer.linear import DataSplits, Measured
from twofold.studies.transfer.permutation import hits_of, packed
from twofold.studies.transfer.sets import SETS, Metric
from twofold.text import counted
from twofold.training.checkpoint import checkpoints
from twofold.views.resample import Resample

RATES = tuple(float(v) for v in np.logspace(-4, -1, 7))
DECAYED = "all_but_norms"
"""What is decayed: with any optimiser but LARS the classifier's bias, too (add_weight_decay, tf2/model.py of
google-research/simclr)."""
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

    named: ClassVar[str] = "budget"
    divided: ClassVar[bool] = True  # weight decay is divided by the rate

    def __post_init__(self) -> None:
        name = f"--{self.named}"
        if self.steps < 1 or self.batch < 1:
            raise UserError(f"{name}.steps and {name}.batch must be at least 1, got {self.steps}, {self.batch}")
        if not self.rates or min(self.rates) <= 0 or not self.decays or min(self.decays) < 0:
            raise UserError(f"{name}.rates must be above 0 and {name}.decays at least 0, one or more of each")


@dataclass(frozen=True)
class RandomBudget(Budget):
    """How much training each cell of the grid gets from a random start: as published, unless told otherwise."""

    steps: int = 40_000
    """Steps of each run."""
    rates: tuple[float, ...] = tuple(float(v) for v in np.logspace(-3, 0, 7))
    """Learning rates to try."""
    decays: tuple[float, ...] = tuple(float(v) for v in np.logspace(-5, -1.5, 8))
    """Weight decays to try, as they are: the paper speaks of dividing by the rate in fine-tuning alone."""

    named: ClassVar[str] = "random_budget"
    divided: ClassVar[bool] = False


def finetune_grid(
    encoder_file: Path, name: str, parts: DataSplits, out: Path, budget: Budget, size: int, resample: Resample,
    seed: int = 0, module: nn.Module | None = None, device: str = "auto",
) -> Measured:  # fmt: skip
    """Fine-tune with each rate and decay, take the best on the validation images, fine-tune anew on all, score once.

    Args:
        encoder_file: what is fine-tuned.
        name: of the data set.
        parts: it, divided.
        out: folder of the runs, each of which is resumable until it is scored; then its checkpoints go, and of all
            but the last run the encoder, too: there are 57 of them a data set.
        budget: steps, batch and grid; a `RandomBudget` trains a net like the encoder's from a random start.
        size, resample: of the images.
        seed: of the runs.
        module: your own module, if the encoder was made from one.
        device: see `TrainingConfig`.

    Raises:
        UserError: see `finetune`.
        Diverged: the run on all images diverges, or with every pair of the grid the one before it.
        Stopped: a signal ended a run early; the same call goes on.
    """
    metric, normed = SETS[name].metric, bool(batch_norm_layers(load_encoder(encoder_file, module)))

    def one(place: str, fit: Source, scored: Source, rate: float, decay: float) -> tuple[float, str]:
        options = run_options(budget, rate, decay, len(fit), size, resample, seed, device)
        if not normed:
            del options["bn_momentum"]
        own = copy.deepcopy(module) if isinstance(budget, RandomBudget) else module  # each run starts where it started
        result = kept(out / place, partial(finetune, encoder_file, fit, scored, out / place, options, module=own))
        value = value_of(result, metric, out / place)
        _clear(out / place, encoder=place != "final")
        return value, result.text

    values: dict[tuple[float, float], float] = {}
    for place, pair in enumerate(grid(budget)):
        try:
            values[pair], _ = one(f"{place:02}", parts.fit, parts.validation, *pair)
        except Diverged as error:
            if world_size() > 1:  # the other processes do not know of it
                raise
            _clear(out / f"{place:02}", encoder=True)
            print_rank0(f"rate {pair[0]:.3g} and decay {pair[1]:.3g} are left out: {error}", markup=False)
    if not values:
        raise Diverged(f"with each rate and decay, as told above; give lower --{budget.named}.rates")
    lost = len(list(grid(budget))) - len(values)
    tried = counted(len(values), "pair") + (f" ({lost} more diverged)" if lost else "")
    best = max(values, key=lambda pair: values[pair])
    value, text = one("final", parts.whole, parts.test, *best)
    divided = " (divided by the rate)" if budget.divided else ""
    scores, index = outputs(out / "final", parts.test, module)
    targets = check_test_labels(parts.whole, parts.test)[index]
    hits = packed(hits_of(scores, np.arange(scores.shape[1]), targets), index, len(parts.test))
    return Measured(value, values[best], {"rate": best[0], "decay": best[1]}, (
        f"{text}; rate {best[0]:.3g} and decay {best[1]:.3g}{divided} chosen among {tried}, "
        f"{parts.words}; trained anew on {counted(len(parts.whole), 'image')}"
    ), hits)  # fmt: skip


def grid(budget: Budget) -> Iterator[tuple[float, float]]:
    """(rate, decay) of each run."""
    for rate in budget.rates:
        for decay in budget.decays:
            yield rate, decay


def run_options(
    budget: Budget, rate: float, decay: float, images: int, size: int, resample: Resample, seed: int,
    device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """The published settings as options of `finetune`: Nesterov 0.9, crop and flip, a moving average of s steps."""
    batch = min(budget.batch, images)
    steps_per_epoch = images / batch
    start = {"from_scratch": True} if isinstance(budget, RandomBudget) else {}
    return start | {
        "batch": batch,
        "epochs": budget.steps * batch / images,
        "seed": seed,
        "preprocessing": "crop",  # short side to 256, centre 224
        # Decay max(1 - 10 / s, 0.9) of the moving averages is a share min(10 / s, 0.1) of each batch.
        "bn_momentum": min(10 / steps_per_epoch, 0.1),
        "views": {"size": size, "resample": resample, "crop_area": [0.08, 1.0], "flip": 0.5},
        "optim": {
            "name": "sgd", "lr": rate, "lr_rule": "none", "momentum": 0.9, "nesterov": True, "schedule": "cosine",
            "warmup_epochs": 0.0, "weight_decay": decay / rate if budget.divided else decay, "decay": DECAYED,
        },
        "training": {"device": device},
    }  # fmt: skip


def value_of(result: FinetuneResult, metric: Metric, place: Path) -> float:
    """The metric of the finished run in the folder `place`; raises Stopped if it was not finished."""
    if result.scores is None:
        raise Stopped.at(f"in {place}", result.stopped_by or signal.SIGINT)
    if isinstance(result.scores, ManyScores):
        return result.scores.map11
    return float(getattr(result.scores, metric))


def _clear(run: Path, encoder: bool) -> None:
    """Remove from a scored run what only going on, or `encoder`, would need; configuration and result stay."""
    if rank() == 0:
        for file in [*checkpoints(run), *([run / "encoder.safetensors"] if encoder else [])]:
            file.unlink(missing_ok=True)
