"""A PyTorch data set as a source."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Subset

from twofold.data.base import DataFacts, SkipList, class_count, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.opening import BadImage
from twofold.data.decoding.pixels import GREY_MODES, images_to_tensor, set_channels, to_uint8
from twofold.errors import UserError


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
        result: list[Any] = []
        for index in range(len(self)):
            try:
                result.append(np.asarray(self._item(index)[1]))
            except BadImage:
                result.append(None)
        shape = next(label.shape for label in result if label is not None)
        return np.array([np.full(shape, -1) if label is None else label for label in result], dtype=np.int64)

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
