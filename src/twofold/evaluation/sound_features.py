"""Batches of recordings for feature extraction, and the frames of every layer of a speech encoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from twofold.data import SoundSource
from twofold.data.opening import BadImage
from twofold.encoders import Waves

SECONDS_AT_ONCE = 400.0
"""Most seconds of sound in a batch, padding included: attention over long recordings takes memory."""

Part = tuple[int, Waves, list[int], list[tuple[str, str]]]


def sound_batches(source: SoundSource, batch: int) -> Iterator[Part]:
    """(recordings given before, sounds, their indices, skipped) of batches of like lengths, each recording once.

    Recordings longer than `data.sound.max_seconds` give their beginning. Source: at the encoder's rate.
    """
    lengths = source.lengths()
    order = np.argsort(lengths, kind="stable")
    rate, begin = float(source.rate or source.rates[0]), 0
    while begin < len(order):
        end = begin + 1
        while (
            end < min(len(order), begin + batch)
            and (end + 1 - begin) * lengths[order[end]] / rate <= SECONDS_AT_ONCE
        ):  # fmt: skip
            end += 1
        waves, kept, bad = [], [], []
        for index in order[begin:end].tolist():
            try:
                waves.append(torch.from_numpy(source.read(index)))
                kept.append(index)
            except BadImage as error:
                source.skipped.add(error.path, error.reason)
                bad.append((error.path, error.reason))
        yield begin, Waves.of(waves), kept, bad
        begin = end
