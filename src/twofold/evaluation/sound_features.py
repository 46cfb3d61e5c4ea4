"""Batches of recordings for feature extraction, and the frames of every layer of a speech encoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from twofold.data import SoundSource
from twofold.data.opening import BadImage
from twofold.encoders import UtteranceEncoder, Waves
from twofold.randomness import permutation

SECONDS_AT_ONCE = 400.0
"""Most seconds of sound in a batch, padding included: attention over long recordings takes memory."""
_SPOKEN = 35 / 10 * float(np.log(10))
"""35 dB of energy as a difference of natural logs."""

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
def spoken_parts(
    encoder: UtteranceEncoder,
    source: SoundSource,
    change: Callable[[int, NDArray[np.float32]], NDArray[np.float32]] | None = None,
    parts: int = 3,
) -> NDArray[np.float32]:
    """Each layer's frames averaged over parts of what is spoken, side by side: [n, (layers + 1) * parts * d].

    Frames in which the loudest filter is more than 35 dB below that of the loudest frame are left out: what stands
    before and after a word tells how it was cut, not what it is. The rest is divided in parts of equal length, because
    one mean tells nothing of the order of sounds.

    Args:
        encoder: in evaluation mode; where its parameters are.
        source: recordings, at any rate.
        change: makes another sound of recording i's.
        parts: of equal length, 1 or more; 0 for mean and deviation over all active frames instead.

    Raises:
        BadSound: a recording cannot be read.
    """
    source = source.at_rate(encoder.frontend.sample_rate)
    lengths, rows = source.lengths(), dict[int, NDArray[np.float32]]()
    order = np.argsort(lengths, kind="stable")
    for batch in np.array_split(order, max(1, len(order) // 32)):
        sounds = [source.read(int(i)) for i in batch]
        if change is not None:
            sounds = [change(int(i), wave) for i, wave in zip(batch, sounds, strict=True)]
        waves = Waves.of([torch.from_numpy(wave) for wave in sounds])
        states, frames = encoder.hidden_states(waves)
        loudness = encoder.frontend.log_mel(waves)[0].amax(2)  # [n, T]
        loudness = F.max_pool1d(loudness, encoder.stack, ceil_mode=True)
        for row, index in enumerate(batch.tolist()):
            loud = loudness[row, : frames[row]]
            active = loud > loud.max() - _SPOKEN
            rows[index] = torch.cat([_summary(state[row, : frames[row]][active], parts) for state in states]).numpy()
    return np.stack([rows[i] for i in range(len(source))])


def _summary(x: Tensor, parts: int) -> Tensor:
    """Frames [T, d] as [parts * d], or mean and deviation [2 d] for parts 0; with fewer frames parts overlap."""
    if not parts:
        return torch.cat([x.mean(0), x.std(0, unbiased=False)])
    edges = [len(x) * k / parts for k in range(parts + 1)]
    return torch.cat([x[int(a) : max(int(b), int(a) + 1)].mean(0) for a, b in itertools.pairwise(edges)])


def with_babble(wave: NDArray[np.float32], corpus: SoundSource, index: int, snr: float) -> NDArray[np.float32]:
    """Other people talking behind a sound: six recordings of `corpus`, chosen by `index`, at `snr` dB in all."""
    babble = np.zeros_like(wave)
    for i in permutation(index, "babble", 0, len(corpus))[:6].tolist():
        babble += np.resize(corpus.read(i), len(wave))
    gain = np.sqrt(np.mean(wave**2) / max(float(np.mean(babble**2)), 1e-20)) * 10 ** (-snr / 20)
    return (wave + gain * babble).astype(np.float32)
