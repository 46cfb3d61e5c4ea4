"""Sensible choices from the data: what the user left open is chosen here, and the reasons are told in one line."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch

from twofold.data import DataFacts
from twofold.distributed import world_size
from twofold.runs.config import RunConfig
from twofold.runs.defaults_audio import choose_speech, refuse_audio_options
from twofold.views import ViewsConfig
from twofold.views.blur import blur_radius


def choose(config: RunConfig, facts: DataFacts, device: torch.device) -> tuple[RunConfig, str]:
    """Fill every option left open, from the number and size of the images and the device.

    Returns:
        The resolved configuration, and one line that says what was chosen and why.
    """
    if facts.kind == "audio":
        return choose_speech(config, facts, device)
    refuse_audio_options(config)
    config = replace(config, method=replace(config.method, name=config.method.name or "simclr"))
    reasons: list[str] = []
    gpu = device.type != "cpu"
    config = _sizes(config, facts, gpu, reasons)
    config = _encoder(config, facts, gpu, reasons)
    config = _lengths(config, facts, gpu, reasons)
    config = _optimiser(config, reasons)
    config = _memory(config, facts, reasons)
    if config.head.norm is None:
        config = replace(config, head=replace(config.head, norm=config.method.name != "moco"))
    intro = f"{facts.count:,} images of about {facts.median_width}x{facts.median_height}"
    intro += f", {facts.channels} channel(s), on {device.type}"
    return config, f"chosen for {intro}: {'; '.join(reasons) or 'nothing, every option was given'}"


def _sizes(config: RunConfig, facts: DataFacts, gpu: bool, reasons: list[str]) -> RunConfig:
    given, side = config.views, min(facts.median_height, facts.median_width)
    size = given.size
    if size is None:
        size = side if side <= 32 else min(224 if gpu else 64, max(32, side // 32 * 32))
        whole = "as large as the images" if side - 32 < size <= side else f"quick on {'a GPU' if gpu else 'a CPU'}"
        reasons.append(f"views.size {size} ({whole})")
    views = replace(given, size=size)
    if size <= 32 and views == ViewsConfig(size=size):  # nothing else was said of the views
        views = replace(views, blur=0.0, color_strength=0.5)
        reasons.append("views.blur 0 and views.color_strength 0.5 (the paper's choice at 32 px)")
    if views.blur and blur_radius(size) == 0:
        views = replace(views, blur=0.0)
        reasons.append(f"views.blur 0 (at {size} px its kernel, a tenth of the side, is one pixel)")
    return replace(config, views=views)


def _encoder(config: RunConfig, facts: DataFacts, gpu: bool, reasons: list[str]) -> RunConfig:
    encoder, size = config.encoder, config.views.size or 224
    if encoder.name == "custom":
        return config
    if encoder.name is None:
        if gpu:
            name, width = ("resnet50", 1.0) if size > 64 and facts.count >= 20_000 else ("resnet18", 1.0)
        else:
            name, width = ("resnet18", 0.5) if facts.count >= 20_000 else ("resnet10", 0.5)
        encoder = replace(encoder, name=name, width=width if encoder.width == 1.0 else encoder.width)
        reasons.append(f"encoder {name} at width {encoder.width:g} ({'GPU' if gpu else 'CPU'}, {facts.count:,} images)")
    if encoder.stem is None and encoder.name is not None and encoder.name.startswith("resnet"):
        stem = "imagenet" if size > 64 else "cifar" if size <= 32 and gpu else "small"
        encoder = replace(encoder, stem=stem)  # type: ignore[arg-type]
        reasons.append(f"stem {stem} ({size} px)")
    if encoder.channels is None:
        encoder = replace(encoder, channels=facts.channels)
    return replace(config, encoder=encoder)


def _lengths(config: RunConfig, facts: DataFacts, gpu: bool, reasons: list[str]) -> RunConfig:
    if config.batch is None:
        most = 512 if gpu else 256
        batch = most
        while batch > 2 and batch * 4 > facts.count:  # at least four steps an epoch
            batch //= 2
        reasons.append(
            f"batch {batch} ({'the largest tried on one device' if batch == most else 'a quarter of the data or less'})"
        )
        config = replace(config, batch=batch)
    if config.epochs is None:
        seen = 40_000_000 if gpu else 400_000
        epochs = max(1, min(800 if gpu else 200, round(seen / facts.count)))
        reasons.append(f"epochs {epochs} (about {min(seen, epochs * facts.count):,} images seen)")
        config = replace(config, epochs=float(epochs))
    return config


# lr, how it scales, weight decay: SimCLR's for lars at any batch, MoCo's for sgd; for the others, what worked on a CPU.
_RATES: dict[str, tuple[float, Literal["linear", "sqrt", "none"], float]] = {
    "lars": (0.075, "sqrt", 1e-6),
    "sgd": (0.03, "linear", 1e-4),
    "adamw": (2e-3, "none", 1e-4),
    "lamb": (2e-3, "none", 0.01),
}


def _optimiser(config: RunConfig, reasons: list[str]) -> RunConfig:
    batch, method, optim = config.batch or 256, config.method, config.optim
    if optim.name is None:
        optim = replace(optim, name="lars" if batch >= 1024 else "adamw")
        reasons.append(f"optim.name {optim.name} (batch {'below 1,024' if batch < 1024 else 'of 1,024 or more'})")
    lr, rule, weight_decay = _RATES[optim.name or "adamw"]
    if optim.lr is None:
        optim = replace(optim, lr=lr, lr_rule=optim.lr_rule or rule)
        reasons.append(f"optim.lr {optim.lr:g}, lr_rule {optim.lr_rule} (usual for {optim.name})")
    if optim.weight_decay is None:
        optim = replace(optim, weight_decay=weight_decay)
    config = replace(config, optim=optim)
    if method.temperature is None:
        temperature = 0.1 if batch >= 2048 else 0.2
        reasons.append(f"temperature {temperature} (batch {batch})")
        config = replace(config, method=replace(method, temperature=temperature))
    return config


def _memory(config: RunConfig, facts: DataFacts, reasons: list[str]) -> RunConfig:
    """What MoCo keeps: a queue of about an eighth of the images, as its CIFAR-10 demo has."""
    method, batch, name = config.method, config.batch or 0, config.encoder.name or ""
    if method.name == "moco":
        keys = batch * (2 if method.symmetric else 1)
        if method.queue is None:
            queue = min(65536, max(2 ** int(math.log2(max(facts.count // 8, 1))), 2 * keys))
            reasons.append(f"method.queue {queue} ({facts.count:,} images)")
            method = replace(method, queue=queue)
        if method.momentum is None:
            method = replace(method, momentum=0.99 if facts.count < 200_000 else 0.999)
            reasons.append(f"method.momentum {method.momentum} ({facts.count:,} images)")
        if method.bn_splits is None and world_size() == 1 and "resnet" in name and not name.startswith("timm:"):
            splits = max(s for s in (1, 2, 4, 8) if batch % s == 0 and batch // s >= (16 if s > 1 else 1))
            reasons.append(f"method.bn_splits {splits} (one device)")
            method = replace(method, bn_splits=splits)
    method.check_batch(batch)
    return replace(config, method=method)
