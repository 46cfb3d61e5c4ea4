"""Decoded images in memory that the decoding processes share, so that files are decoded once, not once an epoch."""

from __future__ import annotations

import mmap
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.data.base import DataFacts, Source
from twofold.data.config import DataConfig
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.pieces import PiecesSource
from twofold.devices import available_memory, usable_cores
from twofold.errors import UserError

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How decoding processes start. They use one thread each and no CUDA, which makes fork safe; macOS's never is."""


def shared_bytes(count: int) -> torch.Tensor:
    """A uint8 tensor [count] that processes started later see and write too.

    Where they are forked it is anonymous shared memory: /dev/shm, which containers often limit to 64 MB, is not used.
    """
    if START_METHOD == "fork":
        return torch.frombuffer(mmap.mmap(-1, max(count, 1)), dtype=torch.uint8)[:count]
    shared: torch.Tensor = torch.empty(count, dtype=torch.uint8).share_memory_()
    return shared


def with_cache(source: Source, config: DataConfig) -> Source:
    """The source itself, or a CachedSource (to be filled) if `config.cache` asks for it and memory allows.

    Raises:
        UserError: cache=ram and not enough memory.
    """
    if config.cache == "off" or config.jpeg_draft:
        return source
    sizes = source.sizes()
    if sizes is None:
        if config.cache == "auto":
            return source
        sizes = _measure(source)
    needed, free = int(sizes.astype(np.int64).prod(axis=1).sum()) * source.channels, available_memory()
    if config.cache == "ram" and needed > free:
        raise UserError(
            f"--data.cache ram: {source.name} needs {needed / 2**30:.1f} GiB decoded, {free / 2**30:.1f} GiB are free; "
            "use --data.cache off"
        )
    fits = needed <= min(config.cache_gb * 2**30, free / 2)
    return CachedSource(source, sizes) if config.cache == "ram" or fits else source


class CachedSource:
    """A source whose pixels are decoded once, by `fill`, into shared memory.

    Args:
        source: where they come from.
        sizes: [n, 2] height and width of every image; 0 for one that cannot be read.
    """

    def __init__(self, source: Source, sizes: NDArray[np.int32]) -> None:
        self.name, self.channels, self.classes = source.name, source.channels, source.classes
        self.skipped = source.skipped
        self._source = source
        self._sizes = sizes
        areas = sizes.astype(np.int64).prod(axis=1) * source.channels
        self._ends = np.concatenate([[0], np.cumsum(areas)])
        self._pixels: torch.Tensor | None = None
        self._bad: dict[int, BadImage] = {}

    @property
    def whole(self) -> Source:
        """Where the pixels come from."""
        return self._source

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Those of the source."""
        return self._source.labels

    def __len__(self) -> int:
        return len(self._source)

    def fill(self) -> None:
        """Decode everything, once; unreadable files are noted in `skipped`."""
        if self._pixels is not None:
            return
        self._pixels = shared_bytes(int(self._ends[-1]))
        with ThreadPoolExecutor(_threads(self._source)) as pool:
            result = [bad for bad in pool.map(self._fill_one, range(len(self))) if bad is not None]
        self._bad = dict(result)
        for _, error in result:
            self.skipped.add(error.path, error.reason)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C], a view of the cache; raises BadImage."""
        if index in self._bad:
            raise self._bad[index]
        return self._view(index)

    def stacked(self) -> torch.Tensor:
        """All images of one size as a view [N, H, W, C]; those in `bad` are black."""
        height, width = self._sizes[0].tolist()
        return self._filled().view(len(self), height, width, self.channels)

    @property
    def bad(self) -> dict[int, BadImage]:
        """What could not be read, by index."""
        return self._bad

    def size(self, index: int) -> tuple[int, int]:
        """(height, width)."""
        return int(self._sizes[index, 0]), int(self._sizes[index, 1])

    def sizes(self) -> NDArray[np.int32]:
        """[n, 2] heights and widths."""
        return self._sizes

    def facts(self) -> DataFacts:
        """Those of the source."""
        return self._source.facts()

    def fingerprint(self) -> str:
        """That of the source."""
        return self._source.fingerprint()

    def _filled(self) -> torch.Tensor:
        if self._pixels is None:
            raise RuntimeError("fill() the cache before reading it")
        return self._pixels

    def _view(self, index: int) -> NDArray[np.uint8]:
        shape = (*self.size(index), self.channels)
        return self._filled()[self._ends[index] : self._ends[index + 1]].numpy().reshape(shape)

    def _fill_one(self, index: int) -> tuple[int, BadImage] | None:
        try:
            pixels, place = self._source.read(index), self._view(index)
            if pixels.shape != place.shape:
                raise BadImage(f"{self.name}[{index}]", f"its header says {place.shape} and its pixels {pixels.shape}")
            place[:] = pixels
        except BadImage as error:
            return index, error
        return None


def _threads(source: Source) -> int:
    """Pillow decodes outside Python's lock, so threads help; a user's own data set may not stand several."""
    return usable_cores() if isinstance(source, EncodedSource | PiecesSource) else 1


def _measure(source: Source) -> NDArray[np.int32]:
    """[n, 2] sizes of sources that do not have them at hand; 0 where an image cannot be read."""

    def attempt(index: int) -> tuple[int, int]:
        try:
            return source.size(index)
        except BadImage:
            return 0, 0

    with ThreadPoolExecutor(_threads(source)) as pool:
        return np.array(list(pool.map(attempt, range(len(source)))), dtype=np.int32)
