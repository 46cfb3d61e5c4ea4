"""What the examples that a source gives depend on beside its fingerprint: how they are read, and when files changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twofold.data.arrays import ArraySource
from twofold.data.base import Source
from twofold.data.cache import CachedSource
from twofold.data.encoded import EncodedSource
from twofold.data.files import FileSource
from twofold.data.shards import ShardSource
from twofold.data.sounds import SoundSource
from twofold.data.subset import SubsetSource

_PIXELS = ("channels", "background", "orient", "deep_pixels", "max_pixels")


def how_read(source: Source) -> dict[str, Any] | None:
    """Options of reading, and the newest file's time of change, in JSON's types.

    A fingerprint of files goes by names and sizes, which an image saved anew need not change: the time does.

    Returns:
        None where nobody can know whether the same examples come again: a data set or source of the user's own.
    """
    if isinstance(source, SubsetSource | CachedSource):
        return how_read(source.whole)
    if isinstance(source, ArraySource):
        return {}
    if isinstance(source, SoundSource):
        paths = (recording.path for recording in source.recordings)
        return {"rate": source.rate, "sound": asdict(source.config.sound), "changed": _newest(paths)}
    if isinstance(source, EncodedSource):
        options = {name: getattr(source.config, name) for name in _PIXELS}
        paths = source.files() if isinstance(source, FileSource | ShardSource) else ()
        return {**options, "read_channels": source.channels, "changed": _newest(paths)}
    return None


def _newest(paths: Iterable[str]) -> int:
    """Nanoseconds of the last change of any of the files; 0 without files."""
    return max((Path(path).stat().st_mtime_ns for path in paths), default=0)
