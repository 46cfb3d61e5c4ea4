"""What some of the files of a source hold: whether data are still what a run began with, beyond names and sizes."""

from __future__ import annotations

import hashlib

from twofold.data.base import Source, sample_indices
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.subset import SubsetSource
from twofold.devices import available_memory
from twofold.reading import read_bytes

SAMPLED = 64
"""Most files that are read."""


def content_digest(source: Source | AudioSource) -> str | None:
    """sha256 over the bytes of at most 64 files, evenly spread; None where the fingerprint reads the content itself.

    A fingerprint of files goes by names and lengths, which an image that is saved anew need not change. One file of
    many may still change unseen; a data set that was made anew, or processed in place, does not.
    """
    if isinstance(source, SubsetSource):
        return content_digest(source.whole)
    if not isinstance(source, EncodedSource | AudioSource):
        return None
    digest = hashlib.sha256()
    for index in sample_indices(len(source), SAMPLED).tolist():
        digest.update(_contents(source, index))
    return digest.hexdigest()


def _contents(source: EncodedSource | AudioSource, index: int) -> bytes:
    try:
        path, contents = (source.path(index), None) if isinstance(source, AudioSource) else source.locate(index)
        return read_bytes(path, available_memory() // 8) if contents is None else contents
    except (BadImage, OSError):
        return b"unreadable"
