"""Images in files: a list of paths with labels, and how a folder becomes one."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import Format, Splits
from twofold.data.config import DataConfig
from twofold.data.decoding.bands import NPY
from twofold.data.decoding.images import find_images, find_pictures, image_extensions, unread
from twofold.data.labels import UNLABELLED
from twofold.data.sources.encoded import EncodedSource
from twofold.errors import UserError
from twofold.files import at_home
from twofold.text import counted

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled", "unsup", "unsupervised"),
}
"""What subfolders that hold a split are called, in any case."""
_BESIDE_IMAGES = frozenset({
    "mask", "masks", "annotation", "annotations", "label", "labels", "segmentation", "segmentations", "depth",
    "ground_truth", "groundtruth", "gt", "thumbnails",
})  # fmt: skip
"""Folders beside one called `images` that hold something else about the same pictures."""
ALL = "all"
"""The split that is the whole folder, whatever its subfolders are called."""


class FileSource(EncodedSource):
    """Image files, decoded when read.

    Args:
        root: folder that `names` are relative to.
        names: paths of the files.
        labels: [n] or [n, K]; None without labels.
        classes: names, by label.
        config: `channels` and how to decode.
        name: for messages; `root` when not given.
        groups: [n] what belongs together, "" for an image that stands alone; None where nothing does.
        rows: [n] the row of the table that each is from; None without a table.

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
        groups: Sequence[str] | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        super().__init__(len(names), config, labels=labels, classes=classes, name=name or str(root))
        self.groups = None if groups is None else list(groups)
        self.rows: list[int] | None = None if rows is None else list(rows)
        self._root = str(root)
        self._names = PackedStrings(names)
        self.examine()

    def __len__(self) -> int:
        return len(self._names)

    def member(self, index: int) -> str:
        """The file of one image, below the folder of the data."""
        return self._names[index]

    def path(self, index: int) -> str:
        """The file of one image."""
        return str(Path(self._root) / self._names[index])

    def files(self) -> Iterator[str]:
        """Every file that is read."""
        return (self.path(index) for index in range(len(self)))

    def locate(self, index: int) -> tuple[str, None]:
        """The file of one image; Pillow opens it itself."""
        return self.path(index), None

    def keep(self, good: Sequence[int]) -> None:
        """Leave out all files but these."""
        self._names = PackedStrings([self._names[index] for index in good])
        self.groups = None if self.groups is None else [self.groups[index] for index in good]
        self.rows = None if self.rows is None else [self.rows[index] for index in good]

    def fingerprint(self) -> str:
        """sha256 of the relative paths and the files' lengths in bytes."""
        digest = hashlib.sha256(str(len(self)).encode())
        for index in range(len(self)):
            digest.update(
                f"{self._names[index]}\0{Path(self.path(index)).stat().st_size}\n".encode(errors="surrogateescape")
            )
        return digest.hexdigest()


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
    these, the subfolders are the classes. `split` names a subfolder (see SPLIT_FOLDERS), or "all"; without it, a folder
    with split folders gives its training split, one with a folder `images` beside `masks` or the like gives that
    folder, and any other all of its images.

    Raises:
        UserError: no such split, no images, too many unreadable ones.
    """
    splits = {} if split == ALL else folder_splits(folder)
    if split is None and "train" in splits:
        split = "train"
    if split not in (None, ALL) and split not in splits:
        present = f"it has {', '.join(splits)}" if splits else "it has no folders such as train, val or test"
        raise UserError(f"--data.split {split}: no such folder in {folder}; {present}")
    base = splits[split] if split in splits else _images_folder(folder) if split is None else folder
    left: Counter[str] = Counter()
    names = find_images(base, left)
    if not names:
        raise UserError(_no_images(base))
    labels, classes = folder_labels(
        names, [path for name, path in splits.items() if path != base and name != "unlabeled"]
    )
    source = FileSource(base, names, config, labels=labels, classes=classes)
    source.layout = describe_layout(folder, base, splits, classes, len(source))
    source.layout += f"; {unread(left)}" if left else ""
    return source


def folder_splits(folder: Path) -> dict[str, Path]:
    """Split folders by split name.

    Two or more folders with such names are splits, whatever lies beside them; a single one is where no other folder
    holds images (beside `car` and `plane`, `train` is a vehicle).
    """
    subfolders = _subfolders(folder)
    splits = {
        split: path
        for split, names in SPLIT_FOLDERS.items()
        for path in reversed(subfolders)
        if path.name.lower() in names
    }
    if len(splits) > 1:
        return splits
    others = [path for path in subfolders if path not in splits.values()]
    return {} if splits and any(_like(folder, find_images(path)) for path in others) else splits


def _like(folder: Path, names: Sequence[str]) -> bool:
    """Whether files found in a folder's neighbour are of its kind: arrays count as images only where there are none."""
    return bool(names) and not (names[0].endswith(NPY) and find_pictures(folder))


def _images_folder(folder: Path) -> Path:
    """The folder called images, where all that lies beside it is about its pictures; else the whole."""
    subfolders = {path.name.lower(): path for path in _subfolders(folder)}
    beside = subfolders.keys() - {"images"}
    return subfolders["images"] if "images" in subfolders and beside and beside <= _BESIDE_IMAGES else folder


def describe_layout(
    folder: Path, base: Path, splits: dict[str, Path], classes: Sequence[str] | None, count: int
) -> str:
    """What was made of a folder's subfolders, in a line: the part that is read, its classes, the other parts."""
    part = "" if base == folder else f" in {base.relative_to(folder)}"
    what = "no classes"
    if classes is not None:
        what = f"{counted(len(classes), 'class')} ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
    line = f"{folder}: {counted(count, 'image')}{part}, {what}"
    others = [path for path in splits.values() if path != base]
    if others:
        line += f"; other parts: {', '.join(path.name for path in others)}"
    left = [path for path in _subfolders(folder) if base != folder and path != base and path not in others]
    left = [path for path in left if _like(base, find_images(path))]
    if left:
        line += f"; left out: {', '.join(path.name for path in left)} (--data.split {ALL} takes everything)"
    return line


def folder_labels(
    names: Sequence[str], siblings: Sequence[Path] = ()
) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Labels and class names by first folder; (None, None) where there are no two. What lies in none has no label (-1).

    The classes include those of the `siblings` (other splits), so that a label means the same class in each split.
    """
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    beside = {path.name for sibling in siblings for path in _subfolders(sibling)}
    classes = sorted((set(folders) | beside) - {""})
    if len(classes) < 2 or not set(folders) - {""}:
        return None, None
    number = {"": UNLABELLED} | {name: label for label, name in enumerate(classes)}
    return np.array([number[name] for name in folders], dtype=np.int64), classes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _no_images(folder: Path) -> str:
    """What to say about a folder without images: what it holds instead."""
    kinds = Counter(path.suffix.lower() or "no extension" for path in folder.rglob("*") if path.is_file())
    result = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5)) or "no files at all"
    known = ", ".join(sorted(image_extensions() & {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"}))
    return (
        f"{folder}: no images found; it holds {result}. Formats that Pillow reads are used, {known} and more, TIFF of "
        "any number of bands, and .npy"
    )


FOLDER = Format(
    "a folder of images",
    lambda what: at_home(what).is_dir(),
    lambda what, split, config: open_folder(at_home(what), split, config),
    lambda what: Splits.named(folder_splits(at_home(what))),
)
