"""Frames and tiles of image files, read so that what was opened or decoded for one serves its neighbours."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twofold.data.config import DataConfig
from twofold.data.decoding.bands import PICTURES, BandPlan, Stored, as_channels
from twofold.data.decoding.frames import Frame
from twofold.data.decoding.opening import (
    TURNS,
    BadImage,
    Header,
    NoPicture,
    check_size,
    cut_alone,
    faults_told,
    open_file,
    open_image,
    orientation,
    stored,
)
from twofold.data.decoding.pixels import NODATA, PixelRange, keep_nodata, no_data, nodata_of, to_uint8
from twofold.data.decoding.regions import Box, Grid, Page, grid_for, page_of, region, region_file
from twofold.data.decoding.room import PIXELS

KEPT_BYTES = 64 * 2**20
"""Decoded pixels that a process keeps for neighbouring parts; the image used last is kept whatever its size."""
_KEPT_FILES = 16
Where = Callable[[], tuple[str, bytes | None]]
"""Gives a file's path, or what tells people where it is and its contents."""


class Part(NamedTuple):
    """A frame, or a box in it: left, top, right and bottom in pixels of the upright image, the last two outside."""

    frame: int = 0
    box: Box | None = None


class OpenImages:
    """Image files that are read in parts, a few of them open at a time. Threads may share it, processes do not."""

    def __init__(self) -> None:
        self._begin()

    def __reduce__(self) -> tuple[type[OpenImages], tuple[()]]:
        return OpenImages, ()  # another process opens files of its own

    def read(
        self, key: Hashable, where: Where, part: Part, channels: int, config: DataConfig, pixels: PixelRange | None,
        plan: BandPlan = PICTURES,
    ) -> NDArray[np.uint8]:  # fmt: skip
        """Pixels [H, W, channels] of one part, as `images.decode_image` makes them of a whole file.

        Args:
            key: of the file.
            where: asked when the file is not open.
            part: which frame, and what of it.
            channels: 1 or 3 of a picture, else the plan's.
            config, pixels, plan: as for `decode_image`.

        Raises:
            BadImage: as there.
        """
        file = self._file(key)
        try:
            with file.lock:
                cut = file.cut(where, part, config, plan)
        except BadImage:
            self._forget(key)
            raise
        pixels = pixels or config.pixel_range
        with faults_told(file.path):
            if isinstance(cut, Image.Image):
                return to_uint8(cut, channels, config.background, config.deep_pixels, pixels)
            if plan.channels is None:
                plan = replace(plan, ranges=(pixels,) if pixels else ())
            return as_channels(cut, channels, config.deep_pixels, plan)

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._files: OrderedDict[Hashable, _File] = OrderedDict()

    def _file(self, key: Hashable) -> _File:
        if self._process != os.getpid():  # forked: descriptors share their positions with the parent's
            self._begin()
        with self._lock:
            file = self._files.pop(key) if key in self._files else _File()
            self._files[key] = file
            while len(self._files) > 1 and (
                len(self._files) > _KEPT_FILES or sum(each.kept for each in self._files.values()) > KEPT_BYTES
            ):
                self._files.popitem(last=False)  # closed when the last thread that reads it lets go
            return file

    def _forget(self, key: Hashable) -> None:
        with self._lock:
            self._files.pop(key, None)


