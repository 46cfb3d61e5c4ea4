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

from twofold.data.base import Format, SkipList, Splits
from twofold.data.config import DataConfig
from twofold.data.decoding.images import find_images
from twofold.data.decoding.opening import BadImage
from twofold.data.labels import class_labels
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.files import SPLIT_FOLDERS, PackedStrings
from twofold.data.sources.tars import PLACE, RECORD, TarIndex, index_tar, read_index
from twofold.errors import UserError

PREFIX = "shards:"
_OPEN_FILES = 32
"""Shards that one thread keeps open."""


class ShardSource(EncodedSource):
    """The images of some tar archives, in the order of archives and members.

    Each archive is read by position, without walking it: an order of examples stays a function of the step, as for
    files, and nothing is replayed to resume. Labels are the whole numbers in ``KEY.cls``, or ``label`` or ``cls`` in
    ``KEY.json``; where some images have one, those without are skipped.

    Args:
        paths: the archives.
        config: `channels`, `max_skipped` and how to decode.
        name: for messages.
        index: what `tars.read_index` gave; by default every archive is walked once.

    Raises:
        UserError: no images, more unreadable ones or archives than `max_skipped`, or more labels missing.
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
                f"{name}: no images in {len(paths)} tar archives (members such as 000017.jpg and 000017.cls)"
            )
        self._leave_out_unlabelled()
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
        member = block[:100].split(b"\0")[0].decode(errors="replace")  # the header lies before what it heads
        if len(block) < 512 + int(record["size"]):
            raise BadImage(f"{archive}:{member or record['offset']}", "the archive is cut short here")
        if self._checked and record["crc"] and zlib.crc32(block[512:]) != record["crc"]:
            raise BadImage(f"{archive}:{member}", "its bytes are not those that were packed (the checksum differs)")
        return f"{archive}:{member}", block[512:]

    def keep(self, good: Sequence[int]) -> None:
        """Leave out all images but these."""
        self._records = self._records[np.asarray(good, dtype=np.int64)]

    def fingerprint(self) -> str:
        """sha256 of the archives' names and of every image's place, length and label."""
        digest = hashlib.sha256(repr([Path(self._paths[i]).name for i in range(len(self._paths))]).encode())
        for start in range(0, len(self._records), 2**20):
            digest.update(self._records[start : start + 2**20][list(PLACE.names or ())].astype(PLACE).tobytes())
        return digest.hexdigest()

    def _leave_out_unlabelled(self) -> None:
        labels = self._records["label"]
        if not (labels != -1).any():
            return
        if (labels < 0).any():
            for i in np.flatnonzero(labels < 0).tolist():
                why = "it has no label and others have" if labels[i] == -1 else "its label is no whole number from 0"
                self.skipped.add(self.path(i), f"{why} (a member .cls, or label in .json)")
            self.keep(np.flatnonzero(labels >= 0).tolist())
        labels = self._records["label"].astype(np.int64)
        if self.classes is not None and len(labels) and labels.max() >= len(self.classes):
            raise UserError(
                f"{self.name}: label {labels.max()}, but its index names {len(self.classes)} classes; make the "
                "index again: twofold shard FOLDER --index true"
            )
        self.labels, self.classes = class_labels(labels, len(labels), self.name, self.classes)

    def _file(self, archive: str) -> int:
        """A descriptor of this thread's own; reading by position shares nothing with other processes either."""
        files: dict[str, int] = self._local.__dict__.setdefault("files", {})
        if archive not in files:
            if len(files) >= _OPEN_FILES:
                os.close(files.pop(next(iter(files))))
            files[archive] = os.open(archive, os.O_RDONLY)
        return files[archive]


def index_tars(paths: Sequence[Path], config: DataConfig, checksums: bool = False) -> TarIndex:
    """Walk every archive once, reading images for their `checksums` alone.

    Raises:
        UserError: more unreadable archives than the share `max_skipped`.
    """
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
        parts = list(threads.map(functools.partial(index_tar, checksums=checksums), paths))
    bad, problems = SkipList(len(paths), config.max_skipped, "archives"), []
    for shard, (records, result) in enumerate(parts):
        records["shard"] = shard
        problems += result
        for path, reason in result:
            bad.add(path, reason)
    records = np.concatenate([records for records, _ in parts]) if parts else np.zeros(0, RECORD)
    return TarIndex(records, None, problems)


def open_shards(what: str | Path, split: str | None, config: DataConfig) -> ShardSource:
    """Open ``shards:`` patterns, or a folder of tar archives, perhaps with a subfolder for each split.

    Raises:
        UserError: nothing matches, or no such split.
    """
    text = str(what).removeprefix(PREFIX)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        if split is not None:
            raise UserError(f"--data.split {split}: {what} is a pattern; give the pattern of the split's archives")
        return ShardSource(match(text), config, str(what))
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
    return ShardSource(archives(base), config, str(base))


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
    result = sorted({Path(path) for p in patterns for path in glob.glob(str(Path(p).expanduser()))})  # noqa: PTH207
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
    return bool(archives(folder) or shard_splits(folder)) and not find_images(folder)


def _is_shards(what: str) -> bool:
    folder = Path(what).expanduser()
    return what.startswith(PREFIX) or (folder.is_dir() and is_shard_folder(folder))


def _splits(what: str) -> Splits:
    folder = Path(what.removeprefix(PREFIX)).expanduser()
    return Splits.named(shard_splits(folder)) if folder.is_dir() else Splits()


SHARDS = Format(f"{PREFIX}PATTERN", _is_shards, open_shards, _splits)
