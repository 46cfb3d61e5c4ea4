"""What a run reads and how: order, views and loader, of images or of recordings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from twofold.data import AudioSource, Order, Source
from twofold.data.batches.audio import AudioLoader, LengthOrder, text_groups
from twofold.data.batches.loader import Loader
from twofold.data.sources.audio import read_folder
from twofold.errors import UserError
from twofold.runs.config import RunConfig
from twofold.views import build_views
from twofold.views.audio.views import WaveViews


def make_order(config: RunConfig, source: Any) -> Any:
    """Which examples make a step's batch."""
    batch = config.batch or 0
    if not isinstance(source, AudioSource):
        return Order(len(source), batch, config.seed, config.data.last_batch)
    audio = config.data.audio
    groups = None
    if audio.distinct == "text":
        groups = text_groups(source.texts)
    elif audio.distinct == "label":
        groups = source.labels
    if audio.distinct != "none" and (groups is None or (groups < 0).all()):
        raise UserError(f"--data.audio.distinct {audio.distinct}: {source.name} has no {audio.distinct}s")
    lengths = source.lengths() if audio.bucket else np.zeros(len(source), dtype=np.int64)
    speakers = text_groups(source.speakers) if audio.one_speaker else None
    if speakers is not None and (speakers < 0).all():
        raise UserError(f"--data.audio.one_speaker: {source.name} does not say who speaks; leave it out")
    return LengthOrder(lengths, batch, config.seed, groups, speakers)


def make_views(config: RunConfig, source: Any) -> Any:
    """How an example becomes two views."""
    if not isinstance(source, AudioSource):
        return build_views(config.views)
    rate, waves = source.rate or 0, config.waves
    noises, responses = (
        [torch.from_numpy(wave) for wave in read_folder(folder, rate, option)] if folder else []
        for option, folder in (("--waves.noises", waves.noises), ("--waves.responses", waves.responses))
    )
    return WaveViews(waves, rate, noises, responses, config.method.mask_span or 1)


def make_loader(config: RunConfig, source: Source, views: Any, order: Any, rank: int, world: int, pin: bool) -> Any:
    """What reads each step's batch."""
    if isinstance(source, AudioSource):
        return AudioLoader(source, views, order, config.seed, rank, world, config.data.workers, pin)
    return Loader(source, views, order, config.seed, rank, world, config=config.data, pin_memory=pin)
