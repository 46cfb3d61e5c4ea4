"""Features kept on disk, so that evaluations of one run on the same data encode its images once."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.console import print_rank0
from twofold.data import Source
from twofold.data.batches.cache import CachedSource
from twofold.data.sources.arrays import ArraySource
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.files import FileSource
from twofold.data.sources.pieces import PiecesSource
from twofold.data.sources.shards import ShardSource
from twofold.data.sources.subset import SubsetSource
from twofold.devices import available_memory
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.frozen import digest
from twofold.files import write_atomically
from twofold.reading import regular

FORMAT = 1


@dataclass(frozen=True)
class Features:
    """Features of the images of a source that could be read.

    Attributes:
        h: [N, d] float32.
        labels: [N] or [N, K] labels of these images; None without labels.
        index: [N] their indices in the source, ascending.
        skipped: (path, reason) of each image left out.
        text: the preprocessing in words.
        kept: they were read from a file that an earlier evaluation left (see `FeatureCache`).
        cut: images of which only the middle was seen, and all that were (see `Framing.cut`).
        framed: what was done and to how many (see `Framing.framed`); empty where an earlier version kept them.
    """

    h: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    index: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...]
    text: str
    kept: bool = False
    cut: tuple[int, int] = (0, 0)
    framed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureCache:
    """A memory of extracted features: a file for each data, preprocessing and kind of encoder.

    A file is used if it was made by an encoder of the same digest, under the same torch, from files that have not
    changed since; else, and where it is damaged, the features are computed anew, and that is said. Data sets and
    sources of the user's own are computed each time: nobody can know whether they give the same again.

    Args:
        folder: where the files lie; None keeps nothing.
        tell: called with a sentence when a file could not be used or not be written.
    """

    folder: Path | None
    tell: Callable[[str], None] = print_rank0

    @classmethod
    def beside(cls, encoder_file: Path) -> FeatureCache:
        """In the folder `features` of the run that an encoder belongs to; nothing is kept for one without a run."""
        run = encoder_file.parent
        return cls(run / "features" if (run / "config.yaml").exists() else None)

    def features(
        self, encoder: Encoder, source: Source, settings: Mapping[str, Any], compute: Callable[[], Features]
    ) -> Features:
        """The features in the file that is for an encoder and a source, or else what `compute` gives, kept for later.

        Args:
            encoder: that `compute` runs.
            source: as the encoder reads it.
            settings: what else the features depend on, in JSON's types.
            compute: extracts them.
        """
        reading = decode_options(source) if self.folder is not None else None
        if self.folder is None or reading is None:
            return compute()
        changed = reading.pop("changed", 0)
        asked = {
            "encoder": type(encoder).__name__, "dim": encoder.feature_dim, "data": source.fingerprint(),
            "reading": reading, "format": FORMAT, **settings,
        }  # fmt: skip
        made = {"the encoder": digest(encoder), "the files": changed, "torch": torch.__version__}
        path = self.folder / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]}.npz"
        result = self._read(path, made, source, encoder.feature_dim)
        if result is None:
            result = compute()
            self._write(path, result, {"asked": asked, "made": made, "name": source.name})
        return result

    def _read(self, path: Path, made: dict[str, Any], source: Source, dim: int) -> Features | None:
        """The features in a file, or None if there is none that fits, which is told if there is another."""
        if not path.exists():
            return None
        try:
            facts, h, index = _load(path, dim, len(source))
        except _DAMAGED as error:
            self.tell(f"the features kept in {path} are damaged ({error}): computed anew")
            return None
        differing = [name for name, value in made.items() if facts["made"].get(name) != value]
        if differing:
            self.tell(
                f"the features of {source.name} kept in {path} are stale ({' and '.join(differing)} changed since): "
                "computed anew"
            )
            return None
        for name, reason in facts["skipped"]:
            source.skipped.add(name, reason)
        labels = None if source.labels is None else np.asarray(source.labels)[index]
        told = str(facts["text"]), True, facts["cut"], facts["framed"]
        return Features(h, labels, index, tuple(facts["skipped"]), *told)

    def _write(self, path: Path, found: Features, facts: dict[str, Any]) -> None:
        """Keep features for later; a disk that refuses is told of and costs nothing else."""
        facts = facts | {"skipped": found.skipped, "text": found.text, "cut": found.cut, "framed": dict(found.framed)}
        document = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        try:
            # A zip file without compression: it holds a checksum of each member, which reading compares.
            write_atomically(path, lambda file: np.savez(file, h=found.h, index=found.index, facts=document))
        except UserError as error:
            self.tell(f"the features of {facts['name']} are not kept: {error}")


NOTHING_KEPT = FeatureCache(None)

_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile)
"""What reading raises; a RuntimeError where a flipped bit says that a member is encrypted."""


def check_stored(path: Path) -> None:
    """Raise a ValueError for a file that is compressed, as none of ours is, or does not fit into memory."""
    regular(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.file_size != member.compress_size for member in members):
        raise ValueError("it is compressed")
    if sum(member.file_size for member in members) > available_memory():
        raise ValueError("it is larger than the memory that is free")


def _load(path: Path, dim: int, images: int) -> tuple[dict[str, Any], Any, Any]:
    """(facts, h [N, a multiple of dim], index [N]) of a file; a ValueError, among others, where it is not whole."""
    check_stored(path)
    with np.load(path, allow_pickle=False) as file:
        facts = json.loads(file["facts"].tobytes())
        h, index = file["h"], file["index"]
    if (
        h.dtype != np.float32
        or index.dtype != np.int64
        or h.ndim != 2
        or len(h) != len(index)
        or h.shape[1] % dim
        or not np.isfinite(h).all()
    ):
        raise ValueError(f"arrays of {h.dtype} {h.shape} and {index.dtype} {index.shape}")
    if not len(index) or index.min() < 0 or index.max() >= images or not isinstance(facts["made"], dict):
        raise ValueError("its images are not those of the data")
    cut, seen = facts.get("cut", (0, 0))  # not told in files of before
    facts["cut"] = int(cut), int(seen)
    facts["framed"] = {str(words): int(count) for words, count in dict(facts.get("framed", {})).items()}
    facts["skipped"] = [(str(name), str(reason)) for name, reason in facts["skipped"]]
    return facts, h, index


_PIXELS = ("channels", "background", "orient", "deep_pixels", "max_pixels")


def decode_options(source: Source) -> dict[str, Any] | None:
    """Options of reading, and the newest file's time of change, in JSON's types.

    A fingerprint of files goes by names and sizes, which an image saved anew need not change: the time does.

    Returns:
        None where nobody can know whether the same examples come again: a data set or source of the user's own.
    """
    if isinstance(source, SubsetSource | CachedSource | PiecesSource):
        return decode_options(source.whole)
    if isinstance(source, ArraySource):
        return {}
    if isinstance(source, AudioSource):
        return {"rate": source.rate, "audio": asdict(source.config.audio), "changed": _newest(source.files())}
    if isinstance(source, EncodedSource):
        options = {name: getattr(source.config, name) for name in _PIXELS}
        paths = source.files() if isinstance(source, FileSource | ShardSource) else ()
        read = {"read_channels": source.channels, "changed": _newest(paths)}
        deep = {"pixel_range": source.pixel_range, "bands": source.config.bands, "band_ranges": source.band_ranges}
        return {**options, **read, **{name: list(value) for name, value in deep.items() if value}}
    return None


def _newest(paths: Iterable[str]) -> int:
    """Nanoseconds of the last change of any of the files; 0 without files."""
    return max((Path(path).stat().st_mtime_ns for path in paths), default=0)
