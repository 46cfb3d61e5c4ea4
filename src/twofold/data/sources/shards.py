"""Images in tar archives named as WebDataset names them, read by position, so that any image is one read away."""

from __future__ import annotations

import functools
import glob  # (Path.glob takes no absolute patterns)
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from twofold.data.base import Format, SkipList, Source, Splits
from twofold.data.config import DataConfig
from twofold.data.decoding.images import find_pictures
from twofold.data.decoding.opening import BadImage
from twofold.data.groups import group_names
from twofold.data.labels import class_labels
from twofold.data.sources.audio_tars import holds_recordings, open_audio_tars
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.files import SPLIT_FOLDERS, PackedStrings
from twofold.data.sources.tars import BAD_LABEL, PLACE, TarIndex, index_tar, joined, member_fields, read_index
from twofold.errors import UserError
from twofold.files import at_home
from twofold.text import counted

PREFIX = "shards:"
_OPEN_FILES = 32
"""Shards that one thread keeps open."""


class ShardSource(EncodedSource):
    """The images of some tar archives, in the order of archives and members.

    Each archive is read by position, without walking it: an order of examples stays a function of the step, as for
    files, and nothing is replayed to resume. Labels are the whole numbers or names in ``KEY.cls``, or ``label`` or
    ``cls`` in ``KEY.json``; an image without one, or with -1, is unlabelled. What belongs together has the same
    ``group`` in ``KEY.json``.

    Args:
        paths: the archives.
        config: `channels`, `max_skipped` and how to decode.
        name: for messages.
        index: what `tars.read_index` gave; by default every archive is walked once.

    Raises:
        UserError: no images, or more unreadable ones, labels or archives than `max_skipped`.
    """

    def __init__(self, paths: Sequence[Path], config: DataConfig, name: str, index: TarIndex | None = None) -> None:
        index = index or index_tars(paths, config)
        super().__init__(len(index.records), config, classes=index.classes, name=name)
        self._paths = PackedStrings([str(path) for path in paths])
        self._records = index.records
        self._checked = "crc" in (index.records.dtype.names or ())  # indices of the first format hold no checksums
        self._local = threading.local()
        for path, reason in index.problems:
            self.skipped.add(path, reason)
        if not len(self._records):
            raise UserError(
                f"{name}: no images in {counted(len(paths), 'tar archive')} (members such as 000017.jpg and 000017.cls)"
            )
        self.groups = self._json_groups(config.group) if config.group is not None else self._groups()
        self._take_labels()
        self.examine()

    def __len__(self) -> int:
        return len(self._records)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def files(self) -> Iterator[str]:
        """Every archive that is read."""
        return (self._paths[index] for index in range(len(self._paths)))

    def locate(self, index: int) -> tuple[str, bytes]:
        """``archive:member``, and its bytes."""
        record = self._records[index]
        archive = self._paths[int(record["shard"])]
        try:
            block = os.pread(self._file(archive), 512 + int(record["size"]), int(record["offset"]) - 512)
        except OSError as error:
            raise BadImage(f"{archive}@{record['offset']}", str(error)) from error
        member = _member_name(block)
        if len(block) < 512 + int(record["size"]):
            raise BadImage(f"{archive}:{member or record['offset']}", "the archive is cut short here")
        if self._checked and record["crc"] and zlib.crc32(block[512:]) != record["crc"]:
            raise BadImage(f"{archive}:{member}", "its bytes are not those that were packed (the checksum differs)")
        return f"{archive}:{member}", block[512:]

    def member(self, index: int) -> str:
        """The name of one image in its archive."""
        record = self._records[index]
        block = os.pread(self._file(self._paths[int(record["shard"])]), 512, int(record["offset"]) - 512)
        return _member_name(block)

    def keep(self, good: Sequence[int]) -> None:
        """Leave out all images but these."""
        self._records = self._records[np.asarray(good, dtype=np.int64)]
        self.groups = None if self.groups is None else [self.groups[index] for index in good]

    def fingerprint(self) -> str:
        """sha256 of the archives' names and of every image's place, length and label."""
        digest = hashlib.sha256(repr([Path(self._paths[i]).name for i in range(len(self._paths))]).encode())
        for start in range(0, len(self._records), 2**20):
            digest.update(self._records[start : start + 2**20][list(PLACE.names or ())].astype(PLACE).tobytes())
        return digest.hexdigest()

    def _groups(self) -> list[str] | None:
        if "group" not in (self._records.dtype.names or ()) or not self._records["group"].any():
            return None
        return [f"{group:016x}" if group else "" for group in self._records["group"].tolist()]

    def _json_groups(self, wanted: str) -> list[str] | None:
        """The group of each image by its ``KEY.json``; None where none has such a field, and names may tell."""
        paths = [Path(self._paths[i]) for i in range(len(self._paths))]
        with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
            fields = [f for each in threads.map(lambda path: member_fields(path, wanted), paths) for f in each]
        if len(fields) != len(self._records) or not any(field is not None for field in fields):
            return None
        return group_names(fields)

    def _take_labels(self) -> None:
        """Labels as class numbers; an image whose label cannot be read is left out, as nobody knows what it is."""
        labels = self._records["label"]
        if (labels == BAD_LABEL).any():
            for i in np.flatnonzero(labels == BAD_LABEL).tolist():
                self.skipped.add(
                    self.path(i),
                    "its label is neither a whole number from 0 nor a name (a member .cls, or label in .json)",
                )
            self.keep(np.flatnonzero(labels != BAD_LABEL).tolist())
            labels = self._records["label"]
        if not (labels >= 0).any():
            return
        if self.classes is not None and labels.max() >= len(self.classes):
            raise UserError(
                f"{self.name}: label {labels.max()}, but its index names {counted(len(self.classes), 'class')}; make "
                "the index again: twofold shard FOLDER --index true"
            )
        self.labels, self.classes = class_labels(np.asarray(labels), len(labels), self.name, self.classes)

    def _file(self, archive: str) -> int:
        """A descriptor of this thread's own; reading by position shares nothing with other processes either."""
        files: dict[str, int] = self._local.__dict__.setdefault("files", {})
        if archive not in files:
            if len(files) >= _OPEN_FILES:
                os.close(files.pop(next(iter(files))))
            files[archive] = os.open(archive, os.O_RDONLY)
        return files[archive]


