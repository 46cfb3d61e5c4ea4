"""The batches of each step: images, labels and the random numbers of both views, the same however they are made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.data.base import Source, name_of
from twofold.data.batches.base import Batch
from twofold.data.batches.cache import CachedSource, with_cache
from twofold.data.batches.order import Order
from twofold.data.batches.pipe import Pipe
from twofold.data.batches.workers import Part, Substitution, Task, join_draws
from twofold.data.config import DataConfig
from twofold.data.sources.arrays import ArraySource
from twofold.data.sources.encoded import EncodedSource
from twofold.devices import usable_cores
from twofold.distributed import local_world_size
from twofold.errors import UserError
from twofold.randomness import Key
from twofold.text import counted
from twofold.views.images import ImageDraw, ImageViews

ImageBatch = Batch[torch.Tensor, ImageDraw]


class Loader:
    """Makes the batches.

    All of a batch is a pure function of (source, views, order, seed, step, row): not of the number of worker processes
    or ranks, nor of the step that iteration started from, nor of what is cached.

    Images known to be of one size are given whole if they have at most four times the pixels of a crop. Of others each
    is decoded once, in a worker process, which cuts both crops and rounds them to uint8. An image that cannot be read
    is substituted by the next one by index that can.

    Args:
        source: the images.
        views: draws and cuts the crops.
        order: which images make a step's batch.
        seed: of the run.
        rank, world: this process's rows are rank * n .. (rank + 1) * n - 1 with n = batch / world.
        workers: processes that decode; None takes `config.workers`, or else one for each core and rank here, up to 16.
        config: `workers`, `cache`, `cache_gb` and `jpeg_draft` apply.
        pin_memory: put images into page-locked memory, for asynchronous copies to a GPU.

    Raises:
        UserError: the batch cannot be divided among the ranks, or jpeg_draft is asked for where it cannot be had.
    """

    def __init__(
        self,
        source: Source,
        views: ImageViews,
        order: Order,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        config: DataConfig | None = None,
        pin_memory: bool = False,
    ) -> None:
        config = config or DataConfig()
        if order.batch % world:
            raise UserError(
                f"--batch {order.batch} cannot be divided among {counted(world, 'process')}: give a multiple of {world}"
            )
        _check_draft(config, source, views)
        self.source, self.views, self.order, self.seed = source, views, order, seed
        share = order.batch // world
        self.rows = np.arange(rank * share, (rank + 1) * share)
        selection = config.workers if workers is None else workers
        here = min(world, local_world_size())
        self.workers = (
            max(1, min(16, max(4, usable_cores()) // here, usable_cores())) if selection is None else selection
        )
        self._config = config
        self._pin = pin_memory
        self._reader: Source | None = None
        self._filling = threading.Lock()
        self._pipe: Pipe | None = None

    @property
    def watched(self) -> bool:
        """Whether examples are read in processes that are ended and started again where they hang."""
        return self._pipe is not None and self.workers > 0

    def prepare(self) -> Source:
        """Fill the cache if there is to be one, which may take a while; `iterate` does it where it was not done."""
        with self._filling:  # a monitor that looks before the first step asks from several threads
            if self._reader is None:
                reader = self.source if isinstance(self.source, ArraySource) else with_cache(self.source, self._config)
                if isinstance(reader, CachedSource):
                    reader.fill()
                self._reader = reader
            return self._reader

    def iterate(self, start: int, stop: int) -> Iterator[ImageBatch]:
        """The batches of the steps start <= step < stop. A new iteration ends the one before.

        Raises:
            UserError: too many unreadable files, or a decoding process was killed.
        """
        reader = self.prepare()
        if _whole_shape(reader, self.views) and isinstance(reader, ArraySource | CachedSource):
            return self._from_memory(reader, start, stop)
        return self._from_workers(reader, start, stop)

    def name(self, index: int) -> str:
        """The file of one example."""
        return name_of(self.source, index)

    def close(self) -> None:
        """Stop the worker processes; another `iterate` would start them again."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _from_memory(self, reader: ArraySource | CachedSource, start: int, stop: int) -> Iterator[ImageBatch]:
        cached = isinstance(reader, CachedSource)
        images = reader.stacked() if isinstance(reader, CachedSource) else reader.images
        substitution = Substitution(reader, reader.bad if isinstance(reader, CachedSource) else None)
        height, width = reader.size(0)
        for step in range(start, stop):
            index, skipped = substitution.resolve(self.order.indices(step)[self.rows])
            selection = images.index_select(0, torch.from_numpy(index))
            if cached:
                selection = selection.permute(0, 3, 1, 2).contiguous()
            draws = self.views.draw(Key(self.seed, step), self.rows, height, width)
            yield self._batch(step, index, selection.pin_memory() if self._pin else selection, draws, skipped)

    def _from_workers(self, reader: Source, start: int, stop: int) -> Iterator[ImageBatch]:
        shape = _whole_shape(reader, self.views)
        if self._pipe is None:
            draft = self._config.jpeg_draft
            rows, patience = len(self.rows), self._config.patience
            self._pipe = Pipe(reader, self.views, self.seed, shape, draft, rows, self.workers, patience)
        parts: list[Part] = []
        done = 0
        for part, pixels in self._pipe.run(self._tasks(start, stop, self._pipe.chunk)):
            if not parts:
                out = torch.empty(
                    (len(pixels), len(self.rows), *pixels.shape[2:]), dtype=torch.uint8, pin_memory=self._pin
                )
            out[:, done : done + len(part.index)] = pixels
            parts.append(part)
            done += len(part.index)
            if done == len(self.rows):
                yield self._assembled(parts, out, shape)
                parts, done = [], 0

    def _tasks(self, start: int, stop: int, chunk: int) -> Iterator[Task]:
        for step in range(start, stop):
            index = self.order.indices(step)[self.rows]
            for begin in range(0, len(self.rows), chunk):
                yield Task(step, self.rows[begin : begin + chunk], index[begin : begin + chunk])

    def _assembled(self, parts: list[Part], out: torch.Tensor, shape: tuple[int, int] | None) -> ImageBatch:
        step = parts[0].task.step
        if shape is None:
            drawn = [part.draws for part in parts if part.draws is not None]
            draws = (join_draws([a for a, _ in drawn]), join_draws([b for _, b in drawn]))
        else:
            out = out[0]
            draws = self.views.draw(Key(self.seed, step), self.rows, *shape)
        index = np.concatenate([part.index for part in parts])
        return self._batch(step, index, out, draws, [entry for part in parts for entry in part.skipped])

    def _batch(
        self,
        step: int,
        index: NDArray[np.int64],
        images: torch.Tensor,
        draws: tuple[ImageDraw, ImageDraw],
        skipped: list[tuple[str, str]],
    ) -> ImageBatch:
        for path, reason in skipped:
            self.source.skipped.add(path, reason)
        labels = self.source.labels
        selection = None if labels is None else torch.from_numpy(labels[index])
        return Batch(step, torch.from_numpy(self.rows), torch.from_numpy(index), images, selection, draws, skipped)


