"""From image files to pixels: which files of a folder are images, and what each one holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twofold.data.config import DataConfig
from twofold.data.decoding.opening import TURNS, opened, orientation
from twofold.data.decoding.pixels import PixelRange, to_uint8
from twofold.data.decoding.room import PIXELS
from twofold.reading import unreadable_folder

_NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow knows by name and cannot decode by itself, or at all."""


def find_images(folder: Path) -> list[str]:
    """Paths, relative to `folder` and sorted, of all image files in it and below; hidden ones are left out."""
    extensions, result, visited = image_extensions(), [], set()
    base = str(folder)
    for root, folders, files in os.walk(base, onerror=unreadable_folder, followlinks=True):
        if (here := Path(root).resolve()) in visited:  # a link back up
            folders.clear()
            continue
        visited.add(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = root[len(base) :].replace(os.sep, "/").strip("/")
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in extensions:
                result.append(f"{prefix}/{name}" if prefix else name)
    return sorted(result)


def decode_image(
    path: str, channels: int, config: DataConfig, shrink: int = 1, contents: bytes | None = None,
    pixels: PixelRange | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """Decode one file: the first frame, upright, transparency over the background.

    Args:
        path: the file, of any mode and format that Pillow reads.
        channels: 1 (luma) or 3 (RGB).
        config: `background`, `orient`, `deep_pixels` and `max_pixels` apply.
        shrink: 1, 2, 4 or 8: JPEG files are decoded at this fraction of their size (Pillow's draft mode).
        contents: the encoded image, where it is no file of its own; `path` then only tells people where it is.
        pixels: black and white of pixels of more than 8 bits; `config.pixel_range` when not given.

    Returns:
        [H, W, channels].

    Raises:
        BadImage: no image, broken, cut short, empty, or larger than `max_pixels`.
    """
    with opened(path, config, contents) as image:
        turn = orientation(image, config)
        if shrink > 1:
            image.draft(image.mode, (max(1, image.width // shrink), max(1, image.height // shrink)))
        with PIXELS.taken(image.width * image.height):
            upright = image.transpose(TURNS[turn]) if turn in TURNS else image
            return to_uint8(upright, channels, config.background, config.deep_pixels, pixels or config.pixel_range)


def image_extensions() -> frozenset[str]:
    """The extensions, such as ``.jpg``, of every format that Pillow decodes."""
    known = Image.registered_extensions().items()
    return frozenset(extension for extension, kind in known if kind in Image.OPEN and kind not in _NOT_RASTER)
