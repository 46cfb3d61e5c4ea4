"""What the files of a source hold: whether data are still what a run began with, beyond names and lengths."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import Source, sample_indices
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.files import FileSource
from twofold.data.sources.pieces import PiecesSource
from twofold.data.sources.shards import ShardSource
from twofold.data.sources.subset import SubsetSource
from twofold.devices import available_memory
from twofold.reading import read_bytes, regular

SAMPLED = 64
"""Most files that are read of data too large to be read whole."""
_LARGE = 8 * 2**20
"""Bytes that are read at either end of a file of many tiles."""
READ_WHOLE = 2 * 2**30
"""Data of up to so many bytes (some seconds of reading) are read whole when a run begins."""
STATE = np.dtype([("size", "<i8"), ("changed", "<i8"), ("digest", "<u8")])
"""One file: its bytes, when it was written last in nanoseconds, and a digest of what it holds; 0 where that was not
read."""

States = NDArray[Any]


def content_digest(source: Source | AudioSource) -> str | None:
    """sha256 over the bytes of at most 64 files, evenly spread; None where the fingerprint reads the content itself.

    A fingerprint of files goes by names and lengths, which an image that is saved anew need not change. One file of
    many may still change unseen, see `file_states`; data that were made anew, or processed in place, do not. Of files
    that are read in pieces only the two ends count where they are large.
    """
    most: int | None = None
    if isinstance(source, SubsetSource):
        return content_digest(source.whole)
    if isinstance(source, PiecesSource):
        source, most = source.whole, _LARGE
    if not isinstance(source, EncodedSource | AudioSource):
        return None
    digest = hashlib.sha256()
    for index in sample_indices(len(source), SAMPLED).tolist():
        digest.update(_contents(source, index, most))
    return digest.hexdigest()


def example_digests(source: Source | AudioSource, index: NDArray[np.int64]) -> NDArray[np.uint64] | None:
    """What tells whether an example is the very same as one of other data.

    Args:
        source: images or recordings.
        index: [n] of them.

    Returns:
        [n] blake2b of the bytes of each one's file, or of the pixels where there is no file; never 0. Those of pieces
        of one file are equal, those of recordings that begin at different places of one are not. None for data of more
        than 2 GiB, by 64 examples, which are not read once more.
    """
    some = index[sample_indices(len(index), SAMPLED)] if len(index) else index
    if sum(len(_whole(source, each)) for each in some.tolist()) * len(index) > READ_WHOLE * len(some):
        return None
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
        digests = threads.map(lambda each: _short(hashlib.blake2b(_whole(source, each), digest_size=8)), index.tolist())
        return np.array(list(digests), dtype=np.uint64)


def labelled_digests(source: Source | AudioSource) -> NDArray[np.uint64] | None:
    """`example_digests` of the examples that have a label; of a source without labels of all."""
    if source.labels is None:
        return example_digests(source, np.arange(len(source)))
    labels = np.asarray(source.labels).reshape(len(source), -1)
    return example_digests(source, np.flatnonzero((labels >= 0).any(axis=1)))


def files_of(source: Source | AudioSource) -> list[str] | None:
    """The files that a source reads, each once, in its order; None where it is not made of files that it knows."""
    if isinstance(source, SubsetSource | PiecesSource):
        return files_of(source.whole)
    if isinstance(source, FileSource | ShardSource | AudioSource):
        return list(dict.fromkeys(source.files())) or None
    return None


def file_states(paths: Sequence[str], before: States | None = None) -> States:
    """The state of each file.

    Args:
        paths: [n] files.
        before: [n] their states at an earlier time. Files whose length and time of writing are the same are not read
            again; of the others the digest tells.

    Returns:
        [n] STATE. Digests are taken of data of up to 2 GiB, or where `before` has them; a file that cannot be read has
        the length -1.
    """
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
        states = np.array(list(threads.map(_state, paths)), dtype=STATE)
        if before is None:
            wanted = np.full(len(paths), int(states["size"].sum()) <= READ_WHOLE)
        else:
            same = (states["size"] == before["size"]) & (states["changed"] == before["changed"])
            states["digest"][same] = before["digest"][same]
            wanted = ~same & (before["digest"] != 0)
        places = np.flatnonzero(wanted & (states["size"] >= 0))
        states["digest"][places] = list(threads.map(lambda place: _digest(paths[place]), places.tolist()))
    return states


def changed_files(before: States, now: States) -> NDArray[np.int64]:
    """Which files hold something else, as far as `file_states` tells.

    Where digests were taken, they decide: a file that was copied or touched has not changed. Where not, another time of
    writing counts as a change, unless all files have one: that is a copy, which `content_digest` looks into.
    """
    size, time = before["size"] != now["size"], before["changed"] != now["changed"]
    read = (before["digest"] != 0) & (now["digest"] != 0)
    unread = time & ~read & (not (time & ~read).all())
    return np.flatnonzero(size | (read & (before["digest"] != now["digest"])) | unread)


def _state(path: str) -> tuple[int, int, int]:
    try:
        facts = regular(path)
    except OSError:
        return -1, 0, 0
    return facts.size, facts.changed, 0


def _digest(path: str) -> int:
    """blake2b of a file's bytes, never 0; 1 where it cannot be read."""
    try:
        regular(path)
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).digest()
    except OSError:
        return 1
    return int.from_bytes(digest, "little") or 1


def _short(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "little") or 1


def _whole(source: Any, index: int) -> bytes:
    """All that one example holds; of one that cannot be read its place, which no other has."""
    if isinstance(source, SubsetSource):
        return _whole(source.whole, int(source.indices[index]))
    if isinstance(source, PiecesSource):
        return _whole(source.whole, int(source.files[index]))
    try:
        if isinstance(source, AudioSource):
            start = source.recordings[index].start
            return source.contents(index) + (f"\0{start:g}".encode() if start else b"")
        if isinstance(source, EncodedSource):
            path, contents = source.locate(index)
            return read_bytes(path, available_memory() // 8) if contents is None else contents
        pixels = source.read(index)
        return repr(pixels.shape).encode() + bytes(pixels.tobytes())
    except (BadImage, OSError):
        return f"{source.name} {index}".encode()


def _contents(source: EncodedSource | AudioSource, index: int, most: int | None) -> bytes:
    """The bytes of one file; of more than `most` so many from the beginning and as many from the end."""
    try:
        if isinstance(source, AudioSource):
            return source.contents(index)
        path, contents = source.locate(index)
        if contents is not None:
            return contents
        if most is not None and regular(path).size > 2 * most:
            with Path(path).open("rb") as file:
                begin = file.read(most)
                file.seek(-most, 2)
                return begin + file.read(most)
        return read_bytes(path, available_memory() // 8)
    except (BadImage, OSError):
        return b"unreadable"
