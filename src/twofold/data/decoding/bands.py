"""Images of any number of bands: what TIFF in any arrangement of its samples holds, and .npy files."""

from __future__ import annotations

import io
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twofold.data.decoding.frames import MASK, REDUCED, Frame
from twofold.data.decoding.pixels import NODATA, DeepPixels, PixelRange, no_data, scaled, to_channels
from twofold.devices import available_memory
from twofold.reading import regular
from twofold.text import counted

NPY = ".npy"
"""The extension of files that hold an array each."""
_NPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY, _RGB = (0, 1), 2
"""Values of TIFF's PhotometricInterpretation for which further samples are bands."""
_ALWAYS = 2**28
"""Bytes for which there is room anyhow."""
_ALPHA = (1, 2)
"""Values of TIFF's ExtraSamples that mean transparency (TIFF 6.0, section 18); 0 leaves open what a sample is."""


@dataclass(frozen=True)
class BandPlan:
    """How images of several bands are read: decided once for a source.

    Attributes:
        channels: bands that each image gives; None where images are pictures, grey or in colour.
        bands: which of the stored ones, by number from 1; all but transparency where not given.
        first: .npy arrays are [C, H, W] rather than [H, W, C].
        ranges: the values of black and white, for all deep bands or one for each band; none where pixels have 8 bits.
        asked: the user said how many, rather than most of the images.
        by_band: the ranges are one for each band, and of 8 bits as well.
    """

    channels: int | None = None
    bands: tuple[int, ...] | None = None
    first: bool = False
    ranges: tuple[PixelRange, ...] = ()
    asked: bool = False
    by_band: bool = False

    def problem(self, bands: int, samples: int) -> str:
        """Why an image of so many bands, and samples with transparency, does not belong; "" where it does."""
        if self.bands is not None:
            most = max(self.bands)
            return (
                "" if most <= samples else f"it has {counted(samples, 'band')}, and --data.bands asks for number {most}"
            )
        if self.channels is None or self.channels in (bands, samples):
            return ""
        who = "--data.channels or the encoder asks for" if self.asked else "most of the images have"
        hint = ": --data.bands chooses among them" if bands > self.channels else ""
        return f"it has {counted(bands, 'band')}, and {who} {self.channels}{hint}"

    def choose(self, values: NDArray[Any], alpha: Sequence[int]) -> NDArray[Any]:
        """The bands [H, W, C] that are read of all samples [H, W, S], of which those in `alpha` are transparency.

        Raises:
            ValueError: the image has other bands.
        """
        samples = values.shape[2]
        if problem := self.problem(samples - len(alpha), samples):
            raise ValueError(problem)
        if self.bands is not None:
            return values[..., [number - 1 for number in self.bands]]
        if alpha and self.channels != samples:
            return np.delete(values, list(alpha), axis=2)
        return values


PICTURES = BandPlan()
"""Images are pictures, as Pillow reads them."""


class Stored(NamedTuple):
    """What a file of bands holds; `values` [H, W, S] are None where only its header was read."""

    height: int
    width: int
    samples: int
    dtype: np.dtype[Any]
    alpha: tuple[int, ...] = ()
    """Samples that are transparency."""
    nodata: float | None = None
    """The value of pixels without data, where the file says so."""
    shape: tuple[int, ...] = ()
    """Of an .npy file's array."""
    stated: PixelRange | None = None
    """Black and white, where the file says how many bits of its samples are used."""
    window: PixelRange | None = None
    """Black and white that a DICOM file asks for."""
    inverted: bool = False
    """Low values are white."""
    frames: tuple[Frame, ...] = ()
    """Pages of a TIFF file that are images of their own: the first two of them, unless all were asked for."""
    values: NDArray[Any] | None = None


def kind_of_file(path: str, contents: bytes | None = None) -> str:
    """ "npy" or "tiff" by a file's first bytes; "" for any other."""
    if contents is not None:
        head = contents[:8]
    else:
        regular(path)
        with Path(path).open("rb") as file:
            head = file.read(8)
    return "npy" if head.startswith(_NPY) else "tiff" if head.startswith(_TIFF) else ""


def check_room(found: Stored) -> None:
    """Raise a ValueError for a file that says that it holds more than there is memory for, before it is decoded."""
    needed = found.height * found.width * found.samples * found.dtype.itemsize
    if needed > _ALWAYS and 2 * needed > (free := available_memory()):  # (it is copied once)
        raise ValueError(f"{needed / 2**30:.1f} GiB of pixels, which do not fit twice into the {free / 2**30:.1f} free")


def as_channels(found: Stored, channels: int, deep: DeepPixels, plan: BandPlan) -> NDArray[np.uint8]:
    """The bands that are read of what a file holds, as 8 bits [H, W, channels].

    Raises:
        ValueError: it has other bands, or values that are not finite.
    """
    assert found.values is not None
    values = plan.choose(found.values, found.alpha)
    ranges = plan.ranges if plan.by_band or values.dtype != np.uint8 else ()
    if deep == "window" and found.window is not None:
        ranges = (found.window,)
    result = scaled(values, deep, ranges, found.nodata)
    return to_channels(255 - result if found.inverted else result, channels)


