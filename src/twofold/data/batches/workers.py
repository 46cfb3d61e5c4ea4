"""Decoding in worker processes: each image is decoded once, and what a step needs of it comes back as uint8."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from twofold.data.base import Source
from twofold.data.batches.cache import START_METHOD, shared_bytes
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.encoded import EncodedSource
from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views.images import ImageDraw, ImageViews
from twofold.views.resample import crop_resize_image

CHUNK = 32
"""Most images of one task: few, so that all processes work on the same batch."""
SUBSTITUTES = 16
"""How many images in a row may be unreadable before it is an error."""

Drawn = tuple[type[ImageDraw], dict[str, NDArray[np.generic]]]
"""A draw on its way between processes: as arrays, since tensors would travel by way of /dev/shm."""


@dataclass(frozen=True)
class Task:
    """Some rows of one step."""

    step: int
    rows: NDArray[np.int64]
    """Positions in the global batch."""
    index: NDArray[np.int64]
    """Images."""
    slot: int = 0
    """Where in the ring the pixels go."""


@dataclass(frozen=True)
class Part:
    """What came of a task; the pixels are in the ring."""

    task: Task
    index: NDArray[np.int64]
    """Images, after substitution."""
    skipped: list[tuple[str, str]]
    """(path, reason) of what was substituted."""
    draws: tuple[Drawn, Drawn] | None = None
    """Both views' random numbers, where crops were cut."""
    error: UserError | None = None
    """Raised in the process; handed over, as PyTorch would bury it in a traceback."""


