"""Sensible choices where the data are images."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from twofold.data import DataFacts
from twofold.runs.config import RunConfig
from twofold.text import counted
from twofold.views.blur import blur_radius
from twofold.views.config import SOFT, TINY, TINY_CROP_AREA, UNBLURRED

PAGE = "docs/defaults.md"
"""Has what the choices rest on."""


def describe(facts: DataFacts) -> str:
    """The data in a few words."""
    size = f"{facts.median_width}x{facts.median_height}"
    return f"{counted(facts.count, 'image')} of about {size}, {facts.channels} channel(s)"


_QUICK = 32
"""On a CPU, the largest side of views: four times the passes of 64 pixels in the same time are worth more than the
detail, for images of 64 to 256 pixels (docs/defaults.md); larger ones were not tried."""

_SEEN, _MOST_EPOCHS = 800_000, 800
"""On a CPU, images seen in a run where no epochs are given, and epochs at most on any device: half as many images and a
quarter of the epochs left much of what neighbours gain untaken (docs/defaults.md)."""


def sizes(config: RunConfig, facts: DataFacts, gpu: bool, reasons: list[str]) -> RunConfig:
    """The side of the views, and what a small side leaves of them."""
    given, side = config.views, min(facts.median_height, facts.median_width)
    size = given.size
    if size is None:
        size = side if side <= 32 else min(224, side // 32 * 32) if gpu else _QUICK
        whole = "as large as the images" if side - 32 < size <= side else f"quick on {'a GPU' if gpu else 'a CPU'}"
        reasons.append(f"views.size {size} ({whole})")
    views = given.suited(size)
    open_ones = [name for name in ("color_strength", "blur") if getattr(given, name) is None]
    words = [f"views.{name} {getattr(views, name):g}" for name in open_ones]
    if size <= UNBLURRED and words:
        reasons.append(f"{' and '.join(words)} (the paper's choice at 32 px)")
    elif size <= SOFT and given.color_strength is None:
        reasons.append(f"{words[0]} (better than 1 up to {SOFT} px)")
    if size <= TINY and given.crop_area is None:
        reasons.append(f"views.crop_area {list(TINY_CROP_AREA)} (smaller crops of {size} px show next to nothing)")
    if views.blur and blur_radius(size) == 0:
        views = replace(views, blur=0.0)
        reasons.append(f"views.blur 0 (at {size} px its kernel, a tenth of the side, is one pixel)")
    return replace(config, views=views, data=replace(config.data, last_batch=config.data.last_batch or "straddle"))


def lengths(config: RunConfig, facts: DataFacts, gpu: bool, reasons: list[str]) -> RunConfig:
    """The batch and the passes over the data."""
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
        seen = 40_000_000 if gpu else _SEEN
        epochs = max(1, min(_MOST_EPOCHS, round(seen / facts.count)))
        reasons.append(f"epochs {epochs} (about {counted(min(seen, epochs * facts.count), 'image')} seen)")
        config = replace(config, epochs=float(epochs))
    return config


# lr, how it scales, weight decay: SimCLR's for lars at any batch, MoCo's for sgd; for the others, what worked on a CPU.
_RATES: dict[str, tuple[float, Literal["linear", "sqrt", "none"], float]] = {
    "lars": (0.075, "sqrt", 1e-6),
    "sgd": (0.03, "linear", 1e-4),
    "adam": (2e-3, "none", 1e-4),
    "adamw": (2e-3, "none", 1e-4),
    "lamb": (2e-3, "none", 0.01),
}

_BASIC_BLOCKS = {"adam": (6e-3, 1e-4), "adamw": (6e-3, 1e-2)}
"""lr and weight decay for ResNets of basic blocks (docs/defaults.md); deeper nets and transformers were not tried at so
high a rate."""


def optimiser(config: RunConfig, reasons: list[str]) -> RunConfig:
    """The optimiser for the batch, with its usual rate."""
    batch, optim = config.batch or 256, config.optim
    if optim.name is None:
        optim = replace(optim, name="lars" if batch >= 1024 else "adamw")
        reasons.append(f"optim.name {optim.name} (batch {'below 1,024' if batch < 1024 else 'of 1,024 or more'})")
    lr, rule, weight_decay = _RATES[optim.name or "adamw"]
    if optim.name in ("adam", "adamw") and re.search(r"resnet(10|18|34)$", config.encoder.name or ""):
        lr, weight_decay = _BASIC_BLOCKS[optim.name]
    if optim.lr is None:
        optim = replace(optim, lr=lr, lr_rule=optim.lr_rule or rule)
        reasons.append(f"optim.lr {optim.lr:g}, lr_rule {optim.lr_rule} (usual for {optim.name})")
    if optim.weight_decay is None:
        optim = replace(optim, weight_decay=weight_decay)
    return replace(config, optim=optim)