def read_npy(path: str, contents: bytes | None, first: bool, pixels: bool = True) -> Stored:
    """An array [H, W], or [H, W, C], or [C, H, W] if the channels are `first`; ValueError for any other.

    Args:
        path: the file.
        contents: its bytes, where it is no file of its own.
        first: where the channels are.
        pixels: read the values and not the header alone.
    """
    where = path if contents is None else io.BytesIO(contents)
    array: NDArray[Any] = np.load(where, mmap_mode=None if pixels or contents is not None else "r", allow_pickle=False)
    shape = array.shape
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"an array {list(shape)} of {array.dtype} is no image: numbers [H, W], [H, W, C] or [C, H, W] are"
        )
    if array.ndim == 2:
        array = array[..., None]
    elif first:
        array = array.transpose(1, 2, 0)
    height, width, samples = array.shape
    return Stored(height, width, samples, array.dtype, shape=shape, values=np.asarray(array) if pixels else None)


def channels_first(shapes: Sequence[tuple[int, ...]], channels: int | None) -> bool:
    """Whether the channels of most .npy arrays are their first axis.

    Of an array's first and last axis it is the one of `channels` where that is known; else the one of 1, 3 or 4; else
    the smaller, the last if they are equal. One answer for all files: the one that most of them give.
    """
    votes = Counter(_is_first(shape[0], shape[2], channels) for shape in shapes if len(shape) == 3)
    return votes[True] > votes[False]


def _is_first(first: int, last: int, channels: int | None) -> bool:
    for usual in ([(channels,)] if channels else []) + [(1, 3, 4)]:
        if (first in usual) != (last in usual):
            return first in usual
    return first < last


def extra_samples(photometric: int | None, samples: int, extra: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
    """(bands, which samples are transparency) of a TIFF file that holds measurements or RGB; None for other kinds."""
    if photometric not in (*_GREY, _RGB):
        return None
    base = 3 if photometric == _RGB else 1
    kinds = list(extra) + [0] * max(0, samples - base - len(extra))
    alpha = tuple(samples - len(kinds) + i for i, kind in enumerate(kinds) if kind in _ALPHA)
    return samples - len(alpha), alpha


def read_tiff(
    path: str,
    contents: bytes | None,
    asked: bool,
    most: float,
    pixels: bool = True,
    frame: int = 0,
    every: bool = False,
) -> Stored | None:
    """A page of a TIFF file with all its samples, upright; None where it holds no plain measurements.

    Args:
        path: the file.
        contents: its bytes, where it is no file of its own.
        asked: a number of bands was asked for: pages of one sample and one size, as stacks are often stored, count as
            bands of one image.
        most: pixels of an image at most.
        pixels: read the values and not the header alone.
        frame: which page, from 0.
        every: list all pages that are images of their own.

    Raises:
        ValueError: it is damaged, has too many pixels, or needs a codec that is missing.
    """
    import tifffile  # here: most users have none

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it has to say is raised as well
    with tifffile.TiffFile(path if contents is None else io.BytesIO(contents)) as file:
        page: Any = file.pages[frame]
        found = extra_samples(page.photometric, page.samplesperpixel, page.extrasamples)
        if found is None or page.dtype is None:
            return None
        height, width = page.imagelength, page.imagewidth
        if height * width > most or height * width * page.samplesperpixel > 100 * most:
            raise ValueError(f"{width} x {height} pixels of {counted(page.samplesperpixel, 'band')}, more than {most}")
        stack: Any = page
        samples, alpha = page.samplesperpixel, found[1]
        if asked and samples == 1 and len(file.pages) > 1:
            series = file.series[0]
            if len(series.shape) == 3 and series.axes.endswith("YX") and series.shape[1:] == (height, width):
                stack, samples = series, series.shape[0]
        frames = tuple(itertools.islice(_pages(file), None if every else 2)) if stack is page and not pixels else ()
        orientation = int(page.tags.valueof(274, default=1))
        header = Stored(
            *((width, height) if orientation >= 5 else (height, width)), samples, np.dtype(page.dtype), alpha,
            no_data(page.tags.valueof(NODATA)), stated=(0.0, 4095.0) if page.bitspersample == 12 else None,
            frames=frames,
        )  # fmt: skip
        if not pixels:
            return header
        with _codecs(page):
            values: NDArray[Any] = stack.asarray()
        if stack is not page or page.axes.startswith("S"):
            values = np.moveaxis(values, 0, -1)
        return header._replace(values=_turned(values.reshape(height, width, samples), orientation))


def _pages(file: Any) -> Iterator[Frame]:
    """The pages that are images of their own, upright; see `frames_of`."""
    for number, page in enumerate(file.pages):
        if number and int(page.subfiletype) & (REDUCED | MASK):
            continue
        turned = int(page.tags.valueof(274, default=1)) >= 5
        height, width = page.imagelength, page.imagewidth
        yield Frame(number, *((width, height) if turned else (height, width)))


@contextmanager
def _codecs(page: Any) -> Iterator[None]:
    """Says what to install where a compression is not at hand."""
    try:
        yield
    except (ValueError, NotImplementedError, ImportError, KeyError) as error:
        if "imagecodecs" not in str(error):
            raise
        name = getattr(page.compression, "name", page.compression)
        raise ValueError(
            f"{page.bitspersample}-bit samples with compression {name} need a codec: pip install 'twofold[bands]'"
        ) from error


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Upright by TIFF's Orientation (TIFF 6.0, section 8: what the first row and column are)."""
    if orientation >= 5:
        values = values.transpose(1, 0, 2)  # rows are columns
    mirrored = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(values, mirrored)) if mirrored or orientation == 5 else values
