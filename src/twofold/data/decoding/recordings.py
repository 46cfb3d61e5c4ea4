"""Opening recordings: what is wrong with bad ones, how long good ones are, and their samples."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twofold.data.decoding import ffmpeg
from twofold.data.decoding.opening import BadImage
from twofold.errors import UserError
from twofold.reading import reason_of, regular
from twofold.text import counted

EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph", ".caf", ".w64", ".wv1", ".wv2"
)  # fmt: skip
"""What libsndfile reads; .wv1 and .wv2 are SPHERE files of two microphones, as the Wall Street Journal's are called."""
FFMPEG_EXTENSIONS = (
    ".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp", ".webm", ".mka", ".mkv", ".weba", ".wma", ".asf", ".wv", ".ape",
    ".tta", ".ac3", ".amr", ".mp2", ".ra", ".rm", ".dsf",
)  # fmt: skip
"""What FFmpeg reads beside it; of a video the first track of sound."""
_RATES, _MOST_CHANNELS, LONGEST = (1000, 768_000), 64, 24 * 3600
"""What the header of a recording can say: Hz, channels, seconds."""
_BLOCK = 2**22
"""Values that are decoded at once: 16 MiB, 4 minutes at 16 kHz."""
SILENT = 1e-4
"""Peak below which a recording holds nothing (-80 dB of full scale)."""
NOT_FINITE = "it has samples that are not finite numbers"
_FRAME, _SHIFT = 0.025, 0.010
"""Seconds: the frames by which what is loud is found, as those of the filterbank."""
_AT_ONCE = 4096
"""Frames whose energies are computed together."""


class BadRecording(BadImage):
    """A file that is no recording, is broken, too short or silent; `path` and `reason` say which and why."""


class Silent(BadRecording):
    """A recording, or the part of one that was asked for, in which there is nothing to hear."""


class Held(Protocol):
    """Where the bytes of a recording lie that is no file of its own: in an archive, in a table's cell."""

    @property
    def file(self) -> str | None:
        """The file that holds them; None where that is not known."""

    def open(self) -> Any:
        """A file of these bytes alone; raises OSError."""

    def read(self) -> bytes:
        """The bytes; raises OSError."""


