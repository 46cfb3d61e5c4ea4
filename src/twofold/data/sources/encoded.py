"""Images that are stored in an image format, wherever their bytes lie: in files, in shards, in a table's cells."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import DataFacts, SkipList, class_count, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.images import decode_image
from twofold.data.decoding.opening import BadImage, Header, image_header
from twofold.data.decoding.parts import OpenImages, Part, deep_values
from twofold.data.decoding.pixels import PixelRange, describe_range, range_of
from twofold.errors import UserError

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
        UserError: more unreadable images than `max_skipped`, or channels other than 1 and 3.
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
        if config.channels not in (None, 1, 3):
            raise UserError(f"--data.channels {config.channels}: image files give 1 (grey) or 3 (colour)")
        self.name = name
        self.classes = classes
        self.labels = labels
        self.config = config
        self.skipped = SkipList(count, config.max_skipped)
        self.pixel_range, self.pixels, self.layout = config.pixel_range, "", ""
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
        headers = self._check_all() if len(self) <= CHECKED or self.config.in_pieces else self._sample()
        if len(headers) < len(self) and any(header.patient for header in headers):
            headers = self._check_all()
        if self.groups is None and any(header.patient for header in headers):
            self.groups = [header.patient for header in headers]
        self.headers = headers if self.config.in_pieces else None
        self._more_frames = 0 if self.config.frames == "all" else sum(header.more for header in headers)
        self.channels = self.config.channels or (1 if all(header.grey for header in headers) else 3)
        if any(header.deep for header in headers) and self.config.deep_pixels != "stretch":
            self._choose_range()

    def _choose_range(self) -> None:
        """One range for all pixels of more than 8 bits, from some of the images that have such.

        It is from the lowest black to the highest white, where each states these or, in a DICOM file, has values of
        which nothing else is known; else `range_of` decides.
        """
        samples: list[NDArray[Any]] = []
        ends: list[PixelRange] = []
        for index in sample_indices(len(self)).tolist():
            with contextlib.suppress(BadImage):  # met again, and listed, when all are read
                header = self.header(index)
                if header.deep:
                    values = deep_values(header, functools.partial(self.locate, index), self.config)
                    if np.isfinite(values).all():
                        samples.append(values)
                        own = (float(values.min()), float(values.max())) if header.unbounded else None
                        ends += [each for each in (header.stated or own,) if each is not None]
        if samples:
            known = len(ends) == len(samples) and min(ends)[0] < max(high for _, high in ends)
            chosen = (min(ends)[0], max(high for _, high in ends)) if known else range_of(samples)
            self.pixel_range = self.config.pixel_range or chosen
            self.pixels = describe_range(self.pixel_range, samples[0].dtype, samples)

    def read(self, index: int, shrink: int = 1) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; `shrink` as in `decode_image`; raises BadImage."""
        path, contents = self.locate(index)
        return decode_image(path, self.channels, self.config, shrink, contents, self.pixel_range)

    def read_part(self, index: int, part: Part) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of a frame or tile of one image; raises BadImage."""
        where = functools.partial(self.locate, index)
        return self._open_images.read(index, where, part, self.channels, self.config, self.pixel_range)

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
        return image_header(path, self.config, contents)

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
            pixels=self.pixels, pixel_range=self.pixel_range, layout=self.in_words(),
        )  # fmt: skip

    def in_words(self) -> str:
        """What was made of the data, in a line: of their layout, and of frames that are not read."""
        if not self._more_frames:
            return self.layout
        some = "" if self._sizes is not None else " of those looked at"
        return (
            f"{self.layout or self.name}; {self._more_frames:,} files{some} have more than one frame, of which the "
            "first is read (--data.frames all reads every one)"
        )

    def _check_all(self) -> list[Header]:
        """Read every header; leave out the images where that fails."""
        headers = self._headers(range(len(self)))
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
        headers = self._headers([int(index) for index in sample_indices(len(self))])
        readable = [header for header in headers if isinstance(header, Header)]
        if not readable:
            raise UserError(f"{self.name}: none of {len(headers)} files looked at can be read; the first: {headers[0]}")
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
