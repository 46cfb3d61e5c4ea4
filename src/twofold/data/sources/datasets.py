"""A PyTorch data set as a source."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Subset

from twofold.data.base import DataFacts, SkipList, class_count, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.bands import BandPlan
from twofold.data.decoding.opening import BadImage
from twofold.data.decoding.pixels import (
    DEEP_MODES,
    GREY_MODES,
    PixelRange,
    as_array,
    as_picture,
    channels_second,
    describe_bands,
    describe_range,
    images_to_tensor,
    measured_ranges,
    range_of,
    range_of_arrays,
    scaled,
    set_channels,
    to_uint8,
)
from twofold.data.groups import group_names
from twofold.data.labels import Labels, class_labels, is_label
from twofold.errors import UserError
from twofold.text import counted

_IMAGE_KEYS, _LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "target", "cls")
"""What the image and the label of an item are called where items are mappings."""
_READ_TWICE = 3
"""Items that are read twice, to see whether they come out equal."""


class DatasetSource:
    """A PyTorch data set whose items are images, pairs that begin with (image, label), or mappings with such keys.

    Images are PIL images of any mode, or tensors [C, H, W] as `pixels.images_to_tensor` takes them. They must depend on
    the index alone: leave random transforms to the views. Labels are what the items say. The data set's `targets` or
    `labels` (through `Subset` too) are taken instead where they agree with the items that are looked at; else asking
    for labels reads every item once, and those that fail are unlabelled.

    How bright a pixel of more than 8 bits is, and whether there is colour, is decided once, from items spread over
    the data set.

    Raises:
        UserError: items of another kind, or that differ when they are read again.
    """

    def __init__(self, dataset: Any, config: DataConfig) -> None:
        if not hasattr(dataset, "__len__") or not len(dataset):
            raise UserError(f"{type(dataset).__name__}: an empty data set, or one without len()")
        self.name = type(dataset).__name__
        self.config = config
        self.skipped = SkipList(len(dataset), config.max_skipped)
        self._dataset: Any = dataset
        probed = self._probe()
        images = [self._image(item) for item in probed.values()]
        self._check_repeatable(probed)
        self._labelled = all(_has_label(item) for item in probed.values())
        self._targets = _agreeing_targets(dataset, probed) if self._labelled else None
        trusted = self._targets is not None or not _own_targets(dataset)
        self._names = _class_names(dataset) if trusted else None
        self._labels: Labels | None = None
        self.band_ranges = config.band_ranges
        self.groups = self._read_groups(probed)
        self.pixel_range, self.pixels = self._choose_range(images)
        self.channels = config.channels or self._infer_channels(images)

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def labels(self) -> Labels | None:
        """[n] or [n, K]; None without labels."""
        if self._labelled and self._labels is None:
            values = self._read_labels() if self._targets is None else self._targets
            self._labels, self._names = class_labels(values, len(self), self.name, self._names)
        return self._labels

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, by label; where labels are names, the items tell them."""
        return self._names if self.labels is not None or not self._labelled else None

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; raises BadImage where the data set raises."""
        image = self._image(self._item(index))
        try:
            if isinstance(image, Image.Image) and (self.config.bands or self.band_ranges):
                return self._bands_of(image)
            if isinstance(image, Image.Image):
                return to_uint8(image, self.channels, self.config.background, self.config.deep_pixels, self.pixel_range)
        except (OSError, ValueError) as error:  # PIL images decode when they are used
            raise BadImage(f"{self.name}[{index}]", str(error)) from error
        tensor = self._tensor(image)
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
        known = self.labels if self._targets is not None else None
        classes = len(self._names) if self._names and self._labelled else class_count(known, None)
        return DataFacts(
            len(self), height, width, self.channels, False, self._labelled, classes,
            pixels=self.pixels, pixel_range=self.pixel_range, band_ranges=self.band_ranges,
        )  # fmt: skip

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

    def _read_labels(self) -> list[Any]:
        labels: list[Any] = []
        for index in range(len(self)):
            try:
                labels.append(_label(self._item(index)))
            except BadImage:
                labels.append(None)
        rows = [np.asarray(label) for label in labels if label is not None and not isinstance(label, str)]
        if rows and rows[0].ndim == 1 and rows[0].shape[0] > 1:  # several labels an item: a row for those that fail
            empty = np.zeros_like(rows[0])
            return [empty if label is None else label for label in labels]
        return [label.reshape(-1)[0].item() if _is_array(label) else label for label in map(_plain, labels)]

    def _read_groups(self, probed: Mapping[int, Any]) -> list[str] | None:
        """What `config.group` names: an attribute with a value an item, or a key of the items, which are then read."""
        wanted = self.config.group
        if wanted is None:
            return None
        values = _own(self._dataset, (wanted,))
        if values is None and all(isinstance(item, Mapping) and wanted in item for item in probed.values()):
            values = [self._item(index).get(wanted) for index in range(len(self))]
        if values is None:
            raise UserError(
                f"--data.group {wanted}: {self.name} has no attribute of that name with a value for each item, and its "
                "items are no mappings with such a key"
            )
        return group_names([_plain(value).item() if _is_array(_plain(value)) else value for value in values])

    def _probe(self) -> dict[int, Any]:
        """Some items, spread over the data set, of those that can be read, by index."""
        items: dict[int, Any] = {}
        failures: list[BadImage] = []
        for index in sample_indices(len(self))[:: 8 if len(self) > 64 else 1].tolist():
            try:
                items[index] = self._item(index)
            except BadImage as error:
                failures.append(error)
        if not items:
            raise UserError(
                f"{self.name}: none of {counted(len(failures), 'item')} looked at can be read; the first: {failures[0]}"
            )
        return items

    def _check_repeatable(self, probed: Mapping[int, Any]) -> None:
        """Raise a UserError where an item comes out otherwise the second time: a random transform, usually."""
        for index in list(probed)[:_READ_TWICE]:
            first, again = (_bytes_of(self._image(item)) for item in (probed[index], self._item(index)))
            if first != again:
                raise UserError(
                    f"{self.name}[{index}] is another image each time it is read: give the data set without random "
                    "transforms (the views make their own), or no run could be repeated and no score trusted"
                )

    def _item(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:  # what a user's data set may raise for an item is anyone's guess
            raise BadImage(f"{self.name}[{index}]", f"{type(error).__name__}: {error}") from error

    def _image(self, item: Any) -> Any:
        image = item[0] if isinstance(item, tuple | list) and len(item) else item
        if isinstance(item, Mapping):
            image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if isinstance(image, Image.Image) or (isinstance(image, torch.Tensor | np.ndarray) and image.ndim in (2, 3)):
            return image
        raise UserError(
            f"{self.name}: items must be PIL images or tensors [C, H, W], alone or first, or mappings with the key "
            f"{_IMAGE_KEYS[0]}; got {type(image if image is not None else item).__name__}"
        )

    def _choose_range(self, images: list[Any]) -> tuple[PixelRange | None, str]:
        """Black and white of pixels of more than 8 bits, and how they are read in words; nothing where all have 8."""
        pictures = any(isinstance(image, Image.Image) for image in images)
        if pictures:
            arrays = [
                np.array(image) for image in images if isinstance(image, Image.Image) and image.mode in DEEP_MODES
            ]
        else:
            arrays = [array for array in map(as_array, images) if array.dtype not in (np.uint8, np.bool_)]
        if self.band_ranges is None and (not arrays or self.config.deep_pixels == "stretch"):
            return self.config.pixel_range, ""
        try:
            if self.band_ranges is None and self.config.deep_pixels == "bands":
                bands = None if pictures else self.config.bands
                layers = [channels_second(_batch_of_one(array), self.name, bands)[0] for array in arrays]
                self.band_ranges = measured_ranges(list(zip(*layers, strict=True)))
            if self.band_ranges is not None:
                dtype = arrays[0].dtype if arrays else np.dtype(np.uint8)
                return None, describe_bands(self.band_ranges, dtype, [])
            pixels = self.config.pixel_range or (range_of(arrays) if pictures else range_of_arrays(arrays))
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from error
        return pixels, "" if pixels is None else describe_range(pixels, arrays[0].dtype, arrays)

    def _infer_channels(self, images: list[Any]) -> int:
        """As many as any of the images has: one grey image does not make the others grey."""
        counts = {
            (1 if image.mode in GREY_MODES else 3) if isinstance(image, Image.Image) else self._tensor(image).shape[1]
            for image in images
        }
        given = self.config.bands or self.band_ranges
        return len(given) if given else max(counts)

    def _tensor(self, image: Any) -> torch.Tensor:
        return images_to_tensor(
            _batch_of_one(image), self.name, self.pixel_range, self.config.bands, self.band_ranges
        )  # fmt: skip

    def _bands_of(self, image: Image.Image) -> NDArray[np.uint8]:
        """The bands that are read of a picture; ValueError where it has others."""
        values = as_picture(image, self.config.background, alpha=self.config.bands is not None)
        ranges = self.band_ranges or ((self.pixel_range,) if self.pixel_range and values.dtype != np.uint8 else ())
        alpha = (values.shape[2] - 1,) if values.shape[2] in (2, 4) else ()
        chosen = BandPlan(self.channels, self.config.bands).choose(values, alpha)
        return scaled(chosen, self.config.deep_pixels, ranges)


def _batch_of_one(image: Any) -> Any:
    return image[None] if image.ndim == 3 else image[None, None]


def _bytes_of(image: Any) -> bytes:
    return image.tobytes() if isinstance(image, Image.Image) else as_array(image).tobytes()


def _label(item: Any) -> Any:
    """What an item says of its class; None where it says nothing."""
    if isinstance(item, Mapping):
        return next((item[key] for key in _LABEL_KEYS if key in item), None)
    return item[1] if isinstance(item, tuple | list) and len(item) > 1 else None


def _has_label(item: Any) -> bool:
    if isinstance(item, Mapping):
        return any(key in item for key in _LABEL_KEYS) and is_label(_label(item))
    return isinstance(item, tuple | list) and len(item) > 1 and is_label(item[1])


def _plain(label: Any) -> Any:
    return np.asarray(label.detach().cpu()) if isinstance(label, torch.Tensor) else label


def _is_array(label: Any) -> bool:
    return isinstance(label, np.ndarray | np.generic)


def _own_targets(dataset: Any) -> Any:
    """Labels that a data set holds as a list or array, without reading its items; None where it does not."""
    return _own(dataset, ("targets", "labels"))


def _own(dataset: Any, names: tuple[str, ...]) -> Any:
    """The first attribute of these names that holds a value for each item."""
    if isinstance(dataset, Subset):
        base = _own(dataset.dataset, names)
        return None if base is None else [base[index] for index in np.asarray(dataset.indices, dtype=np.int64)]
    for name in names:
        values = getattr(dataset, name, None)
        if isinstance(values, list | tuple | np.ndarray | torch.Tensor) and len(values) == len(dataset):
            return values
    return None


def _agreeing_targets(dataset: Any, probed: Mapping[int, Any]) -> Any:
    """The data set's own list of labels, if it says of the items that were looked at what they say themselves."""
    values = _own_targets(dataset)
    if values is None:
        return None
    for index, item in probed.items():
        own, said = (np.asarray(_plain(value)).reshape(-1) for value in (values[index], _label(item)))
        if own.shape != said.shape or not (own == said).all():
            return None
    return values


def _class_names(dataset: Any) -> list[str] | None:
    base = dataset.dataset if isinstance(dataset, Subset) else dataset
    classes = getattr(base, "classes", None)
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else None