class _File:
    """One file, opened when it is first read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.path, self.kept = "", 0
        self._image: Image.Image | None = None
        self._no_picture = False
        self._turn = 1
        self._decoded: int | None = None
        self._bands: Stored | None = None
        self._file: IO[bytes] | None = None
        self._blocks: tuple[int, tuple[Page, Grid] | None] | None = None

    def __del__(self) -> None:
        for each in (self._image, self._file):
            if each is not None:
                with contextlib.suppress(Exception):  # at the interpreter's end there may be nothing left to do it with
                    each.close()

    def cut(self, where: Where, part: Part, config: DataConfig, plan: BandPlan) -> Image.Image | Stored:
        """One part, upright, of a picture or of bands; `lock` is held."""
        if plan.channels is None and not self._no_picture:
            with contextlib.suppress(NoPicture):
                return self._of_picture(where, part, config)
            self._no_picture = True
        return self._of_bands(where, part, config, plan)

    def _of_bands(self, where: Where, part: Part, config: DataConfig, plan: BandPlan) -> Stored:
        """Decoded alone, or cut from the whole frame, which is decoded once for neighbours."""
        if part.box is not None and (cut := self._blocks_of(where, part.frame, config)) is not None:
            with faults_told(self.path):
                data, (left, top, right, bottom) = region_file(*cut, part.box)
            whole = stored(self.path, config, data, plan.first)
            assert whole.values is not None
            values = whole.values[top:bottom, left:right]
            return whole._replace(
                height=bottom - top, width=right - left, nodata=no_data(cut[0].tags.get(NODATA)), values=values
            )
        if self._bands is None or self._decoded != part.frame:
            self._bands = None
            self.path, contents = where()
            found = stored(self.path, config, contents, plan.first, frame=part.frame)
            self._bands, self._decoded = found, part.frame
        found = self._bands
        assert found.values is not None
        self.kept = found.values.nbytes
        if part.box is None:
            return found
        left, top, right, bottom = part.box
        return found._replace(height=bottom - top, width=right - left, values=found.values[top:bottom, left:right])

    def _blocks_of(self, where: Where, frame: int, config: DataConfig) -> tuple[Page, Grid] | None:
        """A page whose tiles are decoded alone, and its blocks; None of another one."""
        if self._file is None:
            self.path, contents = where()
            with faults_told(self.path, contents):
                self._file = open_file(self.path, contents)
        if self._blocks is None or self._blocks[0] != frame:
            with faults_told(self.path):
                self._blocks = frame, cut_alone(self._file, config, frame)
        return self._blocks[1]

    def _of_picture(self, where: Where, part: Part, config: DataConfig) -> Image.Image:
        if self._image is None:
            self.path, contents = where()
            with faults_told(self.path, contents):
                self._image = open_image(self.path, config, contents)
                self._turn = orientation(self._image, config)
        with faults_told(self.path):
            return keep_nodata(self._cut(self._image, part, config), self._image)

    def _cut(self, image: Image.Image, part: Part, config: DataConfig) -> Image.Image:
        if self._decoded != part.frame:
            if image.tell() != part.frame:
                image.seek(part.frame)
            check_size(self.path, image, config)
            page = page_of(image)
            grid = None if config.tile is None else grid_for(page, config.tile, config.max_pixels)
            if page is not None and grid is not None and part.box is not None:
                self._decoded = None
                return region(page, grid, part.box)
            with PIXELS.taken(image.width * image.height):
                image.load()  # Pillow may close the file now, and takes away a tag that has been obeyed
            self._decoded = part.frame
        self.kept = image.width * image.height * (1 if image.mode in ("1", "L", "P") else 4)
        chosen = image if part.box is None else image.crop(_as_stored(part.box, image.size, self._turn))
        return chosen.transpose(TURNS[self._turn]) if self._turn in TURNS else chosen.copy()


def _as_stored(box: Box, size: tuple[int, int], turn: int) -> Box:
    """Where a box of the upright image lies in the image as it is stored, of this width and height."""
    left, top, right, bottom = box
    if turn >= 5:  # rows are columns
        left, top, right, bottom = top, left, bottom, right
    width, height = size
    if turn in (2, 3, 7, 8):
        left, right = width - right, width - left
    if turn in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def deep_values(header: Header, where: Where, config: DataConfig, plan: BandPlan) -> Stored:
    """An image whose pixels have more than 8 bits, as it is stored: of its middle frame where all are read, and one
    tile in the middle where it is read in tiles.

    Raises:
        BadImage: it cannot be read.
    """
    frame = header.frames[len(header.frames) // 2] if header.frames else Frame(0, header.height, header.width)
    side, box = config.tile, None
    if side is not None and max(frame.height, frame.width) > side:
        wide, high = min(side, frame.width), min(side, frame.height)
        left, top = (frame.width - wide) // 2, (frame.height - high) // 2
        box = (left, top, left + wide, top + high)
    file = _File()
    with file.lock:
        cut = file.cut(where, Part(frame.number, box), config, plan)
    if isinstance(cut, Stored):
        return cut
    with faults_told(file.path):
        values = np.array(cut)[..., None]
    return Stored(cut.height, cut.width, 1, values.dtype, nodata=nodata_of(cut), values=values)
