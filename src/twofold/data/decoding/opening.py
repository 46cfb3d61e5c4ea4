"""Opening image files: what is wrong with bad ones, and what good ones say before their pixels are decoded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from twofold.data.config import DataConfig
from twofold.data.decoding.bands import NPY, Stored, extra_samples, kind_of_file, read_npy, read_tiff
from twofold.data.decoding.pixels import DEEP_MODES, GREY_MODES, NODATA, as_picture, no_data

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


class NoPicture(BadImage):
    """A file that Pillow cannot make a picture of, though it is a TIFF or .npy file."""


class Header(NamedTuple):
    """What a file says before its pixels are decoded; height and width after orientation; `deep` pixels
    have more than 8 bits."""

    height: int
    width: int
    grey: bool
    deep: bool = False
    bands: int = 0
    """Without transparency: 1 of a grey picture, 3 of one in colour."""
    samples: int = 0
    """With transparency, and with a stack's pages where bands are asked for: as many as there are to choose from."""
    picture: bool = True
    """Pillow can make a picture of it."""
    shape: tuple[int, ...] = ()
    """Of an .npy file's array."""


def image_header(path: str, config: DataConfig, contents: bytes | None = None, first: bool = False) -> Header:
    """Size, colour and bands of one file, or of its `contents`, without decoding it; raises BadImage.

    The channels of .npy arrays lie `first` or last.
    """
    if _named_npy(path, contents):
        return _header(stored(path, config, contents, first, pixels=False))
    try:
        with opened(path, config, contents) as image:
            width, height = image.size
            if orientation(image, config) >= 5:
                width, height = height, width
            grey = image.mode in GREY_MODES
            bands, alpha, deep = _bands_of_picture(image, grey)
            if not (image.format == "TIFF" and (asks_for_bands(config) or config.deep_pixels == "bands")):
                return Header(height, width, grey, deep, bands, bands + alpha)
    except NoPicture:
        return _header(stored(path, config, contents, first, pixels=False))
    found = _measured_tiff(path, config, contents)  # pages that may be bands, and deep pixels of several samples
    if found is None:
        return Header(height, width, grey, deep, bands, bands + alpha)
    return _header(found)._replace(picture=True)


def asks_for_bands(config: DataConfig) -> bool:
    """Whether the options ask for bands by number, or for as many as no picture has."""
    many = config.channels not in (None, 1, 3) or len(config.band_ranges or ()) not in (0, 1, 3)
    return config.bands is not None or many


def stored(
    path: str, config: DataConfig, contents: bytes | None, first: bool, pixels: bool = True, shrink: int = 1
) -> Stored:
    """All samples of one file: of an .npy file or of TIFF's measurements as they are stored, else of the picture.

    Args:
        path: the file, or where `contents` are.
        config: `background`, `orient` and `max_pixels` apply to pictures, `max_pixels` to all.
        contents: the encoded image, where it is no file of its own.
        first: the channels of .npy arrays are their first axis.
        pixels: read the values and not the header alone.
        shrink: JPEG files are decoded at this fraction of their size.

    Raises:
        BadImage: no image, broken, cut short, empty, or larger than `max_pixels`.
    """
    with _reasons(path):
        kind = kind_of_file(path, contents)
        if kind == "npy":
            found = read_npy(path, contents, first, pixels)
            if found.height * found.width > config.max_pixels:
                raise BadImage(path, f"{found.width} x {found.height} pixels, more than {config.max_pixels}")
            return found
        if kind == "tiff":
            measured = _measured_tiff(path, config, contents, pixels)
            if measured is not None:
                return measured
    with opened(path, config, contents) as image:
        upright = upright_picture(image, config, shrink)
        values = as_picture(upright, config.background, alpha=asks_for_bands(config))
        height, width, samples = values.shape
        alpha = (samples - 1,) if samples in (2, 4) else ()
        nodata = no_data(getattr(image, "tag_v2", {}).get(NODATA)) if image.mode in DEEP_MODES else None
        return Stored(height, width, samples, values.dtype, alpha, nodata, values=values)


def _measured_tiff(path: str, config: DataConfig, contents: bytes | None, pixels: bool = False) -> Stored | None:
    """What a TIFF file holds where that is more than a picture of 8 bits: n samples or pages, or deep ones."""
    asked = asks_for_bands(config)
    with _reasons(path):
        found = read_tiff(path, contents, asked, config.max_pixels, pixels=False)
        bands = 0 if found is None else found.samples - len(found.alpha)
        if found is None or bands == 1 or (bands == 3 and found.dtype.itemsize == 1):  # Pillow knows more codecs
            with contextlib.suppress(NoPicture), opened(path, config, contents):
                return None
        return read_tiff(path, contents, asked, config.max_pixels) if pixels else found


def _header(found: Stored) -> Header:
    bands = found.samples - len(found.alpha)
    deep = found.dtype.itemsize > 1 or found.dtype.kind not in "ub"
    return Header(
        found.height, found.width, bands == 1, deep, bands, found.samples, picture=False, shape=found.shape
    )  # fmt: skip


def _named_npy(path: str, contents: bytes | None) -> bool:
    return Path(path).suffix.lower() == NPY if contents is None else kind_of_file(path, contents) == "npy"


def _bands_of_picture(image: Image.Image, grey: bool) -> tuple[int, int, bool]:
    """(bands, samples of transparency beside them, whether they are deep) of a picture that is not decoded yet."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]  # of TIFF images alone
        found = extra_samples(tags.get(262), tags.get(277, 1), tags.get(338, ()))
        if found is not None and found[0] > (1 if grey else 3):
            deep = max(tags.get(258, (1,))) > 8 or set(tags.get(339, (1,))) != {1}  # bits, and unsigned integers
            return found[0], len(found[1]), deep
    alpha = int(image.mode in ("LA", "La", "RGBA", "RGBa", "PA"))
    return (1 if grey else 3), alpha, image.mode in DEEP_MODES


def upright_picture(image: Image.Image, config: DataConfig, shrink: int = 1) -> Image.Image:
    """A picture turned as its EXIF tag says; JPEG at a fraction of its size (Pillow's draft mode)."""
    turn = orientation(image, config)
    if shrink > 1:
        image.draft(image.mode, (max(1, image.width // shrink), max(1, image.height // shrink)))
    return image.transpose(TURNS[turn]) if turn in TURNS else image


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
        with Image.open(path if contents is None else io.BytesIO(contents)) as image:
            if image.width * image.height > config.max_pixels:
                raise BadImage(path, f"{image.width} x {image.height} pixels, more than {config.max_pixels}")
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        if kind_of_file(path, contents):
            raise NoPicture(path, "not an image that Pillow reads") from error
        empty = (Path(path).stat().st_size if contents is None else len(contents)) == 0
        raise BadImage(path, "empty file" if empty else "not an image of a format that Pillow reads") from error
    except Exception as error:  # malformed bytes make Pillow's decoders raise nearly every kind of exception
        raise BadImage(path, str(error) or type(error).__name__) from error


@contextmanager
def _reasons(path: str) -> Iterator[None]:
    """Whatever goes wrong inside the block is a BadImage with a reason for people."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:  # malformed bytes make decoders raise nearly every kind of exception
        raise BadImage(path, str(error) or type(error).__name__) from error
