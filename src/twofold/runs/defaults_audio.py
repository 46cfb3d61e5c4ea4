"""Sensible choices where the data are recordings of speech."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from twofold.data import DataFacts
from twofold.distributed import world_size
from twofold.runs.config import RunConfig
from twofold.runs.inputs import refuse_straddling
from twofold.text import counted

PAGE = "docs/speech.md"
"""Has what the choices rest on."""


def describe(facts: DataFacts) -> str:
    """The data in a few words."""
    rate = facts.sample_rate or 16000
    return f"{counted(facts.count, 'recording')} of about {facts.median_width / rate:.1f} s at {rate:,} Hz"


def sizes(config: RunConfig, facts: DataFacts, gpu: bool, reasons: list[str]) -> RunConfig:  # noqa: ARG001 (as of images)
    """Batches of like lengths do not reach into the next epoch."""
    refuse_straddling(config.data)
    return replace(config, data=replace(config.data, last_batch="drop"))


def lengths(config: RunConfig, facts: DataFacts, gpu: bool, reasons: list[str]) -> RunConfig:
    """The batch and the passes over the data."""
    if config.batch is None:
        batch = 16 * world_size() if config.encoder.model() == "released" else 256 if gpu else 64
        while batch > 2 and batch * 4 > facts.count:
            batch //= 2
        reasons.append(f"batch {batch}")
        config = replace(config, batch=batch)
    if config.epochs is None:
        epochs = max(1, min(1000, round((5_000_000 if gpu else _heard(facts, config)) / facts.count)))
        reasons.append(f"epochs {epochs} (about {counted(epochs * facts.count, 'recording')} heard)")
        config = replace(config, epochs=float(epochs))
    return config


_LEAST, _SECONDS, _MOST = 60_000, 200_000, 300_000
"""On a CPU: recordings heard at least, seconds of sound heard where that is more recordings, and recordings at most.

A step costs as its sound is long, so that short recordings are heard more often for the same time. Of letters in 20
voices, 33 epochs (60,000 recordings) were too few: 24 % were told at 60 epochs and 31 % at 150, top-1 of the contrast
still rising.
"""


def _heard(facts: DataFacts, config: RunConfig) -> int:
    """Recordings that a run on a CPU hears, each as often as it does."""
    seconds = min(facts.median_width / (facts.sample_rate or 16000), config.data.audio.max_seconds)
    return int(min(max(_LEAST, _SECONDS / max(seconds, 1e-3)), _MOST))


def optimiser(config: RunConfig, reasons: list[str]) -> RunConfig:
    """AdamW unless another is named, with the rate of the released schedule where that is meant."""
    optim = config.optim
    if optim.name is None:
        optim = replace(optim, name="adamw")
    if optim.lr is None:
        optim = replace(optim, lr=4.034e-4 if optim.name == "lamb" else 5e-4, lr_rule=optim.lr_rule or "none")
    if optim.weight_decay is None:
        optim = replace(optim, weight_decay=0.01)
    without = config.encoder.model() == "released" and optim.name == "adamw" and find_spec("timm") is None
    missing = " (lamb, as released, needs the extra timm)" if without else ""
    reasons.append(f"optim {optim.name}, lr {optim.lr:g}, schedule {optim.schedule}{missing}")
    return replace(config, optim=optim)
