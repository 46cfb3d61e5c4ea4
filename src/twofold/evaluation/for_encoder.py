"""A source as a certain encoder reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import overload

import torch

from twofold.data import AudioSource, Source
from twofold.data.decoding.opening import BadImage
from twofold.encoders import Encoder, UtteranceEncoder, Waves
from twofold.errors import UserError
from twofold.kinds import EXAMPLE, Kind
from twofold.randomness import permutation

_FITTED = 1000
"""Most recordings that the statistics of a front end are taken from."""


@overload
def source_for(source: AudioSource, encoder: Encoder, seed: int = 0, fit: bool = False) -> AudioSource: ...
@overload
def source_for(source: Source, encoder: Encoder, seed: int = 0, fit: bool = False) -> Source: ...
def source_for(
    source: Source | AudioSource, encoder: Encoder, seed: int = 0, fit: bool = False
) -> Source | AudioSource:
    """The source as the encoder reads it: recordings at its sample rate.

    Args:
        source: images or recordings.
        encoder: what will read them.
        seed: decides which recordings `fit` takes.
        fit: also take the front end's statistics from at most 1,000 recordings.

    Raises:
        UserError: the one is made for recordings and the other for images.
    """
    kind: Kind = "audio" if isinstance(source, AudioSource) else "image"
    if kind != encoder.input.kind:
        raise UserError(
            f"{source.name} holds {EXAMPLE[kind]}s, and the encoder takes {EXAMPLE[encoder.input.kind]}s: "
            f"give {EXAMPLE[encoder.input.kind]}s, or an encoder of {EXAMPLE[kind]}s"
        )
    if not isinstance(source, AudioSource):
        return source
    source = source.at_rate(encoder.input.sample_rate or 16000)
    if fit and isinstance(encoder, UtteranceEncoder):
        encoder.fit_frontend(_some(source, seed))
    return source


def _some(source: AudioSource, seed: int) -> Iterator[Waves]:
    for index in permutation(seed, "front end", 0, len(source))[:_FITTED].tolist():
        try:
            yield Waves.of([torch.from_numpy(source.read(index))])
        except BadImage as error:
            source.skipped.add(error.path, error.reason)
