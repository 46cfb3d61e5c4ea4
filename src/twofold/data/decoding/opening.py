"""Opening image files: what is wrong with bad ones, and what good ones say before their pixels are decoded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from twofold.data.config import DataConfig
from twofold.data.decoding import dicom, regions
from twofold.data.decoding.frames import Frame, are_more, frames_of
from twofold.data.decoding.pixels import DEEP_MODES, GREY_MODES, PixelRange
from twofold.errors import UserError

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
    """What a file says before its pixels are decoded; heights and widths after orientation."""

    height: int
    width: int
    grey: bool
    deep: bool = False
    """Its pixels have more than 8 bits."""
    stated: PixelRange | None = None
    """Black and white of such pixels, where the file says how many of their bits are used."""
    unbounded: bool = False
    """Nobody knows what white is among such pixels but from their values: DICOM files that store 16 bits and more."""
    more: bool = False
    """There are other frames than the first."""
    frames: tuple[Frame, ...] = ()
    """All frames that are images of their own, where `data.frames` asks for them."""
    patient: str = ""
    """Stands for the patient whom a DICOM file is of."""


def image_header(path: str, config: DataConfig, contents: bytes | None = None) -> Header:
    """Size, colour and frames of one file, or of its `contents`, without decoding it; raises BadImage."""
    with opened(path, config, contents) as image:
        width, height = image.size
        turned = orientation(image, config) >= 5
        if turned:
            width, height = height, width
        grey, deep, stated = image.mode in GREY_MODES, image.mode in DEEP_MODES, _stated(image)
        unbounded, patient = image.format == "DICOM" and stated is None, str(image.info.get(dicom.PATIENT, ""))
        frames: tuple[Frame, ...] = ()
        if config.frames == "all":
            frames = frames_of(image)
            if turned:
                frames = tuple(Frame(number, wide, high) for number, high, wide in frames)
        return Header(height, width, grey, deep, stated, unbounded, are_more(image), frames, patient)


def _stated(image: Image.Image) -> PixelRange | None:
    """Black and white, where a file says how many bits of its pixels are used."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(258) == (12,):
        return 0.0, 4095.0
    return image.info.get(dicom.STATED)


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
        config: `max_pixels` applies, and `tile`.
        contents: the encoded image, where it is no file of its own.
    """
    with faults_told(path, contents), open_image(path, config, contents) as image:
        check_size(path, image, config)
        yield image


@contextmanager
def faults_told(path: str, contents: bytes | None = None) -> Iterator[None]:
    """Whatever goes wrong inside with an image is a BadImage with a reason for people; a UserError stays one."""
    try:
        yield
    except (BadImage, UserError):
        raise
    except UnidentifiedImageError as error:
        empty = (Path(path).stat().st_size if contents is None else len(contents)) == 0
        raise BadImage(path, "empty file" if empty else "not an image of a format that Pillow reads") from error
    except Exception as error:  # malformed bytes make Pillow's decoders raise nearly every kind of exception
        raise BadImage(path, " ".join(str(error).split()) or type(error).__name__) from error  # in one line


def open_image(path: str, config: DataConfig, contents: bytes | None = None) -> Image.Image:
    """Open a file, or what it holds, as an image of Pillow's that is decoded when its pixels are asked for."""
    begin = _begin(path, config, contents)
    if dicom.begins_as_dicom(begin):
        return dicom.open_dicom(path, contents)
    stream = path if contents is None else io.BytesIO(contents)
    if config.tile is not None and begin.startswith(regions.BEGINS):  # Image.open refuses very large ones
        return TiffImagePlugin.TiffImageFile(stream)
    return Image.open(stream)


def check_size(path: str, image: Image.Image, config: DataConfig) -> None:
    """Raise BadImage for a frame of more than `max_pixels` that would have to be decoded whole."""
    if image.width * image.height <= config.max_pixels:
        return
    if config.tile is not None and regions.grid_for(image, config.tile, config.max_pixels) is not None:
        return
    reason = f"{image.width} x {image.height} pixels, more than {config.max_pixels}"
    if config.tile is not None:
        reason += ", and of this file no tile can be decoded alone: save it as a tiled TIFF file"
    raise BadImage(path, reason)


def _begin(path: str, config: DataConfig, contents: bytes | None) -> bytes:
    """The first bytes, where they decide how an image is opened; of most files Pillow alone reads them."""
    length = dicom.BEGINS_AT + len(dicom.MAGIC)
    if contents is not None:
        return contents[:length]
    if config.tile is None and not dicom.may_be_dicom(path):
        return b""
    with Path(path).open("rb") as file:
        return file.read(length)
