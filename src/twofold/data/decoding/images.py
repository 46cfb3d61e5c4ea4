"""From image files to pixels: which files of a folder are images, and what each one holds."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twofold.data.config import DataConfig
from twofold.data.decoding.bands import NPY, PICTURES, BandPlan, as_channels
from twofold.data.decoding.dicom import EXTENSIONS, is_dicom, may_be_dicom
from twofold.data.decoding.opening import BadImage, NoPicture, draft, opened, stored, upright_picture
from twofold.data.decoding.pixels import PixelRange, to_uint8
from twofold.data.decoding.room import PIXELS
from twofold.reading import unreadable_folder

_NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow knows by name and cannot decode by itself, or at all."""

_PICTURES = frozenset({
    ".3fr", ".ai", ".arw", ".avif", ".bpg", ".cr2", ".cr3", ".djvu", ".dng", ".emf", ".eps", ".exr", ".flif", ".hdr",
    ".heic", ".heif", ".hif", ".jp2", ".jxl", ".jxr", ".kra", ".mrw", ".nef", ".orf", ".pef", ".psd", ".raf", ".raw",
    ".rgbe", ".rw2", ".rwl", ".sr2", ".srw", ".svg", ".svgz", ".webp", ".wmf", ".x3f", ".xcf",
})  # fmt: skip
"""Formats of pictures: of those that Pillow, as it is installed, does not decode, the remedy is told."""


def find_images(folder: Path, left: Counter[str] | None = None) -> list[str]:
    """Paths, relative to `folder` and sorted, of all image files in it and below; hidden ones are left out.

    By their extensions; files without one, or with one of digits, where they begin as DICOM files do. Where there are
    none, .npy files count as images. All others are counted in `left` by their extension.
    """
    if found := find_pictures(folder, left):
        return found
    if left is not None:
        left.clear()
    return find_files(folder, frozenset({NPY}), left)


def find_pictures(folder: Path, left: Counter[str] | None = None) -> list[str]:
    """As `find_images`, without .npy files."""
    return find_files(folder, image_extensions(), left, dicom=True)


def find_files(
    folder: Path, extensions: frozenset[str], left: Counter[str] | None = None, dicom: bool = False
) -> list[str]:
    """Paths, relative to `folder` and sorted, of all files with such extensions; hidden ones are left out.

    With `dicom` also those whose names tell nothing and which begin as DICOM files do.
    """
    result, visited = [], set()
    base = str(folder)
    for root, folders, files in os.walk(base, onerror=unreadable_folder, followlinks=True):
        if (here := Path(root).resolve()) in visited:  # a link back up
            folders.clear()
            continue
        visited.add(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = root[len(base) :].replace(os.sep, "/").strip("/")
        for name in files:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in extensions or (dicom and may_be_dicom(name) and is_dicom(Path(root, name))):
                result.append(f"{prefix}/{name}" if prefix else name)
            elif left is not None:
                left[Path(name).suffix.lower()] += 1
    return sorted(result)


def unread(left: Counter[str]) -> str:
    """What `find_images` left, in words; empty where that is nothing."""
    pictures = Counter({kind: count for kind, count in left.items() if kind in _PICTURES})
    told = [f"{_listed(pictures)} passed over, which Pillow does not read: convert them to PNG or JPEG"]
    others = left - pictures
    return "; ".join([*(told if pictures else []), *([f"{_listed(others)} passed over: no images"] if others else [])])


def _listed(kinds: Counter[str]) -> str:
    """Numbers of files by kind, the most frequent kinds first."""
    listing = ", ".join(f"{count:,} {kind or '(no suffix)'}" for kind, count in kinds.most_common(6))
    more = f", {len(kinds) - 6} more kinds" if len(kinds) > 6 else ""
    return f"{listing}{more} file{'s' if kinds.total() > 1 else ''}"


def decode_image(
    path: str, channels: int, config: DataConfig, shrink: int = 1, contents: bytes | None = None,
    pixels: PixelRange | None = None, plan: BandPlan = PICTURES,
) -> NDArray[np.uint8]:  # fmt: skip
    """Decode one file: the first frame, upright, transparency over the background.

    Args:
        path: the file, of any mode and format that Pillow reads.
        channels: 1 (luma) or 3 (RGB) of a picture, else the plan's.
        config: `background`, `orient`, `deep_pixels` and `max_pixels` apply.
        shrink: 1, 2, 4 or 8: JPEG files are decoded at this fraction of their size (Pillow's draft mode).
        contents: the encoded image, where it is no file of its own; `path` then only tells people where it is.
        pixels: black and white of pixels of more than 8 bits; `config.pixel_range` when not given.
        plan: how images of several bands are read.

    Returns:
        [H, W, channels].

    Raises:
        BadImage: no image, broken, cut short, empty, or larger than `max_pixels`.
    """
    pixels = pixels or config.pixel_range
    if plan.channels is not None:
        return _decode_bands(path, channels, config, contents, plan, shrink)
    try:
        with opened(path, config, contents) as image:
            draft(image, shrink)
            with PIXELS.taken(image.width * image.height):
                upright = upright_picture(image, config)
                return to_uint8(upright, channels, config.background, config.deep_pixels, pixels)
    except NoPicture:
        return _decode_bands(path, channels, config, contents, replace(plan, ranges=(pixels,) if pixels else ()))


def _decode_bands(
    path: str, channels: int, config: DataConfig, contents: bytes | None, plan: BandPlan, shrink: int = 1
) -> NDArray[np.uint8]:
    """The bands that are read of one file, as 8 bits; where pictures are read, of one or three bands."""
    found = stored(path, config, contents, plan.first, shrink=shrink)
    try:
        return as_channels(found, channels, config.deep_pixels, plan)
    except ValueError as error:
        raise BadImage(path, str(error)) from error


def image_extensions() -> frozenset[str]:
    """The extensions, such as ``.jpg``, of every format that Pillow decodes, and of DICOM."""
    known = Image.registered_extensions().items()
    readable = {*Image.OPEN, "MPO"} - _NOT_RASTER  # MPO is opened as JPEG, of which it is a series
    pillow = {extension for extension, kind in known if kind in readable}
    return frozenset(pillow | EXTENSIONS)
