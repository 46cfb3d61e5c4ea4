"""Recordings as a source: audio read through libsndfile or FFmpeg, mixed to one channel and resampled once."""

from __future__ import annotations

import copy
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import DataFacts, NothingReadable, SkipList, class_count, sample_indices
from twofold.data.config import AudioConfig, DataConfig
from twofold.data.decoding.recordings import (
    SILENT,
    BadRecording,
    Held,
    Silent,
    decode_recording,
    extensions,
    extent_of_loud,
    place_of_loudest,
    recording_header,
    soundfile,
    start_around,
)
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.reading import read_bytes, unreadable_folder
from twofold.text import counted


@dataclass(frozen=True)
class Recording:
    """One utterance: its file, and what is known of it."""

    path: str
    """Its file, or what tells people as much."""
    label: str | None = None
    text: str | None = None
    fold: str | None = None
    speaker: str | None = None
    start: float = 0.0
    """Seconds of the file before it begins."""
    duration: float | None = None
    """Seconds; to the file's end when not given."""
    held: Held | None = None
    """Where its bytes lie, if it is no file of its own."""
    group: str | None = None
    """What it belongs to, if that was asked for; None for one that stands alone."""
    row: int | None = None
    """Of the manifest, from 0; None without one."""


class Listing(NamedTuple):
    """The recordings that a folder or a manifest names, and what of it is not there, in words; empty for nothing."""

    recordings: list[Recording]
    note: str = ""