class AsLoaded:
    """The source of a loader, whose images are taken from the loader's cache where it has one: decoded once for both.

    Args:
        loader: which need not have begun.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader.source, name)

    def __len__(self) -> int:
        return len(self._loader.source)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; raises BadImage."""
        return self._loader.prepare().read(index)


def _whole_shape(source: Source, views: ImageViews) -> tuple[int, int] | None:
    """(height, width) if images are given whole. Decided by the data and the crop's size alone, never by memory."""
    sizes, side = source.sizes(), int(views.config.size or 0)
    if isinstance(source, ArraySource):
        return source.size(0)
    if sizes is None or (sizes != sizes[0]).any() or int(sizes[0].prod()) > 4 * side * side:
        return None
    return int(sizes[0, 0]), int(sizes[0, 1])


def _check_draft(config: DataConfig, source: Source, views: ImageViews) -> None:
    if not config.jpeg_draft:
        return
    if not isinstance(source, EncodedSource):
        raise UserError(f"--data.jpeg_draft is for image files, and {source.name} has none: leave it out")
    if views.config.resample not in ("antialias", "bilinear"):
        raise UserError(
            f"--data.jpeg_draft smooths before resampling, which --views.resample {views.config.resample} does not; "
            "use antialias, or leave it out"
        )
