"""A part of a source, as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twofold.data.base import DataFacts, Source, class_count, sample_indices
from twofold.data.groups import groups_of
from twofold.data.sources.arrays import ArraySource
from twofold.data.sources.audio import AudioSource
from twofold.errors import UserError
from twofold.text import counted


def subset(source: Source, indices: ArrayLike) -> Source:
    """The images of `source` at `indices` [n], in that order; files stay unread until they are asked for."""
    selection = np.asarray(indices, dtype=np.int64)
    if len(selection) and not (selection.min() >= 0 and selection.max() < len(source)):
        raise UserError(
            f"{source.name} has {counted(len(source), 'image')}; there is none at {selection.min()} or "
            f"{selection.max()}"
        )
    if isinstance(source, ArraySource):
        part = ArraySource(source.images[selection], classes=source.classes, name=source.name)
        part.labels = None if source.labels is None else source.labels[selection]  # numbered as in the whole
        part.pixels, part.pixel_range, part.band_ranges = source.pixels, source.pixel_range, source.band_ranges
        part.groups = _chosen(source.groups, selection)
        return part
    if isinstance(source, AudioSource):
        return source.subset(selection)
    return SubsetSource(source, selection)


def of_classes(
    source: Source, labels: NDArray[np.int64], indices: ArrayLike, classes: ArrayLike, names: Sequence[str] | None
) -> Source:
    """The images of `source` at `indices` [n], labelled 0, 1, ... by the places of their classes in `classes`.

    Args:
        source: what there is.
        labels: [N] of all its images.
        indices: of images of these classes alone.
        classes: the numbers of the classes, in the order that they are to have.
        names: of all classes, by number; None where they have none.
    """
    part: Any = subset(source, indices)  # (the labels of every kind of part can be set)
    place = {number: at for at, number in enumerate(np.asarray(classes).tolist())}
    part.labels = np.array([place[number] for number in labels[np.asarray(indices)].tolist()], dtype=np.int64)
    part.classes = None if names is None else [names[number] for number in place]
    result: Source = part
    return result


def _chosen(groups: list[str] | None, indices: NDArray[np.int64]) -> list[str] | None:
    return None if groups is None else [groups[index] for index in indices.tolist()]


class SubsetSource:
    """What `subset` gives for sources that read files."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self._source, self._indices = source, indices
        self.name, self.channels, self.classes, self.skipped = (
            source.name,
            source.channels,
            source.classes,
            source.skipped,
        )
        self.labels = None if source.labels is None else source.labels[indices]
        self.groups = _chosen(groups_of(source), indices)

    @property
    def whole(self) -> Source:
        """What this is a part of."""
        return self._source

    @property
    def indices(self) -> NDArray[np.int64]:
        """[n] where in the whole each image is."""
        return self._indices

    @property
    def path(self) -> Callable[[int], str] | None:
        """Gives the file of one image; None where the whole is not made of files."""
        of_whole = getattr(self._source, "path", None)
        return None if of_whole is None else lambda index: of_whole(int(self._indices[index]))

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; raises BadImage."""
        return self._source.read(int(self._indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image; raises BadImage."""
        return self._source.size(int(self._indices[index]))

    def sizes(self) -> NDArray[np.int32] | None:
        """[n, 2] heights and widths where they are at hand."""
        sizes = self._source.sizes()
        return None if sizes is None else sizes[self._indices]

    def facts(self) -> DataFacts:
        """Of this part; sizes of at most 256 of its images."""
        sizes = np.array([self.size(int(index)) for index in sample_indices(len(self))])
        height, width = (int(side) for side in np.median(sizes, axis=0))
        known = self.sizes()
        equal = known is not None and bool((known == known[0]).all())
        classes = class_count(self.labels, self.classes)
        return DataFacts(
            len(self), height, width, self.channels, equal, self.labels is not None, classes,
            pixels=getattr(self._source, "pixels", ""), pixel_range=getattr(self._source, "pixel_range", None),
            band_ranges=getattr(self._source, "band_ranges", None),
        )  # fmt: skip

    def fingerprint(self) -> str:
        """sha256 of the whole source's fingerprint and the indices."""
        return hashlib.sha256(self._source.fingerprint().encode() + self._indices.tobytes()).hexdigest()