class AudioSource:
    """Utterances by index, with labels, texts and folds if there are any.

    Files that cannot be opened, or hold less than `data.audio.min_seconds`, are left out and listed in `skipped` when
    the source is made; silent ones and those that break in the middle when they are read. With `data.audio.trim` all
    are decoded once when the source is made, a recording is from then on what lies between its silent ends, and those
    that break, are silent, or are too short once trimmed, are left out like the others.

    Args:
        recordings: what there is.
        config: how to read it.
        name: for messages.

    Raises:
        UserError: soundfile is not installed, nothing is readable, or more is unreadable than `data.max_skipped`.
    """

    kind = "audio"
    channels = 1

    def __init__(self, recordings: Sequence[Recording], config: DataConfig, name: str) -> None:
        self.name, self.config = name, config
        self.skipped = SkipList(len(recordings), config.max_skipped, "recordings")
        self.note = ""
        """What was passed over when the recordings were looked for, in words."""
        self.rate: int | None = None
        found = _extents(recordings, config.audio)
        readable = []
        for recording, extent in zip(recordings, found, strict=True):
            if isinstance(extent, str):
                self.skipped.add(recording.path, extent)
            else:
                readable.append((recording, extent))
        if not readable:
            message = f"{name}: none of {counted(len(recordings), 'file')} can be read:\n{self.skipped.summary()}"
            raise NothingReadable.of(message, self.skipped)
        self.recordings = [recording for recording, _ in readable]
        starts, samples, rates = zip(*(extent for _, extent in readable), strict=True)
        self.starts = np.array(starts, dtype=np.int64)
        self.samples = np.array(samples, dtype=np.int64)
        self.rates = np.array(rates, dtype=np.int64)
        named = sorted({r.label for r in self.recordings if r.label is not None})
        self.classes: list[str] | None = named or None
        number = {label: i for i, label in enumerate(named)}
        self.labels: NDArray[np.int64] | None = None
        if named:
            self.labels = np.array([-1 if r.label is None else number[r.label] for r in self.recordings])
        self._cache: dict[int, NDArray[np.float32]] = {}
        self._held = 0
        self._long_fit = False
        self._room = self._cache_room()

    def __len__(self) -> int:
        return len(self.recordings)

    @property
    def texts(self) -> list[str | None]:
        """What is said, where that is known."""
        return [recording.text for recording in self.recordings]

    @property
    def speakers(self) -> list[str | None]:
        """Who says each, where that is known."""
        return [recording.speaker for recording in self.recordings]

    @property
    def folds(self) -> list[str | None]:
        """The fold of each, where that is known."""
        return [recording.fold for recording in self.recordings]

    @property
    def groups(self) -> list[str] | None:
        """The group of each, "" for one that stands alone; None where `data.group` asks for none."""
        return None if self.config.group is None else [recording.group or "" for recording in self.recordings]

    def at_rate(self, rate: int) -> AudioSource:
        """The same recordings, read at `rate` Hz."""
        if rate == self.rate:
            return self
        other = copy.copy(self)
        other.rate, other._cache, other._held = rate, {}, 0
        other._room = other._cache_room()
        return other

    def subset(self, indices: NDArray[np.int64]) -> AudioSource:
        """The recordings at `indices`; labels keep their numbers."""
        other = copy.copy(self)
        other.recordings = [self.recordings[i] for i in indices]
        other.samples, other.rates, other.starts = self.samples[indices], self.rates[indices], self.starts[indices]
        other.labels = None if self.labels is None else self.labels[indices]
        other._cache = {i: self._cache[int(j)] for i, j in enumerate(indices) if int(j) in self._cache}
        return other

    def with_labels(self, labels: Sequence[str | None]) -> AudioSource:
        """The same recordings under other labels, [n]; None for unlabelled."""
        other = copy.copy(self)
        other.classes = sorted({label for label in labels if label is not None})
        number = {label: i for i, label in enumerate(other.classes)}
        other.labels = np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)
        return other

    def path(self, index: int) -> str:
        """The file of one recording."""
        return self.recordings[index].path

    def files(self) -> Iterator[str]:
        """The file of every recording, as far as it lies in one; a file of several comes as often."""
        files = (each.path if each.held is None else each.held.file for each in self.recordings)
        return (file for file in files if file is not None)

    def contents(self, index: int) -> bytes:
        """The bytes of the file of one recording; raises OSError."""
        recording = self.recordings[index]
        if recording.held is not None:
            return recording.held.read()
        return read_bytes(recording.path, available_memory() // 8)

    def seconds(self) -> NDArray[np.float64]:
        """[n] durations."""
        return self.samples / self.rates

    def lengths(self) -> NDArray[np.int64]:
        """[n] samples of each at `rate`, cropped to `data.audio.max_seconds`, to the nearest few."""
        rate = self.rate or int(np.median(self.rates))
        return (np.minimum(self.seconds(), self.config.audio.max_seconds) * rate).astype(np.int64)

    def read(self, index: int, place: float = 0.0) -> NDArray[np.float32]:
        """Samples of one recording at `rate` (its own without), in [-1, 1], mixed to one channel.

        Args:
            index: which.
            place: in [0, 1): of what is longer than `data.audio.max_seconds`, where the part that is read lies. If that
                part is silent, the one around the loudest sample is read.

        Raises:
            BadRecording: it cannot be decoded, or is silent.
        """
        rate, own, size = self.rate or int(self.rates[index]), int(self.rates[index]), int(self.samples[index])
        recording, spare = self.recordings[index], size - int(self.config.audio.max_seconds * own)
        first = int(self.starts[index])
        if spare <= 0:
            return self._cached(index, lambda: resampled(_decode(recording, first, size), own, rate))
        start, count = int(place * (spare + 1)), size - spare
        if self._long_fit:
            # Decoded whole once, and cut at its own rate: what comes out is what reading the part gives.
            whole = self._cached(index, lambda: _decode(recording, first, size))
            part = whole[start : start + count]
            return resampled(_around_loudest(whole, count) if np.abs(part).max() < SILENT else part, own, rate)
        return resampled(_decode_part(recording, first, size, start, count), own, rate)

    def _cached(self, index: int, decode: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """What `decode` gives, remembered if there is room for it."""
        if index in self._cache:
            return self._cache[index]
        wave = decode()
        if self._held + wave.nbytes <= self._room:
            self._cache[index] = wave
            self._held += wave.nbytes
        return wave

    def _cache_room(self) -> int:
        """Bytes of decoded recordings that may be kept; UserError for data.cache ram where they do not fit in memory.

        Sets `_long_fit`: whether long ones, of which each reading takes another part, are kept whole, with all others.
        """
        self._long_fit = False
        if self.config.cache == "off":
            return 0
        free = available_memory()
        whole = self.seconds() <= self.config.audio.max_seconds
        needed = 4 * int((self.seconds() * (self.rates if self.rate is None else self.rate))[whole].sum())
        long = 4 * int(self.samples[~whole].sum())
        if self.config.cache == "auto":
            room = min(int(self.config.cache_gb * 2**30), free // 2)
            self._long_fit = needed + long <= room
            return room
        self._long_fit = needed + long <= free
        if needed > free:
            raise UserError(
                f"--data.cache ram: {self.name} needs {needed / 2**30:.1f} GiB decoded, {free / 2**30:.1f} GiB are "
                "free; use --data.cache auto, which keeps what fits"
            )
        return sys.maxsize

    def picture(self, index: int, side: int = 64) -> NDArray[np.uint8]:
        """A spectrogram [side, side, 1] of the whole recording, low frequencies below; raises BadRecording."""
        return spectrogram(self.read(index), side)[..., None]

    def facts(self) -> DataFacts:
        """Number and median length of the recordings, at the rate that most of them have."""
        rate = int(np.bincount(self.rates).argmax())
        length = int(np.median(self.seconds()) * rate)
        classes = class_count(self.labels, self.classes)
        return DataFacts(
            len(self), 1, length, 1, False, self.labels is not None, classes, kind="audio", sample_rate=rate,
            layout=self._layout(),
        )  # fmt: skip

    def _layout(self) -> str:
        """What is known of the recordings, in a line."""
        names = [] if self.labels is None else self.classes or []
        shown = f"{counted(len(names), 'class')} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        parts = [f"{counted(len(self), 'recording')}", shown if names else "no classes"]
        texts = sum(text is not None for text in self.texts)
        speakers = len({speaker for speaker in self.speakers if speaker is not None})
        parts += [f"{counted(texts, 'text')}"] * (texts > 0) + [f"{counted(speakers, 'speaker')}"] * (speakers > 0)
        return f"{self.name}: {', '.join(parts)}" + (f"; {self.note}" if self.note else "")

    def fingerprint(self) -> str:
        """sha256 of the names and the files' lengths in samples; and of some contents where no file is known."""
        digest = hashlib.sha256()
        for recording, samples in zip(self.recordings, self.samples.tolist(), strict=True):
            segment = f"\0{recording.start:g}" if recording.start else ""
            digest.update(f"{Path(recording.path).name}\0{samples}{segment}\n".encode(errors="surrogateescape"))
        for index in sample_indices(len(self), 64).tolist():
            held = self.recordings[index].held
            if held is not None and held.file is None:
                digest.update(held.read())
        return digest.hexdigest()


def spectrogram(wave: NDArray[np.float32], side: int = 64, width: int | None = None) -> NDArray[np.uint8]:
    """Log magnitudes over time as grey values [side, width]: 60 dB below the loudest are black.

    Args:
        wave: [samples].
        side: rows, from half the sample rate above to 0 below.
        width: columns, evenly spread frames; `side` by default.
    """
    size = 4 * side
    wave = np.pad(wave, (0, max(0, size - len(wave))))
    starts = np.linspace(0, len(wave) - size, width or side).astype(np.int64)
    frames = wave[starts[:, None] + np.arange(size)] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames))[:, 1:].reshape(len(starts), side, -1).max(axis=2) ** 2
    level = 10 * np.log10(np.maximum(power / max(float(power.max()), 1e-20), 1e-12))
    grey: NDArray[np.uint8] = (np.clip(1 + level / 60, 0, 1) * 255).astype(np.uint8)[:, ::-1].T
    return grey


def read_folder(
    folder: str | Path, rate: int, option: str = "--waves.noises or --waves.responses", most: int | None = None
) -> list[NDArray[np.float32]]:
    """Every recording in a folder at `rate`: noises, impulse responses; of each the first `most` samples.

    No more than that is decoded (and a second, so that resampling knows how it goes on).

    Raises:
        UserError: there is none, or one that cannot be read or is silent; `option` is what named the folder.
    """
    paths = find_recordings(Path(folder))
    if not paths:
        raise UserError(f"{option}: no recordings found in {folder}; {', '.join(extensions())} are read")
    waves = []
    for path in paths:
        header = recording_header(str(path))
        try:
            if isinstance(header, str):
                raise BadRecording(str(path), header)
            samples, own = header
            needed = samples if most is None else min(samples, -(-most * own // rate) + own)
            waves.append(resampled(decode_recording(str(path), 0, needed), own, rate)[:most])
        except BadRecording as error:
            raise UserError(f"{option}: {path} will not do: {error.reason}; mend it or take it out") from error
    return waves


def find_recordings(folder: Path, most: int | None = None) -> list[Path]:
    """Audio files in a folder and below, sorted; hidden ones left out; at most `most`, then unsorted."""
    result, known = [], extensions()
    for base, folders, files in os.walk(folder, onerror=unreadable_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        result += [Path(base, name) for name in files if name.lower().endswith(known) and name[0] != "."]
        if most is not None and len(result) >= most:
            return result[:most]
    return sorted(result)


def _extents(recordings: Sequence[Recording], config: AudioConfig) -> list[tuple[int, int, int] | str]:
    """(first sample, samples, rate) of each in its file, or why it is left out."""
    soundfile()
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
        return list(threads.map(lambda recording: _extent(recording, config), recordings))


def _extent(recording: Recording, config: AudioConfig) -> tuple[int, int, int] | str:
    header = recording_header(recording.path, recording.held)
    reason = header if isinstance(header, str) else _unfit(recording, *header, config.min_seconds)
    if reason or isinstance(header, str):
        return reason or str(header)
    (first, size), rate = _part_of(recording, *header), header[1]
    if config.trim is None:
        return first, size, rate
    try:
        begin, kept = extent_of_loud(recording.path, first, size, rate, config.trim, recording.held)
    except BadRecording as error:
        return error.reason
    if kept / rate < config.min_seconds:
        return (
            f"{kept / rate:.3f} s long once data.audio.trim {config.trim:g} has cut silence off its ends, less than "
            f"data.audio.min_seconds {config.min_seconds:g}"
        )
    return first + begin, kept, rate


def _part_of(recording: Recording, samples: int, rate: int) -> tuple[int, int]:
    """(first sample, samples) of a recording in its file."""
    first = min(round(recording.start * rate), samples)
    rest = samples - first
    return first, rest if recording.duration is None else min(round(recording.duration * rate), rest)


def _unfit(recording: Recording, samples: int, rate: int, least: float) -> str | None:
    if recording.start * rate >= samples > 0:
        return f"it begins at {recording.start:g} s, and the file is {samples / rate:.3f} s long"
    samples = _part_of(recording, samples, rate)[1]
    if samples / rate < least:
        return f"{samples / rate:.3f} s long, less than data.audio.min_seconds {least:g}"
    return None


def _decode_part(recording: Recording, first: int, size: int, start: int, count: int) -> NDArray[np.float32]:
    """`count` samples from `start` of the recording that lies at `first`; a pause in it does not make it silent."""
    try:
        return _decode(recording, first + start, count)
    except Silent:
        start = first + place_of_loudest(recording.path, first, size, count, recording.held)
        return _decode(recording, start, count)


def _around_loudest(whole: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    start = start_around(int(np.abs(whole).argmax()), len(whole), count)
    return whole[start : start + count].copy()


def _decode(recording: Recording, start: int, count: int) -> NDArray[np.float32]:
    return decode_recording(recording.path, start, count, recording.held)


def resampled(wave: NDArray[np.float32], own: int, rate: int) -> NDArray[np.float32]:
    """Samples [n] at `own` Hz, at `rate` Hz."""
    if own == rate:
        return wave
    try:
        import soxr
    except ImportError as error:
        raise UserError('resampling needs an extra: pip install "twofold[speech]"') from error
    other: NDArray[np.float32] = soxr.resample(wave, own, rate)
    return other
