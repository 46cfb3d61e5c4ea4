"""Images in files: a list of paths with labels, and how a folder becomes one."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import DataFacts, SkipList, class_count, sample_indices
from twofold.data.config import DataConfig
from twofold.data.images import decode_image, find_images, image_extensions
from twofold.data.opening import BadImage, Header, read_header
from twofold.errors import UserError

CHECKED = 50_000
"""Folders up to this many files have every header read when they are opened (some seconds); of larger ones a sample."""

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What subfolders that hold a split are called, in any case."""


class FileSource:
    """Image files, decoded when read.

    Args:
        root: folder that `names` are relative to.
        names: paths of the files.
        labels: [n] or [n, K]; None without labels.
        classes: names, by label.
        config: `channels` and how to decode.
        name: for messages.

    Raises:
        UserError: more unreadable files than `max_skipped`, or channels other than 1 and 3.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        config: DataConfig,
        *,
        labels: NDArray[np.int64] | None = None,
        classes: list[str] | None = None,
        name: str | None = None,
    ) -> None:
        if config.channels not in (None, 1, 3):
            raise UserError(f"--data.channels {config.channels}: image files give 1 (grey) or 3 (colour)")
        self.name = name or str(root)
        self.classes = classes
        self.labels = labels
        self.config = config
        self.skipped = SkipList(len(names), config.max_skipped)
        self._root = str(root)
        self._names = PackedStrings(names)
        self._sizes: NDArray[np.int32] | None = None
        headers = self._check_all() if len(names) <= CHECKED else self._sample()
        self.channels = config.channels or (1 if all(header.grey for header in headers) else 3)

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        """The file of one image."""
        return f"{self._root}/{self._names[index]}"

    def read(self, index: int, shrink: int = 1) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; `shrink` as in `decode_image`; raises BadImage."""
        return decode_image(self.path(index), self.channels, self.config, shrink)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image, from its header; raises BadImage."""
        if self._sizes is not None:
            return int(self._sizes[index, 0]), int(self._sizes[index, 1])
        header = read_header(self.path(index), self.config)
        return header.height, header.width

    def sizes(self) -> NDArray[np.int32] | None:
        """[n, 2] heights and widths where every header has been read, else None."""
        return self._sizes

    def facts(self) -> DataFacts:
        """Median size of all files, or of a sample of a large folder (whose sizes then count as different)."""
        sizes, equal = self._sizes, False
        if sizes is None:
            sizes = np.array([(header.height, header.width) for header in self._sample()])
        else:
            equal = bool((sizes == sizes[0]).all())
        height, width = (int(side) for side in np.median(sizes, axis=0))
        classes = class_count(self.labels, self.classes)
        return DataFacts(len(self), height, width, self.channels, equal, self.labels is not None, classes)

    def fingerprint(self) -> str:
        """sha256 of the relative paths and the files' lengths in bytes."""
        digest = hashlib.sha256(str(len(self)).encode())
        for index in range(len(self)):
            digest.update(
                f"{self._names[index]}\0{Path(self.path(index)).stat().st_size}\n".encode(errors="surrogateescape")
            )
        return digest.hexdigest()

    def _check_all(self) -> list[Header]:
        """Read every header; leave out the files where that fails."""
        headers = _read_headers([self.path(index) for index in range(len(self))], self.config)
        good = [index for index, header in enumerate(headers) if isinstance(header, Header)]
        for header in headers:
            if isinstance(header, BadImage):
                self.skipped.add(header.path, header.reason)
        if len(good) < len(headers):
            self._names = PackedStrings([self._names[index] for index in good])
            self.labels = None if self.labels is None else self.labels[good]
        kept = [header for header in headers if isinstance(header, Header)]
        self._sizes = np.array([(header.height, header.width) for header in kept], dtype=np.int32).reshape(-1, 2)
        return kept

    def _sample(self) -> list[Header]:
        """Headers of evenly spread files; unreadable ones are met again, and listed, when they are decoded."""
        headers = _read_headers([self.path(int(index)) for index in sample_indices(len(self))], self.config)
        kept = [header for header in headers if isinstance(header, Header)]
        if not kept:
            raise UserError(f"{self.name}: none of {len(headers)} files looked at can be read; the first: {headers[0]}")
        return kept


class PackedStrings:
    """Many strings in two arrays. Worker processes share them; a list's reference counts would copy every page."""

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


def open_folder(folder: Path, split: str | None, config: DataConfig) -> FileSource:
    """The images of a folder, or of the split that one of its subfolders holds.

    Every image file in the folder and below counts. Where each lies in a subfolder, and there are at least two of
    these, the subfolders are the classes. `split` names a subfolder (see SPLIT_FOLDERS); without it, a folder that
    consists of split folders gives its training split, any other all of its images.

    Raises:
        UserError: no such split, no images, too many unreadable ones.
    """
    splits = folder_splits(folder)
    if split is None and "train" in splits:
        split = "train"
    if split is not None and split not in splits:
        there = f"it has {', '.join(splits)}" if splits else "it has no folders such as train, val or test"
        raise UserError(f"--data.split {split}: no such folder in {folder}; {there}")
    base = folder if split is None else splits[split]
    names = find_images(base)
    if not names:
        raise UserError(_no_images(base))
    labels, classes = folder_labels(names, [path for path in splits.values() if path != base])
    return FileSource(base, names, config, labels=labels, classes=classes)


def folder_splits(folder: Path) -> dict[str, Path]:
    """Split folders by split name; none if another subfolder holds images too (then ``train`` may be a vehicle)."""
    subfolders = _subfolders(folder)
    splits = {
        split: path
        for split, names in SPLIT_FOLDERS.items()
        for path in reversed(subfolders)
        if path.name.lower() in names
    }
    others = [path for path in subfolders if path not in splits.values()]
    return {} if splits and any(find_images(path) for path in others) else splits


def folder_labels(
    names: Sequence[str], siblings: Sequence[Path] = ()
) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Labels and class names by first folder; (None, None) where an image lies in none or all lie in one.

    The classes include those of the `siblings` (other splits), so that a label means the same class in each split.
    """
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    if "" in folders or len(set(folders)) < 2:
        return None, None
    beside = {path.name for sibling in siblings for path in _subfolders(sibling)}
    classes = sorted(set(folders) | beside)
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[name] for name in folders], dtype=np.int64), classes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_headers(paths: list[str], config: DataConfig) -> list[Header | BadImage]:
    def attempt(path: str) -> Header | BadImage:
        try:
            return read_header(path, config)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:  # most of the time is waiting for the disk
        return list(threads.map(attempt, paths))


def _no_images(folder: Path) -> str:
    """What to say about a folder without images: what it holds instead."""
    kinds = Counter(path.suffix.lower() or "no extension" for path in folder.rglob("*") if path.is_file())
    found = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5)) or "no files at all"
    known = ", ".join(sorted(image_extensions() & {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"}))
    return f"{folder}: no images found; it holds {found}. Formats that Pillow reads are used: {known} and more"
