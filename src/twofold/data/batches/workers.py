"""What decoding processes do: each image is decoded once, and what a step needs of it comes back as uint8."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, get_worker_info

from twofold.data.base import Source, name_of
from twofold.data.batches.cache import CachedSource, shared_bytes
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.encoded import EncodedSource
from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views.images import ImageDraw, ImageViews
from twofold.views.resample import crop_resize_image

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
    """Which image stands in for one that cannot be read: the next one by index that can, of pieces in another file.

    Args:
        source: of the images. One that is cut into pieces says where the next file's begin (`PiecesSource.after`): what
            is wrong with a file is wrong with most of its pieces.
        bad: images that are known to be unreadable.
    """

    def __init__(self, source: Any, bad: dict[int, BadImage] | None = None) -> None:
        self._count = len(source)
        cut = source.whole if isinstance(source, CachedSource) else source
        self._after: Callable[[int], int] | None = getattr(cut, "after", None)
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
            candidate = int(index[place])
            for hop in range(SUBSTITUTES + 1):
                if hop:
                    candidate = (candidate + 1 if self._after is None else self._after(candidate)) % self._count
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
        workers: processes that run tasks; each notes for the caller what it reads and since when.
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
        workers: int = 0,
    ) -> None:
        self._source, self._views, self._seed, self._shape, self._draft = source, views, seed, shape, draft
        self._reading = shared_bytes(16 * max(workers, 1)).view(torch.int64).view(-1, 2)
        self._size = int(views.config.size or 0)
        side = shape or (self._size, self._size)
        ring = (slots, 1 if shape else 2, chunk, source.channels, *side)
        self._ring = shared_bytes(int(np.prod(ring))).view(ring)
        self._substitution = Substitution(source)

    def __getitem__(self, task: Task) -> Part:
        try:
            return self._crops(task) if self._shape is None else self._whole(task)
        except UserError as error:
            return Part(task, task.index, [], error=error)

    def pixels(self, task: Task) -> torch.Tensor:
        """uint8 [views, rows, C, H, W] of a task that is done; valid until its slot is used again."""
        return self._ring[task.slot, :, : len(task.rows)]

    def name(self, index: int) -> str:
        """The file of an image."""
        return name_of(self._source, index)

    def pass_over(self, index: int, reason: str) -> None:
        """Count an image as unreadable; for processes that are started from now on."""
        self._substitution.bad[index] = BadImage(self.name(index), reason)

    def reading(self) -> list[tuple[int, float]]:
        """(image, seconds since) of what each process reads just now."""
        now = time.monotonic_ns()
        return [(index - 1, (now - since) / 1e9) for index, since in self._reading.tolist() if index > 0]

    def forget(self) -> None:
        """The processes have been ended: none of them reads."""
        self._reading.zero_()

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            row = self._reading[worker.id]
            row[1], row[0] = time.monotonic_ns(), index + 1  # (in this order: the reader looks between the two)

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
                        self._note(i)
                        crops = self._cut_draft(i, boxes, shapes[row])
                    else:
                        crops = self._cut(images[i], boxes)
                    for view, crop in enumerate(crops):
                        out[view, row] = crop
            except BadImage as error:  # a draft is decoded last, and its substitute has other boxes: begin again
                self._substitution.bad[i] = error
                continue
            finally:
                self._note(-1)
            return Part(task, index, skipped, (_packed(draws[0]), _packed(draws[1])))

    def _until_good(
        self, index: NDArray[np.int64], probe: Callable[[int], None]
    ) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
        """Probe every image, substituting those that fail."""
        while True:
            resolved, skipped = self._substitution.resolve(index)
            try:
                for i in resolved.tolist():
                    self._note(i)
                    probe(i)
            except BadImage as error:
                self._substitution.bad[i] = error
                continue
            finally:
                self._note(-1)
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
        bilinear = self._views.config.resample == "bilinear"
        rule = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        crops = []
        for top, left, height, width in boxes:  # Pillow's resize takes boxes with fractions of a pixel
            box = (left / shrink, top / shrink, (left + width) / shrink, (top + height) / shrink)
            crop = np.dstack([
                np.array(picture.resize((self._size, self._size), rule, box=box))
                for picture in pictures
            ])  # fmt: skip
            crops.append(torch.from_numpy(crop).permute(2, 0, 1))
        return crops


def join_draws(parts: list[Drawn]) -> ImageDraw:
    """One view's draws of consecutive rows, put together again."""
    kind, first = parts[0]
    return kind(**{name: torch.from_numpy(np.concatenate([arrays[name] for _, arrays in parts])) for name in first})


def _packed(draw: ImageDraw) -> Drawn:
    return type(draw), {field.name: getattr(draw, field.name).numpy() for field in fields(draw)}
