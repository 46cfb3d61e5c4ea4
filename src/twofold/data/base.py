"""What every source of images offers, whatever it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twofold.data.config import DataConfig
from twofold.errors import Option, UserError
from twofold.kinds import EXAMPLE, Kind

SAMPLE = 256
"""How many images are looked at where looking at all of them would take too long."""


@dataclass(frozen=True)
class DataFacts:
    """What defaults can be chosen from, and what a run says about its data."""

    count: int
    """Images."""
    median_height: int
    """In pixels, after orientation."""
    median_width: int
    """In pixels, after orientation."""
    channels: int
    """Of what `read` returns."""
    equal_sized: bool
    """Every image is known to have the same height and width."""
    labelled: bool
    """`labels` is not None."""
    classes: int | None
    """How many classes there are; None without labels."""
    kind: Kind = "image"
    """What the examples are. Of recordings the height is 1 and the width a number of samples."""
    sample_rate: int | None = None
    """Of most of the recordings, in Hz."""
    pixels: str = ""
    """How pixels of more than 8 bits are read, in words; empty where there are none."""
    pixel_range: tuple[float, float] | None = None
    """The values of black and white among pixels of more than 8 bits, where there are such."""
    band_ranges: tuple[tuple[float, float], ...] | None = None
    """Those values band by band, where each has its own."""
    layout: str = ""
    """What was made of a folder's subfolders or a table's columns, in a line: the part that is read, its classes."""


class Source(Protocol):
    """Images by index, with labels if there are any. What it returns depends on the index alone.

    A source may also have `groups`, [n] names of what belongs together (see `data.groups`).
    """

    name: str
    """For people: the folder, file or data set."""
    channels: int
    """Of what `read` returns."""
    skipped: SkipList
    """Files left out so far and why."""

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, by label."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """[n] class indices, below 0 where unlabelled, or [n, K] of 0 and 1 where an image can have many; or None."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one image; raises `BadImage` where its file cannot be read."""

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image, without decoding it if that is possible; raises `BadImage`."""

    def sizes(self) -> NDArray[np.int32] | None:
        """[n, 2] heights and widths where they are at hand, else None."""

    def facts(self) -> DataFacts: ...

    def fingerprint(self) -> str:
        """A hash that changes with the data: of names and file sizes, or of the pixels of arrays."""


@dataclass(frozen=True)
class Splits:
    """What parts some data have."""

    names: tuple[str, ...] = ()
    """What `--data.split` can be, each example in one of them; empty where the data are one whole."""
    evaluation: tuple[str, str] | None = None
    """The parts that classifiers are trained and tested on; None where there are no two."""
    validation: tuple[str, str] | None = None
    """The parts to fit on and to choose settings on, where the data have both beside a test part."""
    others: tuple[str, ...] = ()
    """What `--data.split` can be, too: parts of those in `names`, or of several."""

    @classmethod
    def named(cls, names: Iterable[str]) -> Splits:
        """Parts whose usual names say what they are for."""
        names = tuple(names)
        test = next((name for name in ("test", "val", "validation") if name in names), None)
        if test is None or "train" not in names:
            return cls(names)
        choice = next((name for name in ("val", "validation") if name in names and name != test), None)
        return cls(names, ("train", test), ("train", choice) if choice else None)


@dataclass(frozen=True)
class Format:
    """One form in which data are given in words: a path, or a name. `sources.open.FORMATS` lists them all."""

    example: str
    """What to give, for messages: "a folder of images", "hf:NAME"."""
    takes: Callable[[str], bool]
    """Whether what was given has this form: by its name and, of a folder, by the names in it; no image is read."""
    open: Callable[[str, str | None, DataConfig], Source]
    """(what was given, split, how to read it) -> source; by default the split made for training. Raises UserError."""
    splits: Callable[[str], Splits]
    """The parts of what was given, without reading images."""


class SkipList(Sequence[tuple[str, str]]):
    """(path, reason) of every file left out, each once; too many of them are an error."""

    def __init__(self, total: int, share: float, kind: str = "images") -> None:
        self._reasons: dict[str, str] = {}
        self._total, self._kind = total, kind
        self._limit = math.ceil(share * total)

    def add(self, path: str, reason: str) -> None:
        """Note one file; raises UserError, listing the first few, beyond the share `--data.max_skipped`."""
        self._reasons.setdefault(path, reason)
        if len(self._reasons) > self._limit:
            raise UserError(
                f"{len(self._reasons)} of {self._total} {self._kind} cannot be read and ",
                Option("data.max_skipped"),
                f" allows {self._limit}; mend or remove them, or raise the limit:\n{self.summary(5)}",
            )

    def summary(self, most: int = 5) -> str:
        """One line a file, at most `most` of them, and how many more there are."""
        lines = [f"  {path}: {reason}" for path, reason in list(self._reasons.items())[:most]]
        rest = len(self._reasons) - len(lines)
        return "\n".join([*lines, f"  and {rest} more"] if rest > 0 else lines)

    def __getitem__(self, index: int) -> tuple[str, str]:  # type: ignore[override]  # by position only
        return list(self._reasons.items())[index]

    def __len__(self) -> int:
        return len(self._reasons)


def skipped_of(*sources: Source | None) -> tuple[tuple[str, str], ...]:
    """(path, reason) of every file that some sources left out, each once."""
    return tuple(dict.fromkeys(each for source in sources if source is not None for each in source.skipped))


def sample_indices(count: int, most: int = SAMPLE) -> NDArray[np.int64]:
    """At most `most` indices spread evenly over 0..count-1, always the same ones."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def class_count(labels: NDArray[np.int64] | None, classes: list[str] | None) -> int | None:
    """The number of classes: of the names where there are names, else one more than the largest label."""
    if labels is None:
        return None
    if classes is not None:
        return len(classes)
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1


def name_of(source: Any, index: int) -> str:
    """The file of one example of a source of images or recordings, or its place in data that have no files."""
    path = getattr(source, "path", None)
    return str(path(index)) if callable(path) else f"{source.name}[{index}]"


class NothingReadable(UserError):
    """There are files and none can be read; `skipped` has the path of each and the reason."""

    skipped: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, message: str, skipped: Iterable[tuple[str, str]]) -> NothingReadable:
        """The error with what was left out."""
        error = cls(message)
        error.skipped = tuple(skipped)
        return error

    def renamed(self, names: Mapping[str, str]) -> NothingReadable:
        """See `UserError.renamed`."""
        error = super().renamed(names)
        assert isinstance(error, NothingReadable)
        error.skipped = self.skipped
        return error


def require_pairs(source: Source, least: int = 2) -> None:
    """Raise UserError for fewer than two images, or than `least`: contrast needs another one."""
    if not len(source) and len(source.skipped):
        message = f"{source.name} holds no image that can be read:\n{source.skipped.summary()}"
        raise NothingReadable.of(message, source.skipped)
    if not len(source):
        raise UserError(f"{source.name} holds no image: the list or folder of this part is empty")
    if len(source) < least:
        what = EXAMPLE[getattr(source, "kind", "image")]
        left = f"; left out were\n{source.skipped.summary()}" if len(source.skipped) else ""
        raise UserError(
            f"{source.name}: {len(source)} {what}; contrast needs at least 2, and learning some hundreds{left}"
        )
