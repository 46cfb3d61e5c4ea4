"""Recordings for the page: spectrograms of pairs of views, and the views themselves to be played."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
from numpy.typing import NDArray

from twofold.data.sources.audio import spectrogram
from twofold.encoders import Waves

_SECONDS = 4.0
"""Longest recording that is put into the page: it lies in there as it is."""


def audio_pairs(a: Waves, b: Waves, rate: int) -> tuple[NDArray[np.uint8], list[tuple[str, str]]]:
    """Two views of each recording: spectrograms [n, 2, H, W, 1] uint8, and both as addresses of playable recording."""
    pictures, addresses = [], []
    for row in range(len(a)):
        pair = [view.samples[row, : int(view.lengths[row])].cpu().numpy()[: int(_SECONDS * rate)] for view in (a, b)]
        pictures.append(np.stack([spectrogram(samples, 64, 128)[..., None] for samples in pair]))
        addresses.append((wav(pair[0], rate), wav(pair[1], rate)))
    return np.stack(pictures), addresses


def wav(samples: NDArray[np.float32], rate: int) -> str:
    """Samples in [-1, 1] as a ``data:audio/wav`` address of 16 bits; louder ones are cut."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()
