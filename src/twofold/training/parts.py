"""What a run reads and how: order, views and loader, of images or of sounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from twofold.data import Order, SoundSource, Source
from twofold.data.loader import Loader
from twofold.data.opening import BadImage
from twofold.data.sound_loader import LengthOrder, SoundLoader, text_groups
from twofold.data.sounds import read_folder
from twofold.encoders import Encoder, UtteranceEncoder, Waves
from twofold.errors import UserError
from twofold.randomness import permutation
from twofold.training.config import RunConfig
from twofold.views import build_views
from twofold.views.waveforms import WaveViews

_FITTED = 1000
"""Most recordings that the statistics of a front end are taken from."""


def match(source: Any, encoder: Encoder, seed: int = 0, fit: bool = False) -> Any:
    """The source as the encoder reads it: sounds at its sample rate.

    Args:
        source: images or sounds.
        encoder: what will read them.
        seed: decides which recordings `fit` takes.
        fit: also take the front end's statistics from at most 1,000 recordings.

    Raises:
        UserError: the one is made for sounds and the other for images.
    """
    speech = isinstance(source, SoundSource)
    if speech != (encoder.input.kind == "speech"):
        raise UserError(
            f"{source.name} holds {'sounds' if speech else 'images'}, and the encoder takes {encoder.input.kind}s: "
            f"use {'--encoder.name speech:small or speech:corrected' if speech else 'another --encoder.name'}"
        )
    if not isinstance(source, SoundSource):
        return source
    source = source.at_rate(encoder.input.sample_rate or 16000)
    if fit and isinstance(encoder, UtteranceEncoder):
        encoder.fit_frontend(_some(source, seed))
    return source


def _some(source: SoundSource, seed: int) -> Iterator[Waves]:
    for index in permutation(seed, "front end", 0, len(source))[:_FITTED].tolist():
        try:
            yield Waves.of([torch.from_numpy(source.read(index))])
        except BadImage as error:
            source.skipped.add(error.path, error.reason)


def make_order(config: RunConfig, source: Any) -> Any:
    """Which examples make a step's batch."""
    batch = config.batch or 0
    if not isinstance(source, SoundSource):
        return Order(len(source), batch, config.seed, config.data.last_batch)
    sound = config.data.sound
    groups = None
    if sound.distinct == "text":
        groups = text_groups(source.texts)
    elif sound.distinct == "label":
        groups = source.labels
    if sound.distinct != "none" and (groups is None or (groups < 0).all()):
        raise UserError(f"--data.sound.distinct {sound.distinct}: {source.name} has no {sound.distinct}s")
    lengths = source.lengths() if sound.bucket else np.zeros(len(source), dtype=np.int64)
    speakers = text_groups(source.speakers) if sound.one_speaker else None
    if speakers is not None and (speakers < 0).all():
        raise UserError(f"--data.sound.one_speaker: {source.name} does not say who speaks; leave it out")
    return LengthOrder(lengths, batch, config.seed, groups, speakers)


def make_views(config: RunConfig, source: Any) -> Any:
    """How an example becomes two views."""
    if not isinstance(source, SoundSource):
        return build_views(config.views)
    rate, waves = source.rate or 0, config.waves
    noises, responses = (
        [torch.from_numpy(wave) for wave in read_folder(folder, rate, option)] if folder else []
        for option, folder in (("--waves.noises", waves.noises), ("--waves.responses", waves.responses))
    )
    return WaveViews(waves, rate, noises, responses, config.method.mask_span or 1)


def make_loader(config: RunConfig, source: Source, views: Any, order: Any, rank: int, world: int, pin: bool) -> Any:
    """What reads each step's batch."""
    if isinstance(source, SoundSource):
        return SoundLoader(source, views, order, config.seed, rank, world, config.data.workers, pin)
    return Loader(source, views, order, config.seed, rank, world, config=config.data, pin_memory=pin)
