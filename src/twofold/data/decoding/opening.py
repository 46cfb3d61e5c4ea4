"""Opening image files: what is wrong with bad ones, and what good ones say before their pixels are decoded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from twofold.data.config import DataConfig
from twofold.data.decoding.pixels import DEEP_MODES, GREY_MODES
from twofold.data.decoding.room import PIXELS
from twofold.reading import regular

TURNS = {
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
    """What a file says before its pixels are decoded; height and width after orientation; `deep` pixels
    have more than 8 bits."""

    height: int
    width: int
    grey: bool
    deep: bool = False


def image_header(path: str, config: DataConfig, contents: bytes | None = None) -> Header:
    """Size and colour of one file, or of its `contents`, without decoding it; raises BadImage."""
    with opened(path, config, contents) as image:
        width, height = image.size
        if orientation(image, config) >= 5:
            width, height = height, width
        return Header(height, width, image.mode in GREY_MODES, image.mode in DEEP_MODES)


def orientation(image: Image.Image, config: DataConfig) -> int:
    """The EXIF orientation to undo: 1 (none) to 8. To be asked before decoding, so that header and pixels agree."""
    if not config.orient or image.format == "TIFF":  # Pillow turns TIFF by itself
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # getexif would decode the whole file to look for it
        return 1
    turn = image.getexif().get(0x0112, 1)
    return turn if turn in TURNS else 1


@contextmanager
def opened(path: str, config: DataConfig, contents: bytes | None = None) -> Iterator[Image.Image]:
    """Open a file, or what it holds; whatever goes wrong inside the block is a BadImage with a reason for people.

    Args:
        path: the file; for messages only where `contents` are given.
        config: `max_pixels` applies.
        contents: the encoded image, where it is no file of its own.
    """
    try:
        if contents is None:
            regular(path)
        with Image.open(path if contents is None else io.BytesIO(contents)) as image:
            if image.width * image.height > config.max_pixels:
                raise BadImage(path, f"{image.width} x {image.height} pixels, more than {config.max_pixels}")
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        empty = (Path(path).stat().st_size if contents is None else len(contents)) == 0
        raise BadImage(path, "empty file" if empty else "not an image of a format that Pillow reads") from error
    except Exception as error:  # malformed bytes make Pillow's decoders raise nearly every kind of exception
        raise BadImage(path, str(error) or type(error).__name__) from error


def deep_pixels(path: str, config: DataConfig, contents: bytes | None = None) -> NDArray[Any]:
    """The values of an image whose pixels have more than 8 bits, as they are stored; raises BadImage."""
    with opened(path, config, contents) as image, PIXELS.taken(image.width * image.height):
        return np.array(image)
