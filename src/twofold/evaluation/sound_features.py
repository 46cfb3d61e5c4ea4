"""Batches of recordings for feature extraction, and the frames of every layer of a speech encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.data import SoundSource
from twofold.data.opening import BadImage
from twofold.encoders import UtteranceEncoder, Waves
from twofold.randomness import permutation

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


@torch.inference_mode()
def layer_means(
    encoder: UtteranceEncoder,
    source: SoundSource,
    change: Callable[[int, NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> NDArray[np.float32]:
    """Each layer's frames averaged over time, side by side: [n, (layers + 1) * d]. Of a filterbank its mean and std.

    Args:
        encoder: in evaluation mode; where its parameters are.
        source: recordings, at any rate.
        change: makes another sound of recording i's.

    Raises:
        BadSound: a recording cannot be read.
    """
    source = source.at_rate(encoder.frontend.sample_rate)
    lengths, rows = source.lengths(), dict[int, NDArray[np.float32]]()
    order = np.argsort(lengths, kind="stable")
    for part in np.array_split(order, max(1, len(order) // 32)):
        waves = [source.read(int(i)) for i in part]
        if change is not None:
            waves = [change(int(i), wave) for i, wave in zip(part, waves, strict=True)]
        states, frames = encoder.hidden_states(Waves.of([torch.from_numpy(wave) for wave in waves]))
        pooled = torch.cat([encoder.pool(state, frames) for state in states], dim=1)
        rows |= dict(zip(part.tolist(), pooled.float().cpu().numpy(), strict=True))
    return np.stack([rows[i] for i in range(len(source))])


def with_babble(wave: NDArray[np.float32], corpus: SoundSource, index: int, snr: float) -> NDArray[np.float32]:
    """Other people talking behind a sound: six recordings of `corpus`, chosen by `index`, at `snr` dB in all."""
    babble = np.zeros_like(wave)
    for i in permutation(index, "babble", 0, len(corpus))[:6].tolist():
        babble += np.resize(corpus.read(i), len(wave))
    gain = np.sqrt(np.mean(wave**2) / max(float(np.mean(babble**2)), 1e-20)) * 10 ** (-snr / 20)
    return (wave + gain * babble).astype(np.float32)
