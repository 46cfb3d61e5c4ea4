"""From image files to pixels: which files of a folder are images, and what each one holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from twofold.data.config import DataConfig
from twofold.data.pixels import GREY_MODES, to_uint8

_NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow knows by name and cannot decode by itself, or at all."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation tag 0x0112 (CIPA DC-008)."""


class BadImage(Exception):
    """A file that is no image, is broken, or is too large; `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Header(NamedTuple):
    """What a file says before its pixels are decoded; height and width after orientation."""

    height: int
    width: int
    grey: bool


def image_extensions() -> frozenset[str]:
    """The extensions, such as ``.jpg``, of every format that Pillow decodes."""
    return frozenset(
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NOT_RASTER
    )


def find_images(folder: Path) -> list[str]:
    """Paths, relative to `folder` and sorted, of all image files in it and below; hidden ones are left out."""
    extensions, found, visited = image_extensions(), [], set()
    base = str(folder)
    for root, folders, files in os.walk(base, followlinks=True):
        if (here := Path(root).resolve()) in visited:  # a link back up
            folders.clear()
            continue
        visited.add(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = root[len(base) :].replace(os.sep, "/").strip("/")
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in extensions:
                found.append(f"{prefix}/{name}" if prefix else name)
    return sorted(found)


def read_header(path: str, config: DataConfig) -> Header:
    """Size and colour of one file without decoding it; raises BadImage."""
    with _opened(path, config) as image:
        width, height = image.size
        if _turn(image, config) >= 5:
            width, height = height, width
        return Header(height, width, image.mode in GREY_MODES)


def decode_image(path: str, channels: int, config: DataConfig, shrink: int = 1) -> NDArray[np.uint8]:
    """Decode one file: the first frame, upright, transparency over the background.

    Args:
        path: the file, of any mode and format that Pillow reads.
        channels: 1 (luma) or 3 (RGB).
        config: `background`, `orient`, `deep_pixels` and `max_pixels` apply.
        shrink: 1, 2, 4 or 8: JPEG files are decoded at this fraction of their size (Pillow's draft mode).

    Returns:
        [H, W, channels].

    Raises:
        BadImage: no image, broken, cut short, empty, or larger than `max_pixels`.
    """
    with _opened(path, config) as image:
        turn = _turn(image, config)
        if shrink > 1:
            image.draft(image.mode, (max(1, image.width // shrink), max(1, image.height // shrink)))
        upright = image.transpose(_TURNS[turn]) if turn in _TURNS else image
        return to_uint8(upright, channels, config.background, config.deep_pixels)


def _turn(image: Image.Image, config: DataConfig) -> int:
    """The EXIF orientation to undo: 1 (none) to 8. To be asked before decoding, so that header and pixels agree."""
    if not config.orient or image.format == "TIFF":  # Pillow turns TIFF by itself
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # getexif would decode the whole file to look for it
        return 1
    turn = image.getexif().get(0x0112, 1)
    return turn if turn in _TURNS else 1


@contextmanager
def _opened(path: str, config: DataConfig) -> Iterator[Image.Image]:
    """Open a file; whatever goes wrong inside the block is a BadImage with a reason for people."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > config.max_pixels:
                raise BadImage(path, f"{image.width} x {image.height} pixels, more than {config.max_pixels}")
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        empty = Path(path).stat().st_size == 0
        raise BadImage(path, "empty file" if empty else "not an image of a format that Pillow reads") from error
    except Exception as error:  # malformed bytes make Pillow's decoders raise nearly every kind of exception
        raise BadImage(path, str(error) or type(error).__name__) from error