def soundfile() -> Any:
    """The library that decodes; UserError where it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise UserError('reading recordings needs an extra: pip install "twofold[speech]"') from error
    return soundfile


def extensions() -> tuple[str, ...]:
    """The extensions, such as ``.wav``, of what can be read here."""
    return EXTENSIONS + FFMPEG_EXTENSIONS if _has_ffmpeg() else EXTENSIONS


def passed_over(folder: Path) -> str:
    """What of a folder could be read with another extra, counted by format, in words; empty where there is nothing."""
    if _has_ffmpeg():
        return ""
    counts: Counter[str] = Counter()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        kinds = (Path(name).suffix.lower() for name in names if name[0] != ".")
        counts.update(kind for kind in kinds if kind in FFMPEG_EXTENSIONS)
    listing = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
    return f"{listing} file{'s' if counts.total() > 1 else ''} passed over: {ffmpeg.REMEDY}" if listing else ""


def recording_header(path: str, held: Held | None = None) -> tuple[int, int] | str:
    """(samples, rate) of a recording, or what is wrong with it."""
    try:
        if held is None and not regular(path).size:
            return "empty file"
        if _for_ffmpeg(path):
            if not _has_ffmpeg():
                return _needs(path)
            samples, rate, channels = ffmpeg.header(path if held is None else held.open(), LONGEST)
        else:
            info = soundfile().info(path if held is None else held.open())
            samples, rate, channels = int(info.frames), int(info.samplerate), int(info.channels)
        return _unlikely(samples, rate, channels) or (samples, rate)
    except (OSError, RuntimeError, ValueError, TypeError, IndexError) as error:  # soundfile's are RuntimeErrors
        if isinstance(error, OSError) and error.strerror:
            return reason_of(error)
        library = "FFmpeg" if _for_ffmpeg(path) else "libsndfile"
        return _compressed(path, held) or f"not a recording that {library} reads: {error}"


def decode_recording(path: str, start: int, count: int, held: Held | None = None) -> NDArray[np.float32]:
    """Decode a part of a recording.

    Args:
        path: the file; for messages only where the bytes are `held` elsewhere.
        start, count: samples at its own rate.
        held: where the bytes lie.

    Returns:
        [count] samples in [-1, 1], the mean of the channels.

    Raises:
        BadRecording: it cannot be decoded, or is silent.
    """
    mono, filled = np.empty(count, dtype=np.float32), 0
    for block in _blocks(path, start, count, held):
        mono[filled : filled + len(block)] = block
        filled += len(block)
    if filled < count:
        mono = mono[:filled].copy()
    if not np.isfinite(mono).all():
        raise BadRecording(path, NOT_FINITE)
    if not len(mono) or max(mono.max(), -mono.min()) < SILENT:
        raise Silent(path, "silent" if len(mono) else "no samples")
    return mono


def place_of_loudest(path: str, first: int, size: int, count: int, held: Held | None = None) -> int:
    """Where the `count` samples around the loudest of `size` from `first` begin, counted from there.

    A block is decoded at a time: hours need no memory.

    Raises:
        BadRecording: it cannot be decoded, or is silent.
    """
    loudest, place, seen = -1.0, 0, 0
    for block in _blocks(path, first, size, held):
        if len(block):
            peak = int(np.abs(block).argmax())
            if np.abs(block[peak]) > loudest:
                loudest, place = float(np.abs(block[peak])), seen + peak
            seen += len(block)
    if loudest < SILENT:
        raise Silent(path, "silent" if seen else "no samples")
    return start_around(place, seen, min(count, seen))


def extent_of_loud(
    path: str, first: int, size: int, rate: int, below: float, held: Held | None = None
) -> tuple[int, int]:
    """Where what is to be heard of `size` samples from `first` begins, counted from there, and how long it is.

    Frames of 25 ms every 10 ms, each less its mean, so that an offset is no sound; a frame is loud whose energy is at
    most `below` dB under that of the loudest. From the start of the first loud frame to the end of the last one: pauses
    between them stay. A block is decoded at a time: hours need no memory.

    Args:
        path, first, size: the recording, in samples at its own rate.
        rate: Hz.
        below: dB, above 0.
        held: where the bytes lie.

    Returns:
        (samples before the first loud frame, samples to keep).

    Raises:
        BadRecording: it cannot be decoded, or is silent.
    """
    frame, shift = round(_FRAME * rate), round(_SHIFT * rate)
    energies, rest, seen, peak = list[NDArray[np.float64]](), np.empty(0, np.float32), 0, 0.0
    for block in _blocks(path, first, size, held):
        if not np.isfinite(block).all():
            raise BadRecording(path, NOT_FINITE)
        seen, peak = seen + len(block), max(peak, float(np.abs(block).max(initial=0.0)))
        wave = np.concatenate([rest, block])
        count = max(0, 1 + (len(wave) - frame) // shift)
        if count:
            frames = np.lib.stride_tricks.sliding_window_view(wave, frame)[::shift]
            energies += [frames[i : i + _AT_ONCE].var(axis=1, dtype=np.float64) for i in range(0, count, _AT_ONCE)]
        rest = wave[count * shift :]
    if peak < SILENT:
        raise Silent(path, "silent" if seen else "no samples")
    energy = np.concatenate([*energies, np.empty(0)])
    if not len(energy):
        return 0, seen
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (-below / 10))
    begin, last = int(loud[0]) * shift, int(loud[-1])
    end = seen if last == len(energy) - 1 else last * shift + frame  # what is left at the end is less than a frame
    return begin, end - begin


def start_around(loudest: int, size: int, count: int) -> int:
    """Where `count` of `size` samples begin that have the loudest in the middle, or as near to it as can be."""
    return min(max(0, loudest - count // 2), size - count)


def _blocks(path: str, start: int, count: int, held: Held | None) -> Iterator[NDArray[np.float32]]:
    """The samples from `start`, mixed to one channel, in blocks; raises BadRecording."""
    try:
        if held is None:
            regular(path)
        with contextlib.closing(_waves(path if held is None else held.open(), path, start, count)) as waves:
            for wave in waves:
                yield wave.mean(axis=1, dtype=np.float32)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise BadRecording(path, f"cannot be decoded: {reason_of(error)}") from error


def _waves(file: Any, path: str, start: int, count: int) -> Generator[NDArray[np.float32]]:
    """The same, [n, channels]; raises what the libraries do."""
    if _for_ffmpeg(path):
        yield from ffmpeg.waves(file, start, count)
        return
    with soundfile().SoundFile(file) as opened:
        opened.seek(start)
        while count > 0:
            wave = opened.read(min(count, max(1, _BLOCK // opened.channels)), dtype="float32", always_2d=True)
            if not len(wave):
                return
            count -= len(wave)
            yield wave


def _unlikely(samples: int, rate: int, channels: int) -> str | None:
    """What no recording's header says; a damaged or hostile one is not to choose how much memory is taken."""
    if not _RATES[0] <= rate <= _RATES[1]:
        return f"its header says {rate:,} Hz, and recordings have {_RATES[0]:,} to {_RATES[1]:,}"
    if not 1 <= channels <= _MOST_CHANNELS:
        return f"its header says {counted(channels, 'channel')}, and recordings have 1 to {_MOST_CHANNELS}"
    if samples / rate > LONGEST:
        return f"its header says {samples / rate / 3600:,.0f} hours: cut it into parts of at most 24"
    return None


def _has_ffmpeg() -> bool:
    return importlib.util.find_spec("av") is not None


def _for_ffmpeg(path: str) -> bool:
    return Path(path).suffix.lower() in FFMPEG_EXTENSIONS


def _needs(path: str) -> str:
    return f"{Path(path).suffix} files need an extra: {ffmpeg.REMEDY}"


def _compressed(path: str, held: Held | None) -> str | None:
    """That a SPHERE file is compressed inside, as NIST's discs are; None of anything else."""
    try:
        if held is None:
            regular(path)
        with Path(path).open("rb") if held is None else held.open() as file:
            head = file.read(1024)
    except OSError:
        return None
    if not head.startswith(b"NIST_1A") or b"embedded-" not in head:
        return None
    how = head.partition(b"embedded-")[2].split()[0].decode(errors="replace")
    return f"its samples are compressed by {how}, which nothing here unpacks: write it anew by sph2pipe -f wav"
