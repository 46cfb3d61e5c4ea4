"""Images that are stored in an image format, wherever their bytes lie: in files, in shards, in a table's cells."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import DataFacts, SkipList, class_count, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.bands import PICTURES, BandPlan, channels_first
from twofold.data.decoding.images import decode_image
from twofold.data.decoding.opening import BadImage, Header, image_header
from twofold.data.decoding.parts import OpenImages, Part, deep_values
from twofold.data.decoding.pixels import (
    PixelRange,
    describe_bands,
    describe_range,
    measured_ranges,
    range_of,
    without_data,
)
from twofold.errors import UserError
from twofold.text import counted

_LOOKED_AT = 16_384
"""About as many pixels of each image are looked at to find the range of bands."""
CHECKED = 50_000
"""Data up to this many images have every header read when opened (some seconds); of larger ones a sample is read."""


class EncodedSource:
    """Encoded images, decoded when read. Where they lie is what the subclasses know.

    Args:
        count: images.
        config: `channels` and how to decode.
        labels: [n] or [n, K]; None without labels.
        classes: names, by label.
        name: for messages.

    Raises:
        UserError: more images than `max_skipped` that are unreadable or have other bands.
    """

    def __init__(
        self,
        count: int,
        config: DataConfig,
        *,
        labels: NDArray[np.int64] | None = None,
        classes: list[str] | None = None,
        name: str,
    ) -> None:
        self.name = name
        self.classes = classes
        self.labels = labels
        self.config = config
        self.skipped = SkipList(count, config.max_skipped)
        self.pixel_range, self.pixels, self.layout = config.pixel_range, "", ""
        self.band_ranges, self.plan = config.band_ranges, PICTURES
        self.groups: list[str] | None = None
        self.headers: list[Header] | None = None
        self._more_frames = 0
        self._open_images = OpenImages()
        self._sizes: NDArray[np.int32] | None = None

    def locate(self, index: int) -> tuple[str, bytes | None]:
        """Where one image is, for people, and what is there; None if it is a file of that path. Raises BadImage."""
        raise NotImplementedError

    def path(self, index: int) -> str:
        """Where one image is: a file's path, or what tells people as much."""
        return self.locate(index)[0]

    def fingerprint(self) -> str:
        """A hash that changes with the data."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def keep(self, good: Sequence[int]) -> None:
        """Leave out all images but these."""
        raise NotImplementedError

    def examine(self) -> None:
        """Read headers: all, leaving out those that fail, or a sample of more than CHECKED; sets `channels`.

        Of a sample, unreadable images are met again, and listed, when they are decoded. All are read where files are
        read in pieces, which are counted from them (and `headers` has them), and where they tell of patients, who are
        the `groups` of images that have no others.
        """
        complete = len(self) <= CHECKED or self.config.in_pieces
        good = self._examined(complete)
        if not complete and any(header.patient for header in good):
            good = self._examined(complete=True)
        if self.groups is None and self.config.group is None and any(header.patient for header in good):
            self.groups = [header.patient for header in good]
        self.headers = good if self.config.in_pieces else None
        self._more_frames = 0 if self.config.frames == "all" else sum(header.more for header in good)
        self.channels = self.plan.channels or self.config.channels or (1 if all(h.grey for h in good) else 3)
        if any(map(self._reads_deep, good)) and self.config.deep_pixels != "stretch":
            self._choose_range()

    def _examined(self, complete: bool) -> list[Header]:
        """The headers of all images, of which those that fail or do not fit are left out, or of a sample."""
        indices = range(len(self)) if complete else sample_indices(len(self)).tolist()
        headers = self._headers(indices)
        readable = [header for header in headers if isinstance(header, Header)]
        self.plan = self._choose_plan(readable)
        fitting = [
            header if isinstance(header, BadImage) else self._fitting(header, int(index))
            for index, header in zip(indices, headers, strict=True)
        ]
        if readable and not any(isinstance(header, Header) for header in fitting):
            misfit = next(each for header, each in zip(headers, fitting, strict=True) if header is not each)
            raise UserError(f"{self.name}: no image has the bands that are read; the first: {misfit}")
        return self._keep_good(fitting) if complete else self._some_good(fitting)

    def _choose_plan(self, headers: Sequence[Header]) -> BandPlan:
        """Whether images are pictures or bands, and which; decided once, from all headers that were read."""
        config = self.config
        channels = config.channels
        for given in (config.bands, config.band_ranges):
            channels = channels if given is None else len(given)
        first = channels_first([header.shape for header in headers], None if config.bands else channels)
        counts = Counter(_laid_out(header, first).bands for header in headers)
        pictures = counts[1] + counts[3]
        usual = max(counts, key=lambda bands: counts[bands], default=3)
        asked = channels is not None
        by_band = config.deep_pixels == "bands" and any(header.deep for header in headers)
        if config.bands is None and config.band_ranges is None and not by_band and channels in (None, 1, 3):
            channels = usual if channels is None and counts[usual] > pictures else None
        elif channels is None:
            channels = usual
        ranges = config.band_ranges or ((config.pixel_range,) if config.pixel_range else ())
        return BandPlan(channels, config.bands, first, ranges, asked, bool(config.band_ranges))

    def _fitting(self, header: Header, index: int) -> Header | BadImage:
        """The header, with an array's channels where the plan has them; a BadImage where the bands are others."""
        header = _laid_out(header, self.plan.first)
        problem = self.plan.problem(header.bands, header.samples)
        if self.plan.channels is None and not header.picture and header.bands not in (1, 3):
            problem = f"it has {counted(header.bands, 'band')}: choose some of them with --data.bands"
        return BadImage(self.path(index), problem) if problem else header

    def _choose_range(self) -> None:
        """One range for all pixels of more than 8 bits, or one a band, from some of the images that have such.

        One range is from the lowest black to the highest white, where each image states these or, in a DICOM file, has
        values of which nothing else is known; else `range_of` decides.
        """
        samples: list[list[NDArray[Any]]] = []
        ends: list[PixelRange | None] = []
        missing: set[float] = set()
        for index in sample_indices(len(self)).tolist():
            with contextlib.suppress(BadImage, ValueError):  # met again, and listed, when all are read
                if self._reads_deep(header := self.header(index)):
                    bands, nodata = self._values_by_band(index, header)
                    missing |= set() if nodata is None else {nodata}
                    if all(np.isfinite(values).all() for values in bands):
                        samples.append(bands)
                        ends.append(header.stated or (_ends(bands) if header.unbounded else None))
        if not samples:
            return
        dtype, every = samples[0][0].dtype, [values for bands in samples for values in bands]
        if self.config.deep_pixels == "bands" and self.band_ranges is None and self.plan.channels is not None:
            self.band_ranges = measured_ranges(list(zip(*samples, strict=True)))
        if self.band_ranges is None:
            self.pixel_range = self.config.pixel_range or _widest(ends) or range_of(every)
        if self.plan.channels is None:
            assert self.pixel_range is not None
            self.pixels = describe_range(self.pixel_range, dtype, every) + _missing_in_words(missing)
            return
        ranges = self.band_ranges or (self.pixel_range or (0.0, 1.0),)
        self.plan = replace(self.plan, ranges=ranges, by_band=self.band_ranges is not None)
        self.pixels = describe_bands(ranges, dtype, list(zip(*samples, strict=True))) + _missing_in_words(missing)

    def _reads_deep(self, header: Header) -> bool:
        """Whether more than 8 bits are read; of a picture with further bands among pictures Pillow reads 8."""
        only_picture = self.plan.channels is None and header.picture and header.bands not in (1, 3)
        return header.deep and not only_picture

    def _values_by_band(self, index: int, header: Header) -> tuple[list[NDArray[Any]], float | None]:
        """The values of one image's pixels that hold data, band by band, and the value that means none.

        Of bands about _LOOKED_AT each.
        """
        found = deep_values(header, functools.partial(self.locate, index), self.config, self.plan)
        assert found.values is not None
        values = self.plan.choose(found.values, found.alpha)
        if self.plan.channels is not None:
            step = max(1, int((found.height * found.width / _LOOKED_AT) ** 0.5))
            values = values[::step, ::step]
        flat = values.reshape(-1, values.shape[2]).T
        return [
            band if found.nodata is None else band[~without_data(band, found.nodata)] for band in flat
        ], found.nodata

    def read(self, index: int, shrink: int = 1) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; `shrink` as in `decode_image`; raises BadImage."""
        path, contents = self.locate(index)
        return decode_image(path, self.channels, self.config, shrink, contents, self.pixel_range, self.plan)

    def read_part(self, index: int, part: Part) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of a frame or tile of one image; raises BadImage."""
        where = functools.partial(self.locate, index)
        return self._open_images.read(index, where, part, self.channels, self.config, self.pixel_range, self.plan)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image, from its header; raises BadImage."""
        if self._sizes is not None:
            return int(self._sizes[index, 0]), int(self._sizes[index, 1])
        header = self.header(index)
        return header.height, header.width

    def sizes(self) -> NDArray[np.int32] | None:
        """[n, 2] heights and widths where every header has been read, else None."""
        return self._sizes

    def header(self, index: int) -> Header:
        """What one image says before it is decoded; raises BadImage."""
        path, contents = self.locate(index)
        return image_header(path, self.config, contents, self.plan.first)

    def facts(self) -> DataFacts:
        """Median size of all images, or of a sample of many (whose sizes then count as different)."""
        sizes, equal = self._sizes, False
        if sizes is None:
            sizes = np.array([(header.height, header.width) for header in self._sample()])
        else:
            equal = bool((sizes == sizes[0]).all())
        height, width = (int(side) for side in np.median(sizes, axis=0))
        classes = class_count(self.labels, self.classes)
        return DataFacts(
            len(self), height, width, self.channels, equal, self.labels is not None, classes,
            pixels=self.pixels, pixel_range=self.pixel_range, band_ranges=self.band_ranges, layout=self.in_words(),
        )  # fmt: skip

    def in_words(self) -> str:
        """What was made of the data, in a line: of their layout, and of frames that are not read."""
        if not self._more_frames:
            return self.layout
        some = "" if self._sizes is not None else " of those looked at"
        return (
            f"{self.layout or self.name}; {counted(self._more_frames, 'file')}{some} have more than one frame, of "
            "which the first is read (--data.frames all reads every one)"
        )

    def _keep_good(self, headers: Sequence[Header | BadImage]) -> list[Header]:
        """Leave out the images whose headers cannot be read or do not fit."""
        good = [index for index, header in enumerate(headers) if isinstance(header, Header)]
        for header in headers:
            if isinstance(header, BadImage):
                self.skipped.add(header.path, header.reason)
        if len(good) < len(headers):
            self.keep(good)
            self.labels = None if self.labels is None else self.labels[good]
        readable = [header for header in headers if isinstance(header, Header)]
        self._sizes = np.array([(header.height, header.width) for header in readable], dtype=np.int32).reshape(-1, 2)
        return readable

    def _sample(self) -> list[Header]:
        return self._some_good(self._headers([int(index) for index in sample_indices(len(self))]))

    def _some_good(self, headers: Sequence[Header | BadImage]) -> list[Header]:
        readable = [header for header in headers if isinstance(header, Header)]
        if not readable:
            raise UserError(
                f"{self.name}: none of {counted(len(headers), 'file')} looked at can be read; the first: {headers[0]}"
            )
        return readable

    def _headers(self, indices: Sequence[int]) -> list[Header | BadImage]:
        def attempt(index: int) -> Header | BadImage:
            try:
                return self.header(index)
            except BadImage as error:
                return error

        # Most of the time is waiting for the disk.
        with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
            return list(threads.map(attempt, indices))


def _laid_out(header: Header, first: bool) -> Header:
    """The header of an .npy file with its channels first or last; any other as it is."""
    if len(header.shape) != 3:
        return header
    bands, (height, width) = (header.shape[0], header.shape[1:]) if first else (header.shape[2], header.shape[:2])
    return header._replace(height=height, width=width, bands=bands, samples=bands, grey=bands == 1)


def _ends(bands: Sequence[NDArray[Any]]) -> PixelRange | None:
    """The smallest and largest value of one image; None of one without data."""
    values = [(float(band.min()), float(band.max())) for band in bands if band.size]
    return (min(low for low, _ in values), max(high for _, high in values)) if values else None


def _widest(ends: Sequence[PixelRange | None]) -> PixelRange | None:
    """From the lowest to the highest of some ranges; None where one is not known or all are one value."""
    known = [each for each in ends if each is not None]
    low, high = min((low for low, _ in known), default=0.0), max((high for _, high in known), default=0.0)
    return (low, high) if len(known) == len(ends) and low < high else None


def _missing_in_words(missing: set[float]) -> str:
    listed = " and ".join(f"{value:g}" for value in sorted(missing))
    return f"; {listed} means no data, as the files say, and is black" if missing else ""