def _member_name(block: bytes) -> str:
    """What a header, which lies before what it heads, says of the name."""
    return block[:100].split(b"\0")[0].decode(errors="replace")


def index_tars(paths: Sequence[Path], config: DataConfig, checksums: bool = False) -> TarIndex:
    """Walk every archive once, reading images for their `checksums` alone.

    Raises:
        UserError: more unreadable archives than the share `max_skipped`.
    """
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
        walks = list(threads.map(functools.partial(index_tar, checksums=checksums), paths))
    index = joined(walks, str(paths[0].parent) if paths else "")
    bad = SkipList(len(paths), config.max_skipped, "archives")
    for path, reason in index.problems:
        bad.add(path, reason)
    return index


def open_shards(what: str | Path, split: str | None, config: DataConfig) -> Source:
    """Open ``shards:`` patterns, or a folder of tar archives, perhaps with a subfolder for each split.

    They hold images, or recordings (see `audio_tars`): the first member that is either decides.

    Raises:
        UserError: nothing matches, or no such split.
    """
    text = str(what).removeprefix(PREFIX)
    folder = at_home(text)
    if not folder.is_dir():
        if split is not None:
            raise UserError(f"--data.split {split}: {what} is a pattern; give the pattern of the split's archives")
        paths = match(text)
        return _open(paths, config, str(what), _kept(paths))
    splits = shard_splits(folder)
    if split is None and "train" in splits:
        split = "train"
    if split is not None and split not in splits:
        present = (
            f"it has {', '.join(splits)}" if splits else "it has no folders such as train, val or test with archives"
        )
        raise UserError(f"--data.split {split}: no such folder in {folder}; {present}")
    base = folder if split is None else splits[split]
    index = read_index(base)
    if index is not None:
        return ShardSource([base / name for name in index.names], config, str(base), index)
    return _open(archives(base), config, str(base), None)


def _open(paths: Sequence[Path], config: DataConfig, name: str, index: TarIndex | None) -> Source:
    if index is None and holds_recordings(paths):
        return open_audio_tars(paths, config, name)  # type: ignore[return-value]  # it reads recordings
    return ShardSource(paths, config, name, index)


def _kept(paths: Sequence[Path]) -> TarIndex | None:
    """What an index beside some archives says of them; None where they have none, or lie in several folders."""
    folders = {path.parent for path in paths}
    index = read_index(folders.pop()) if len(folders) == 1 else None
    if index is None or not {path.name for path in paths} <= set(index.names):
        return None
    places = [index.names.index(path.name) for path in paths]
    parts = [np.array(index.records[index.records["shard"] == place]) for place in places]
    for shard, records in enumerate(parts):
        records["shard"] = shard
    return TarIndex(np.concatenate(parts), index.classes)


def match(pattern: str) -> list[Path]:
    """The archives that a pattern with * and ?, or a range such as {000000..000099}, names, sorted."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise UserError(
            f"{PREFIX}{pattern}: archives are read by position, from a file system; copy or mount them, then give "
            "their folder"
        )
    spans = re.findall(r"\{(\d+)\.\.(\d+)\}", pattern)
    patterns = [pattern]
    for low, high in spans:
        numbers = [str(i).zfill(len(low)) for i in range(int(low), int(high) + 1)]
        patterns = [p.replace(f"{{{low}..{high}}}", n, 1) for p in patterns for n in numbers]
    if spans:
        missing = [p for p in patterns if not glob.glob(p)]  # noqa: PTH207
        if missing:
            raise UserError(
                f"{PREFIX}{pattern}: {len(missing)} of {len(patterns)} are not there; the first: {missing[0]}"
            )
    result = sorted({Path(path) for p in patterns for path in glob.glob(str(at_home(p)))})  # noqa: PTH207
    if not result:
        raise UserError(f"{PREFIX}{pattern}: no such folder, and no file matches; e.g. {PREFIX}data/train-*.tar")
    compressed = [path for path in result if path.suffix.lower() != ".tar"]
    if compressed:
        raise UserError(f"{compressed[0]}: plain .tar archives are read by position; unpack compressed ones (gunzip)")
    return result


def archives(folder: Path) -> list[Path]:
    """The tar archives that lie in a folder, sorted."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def shard_splits(folder: Path) -> dict[str, Path]:
    """Subfolders that hold a split's archives, by split name."""
    return {
        split: path
        for split, names in SPLIT_FOLDERS.items()
        for path in sorted(folder.iterdir(), reverse=True)
        if path.is_dir() and path.name.lower() in names and archives(path)
    }


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds tar archives, itself or by split, and no image files."""
    return bool(archives(folder) or shard_splits(folder)) and not find_pictures(folder)


def _is_shards(what: str) -> bool:
    folder = at_home(what)
    return what.startswith(PREFIX) or (folder.is_dir() and is_shard_folder(folder))


def _splits(what: str) -> Splits:
    folder = at_home(what.removeprefix(PREFIX))
    return Splits.named(shard_splits(folder)) if folder.is_dir() else Splits()


SHARDS = Format(f"{PREFIX}PATTERN", _is_shards, open_shards, _splits)
