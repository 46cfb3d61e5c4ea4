"""Sensible choices where the data are recordings of speech."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from twofold.data import DataFacts
from twofold.data.config import AudioConfig
from twofold.distributed import world_size
from twofold.encoders.audio.encoder import speech_arguments
from twofold.errors import UserError
from twofold.runs.config import RunConfig
from twofold.views import ViewsConfig
from twofold.views.audio.views import WavesConfig

# What the method leaves open (released: see presets).
_METHOD = {"contrastive_weight": 1.0, "reconstruction_weight": 1.0, "mask_share": 0.2, "mask_span": 7}


def choose_speech(config: RunConfig, facts: DataFacts, device: torch.device) -> tuple[RunConfig, str]:
    """Fill every option left open, from the number and the sample rate of the recordings and the device.

    Raises:
        UserError: options that only images have.
    """
    if config.views != ViewsConfig():
        raise UserError("the options of --views are for images, and the data are recordings: use those of --waves")
    if config.method.name not in (None, "speech_simclr"):
        raise UserError(
            f"--method.name {config.method.name} is for images, and the data are recordings: leave it out, which "
            "trains "
            "speech_simclr (with --method.reconstruction_weight 0, the contrast alone)"
        )
    gpu, rate, reasons = device.type != "cpu", facts.sample_rate or 16000, list[str]()
    name = config.encoder.name
    if name is None:
        name = "speech:corrected" if gpu and rate >= 16000 else "speech:small"
        reasons.append(f"encoder.name {name} ({rate:,} Hz, {'GPU' if gpu else 'CPU'})")
    if not name.startswith("speech:"):
        raise UserError(
            f"--encoder.name {name} is for images, and the data are recordings: use speech:small or another"
        )
    preset = name.removeprefix("speech:")
    arguments = speech_arguments(preset, config.encoder.speech)
    if arguments["sample_rate"] > rate:
        reasons.append(
            f"warning: recordings of {rate:,} Hz are brought to {arguments['sample_rate']:,} Hz and stay empty above: "
            "encoder.speech.sample_rate would tell"
        )
    config = replace(config, encoder=replace(config.encoder, name=name), data=replace(config.data, last_batch="drop"))
    config = _method(config, reasons)
    if config.head.norm is None:  # as published
        config = replace(config, head=replace(config.head, norm=False))
    config = _lengths(config, facts, gpu, preset, reasons)
    config = _optimiser(config, preset, reasons)
    seconds = facts.median_width / rate
    intro = f"{facts.count:,} recordings of about {seconds:.1f} s at {rate:,} Hz, on {device.type}"
    return config, f"chosen for {intro}: {'; '.join(reasons) or 'nothing, every option was given'}"


def refuse_audio_options(config: RunConfig) -> None:
    """Raise a UserError where an option that only recordings have is given for images."""
    if (config.encoder.name or "").startswith("speech:"):  # first: with it come options of other rooms
        raise UserError(
            f"--encoder.name {config.encoder.name} is for recordings, and the data are images: leave it out"
        )
    if config.waves != WavesConfig():
        raise UserError("the options of --waves are for recordings, and the data are images: use those of --views")
    if config.data.audio != AudioConfig():
        raise UserError("the options of --data.audio are for recordings, and the data are images: leave them out")
    if config.method.name == "speech_simclr":
        raise UserError("--method.name speech_simclr is for recordings, and the data are images: use simclr or moco")


def _method(config: RunConfig, reasons: list[str]) -> RunConfig:
    method = config.method
    if method.name is None:
        reasons.append("method.name speech_simclr (the data are recordings)")
    opened: dict[str, Any] = {name: value for name, value in _METHOD.items() if getattr(method, name) is None}
    temperature = 0.1 if method.temperature is None else method.temperature
    return replace(config, method=replace(method, name="speech_simclr", temperature=temperature, **opened))


def _lengths(config: RunConfig, facts: DataFacts, gpu: bool, preset: str, reasons: list[str]) -> RunConfig:
    if config.batch is None:
        batch = 16 * world_size() if preset == "released" else 256 if gpu else 64
        while batch > 2 and batch * 4 > facts.count:
            batch //= 2
        reasons.append(f"batch {batch}")
        config = replace(config, batch=batch)
    if config.epochs is None:
        epochs = max(1, min(1000, round((5_000_000 if gpu else 60_000) / facts.count)))
        reasons.append(f"epochs {epochs} (about {epochs * facts.count:,} recordings heard)")
        config = replace(config, epochs=float(epochs))
    return config


def _optimiser(config: RunConfig, preset: str, reasons: list[str]) -> RunConfig:
    optim = config.optim
    if optim.name is None:
        optim = replace(optim, name="adamw")
    if optim.lr is None:
        optim = replace(optim, lr=4.034e-4 if optim.name == "lamb" else 5e-4, lr_rule=optim.lr_rule or "none")
    if optim.weight_decay is None:
        optim = replace(optim, weight_decay=0.01)
    without = preset == "released" and optim.name == "adamw" and find_spec("timm") is None
    missing = " (lamb, as released, needs the extra timm)" if without else ""
    reasons.append(f"optim {optim.name}, lr {optim.lr:g}, schedule {optim.schedule}{missing}")
    return replace(config, optim=optim)
