"""Recordings in formats that libsndfile does not know, through PyAV, whose wheels bring FFmpeg along.

(torchcodec would need FFmpeg's libraries on the system, and a version of its own for each of PyTorch.)

What an encoder puts before and after the samples is cut as far as the file says where it lies: in m4a, mp4 and mov the
edit list does, in webm and mka the codec's delay. Raw .aac and .wma say nothing: what their decoder gives is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

REMEDY = "pip install 'twofold[av]'"
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,matroska,webm,asf,aac,loas,wv,ape,tta,ac3,eac3,amr,amrnb,amrwb,mp3,rm,dsf",
    "protocol_whitelist": "file",
}
"""What is opened: no playlists or session descriptions, whatever a file is called, which name other files and hosts."""
_SHORT = 4096
"""Samples that may be missing at the end of what a file says that it holds: two frames of any usual codec."""


def header(file: Any, longest: float) -> tuple[int, int, int]:
    """(samples, rate, channels) of the first track of sound.

    Where a container counts in samples its own word is taken; others (webm, wma and raw aac, which count otherwise) are
    decoded once to count.

    Args:
        file: a path, or a file of bytes.
        longest: seconds after which counting ends.

    Raises:
        OSError, ValueError, ...: as PyAV does.
    """
    import av

    with av.open(file, options=_OPTIONS) as container:
        stream = _track(container)
        rate, channels = int(stream.codec_context.sample_rate), int(stream.codec_context.channels)
        if stream.duration is not None and stream.time_base == Fraction(1, rate):
            return int(stream.duration), rate, channels
        samples = 0
        for frame in container.decode(stream):
            samples += frame.samples
            if samples > longest * rate:
                break
        return samples, rate, channels


def waves(file: Any, start: int, count: int) -> Iterator[NDArray[np.float32]]:
    """`count` samples from `start` of the first track of sound, [n, channels] a frame.

    Everything before them is decoded, too: seeking would be exact for few codecs, and what one example is must not
    depend on how it is reached.

    Raises:
        ValueError: more than some frames are missing, or the rate changes within; and what PyAV raises.
    """
    import av

    done = 0
    with av.open(file, options=_OPTIONS) as container:
        stream = _track(container)
        rate = int(stream.codec_context.sample_rate)
        for wave in _planes(container, stream, rate):
            part = wave[max(0, start - done) : max(0, start + count - done)]
            if len(part):
                yield part
            done += len(wave)
            if done >= start + count:
                break
    if min(count, start + count - done) > _SHORT:
        raise ValueError(f"it ends after {done} samples, before {start + count}")


def _track(container: Any) -> Any:
    if not container.streams.audio:
        raise ValueError("it holds no sound")
    return container.streams.audio[0]


def _planes(container: Any, stream: Any, rate: int) -> Iterator[NDArray[np.float32]]:
    """The samples of each frame, [n, channels], as floats."""
    import av

    resampler = av.AudioResampler(format="fltp")
    for frame in container.decode(stream):
        if frame.sample_rate != rate:
            raise ValueError(f"its rate changes from {rate} to {frame.sample_rate} Hz")
        for each in resampler.resample(frame):
            yield np.asarray(each.to_ndarray(), np.float32).T
