"""Opening image files: what is wrong with bad ones, and what good ones say before their pixels are decoded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from twofold.data.config import DataConfig
from twofold.data.decoding import dicom, regions
from twofold.data.decoding.bands import NPY, Stored, check_room, extra_samples, kind_of_file, read_npy, read_tiff
from twofold.data.decoding.frames import Frame, are_more, frames_of
from twofold.data.decoding.pixels import DEEP_MODES, GREY_MODES, PixelRange, as_picture, nodata_of
from twofold.data.decoding.room import PIXELS
from twofold.errors import UserError
from twofold.reading import reason_of, regular

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
    """What a file says before its pixels are decoded; heights and widths after orientation."""

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
    stated: PixelRange | None = None
    """Black and white of deep pixels, where the file says how many of their bits are used."""
    unbounded: bool = False
    """Nobody knows what white is among such pixels but from their values: DICOM files that store 16 bits and more."""
    more: bool = False
    """There are other frames than the first."""
    frames: tuple[Frame, ...] = ()
    """All frames that are images of their own, where `data.frames` asks for them. Pages that are bands are none."""
    patient: str = ""
    """Stands for the patient whom a DICOM file is of."""


def image_header(path: str, config: DataConfig, contents: bytes | None = None, first: bool = False) -> Header:
    """Size, colour, bands and frames of one file, or of its `contents`, without decoding it; raises BadImage.

    The channels of .npy arrays lie `first` or last.
    """
    if _named_npy(path, contents):
        return _header(stored(path, config, contents, first, pixels=False), config)
    try:
        with opened(path, config, contents) as image:
            header = _of_picture(image, config)
            if not (image.format == "TIFF" and (asks_for_bands(config) or config.deep_pixels == "bands")):
                return header
    except NoPicture:
        return _header(stored(path, config, contents, first, pixels=False), config)
    found = _measured_tiff(path, config, contents)  # pages that may be bands, and deep pixels of several samples
    return header if found is None else _header(found, config)._replace(picture=True)


def _of_picture(image: Image.Image, config: DataConfig) -> Header:
    """What an opened picture says, of which another frame may be the current one afterwards."""
    width, height = image.size
    turned = orientation(image, config) >= 5
    if turned:
        width, height = height, width
    grey, stated = image.mode in GREY_MODES, _stated(image)
    bands, alpha, deep = _bands_of_picture(image, grey)
    unbounded, patient = image.format == "DICOM" and stated is None, str(image.info.get(dicom.PATIENT, ""))
    frames: tuple[Frame, ...] = ()
    if config.frames == "all":
        frames = frames_of(image)
        if turned:
            frames = tuple(Frame(number, wide, high) for number, high, wide in frames)
    return Header(
        height, width, grey, deep, bands, bands + alpha, stated=stated, unbounded=unbounded, more=are_more(image),
        frames=frames, patient=patient,
    )  # fmt: skip


def _stated(image: Image.Image) -> PixelRange | None:
    """Black and white, where a file says how many bits of its pixels are used."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(258) == (12,):
        return 0.0, 4095.0
    return image.info.get(dicom.STATED)


def asks_for_bands(config: DataConfig) -> bool:
    """Whether the options ask for bands by number, or for as many as no picture has."""
    many = config.channels not in (None, 1, 3) or len(config.band_ranges or ()) not in (0, 1, 3)
    return config.bands is not None or many


def stored(
    path: str, config: DataConfig, contents: bytes | None, first: bool, pixels: bool = True, shrink: int = 1,
    frame: int = 0,
) -> Stored:  # fmt: skip
    """All samples of one file: of an .npy file or of TIFF's measurements as they are stored, else of the picture.

    Args:
        path: the file, or where `contents` are.
        config: `background`, `orient` and `max_pixels` apply to pictures, `max_pixels` to all.
        contents: the encoded image, where it is no file of its own.
        first: the channels of .npy arrays are their first axis.
        pixels: read the values and not the header alone.
        shrink: JPEG files are decoded at this fraction of their size.
        frame: which one, from 0.

    Raises:
        BadImage: no image, broken, cut short, empty, or larger than `max_pixels`.
    """
    if pixels:
        config = replace(config, tile=None)  # what follows decodes whole frames
    with faults_told(path, contents):
        kind = "" if dicom.begins_as_dicom(_begin(path, config, contents)) else kind_of_file(path, contents)
        if kind == "npy":
            found = read_npy(path, contents, first, pixels=False)
            if found.height * found.width > config.max_pixels:
                raise BadImage(path, f"{found.width} x {found.height} pixels, more than {config.max_pixels}")
            if not pixels:
                return found
            with PIXELS.taken(_units(found)):
                return read_npy(path, contents, first)
        if kind == "tiff":
            measured = _measured_tiff(path, config, contents, pixels, frame)
            if measured is not None:
                return measured
    with opened(path, config, contents, frame) as image:
        draft(image, shrink)
        with PIXELS.taken(image.width * image.height):
            upright = upright_picture(image, config)
            values = as_picture(upright, config.background, alpha=asks_for_bands(config))
        height, width, samples = values.shape
        alpha = (samples - 1,) if samples in (2, 4) else ()
        return Stored(
            height, width, samples, values.dtype, alpha, nodata_of(image), window=image.info.get(dicom.WINDOW),
            inverted=bool(image.info.get(dicom.INVERTED)), values=values,
        )  # fmt: skip


