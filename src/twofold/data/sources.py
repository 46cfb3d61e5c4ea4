"""One door to all kinds of data: a folder, an array or its file, a data set's name, a PyTorch data set."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

from twofold.data.arrays import ArraySource, npz_splits, open_array_file
from twofold.data.base import DataFacts, SkipList, Source, class_count, require_pairs, sample_indices
from twofold.data.config import DataConfig, SoundConfig
from twofold.data.files import folder_splits, open_folder
from twofold.data.hub import PREFIX as HUB
from twofold.data.hub import hub_splits, is_hub_dataset, is_saved_dataset, open_hub
from twofold.data.images import find_images, image_extensions
from twofold.data.opening import BadImage
from twofold.data.pixels import GREY_MODES, images_to_tensor, set_channels, to_uint8
from twofold.data.shards import PREFIX as SHARDS
from twofold.data.shards import is_shard_folder, open_shards, shard_splits
from twofold.data.sound_layouts import MANIFESTS, open_sounds, sound_splits
from twofold.data.sounds import EXTENSIONS, SoundSource
from twofold.data.torchvision_sets import NAMED_SETS, open_named
from twofold.errors import UserError

_ARRAY_FILES = (".npy", ".npz")


def open_source(what: Any, config: DataConfig | None = None, split: str | None = None) -> Source:
    """Open data of any kind.

    Args:
        what: path of a folder of images (see `files.open_folder`), of sounds (`sound_layouts.open_sounds`), of tar
            archives (`shards.open_shards`) or of a saved Hugging Face data set (`hub.open_hub`), or of a manifest of
            sounds, or of an .npy or .npz file (`arrays.open_array_file`);
            ``shards:PATTERN`` or ``hf:NAME``; the name of a data set (`torchvision_sets.NAMED_SETS`) unless a path of
            that name exists; an array or tensor of images (`pixels.images_to_tensor`), or a pair (images, labels); a
            PyTorch or Hugging Face data set of images, or of pairs (image, label), where images are PIL images or
            tensors; or a source.
        config: how to read it.
        split: which part; `config.split` by default.

    Raises:
        UserError: nothing of that name, nothing readable in it, no such split, fewer than two images, ...
    """
    config = config or DataConfig()
    split = split if split is not None else config.split
    source = _open(what, config, split)
    if config.sound != SoundConfig() and not isinstance(source, SoundSource):
        raise UserError("the options of --data.sound are for sounds, and the data are images: leave them out")
    require_pairs(source)
    return source


@dataclass(frozen=True)
class Splits:
    """What parts some data have."""

    names: tuple[str, ...]
    """What `--data.split` can be; empty where the data are one whole."""
    evaluation: tuple[str, str] | None
    """The parts that classifiers are trained and tested on; None where there are no two."""
    validation: tuple[str, str] | None = None
    """The parts to fit on and to choose settings on, where the data have both beside a test part."""


def splits_of(what: Any) -> Splits:
    """The splits of `what` (as for `open_source`), without reading images."""
    if not isinstance(what, str | Path):
        return Splits((), None)
    if str(what).startswith(SHARDS):
        what = str(what).removeprefix(SHARDS)
    path = Path(what).expanduser()
    if str(what).startswith(HUB) or (path.is_dir() and is_saved_dataset(path)):
        return _with_evaluation(hub_splits(what))
    if path.exists():
        names: tuple[str, ...] = ()
        if _holds_sounds(path):
            names = sound_splits(path)
        elif path.is_dir():
            names = tuple(shard_splits(path) if is_shard_folder(path) else folder_splits(path))
        elif path.suffix.lower() == ".npz":
            names = npz_splits(path)
        return _with_evaluation(names)
    entry = NAMED_SETS.get(str(what))
    if entry is None:
        return Splits((), None)
    divided = entry.evaluation == ("trainval", "test") and {"train", "val"} <= set(entry.splits)
    return Splits(entry.splits, entry.evaluation, ("train", "val") if divided else None)


def _with_evaluation(names: tuple[str, ...]) -> Splits:
    test = next((name for name in ("test", "val", "validation") if name in names), None)
    if test is None or "train" not in names:
        return Splits(names, None)
    choice = next((name for name in ("val", "validation") if name in names and name != test), None)
    return Splits(names, ("train", test), ("train", choice) if choice else None)


def _open(what: Any, config: DataConfig, split: str | None) -> Source:
    if isinstance(what, str | Path):
        return _open_path(what, config, split)
    if is_hub_dataset(what):
        return open_hub(what, split, config)
    if split is not None:
        raise UserError(f"--data.split {split}: data given as {type(what).__name__} have no splits")
    if isinstance(what, np.ndarray | torch.Tensor):
        return ArraySource(what, channels=config.channels)
    if isinstance(what, tuple) and len(what) == 2:
        return ArraySource(what[0], what[1], channels=config.channels)
    if isinstance(what, IterableDataset):
        raise UserError(f"{type(what).__name__} is an IterableDataset; a data set with len() and [index] is needed")
    if isinstance(what, Dataset):
        return DatasetSource(what, config)
    if isinstance(what, SoundSource):
        return what  # type: ignore[return-value]  # what it reads are sounds
    if all(hasattr(what, name) for name in ("read", "size", "facts", "fingerprint")):
        return what  # a source of the user's own
    raise UserError(
        f"data given as {type(what).__name__}: give a path, a data set's name, an array, a tensor, a pair "
        "(images, labels), a PyTorch data set or a source"
    )


def _open_path(what: str | Path, config: DataConfig, split: str | None) -> Source:
    path = Path(what).expanduser()
    if str(what).startswith(HUB) or (path.is_dir() and is_saved_dataset(path)):
        return open_hub(what, split, config)
    if _holds_sounds(path):
        return open_sounds(path, split, config)  # type: ignore[return-value]  # what it reads are sounds
    if str(what).startswith(SHARDS) or (path.is_dir() and is_shard_folder(path)):
        return open_shards(what, split, config)
    if path.is_dir():
        return open_folder(path, split, config)
    if path.suffix.lower() in _ARRAY_FILES and path.is_file():
        return open_array_file(path, split, config.channels)
    if path.exists():
        raise UserError(f"{path}: neither a folder nor an .npy or .npz file; give the folder that holds the images")
    if str(what) in NAMED_SETS:
        return open_named(str(what), split, config)
    raise UserError(_not_found(str(what), path))


def _holds_sounds(path: Path) -> bool:
    """Whether this is a manifest, or a folder of sounds with no images on top of it."""
    if path.is_file():
        return path.suffix.lower() in MANIFESTS
    if not path.is_dir():
        return False
    pictures = image_extensions()
    for _, folders, names in os.walk(path):  # the first file that is either decides for images: trees can be large
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kinds = {Path(name).suffix.lower() for name in names if name[0] != "."}
        if kinds & pictures:
            return False
        if kinds & set(EXTENSIONS):
            return not find_images(path)
    return False


def _not_found(what: str, path: Path) -> str:
    """What could have been meant by a path or name that is none."""
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    inside = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    wanted = path.absolute().relative_to(parent).parts[0]
    close = difflib.get_close_matches(what.lower(), NAMED_SETS, n=3) + [
        str(parent / name) for name in difflib.get_close_matches(wanted, inside, n=3)
    ]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"{what}: no such folder or file, and no data set of that name.{hint} Give a folder of images, an .npy or .npz "
        f"file, {SHARDS}PATTERN, {HUB}NAME, or one of {', '.join(NAMED_SETS)}"
    )


class DatasetSource:
    """A PyTorch data set whose items are images, or tuples that begin with (image, label).

    Images are PIL images of any mode, or tensors [C, H, W] as `pixels.images_to_tensor` takes them. They must depend on
    the index alone: leave random transforms to the views. Labels are taken from the data set's `targets` or `labels`
    (through `Subset` too); where it has none, asking for them reads every item once, and those that fail get -1.

    Raises:
        UserError: the first item is of another kind.
    """

    def __init__(self, dataset: Any, config: DataConfig) -> None:
        if not hasattr(dataset, "__len__") or not len(dataset):
            raise UserError(f"{type(dataset).__name__}: an empty data set, or one without len()")
        self.name = type(dataset).__name__
        self.classes = _class_names(dataset)
        self.config = config
        self.skipped = SkipList(len(dataset), config.max_skipped)
        self._dataset: Any = dataset
        self._labels: NDArray[np.int64] | None = None
        items = self._probe()
        self._labelled = isinstance(items[0], tuple | list) and len(items[0]) > 1 and _is_label(items[0][1])
        self.channels = config.channels or self._infer_channels([self._image(item) for item in items])

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """[n] or [n, K]; None without labels."""
        if self._labelled and self._labels is None:
            known = _known_targets(self._dataset)
            self._labels = self._read_labels() if known is None else np.asarray(known).astype(np.int64)
        return self._labels

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; raises BadImage where the data set raises."""
        image = self._image(self._item(index))
        try:
            if isinstance(image, Image.Image):
                return to_uint8(image, self.channels, self.config.background, self.config.deep_pixels)
        except (OSError, ValueError) as error:  # PIL images decode when they are used
            raise BadImage(f"{self.name}[{index}]", str(error)) from error
        tensor = images_to_tensor(image[None] if image.ndim == 3 else image[None, None], self.name)
        return set_channels(tensor, self.channels, self.name)[0].permute(1, 2, 0).numpy()

    def size(self, index: int) -> tuple[int, int]:
        """(height, width); decodes the image."""
        height, width, _ = self.read(index).shape
        return height, width

    def sizes(self) -> None:
        """Not known before decoding."""
        return

    def facts(self) -> DataFacts:
        """Median size of a sample (sizes count as different); no class count if every item had to be read for it."""
        sizes = np.array([image.shape[:2] for image in self._sample()])
        height, width = (int(side) for side in np.median(sizes, axis=0))
        known = self.labels if _known_targets(self._dataset) is not None else None
        classes = len(self.classes) if self.classes and self._labelled else class_count(known, None)
        return DataFacts(len(self), height, width, self.channels, False, self._labelled, classes)

    def fingerprint(self) -> str:
        """sha256 of the length and the pixels of a sample."""
        digest = hashlib.sha256(f"{self.name} {len(self)}".encode())
        for image in self._sample():
            digest.update(image.tobytes())
        return digest.hexdigest()

    def _sample(self) -> Iterator[NDArray[np.uint8]]:
        for index in sample_indices(len(self)):
            with contextlib.suppress(BadImage):  # met again, and listed, in training
                yield self.read(int(index))

    def _read_labels(self) -> NDArray[np.int64]:
        found: list[Any] = []
        for index in range(len(self)):
            try:
                found.append(np.asarray(self._item(index)[1]))
            except BadImage:
                found.append(None)
        shape = next(label.shape for label in found if label is not None)
        return np.array([np.full(shape, -1) if label is None else label for label in found], dtype=np.int64)

    def _probe(self) -> list[Any]:
        """Some items, spread over the data set, of those that can be read."""
        items: list[Any] = []
        failures: list[BadImage] = []
        for index in sample_indices(len(self))[:: 8 if len(self) > 64 else 1]:
            try:
                items.append(self._item(int(index)))
            except BadImage as error:
                failures.append(error)
        if not items:
            raise UserError(
                f"{self.name}: none of {len(failures)} items looked at can be read; the first: {failures[0]}"
            )
        return items

    def _item(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:  # what a user's data set may raise for an item is anyone's guess
            raise BadImage(f"{self.name}[{index}]", f"{type(error).__name__}: {error}") from error

    def _image(self, item: Any) -> Any:
        image = item[0] if isinstance(item, tuple | list) else item
        if isinstance(image, Image.Image) or (isinstance(image, torch.Tensor | np.ndarray) and image.ndim in (2, 3)):
            return image
        kind = type(image).__name__
        raise UserError(f"{self.name}: items must be PIL images or tensors [C, H, W], alone or first; got {kind}")

    def _infer_channels(self, images: list[Any]) -> int:
        if isinstance(images[0], Image.Image):
            return 1 if all(image.mode in GREY_MODES for image in images) else 3
        return images_to_tensor(images[0][None] if images[0].ndim == 3 else images[0][None, None], self.name).shape[1]


def _is_label(value: Any) -> bool:
    kind = np.asarray(value).dtype.kind if isinstance(value, int | np.ndarray | np.generic | torch.Tensor) else ""
    return kind in ("i", "u", "b")


def _known_targets(dataset: Any) -> Any:
    """Labels that a data set holds as a list or array, without reading its items; None where it does not."""
    if isinstance(dataset, Subset):
        base = _known_targets(dataset.dataset)
        return None if base is None else np.asarray(base)[np.asarray(dataset.indices, dtype=np.int64)]
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return values
    return None


def _class_names(dataset: Any) -> list[str] | None:
    base = dataset.dataset if isinstance(dataset, Subset) else dataset
    classes = getattr(base, "classes", None)
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else None
