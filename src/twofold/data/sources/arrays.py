"""Images of one size held in memory: arrays, tensors, .npy and .npz files."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import DataFacts, Format, SkipList, Splits, class_count, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.pixels import (
    DeepPixels,
    PixelRange,
    as_array,
    channels_second,
    describe_bands,
    describe_range,
    images_to_tensor,
    measured_ranges,
    range_of_arrays,
    set_channels,
)
from twofold.data.groups import group_names
from twofold.data.labels import Labels, class_labels
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.files import at_home
from twofold.reading import regular
from twofold.text import counted

IMAGE_KEYS, LABEL_KEYS = ("images", "x", "data"), ("labels", "y")
"""What the arrays of an .npz file are called, in any case; a split's own are ``train_images``, ``x_train``, ..."""

_LOOKED_AT = 16_384
"""About as many pixels of each image are looked at to find the range of bands."""
_UNPACKED, _TIGHTEST = 2**28, 100
"""Bytes up to which an array may be packed as tightly as it likes, and how tightly beyond (deflate makes 1,032 equal
bytes one; black-and-white drawings are packed some 30 times)."""
_BROKEN = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What archives that are not whole raise; RuntimeError where a flipped bit says that a member is encrypted."""
_HASHED_WHOLE = 2**28
"""Bytes up to which the fingerprint reads every pixel; of larger arrays it reads this much, evenly spread."""


class ArraySource:
    """Images of one size as one tensor.

    Args:
        images: see `pixels.images_to_tensor`.
        labels: what `labels.class_labels` takes; or None.
        classes: names, by label.
        channels: 1 or 3 to convert to; None keeps what there is.
        pixel_range, bands, band_ranges, deep_pixels: see `DataConfig`; an array is never stretched image by image.
        pixel_range: see `DataConfig`.
        groups: [n] names of what belongs together (see `data.groups`), strings or numbers; None where nothing does.
        name: for messages.

    Raises:
        UserError: images or labels of the wrong shape, type or range.
    """

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        *,
        classes: list[str] | None = None,
        channels: int | None = None,
        name: str = "array",
        pixel_range: PixelRange | None = None,
        bands: Sequence[int] | None = None,
        band_ranges: Sequence[PixelRange] | None = None,
        deep_pixels: DeepPixels = "full",
        groups: Any = None,
    ) -> None:
        self.name = name
        array, self.pixels = as_array(images), ""
        if array.dtype not in (np.uint8, np.bool_) and band_ranges is None and deep_pixels == "bands":
            band_ranges = measured_ranges(_some_values(channels_second(images, name, bands)))
        if band_ranges is not None:
            self.pixels = describe_bands(band_ranges, array.dtype, [])
        elif array.dtype != np.uint8 and array.size:
            pixel_range = pixel_range or range_of_arrays([array])
            self.pixels = "" if pixel_range is None else describe_range(pixel_range, array.dtype, [array])
        self.pixel_range = pixel_range
        self.band_ranges = None if band_ranges is None else tuple(band_ranges)
        self.images = set_channels(images_to_tensor(images, name, pixel_range, bands, band_ranges), channels, name)
        self.channels = self.images.shape[1]
        self.labels: Labels | None = None
        self.classes = classes
        if labels is not None:
            self.labels, self.classes = class_labels(labels, len(self.images), name, classes)
        self.groups = None if groups is None else group_names(list(np.asarray(groups).reshape(-1)))
        if self.groups is not None and len(self.groups) != len(self.images):
            raise UserError(
                f"{name}: there are {counted(len(self.images), 'image')} and {counted(len(self.groups), 'group')}: "
                "give one each"
            )
        self.skipped = SkipList(len(self.images), 0.0)

    @classmethod
    def of(
        cls, images: Any, labels: Any, config: DataConfig, classes: list[str] | None = None, name: str = "array",
        groups: Any = None,
    ) -> ArraySource:  # fmt: skip
        """Images read as the options say."""
        return cls(
            images, labels, classes=classes, name=name, channels=config.channels, pixel_range=config.pixel_range,
            bands=config.bands, band_ranges=config.band_ranges, deep_pixels=config.deep_pixels, groups=groups,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image."""
        return self.images[index].permute(1, 2, 0).numpy()

    def size(self, index: int) -> tuple[int, int]:  # noqa: ARG002  # all are of one size
        """(height, width)."""
        return self.images.shape[2], self.images.shape[3]

    def sizes(self) -> NDArray[np.int32]:
        """[n, 2] heights and widths."""
        return np.tile(np.array(self.images.shape[2:], dtype=np.int32), (len(self), 1))

    def facts(self) -> DataFacts:
        """Exact: nothing has to be sampled."""
        height, width = self.images.shape[2:]
        classes = class_count(self.labels, self.classes)
        return DataFacts(
            len(self), height, width, self.channels, True, self.labels is not None, classes,
            pixels=self.pixels, pixel_range=self.pixel_range, band_ranges=self.band_ranges,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """sha256 of shape, pixels and labels (of evenly spread images where the array is larger than 256 MiB)."""
        stride = -(-self.images.numel() // _HASHED_WHOLE)
        digest = hashlib.sha256(repr((list(self.images.shape), stride)).encode())
        for chunk in self.images[::stride].split(1024):
            digest.update(chunk.contiguous().numpy())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


def _some_values(images: NDArray[Any]) -> list[list[NDArray[Any]]]:
    """Values of some images [N, C, H, W], channel by channel."""
    some = images[sample_indices(len(images))]
    step = max(1, int((some[0, 0].size / _LOOKED_AT) ** 0.5))
    return [[some[:, c, ::step, ::step]] for c in range(some.shape[1])]


def npz_splits(path: Path) -> tuple[str, ...]:
    """The splits that the arrays' names in an .npz file tell of; none where they are called images, x or data."""
    keys = [key.lower() for key in _open_npz(path).files]
    if any(key in IMAGE_KEYS for key in keys):
        return ()
    return tuple(s for s in ("train", "val", "test") if any(_split_key(i, s) & set(keys) for i in IMAGE_KEYS))


def open_array_file(path: Path, split: str | None, config: DataConfig) -> ArraySource:
    """Read an .npy file (images alone) or an .npz file (see IMAGE_KEYS, LABEL_KEYS). Nothing is ever unpickled.

    `config.group` names the array of an .npz file that says what belongs together.

    Raises:
        UserError: damaged file, Python objects inside, no array of such a name, or no such split.
    """
    if path.suffix.lower() == ".npy":
        try:
            regular(path)
            images = np.load(path, allow_pickle=False, mmap_mode="c")
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path}: not a plain .npy file ({error}); write it with numpy.save") from error
        _check_copy(path, images)
        if split is not None:
            raise UserError(f"--data.split {split}: {path} holds one array; splits need an .npz file or a folder")
        return ArraySource.of(images, None, config, name=str(path))
    file, splits = _open_npz(path), npz_splits(path)
    if split is None and splits:
        split = splits[0]
    if split is not None and split not in splits:
        raise UserError(
            f"--data.split {split}: {path} has {', '.join(splits) or 'no splits'}; its arrays: {file.files}"
        )
    images, labels = _pick(file, IMAGE_KEYS, split, path), _pick(file, LABEL_KEYS, split, path)
    if images is None:
        raise UserError(
            f"{path}: no array called images, x or data (with labels or y), or x_train, ...; has {file.files}"
        )
    group = config.group
    groups = None if group is None else _pick(file, (group.lower(),), split, path)
    if group is not None and groups is None:
        part = f" for {split}" if split else ""
        raise UserError(f"--data.group {group}: {path} has no such array{part}; it has {', '.join(file.files)}")
    name = f"{path}:{split}" if split else str(path)
    return ArraySource.of(images, labels, config, name=name, groups=groups)


def _open_npz(path: Path) -> Any:
    try:
        regular(path)
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array, as .npy files do")
        return file
    except _BROKEN as error:
        raise UserError(f"{path}: not an .npz file ({error}); write it with numpy.savez") from error


def _check_copy(path: Path, images: NDArray[Any]) -> None:
    """Raise a UserError where the pixels of a mapped file have to be copied, and there is no room for that."""
    mapped = images.dtype == np.uint8 and (images.ndim != 4 or images.shape[1] in (1, 3, 4))
    needed = 0 if mapped else images.size + (images.nbytes if images.dtype != np.uint8 else 0)
    if needed > available_memory():
        raise UserError(
            f"{path} needs {needed / 2**30:.0f} GiB in memory, and {available_memory() / 2**30:.0f} GiB are free: save "
            "it as uint8 [N, C, H, W], which stays on the disk, or in parts"
        )


def check_member(path: Path, name: str) -> None:
    """Look at what an archive says of a member before it is read.

    Raises:
        ValueError: it needs more memory than there is, or is packed as tightly as no images are.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(name)
    if member.file_size > available_memory() // 2:
        raise ValueError(
            f"it says that it unpacks to {member.file_size / 2**30:.1f} GiB, which do not fit twice into the "
            f"{available_memory() / 2**30:.1f} GiB of memory that are free"
        )
    if member.file_size > _UNPACKED and member.file_size > _TIGHTEST * member.compress_size:
        raise ValueError(
            f"its {member.compress_size:,} bytes unpack to {member.file_size:,}, all but equal ones: if that is "
            "meant, write it with numpy.savez, which does not compress"
        )


def _split_key(name: str, split: str) -> set[str]:
    return {f"{split}_{name}", f"{name}_{split}"}


def _pick(file: Any, names: tuple[str, ...], split: str | None, path: Path) -> NDArray[Any] | None:
    for name in names:
        wanted = {name} if split is None else _split_key(name, split)
        for key in file.files:
            if key.lower() in wanted:
                try:
                    check_member(path, f"{key}.npy")
                    array: NDArray[Any] = file[key]
                    return array
                except (KeyError, MemoryError, *_BROKEN) as error:
                    raise UserError(
                        f"{path}: array {key} cannot be read ({error}); plain numbers are needed"
                    ) from error
    return None


def _is_array_file(what: str) -> bool:
    path = at_home(what)
    return path.suffix.lower() in (".npy", ".npz") and path.is_file()


def _splits(what: str) -> Splits:
    path = at_home(what)
    return Splits.named(npz_splits(path) if path.suffix.lower() == ".npz" else ())


ARRAY_FILE = Format(
    "an .npy or .npz file",
    _is_array_file,
    lambda what, split, config: open_array_file(at_home(what), split, config),
    _splits,
)