def _measured_tiff(
    path: str, config: DataConfig, contents: bytes | None, pixels: bool = False, frame: int = 0
) -> Stored | None:
    """What a TIFF file holds where that is more than a picture of 8 bits: n samples or pages, or deep ones."""
    asked, every = asks_for_bands(config), config.frames == "all"
    most: float = config.max_pixels
    if not pixels and config.tile is not None:
        with open_file(path, contents) as file, faults_told(path, contents):
            most = most if cut_alone(file, config, frame) is None else float("inf")
    with faults_told(path, contents):
        found = read_tiff(path, contents, asked, most, pixels=False, frame=frame, every=every)
        bands = 0 if found is None else found.samples - len(found.alpha)
        if found is None or bands == 1 or (bands == 3 and found.dtype.itemsize == 1):  # Pillow knows more codecs
            with contextlib.suppress(NoPicture), opened(path, config, contents, frame):
                return None
        if found is None or not pixels:
            return found
        with PIXELS.taken(_units(found)):
            return read_tiff(path, contents, asked, most, frame=frame)


def _units(found: Stored) -> int:
    """What decoding takes of `PIXELS`, which counts pixels of a picture; raises ValueError where there is no room."""
    check_room(found)
    return found.height * found.width * max(1, found.samples * found.dtype.itemsize // 4)


def open_file(path: str, contents: bytes | None = None) -> IO[bytes]:
    """A regular file, or what it holds, as bytes."""
    if contents is not None:
        return io.BytesIO(contents)
    regular(path)
    return Path(path).open("rb")


def cut_alone(file: IO[bytes], config: DataConfig, frame: int) -> tuple[regions.Page, regions.Grid] | None:
    """A page of a TIFF file and its blocks, where tiles of its bands are decoded alone; None where it is read whole."""
    file.seek(0)
    if config.tile is None or dicom.begins_as_dicom(file.read(dicom.BEGINS_AT + len(dicom.MAGIC))):
        return None
    if (page := regions.open_page(file, frame)) is None:
        return None
    if asks_for_bands(config) and page.tags.get(277, 1) == 1 and page.tags.next:  # its pages are bands
        return None
    grid = regions.grid_for(page, config.tile, config.max_pixels)
    return None if grid is None else (page, grid)


def _header(found: Stored, config: DataConfig) -> Header:
    bands = found.samples - len(found.alpha)
    deep = found.dtype.itemsize > 1 or found.dtype.kind not in "ub"
    return Header(
        found.height, found.width, bands == 1, deep, bands, found.samples, picture=False, shape=found.shape,
        stated=found.stated, more=len(found.frames) > 1, frames=found.frames if config.frames == "all" else (),
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


def draft(image: Image.Image, shrink: int) -> None:
    """Have a JPEG file decoded at a fraction of its size (Pillow's draft mode); once for an opened file."""
    if shrink > 1:
        image.draft(image.mode, (max(1, image.width // shrink), max(1, image.height // shrink)))


def upright_picture(image: Image.Image, config: DataConfig) -> Image.Image:
    """A picture turned as its EXIF tag says."""
    turn = orientation(image, config)
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
def opened(path: str, config: DataConfig, contents: bytes | None = None, frame: int = 0) -> Iterator[Image.Image]:
    """Open a file, or what it holds; whatever goes wrong inside the block is a BadImage with a reason for people.

    Args:
        path: the file; for messages only where `contents` are given.
        config: `max_pixels` applies, and `tile`.
        contents: the encoded image, where it is no file of its own.
        frame: which one is the current one, from 0.
    """
    with faults_told(path, contents), open_image(path, config, contents) as image:
        if frame:
            image.seek(frame)
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
        if kind_of_file(path, contents):
            raise NoPicture(path, "not an image that Pillow reads") from error
        empty = (Path(path).stat().st_size if contents is None else len(contents)) == 0
        raise BadImage(path, "empty file" if empty else "not an image of a format that Pillow reads") from error
    except Exception as error:  # malformed bytes make Pillow's decoders raise nearly every kind of exception
        raise BadImage(path, reason_of(error)) from error


def open_image(path: str, config: DataConfig, contents: bytes | None = None) -> Image.Image:
    """Open a file, or what it holds, as an image of Pillow's that is decoded when its pixels are asked for."""
    begin = _begin(path, config, contents)
    if dicom.begins_as_dicom(begin):
        return dicom.open_dicom(path, contents)
    stream = path if contents is None else io.BytesIO(contents)
    if config.tile is not None and begin.startswith(regions.BEGINS):  # Image.open refuses very large ones
        try:
            return TiffImagePlugin.TiffImageFile(stream)
        except SyntaxError as error:  # of samples for which Pillow has no mode, as Image.open would say
            raise UnidentifiedImageError(str(error)) from error
    return Image.open(stream)


def check_size(path: str, image: Image.Image, config: DataConfig) -> None:
    """Raise BadImage for a frame of more than `max_pixels` that would have to be decoded whole."""
    if image.width * image.height <= config.max_pixels:
        return
    if config.tile is not None and regions.grid_for(regions.page_of(image), config.tile, config.max_pixels) is not None:
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
    regular(path)
    if config.tile is None and not dicom.may_be_dicom(path):
        return b""
    with Path(path).open("rb") as file:
        return file.read(length)
