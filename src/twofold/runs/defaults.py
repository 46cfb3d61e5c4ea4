"""Sensible choices from the data: what the user left open is chosen here, and the reasons are told in one line."""

from __future__ import annotations

from dataclasses import replace

import torch

from twofold.data import DataFacts
from twofold.kinds import EXAMPLE, Kind
from twofold.options import refuse_unused
from twofold.runs import defaults_audio, defaults_images
from twofold.runs.config import RunConfig


def choose(config: RunConfig, facts: DataFacts, device: torch.device) -> tuple[RunConfig, str]:
    """Fill every option left open, from the number and size of the images or recordings and the device.

    Returns:
        The resolved configuration, and one line that says what was chosen and why.

    Raises:
        UserError: an option is set that has no effect on such data, or the batch does not suit the method.
    """
    rules = defaults_audio if facts.kind == "audio" else defaults_images
    gpu, reasons = device.type != "cpu", list[str]()
    unnamed, config = config.method.name is None, narrowed(config, facts.kind)
    if unnamed and facts.kind != "image":
        reasons.append(f"method.name {config.method.name} (the data are {EXAMPLE[facts.kind]}s)")
    if facts.pixel_range is not None and config.data.pixel_range is None:  # what is black and white stays with the run
        config = replace(config, data=replace(config.data, pixel_range=facts.pixel_range))
        reasons.append(f"data.pixel_range {list(facts.pixel_range)}: {facts.pixels}")
    if facts.band_ranges is not None and config.data.band_ranges is None:
        config = replace(config, data=replace(config.data, band_ranges=facts.band_ranges))
        reasons.append(f"data.band_ranges {[list(pair) for pair in facts.band_ranges]}: {facts.pixels}")
    config = rules.sizes(config, facts, gpu, reasons)
    encoder, more = config.encoder.chosen(facts.count, facts.channels, facts.sample_rate, config.views.size, gpu)
    reasons += more
    config = rules.lengths(replace(config, encoder=encoder), facts, gpu, reasons)
    config = rules.optimiser(config, reasons)
    batch = config.batch or 1
    steps = max(1, round(min((config.epochs or 0) * facts.count / batch, 1e15)))  # what is too long is refused later
    method, more = config.method.chosen(facts, batch, steps, encoder.name or "")
    reasons += more
    method.check_batch(batch)
    head = config.head if config.head.norm is not None else replace(config.head, norm=method.head_norm)
    config = replace(config, method=method, head=head)
    page = f" (measured in {rules.PAGE})" if reasons else ""
    words = "; ".join(reasons) or "nothing, every option was given"
    return config, f"chosen for {rules.describe(facts)}, on {device.type}{page}: {words}"


def narrowed(config: RunConfig, kind: Kind) -> RunConfig:
    """The configuration with the encoder's and the method's class that are meant for this kind of data.

    Raises:
        UserError: an option is set that has no effect on such data.
    """
    encoder = config.encoder.narrowed(kind)
    refuse_unused(encoder, "encoder.", kind=kind)  # first: with it come options of other groups
    config = replace(config, encoder=encoder, method=config.method.narrowed(kind))
    refuse_unused(config, kind=kind)
    return config