class Substitution:
    """Which image stands in for one that cannot be read: the next one by index that can."""

    def __init__(self, count: int, bad: dict[int, BadImage] | None = None) -> None:
        self._count = count
        self.bad = dict(bad or {})

    def resolve(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
        """Replace the indices of images known to be bad; also gives (path, reason) of those.

        Raises:
            UserError: many images in a row are bad.
        """
        if not self.bad:
            return index, []
        resolved, skipped = index.copy(), []
        for place in np.flatnonzero(np.isin(index, list(self.bad))):
            for hop in range(SUBSTITUTES + 1):
                candidate = int(index[place] + hop) % self._count
                if candidate not in self.bad:
                    resolved[place] = candidate
                    break
                skipped.append((self.bad[candidate].path, self.bad[candidate].reason))
            else:
                listing = "\n".join(f"  {path}: {reason}" for path, reason in skipped[:5])
                raise UserError(
                    f"{SUBSTITUTES + 1} images in a row cannot be read; are the data still there?\n{listing}"
                )
        return resolved, skipped


class Decoder(Dataset[Part]):
    """Runs tasks, in any process.

    Args:
        source: where images come from.
        views: draws and cuts the crops.
        seed: of the run.
        shape: (height, width) of every image, to give them whole; None to cut crops.
        draft: decode JPEG files smaller where both crops allow it (`DataConfig.jpeg_draft`).
        chunk, slots: size of the ring of pixels that the processes and the caller share.
    """

    def __init__(
        self,
        source: Source,
        views: ImageViews,
        seed: int,
        shape: tuple[int, int] | None,
        draft: bool,
        chunk: int,
        slots: int,
    ) -> None:
        self._source, self._views, self._seed, self._shape, self._draft = source, views, seed, shape, draft
        self._size = int(views.config.size or 0)
        side = shape or (self._size, self._size)
        ring = (slots, 1 if shape else 2, chunk, source.channels, *side)
        self._ring = shared_bytes(int(np.prod(ring))).view(ring)
        self._substitution = Substitution(len(source))

    def __getitem__(self, task: Task) -> Part:
        try:
            return self._crops(task) if self._shape is None else self._whole(task)
        except UserError as error:
            return Part(task, task.index, [], error=error)

    def pixels(self, task: Task) -> torch.Tensor:
        """uint8 [views, rows, C, H, W] of a task that is done; valid until its slot is used again."""
        return self._ring[task.slot, :, : len(task.rows)]

    def _whole(self, task: Task) -> Part:
        images: dict[int, NDArray[np.uint8]] = {}
        index, skipped = self._until_good(task.index, lambda i: self._read(i, images))
        out = self.pixels(task)[0].numpy()
        for row, i in enumerate(index.tolist()):
            out[row] = images[i].transpose(2, 0, 1)
        return Part(task, index, skipped)

    def _crops(self, task: Task) -> Part:
        images: dict[int, NDArray[np.uint8]] = {}
        sizes: dict[int, tuple[int, int]] = {}
        probe = (lambda i: self._measure(i, sizes)) if self._draft else (lambda i: self._read(i, images))
        out = self.pixels(task)
        while True:
            index, skipped = self._until_good(task.index, probe)
            shapes = [sizes[i] if self._draft else images[i].shape[:2] for i in index.tolist()]
            heights, widths = np.array(shapes).T
            draws = self._views.draw(Key(self._seed, task.step), task.rows, heights, widths)
            try:
                for row, i in enumerate(index.tolist()):
                    boxes = [draw.box[row].tolist() for draw in draws]
                    if self._draft:
                        crops = self._cut_draft(i, boxes, shapes[row])
                    else:
                        crops = self._cut(images[i], boxes)
                    for view, crop in enumerate(crops):
                        out[view, row] = crop
            except BadImage as error:  # a draft is decoded last, and its substitute has other boxes: begin again
                self._substitution.bad[i] = error
                continue
            return Part(task, index, skipped, (_packed(draws[0]), _packed(draws[1])))

    def _until_good(
        self, index: NDArray[np.int64], probe: Callable[[int], None]
    ) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
        """Probe every image, substituting those that fail."""
        while True:
            resolved, skipped = self._substitution.resolve(index)
            try:
                for i in resolved.tolist():
                    probe(i)
            except BadImage as error:
                self._substitution.bad[i] = error
                continue
            return resolved, skipped

    def _measure(self, i: int, sizes: dict[int, tuple[int, int]]) -> None:
        if i not in sizes:
            sizes[i] = self._source.size(i)

    def _read(self, i: int, images: dict[int, NDArray[np.uint8]]) -> None:
        if i not in images:
            pixels = self._source.read(i)
            if self._shape is not None and pixels.shape[:2] != self._shape:
                reason = f"its header says {self._shape} and its pixels {pixels.shape[:2]}"
                raise BadImage(f"{self._source.name}[{i}]", reason)
            images[i] = pixels

    def _cut(self, image: NDArray[np.uint8], boxes: list[list[int]]) -> list[torch.Tensor]:
        return [crop_resize_image(image, box, self._size, self._views.config.resample) for box in boxes]

    def _cut_draft(self, i: int, boxes: list[list[int]], shape: tuple[int, int]) -> list[torch.Tensor]:
        """Crops of the image decoded at the smallest scale that keeps two pixels for each pixel of a crop."""
        assert isinstance(self._source, EncodedSource)  # the loader has seen to it
        shortest = min(min(box[2:]) for box in boxes)
        shrink = next((s for s in (8, 4, 2) if shortest >= 2 * s * self._size), 1)
        image = self._source.read(i, shrink)
        if image.shape[:2] == shape:  # no JPEG, or no room
            return self._cut(image, boxes)
        if image.shape[:2] != (-(-shape[0] // shrink), -(-shape[1] // shrink)):
            raise BadImage(
                self._source.path(i), f"its header says {shape} and its pixels at 1/{shrink} {image.shape[:2]}"
            )
        layers = [image] if image.shape[2] == 3 else [image[..., c] for c in range(image.shape[2])]
        pictures = [Image.fromarray(layer) for layer in layers]
        crops = []
        for top, left, height, width in boxes:  # Pillow's resize takes boxes with fractions of a pixel
            box = (left / shrink, top / shrink, (left + width) / shrink, (top + height) / shrink)
            crop = np.dstack([
                np.array(picture.resize((self._size, self._size), Image.Resampling.BICUBIC, box=box))
                for picture in pictures
            ])  # fmt: skip
            crops.append(torch.from_numpy(crop).permute(2, 0, 1))
        return crops


class Pipe:
    """A decoder and the processes that run it; with 0 workers it runs in this one."""

    def __init__(
        self,
        source: Source,
        views: ImageViews,
        seed: int,
        shape: tuple[int, int] | None,
        draft: bool,
        rows: int,
        workers: int,
    ) -> None:
        self.chunk = min(CHUNK, -(-rows // max(workers, 1)))
        # Enough for a whole batch while the caller trains on the one before, and one chunk more for each process.
        prefetch = max(2, -(-rows // (self.chunk * max(workers, 1))) + 1)
        self._slots = prefetch * workers + 1
        self._decoder = Decoder(source, views, seed, shape, draft, self.chunk, self._slots)
        self._tasks = _Tasks()
        self._loader: DataLoader[Part] | None = None
        if workers:
            self._loader = DataLoader(
                self._decoder,
                batch_size=None,
                sampler=self._tasks,
                num_workers=workers,
                prefetch_factor=prefetch,
                persistent_workers=True,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                multiprocessing_context=START_METHOD,
                generator=torch.Generator(),  # its own: starting an iteration must not move the global one
            )

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Part, torch.Tensor]]:
        """(part, pixels) of each task in turn; copy the pixels before asking for the next.

        Raises:
            UserError: as `Decoder` and the source raise, or a process was killed.
        """
        # PyTorch has handed out at most slots - 1 tasks beyond the one that it gives us, so no slot is still in use.
        self._tasks.pending = (replace(t, slot=slot) for t, slot in zip(tasks, itertools.cycle(range(self._slots))))
        parts = map(self._decoder.__getitem__, self._tasks) if self._loader is None else iter(self._loader)
        try:
            while (part := _next(parts)) is not None:
                if part.error is not None:
                    raise part.error
                yield part, self._decoder.pixels(part.task)
        finally:
            del parts  # a traceback that someone keeps would keep the processes too

    def close(self) -> None:
        """Stop the processes."""
        self._loader = None


class _Tasks(Sampler[Task]):
    """The tasks of the iteration that runs."""

    def __init__(self) -> None:
        self.pending: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.pending


def _next(parts: Iterator[Part]) -> Part | None:
    try:
        return next(parts, None)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"a decoding process was killed ({error}); if memory ran out, give fewer --data.workers or less --batch"
        ) from error


def join_draws(parts: list[Drawn]) -> ImageDraw:
    """One view's draws of consecutive rows, put together again."""
    kind, first = parts[0]
    return kind(**{name: torch.from_numpy(np.concatenate([arrays[name] for _, arrays in parts])) for name in first})


def _packed(draw: ImageDraw) -> Drawn:
    return type(draw), {field.name: getattr(draw, field.name).numpy() for field in fields(draw)}


def _unchanged(part: Any) -> Any:
    return part


def _start_worker(worker: int) -> None:  # noqa: ARG001  # PyTorch's signature
    torch.set_num_threads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one decides and stops these
