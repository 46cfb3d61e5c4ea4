"""What a run reads and how: order, views and loader, of images or of recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol

import numpy as np
import torch
from torch import Tensor

from twofold.data import (
    AudioLoader,
    AudioSource,
    BatchLoader,
    BatchOrder,
    DataConfig,
    LengthOrder,
    Loader,
    Order,
    Source,
)
from twofold.data.batches.audio import text_groups
from twofold.data.batches.balanced import BalancedDraws
from twofold.data.batches.base import Draw, Examples
from twofold.data.sources.audio import read_folder
from twofold.distributed import rank, world_size
from twofold.errors import UserError
from twofold.training.inputs import Views
from twofold.views import ImageDraw, ViewsConfig, build_views
from twofold.views.audio.views import NOISE_SAMPLES, WaveDraw, WavesConfig, WaveViews
from twofold.waves import Waves


class ReadingOptions(Protocol):
    """What every kind of run is told of reading."""

    @property
    def batch(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def views(self) -> ViewsConfig: ...
    @property
    def waves(self) -> WavesConfig: ...


@dataclass(frozen=True)
class Reading(Generic[Examples, Draw]):
    """How one rank of a run reads its examples.

    Attributes:
        order: which examples make a step's batch.
        views: how an example becomes two views.
        loader: what reads this rank's part of each batch.
    """

    order: BatchOrder
    views: Views[Examples, Draw]
    loader: BatchLoader[Examples, Draw]


def read_images(
    config: ReadingOptions, source: Source, pin: bool = False, drawn: BalancedDraws | None = None
) -> Reading[Tensor, ImageDraw]:
    """How images are read; `pin` puts them into page-locked memory, `drawn` draws them where not each comes once."""
    order = Order(len(source), config.batch or 0, config.seed, config.data.last_batch or "straddle", drawn)
    views = build_views(config.views)
    loader = Loader(source, views, order, config.seed, rank(), world_size(), config=config.data, pin_memory=pin)
    return Reading(order, views, loader)


def read_audio(
    config: ReadingOptions, source: AudioSource, span: int = 1, pin: bool = False, drawn: BalancedDraws | None = None
) -> Reading[Waves, WaveDraw]:
    """How recordings are read.

    Args:
        config: the run's.
        source: the recordings, at the encoder's sample rate.
        span: frames that the method hides together, which decides how many numbers that takes.
        pin: put them into page-locked memory.
        drawn: what they are drawn by, if not each once an epoch.

    Raises:
        UserError: the data lack what the order goes by.
    """
    order, rate, waves = audio_order(config, source, drawn), source.rate or 0, config.waves
    noises, responses = (
        [torch.from_numpy(wave) for wave in read_folder(folder, rate, option, most)] if folder else []
        for option, folder, most in (
            ("--waves.noises", waves.noises, NOISE_SAMPLES),
            ("--waves.responses", waves.responses, None),
        )
    )
    views = WaveViews(waves, rate, noises, responses, span)
    loader = AudioLoader(source, views, order, config.seed, rank(), world_size(), config.data.workers, pin)
    return Reading(order, views, loader)


def refuse_straddling(data: DataConfig) -> None:
    """Raise a UserError where batches of recordings are asked to reach into the next epoch."""
    if data.last_batch == "straddle":
        raise UserError(
            "--data.last_batch straddle is for images: batches of recordings end with an epoch; leave it out"
        )


def audio_order(config: ReadingOptions, source: AudioSource, drawn: BalancedDraws | None = None) -> LengthOrder:
    """The recordings of each step; UserError where the data lack what it goes by, or have too few."""
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
    return LengthOrder(lengths, config.batch or 0, config.seed, groups, speakers, drawn)
