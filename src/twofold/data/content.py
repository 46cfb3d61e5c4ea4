"""What some of the files of a source hold: whether data are still what a run began with, beyond names and sizes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from twofold.data.base import Source, sample_indices
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.pieces import PiecesSource
from twofold.data.sources.subset import SubsetSource

SAMPLED = 64
"""Most files that are read."""
_LARGE = 8 * 2**20
"""Bytes that are read at either end of a file of many tiles."""


def content_digest(source: Source | AudioSource) -> str | None:
    """sha256 over the bytes of at most 64 files, evenly spread; None where the fingerprint reads the content itself.

    A fingerprint of files goes by names and lengths, which an image that is saved anew need not change. One file of
    many may still change unseen; a data set that was made anew, or processed in place, does not. Of files that are read
    in pieces only the two ends count where they are large.
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


def _contents(source: EncodedSource | AudioSource, index: int, most: int | None) -> bytes:
    """The bytes of one file; of more than `most` so many from the beginning and as many from the end."""
    try:
        path, contents = (source.path(index), None) if isinstance(source, AudioSource) else source.locate(index)
        if contents is None and most is not None and Path(path).stat().st_size > 2 * most:
            with Path(path).open("rb") as file:
                begin = file.read(most)
                file.seek(-most, 2)
                return begin + file.read()
        return Path(path).read_bytes() if contents is None else contents
    except (BadImage, OSError):
        return b"unreadable"
