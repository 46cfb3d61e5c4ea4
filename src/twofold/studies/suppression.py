"""Does an easy feature that both views share keep the contrast from learning another one? (arXiv 2011.02803)

Two of the follow-up paper's ways to make such a feature: RandBits, an image with a random integer beside it, a channel
for each of its bits; and digits laid over pictures by addition. Both views of an image have the same bits or digits,
and no crop takes them away. The more of them there are, the better they alone tell images apart, and the less the
classes of the pictures need to be learned. What is not on the authors' page or in their notebook is ours: how the
digits are laid and drawn, and what is measured of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from twofold.data import AudioSource, Order, Source
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.arrays import ArraySource
from twofold.devices import choose_device
from twofold.errors import UserError
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.evaluation.splits import check_labels
from twofold.files import write_atomically
from twofold.options import merge
from twofold.published import find
from twofold.randomness import Key, permutation, uniforms
from twofold.recipe import read_layers
from twofold.report import Table
from twofold.report.tables import spread
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.studies.cells import Cell
from twofold.studies.grid import Contrast, GridConfig, GridPart, GridStudy, Place, Score
from twofold.text import counted

_READ = 3
"""Bits that a classifier is to read: of more there would be more classes than it has images to learn from."""
_COPIES = 3
"""A digit stands in so many rows and columns of a picture, so that every crop has it."""
_DIGIT = 8
"""Side of scikit-learn's digits."""

Compete = Literal["bits", "digits"]
_AMOUNTS: dict[Compete, tuple[int, ...]] = {"bits": (0, 5, 10, 15, 20), "digits": (0, 10, 100, 1000)}


@dataclass(frozen=True)
class SuppressionConfig(GridConfig):
    """What competes, how much of it, and at which temperatures."""

    compete: Compete = "bits"
    """bits: channels of a random integer; digits: digits laid over the pictures."""
    amounts: tuple[int, ...] | None = None
    """Bits of the integer, or different pictures of digits; 0 is without. When not given 0, 5, 10, 15 and 20 bits, or
    0, 10, 100 and 1000 digits."""
    temperatures: tuple[float, ...] = (0.1,)
    """Temperatures of the contrast."""
    side: int | None = None
    """Side of the images, cut square from their middle and scaled; their own when not given, if all have one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("amounts", "temperatures"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise UserError(f"--{name} must name at least one, and none twice; got {list(values)}")
        most, least = {"bits": (32, 0), "digits": (1797, 0)}[self.compete]
        wrong = [n for n in self.amounts or () if not least <= n <= most or (self.compete == "digits" and n == 1)]
        if wrong:
            what = "0 to 32 bits" if self.compete == "bits" else "0, or 2 to 1,797 pictures of digits"
            raise UserError(f"--amounts {wrong[0]}: there are {what}")
        if min(self.temperatures) <= 0:
            raise UserError(f"--temperatures must be above 0, got {list(self.temperatures)}")
        if self.side is not None and self.side < 8:
            raise UserError(f"--side must be at least 8, got {self.side}")

    def counts(self) -> tuple[int, ...]:
        """The amounts, ascending."""
        return tuple(sorted(_AMOUNTS[self.compete] if self.amounts is None else self.amounts))


class Pictures(NamedTuple):
    """Images [n, H, W, C] and classes [n] of a part."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def with_bits(images: NDArray[np.uint8], bits: int, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, H, W, C] with a channel for each bit of a random integer, black or white all over.

    Args:
        images: of a part.
        bits: how many; an image's first ones are the same whatever their number.
        part: its name: other parts have other integers.

    Returns:
        The images [n, H, W, C + bits], and the number that each one's first bits make, at most 3 of them.
    """
    drawn = uniforms(Key(0, 0), f"suppression/{part}", np.arange(len(images)), bits) < 0.5
    planes = np.broadcast_to(np.where(drawn, 255, 0).astype(np.uint8)[:, None, None], (*images.shape[:3], bits))
    read = drawn[:, : min(bits, _READ)]
    return np.concatenate([images, planes], axis=3), (read << np.arange(read.shape[1])).sum(1).astype(np.int64)


def with_digits(images: NDArray[np.uint8], pictures: int, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, H, W, C] with a digit of scikit-learn's added to all channels, nine times in three rows.

    Args:
        images: of a part; at least 24 pixels a side.
        pictures: different pictures of digits that are drawn from, the same for all parts.
        part: its name: other parts draw others.

    Returns:
        The images, and the digit of each, 0 to 9.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = permutation(0, "suppression/digits", 0, len(digits.images))[:pictures]
    drawn = known[(uniforms(Key(0, 0), f"suppression/{part}", np.arange(len(images)), 1)[:, 0] * pictures).astype(int)]
    scale = min(images.shape[1:3]) // (_COPIES * _DIGIT)
    layer = np.zeros((len(images), *images.shape[1:3]), np.float64)
    ink = np.kron(digits.images[drawn] / 16 * 255, np.ones((1, scale, scale)))
    for row in range(_COPIES):
        for column in range(_COPIES):
            top, left = ((side - _COPIES * scale * _DIGIT) * (2 * at + 1) // (2 * _COPIES) + at * scale * _DIGIT
                         for side, at in zip(images.shape[1:3], (row, column), strict=True))  # fmt: skip
            layer[:, top : top + scale * _DIGIT, left : left + scale * _DIGIT] = ink
    added = np.clip(images + layer[..., None], 0, 255).round().astype(np.uint8)
    return added, digits.target[drawn].astype(np.int64)


class SuppressionStudy(GridStudy):
    """Temperature by how much of the competing feature there is; beside the classes, how well that itself is read."""

    name = "suppression"
    Config = SuppressionConfig
    title = "Feature suppression"
    rows_are, columns_are = "temperature", "competing"
    paper_data: ClassVar[str] = "MNIST"
    source: ClassVar[str] = "the authors' notebook, a small net of theirs; arXiv 2011.02803"

    def places(self) -> Sequence[Place]:
        """Row the temperature, column the amount. Colours stay, since they would change the bits."""
        views = {"color_strength": 0.0, "grayscale": 0.0, "crop_area": [0.5, 1.0]}
        return [
            Place(f"{t:g}", self._column(n), {"method": {"name": "simclr", "temperature": t}, "views": views})
            for t in sorted(self.config.temperatures)
            for n in self.config.counts()
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """Each amount against the least."""
        least, *more = [self._column(n) for n in self.config.counts()]
        rows = [f"{t:g}" for t in sorted(self.config.temperatures)]
        return [Contrast(f"{m} less {least}, temperature {t}", (t, m), (t, least)) for t in rows for m in more]

    def published(self, row: str, column: str) -> float | None:
        """The notebook's accuracy."""
        if self.config.compete != "bits":
            return None
        known = {tuple(each.keys.values()): each.values["result"] for each in find("intriguing/randbits")[0].rows}
        return known.get((row, column.partition(" ")[0]))

    def _column(self, amount: int) -> str:
        return f"{amount} {self.config.compete}"

    def plan(self) -> Sequence[GridPart]:
        """One part a run, each on images of its own; what is wrong with any is said before the first."""
        config, train = self.config, self._pictures["train"]
        own = {name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None}
        shared = merge(read_layers(config.recipe, config.config, {}), own)
        parts, places = list[GridPart](), self.places()
        for seed in range(config.seeds):
            for number, place in enumerate(places):
                channels = {"encoder": {"channels": self._channels(place.column)}}
                options = merge(shared, place.options, channels, {"seed": seed})
                parts.append(GridPart(f"cell{number:02}-seed{seed}", place.row, place.column, seed, options))
        for part in parts[: len(places)]:
            images, _ = self._made(Pictures(train.images[:2], train.labels[:2]), part.column, "train")
            facts = dataclasses.replace(ArraySource(images).facts(), count=len(train.images), labelled=True)
            chosen, _ = choose(build(part.options, origin=self.describe(part)), facts, choose_device("auto"))
            Order(len(train.images), chosen.batch or 1, 0)
        self.parts = parts
        return parts

    @cached_property
    def _pictures(self) -> dict[str, Pictures]:
        """Both parts of the data in one size."""
        config = self.config
        first, second = evaluation_parts(self.data, config.test, config.data)
        if isinstance(first, AudioSource):
            raise UserError(f"{self.data} holds recordings, and bits and digits are laid over images: give some")
        train, test = labelled_parts(first, second)
        check_labels(train, test)
        parts = {"train": _pictures(train, config.side), "test": _pictures(test, config.side)}
        side = min(parts["train"].images.shape[1:3])
        most = self.config.counts()[-1]
        if config.compete == "digits" and most and side < _COPIES * _DIGIT:
            raise UserError(f"digits take {_COPIES * _DIGIT} pixels and the images have {side}: give --side 32")
        channels = parts["train"].images.shape[3] + (most if config.compete == "bits" else 0)
        if channels >= side and channels > 4:
            raise UserError(
                f"{counted(channels, 'channel')} of {counted(side, 'pixel')} a side: give fewer --amounts, or a "
                "larger --side"
            )
        return parts

    def _channels(self, column: str) -> int:
        own = int(self._pictures["train"].images.shape[3])
        return own + (int(column.partition(" ")[0]) if self.config.compete == "bits" else 0)

    def _made(self, part: Pictures, column: str, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The images of a part with what competes, and what of that is to be read; nothing of none."""
        amount = int(column.partition(" ")[0])
        if not amount:
            return part.images, np.zeros(len(part.images), np.int64)
        return (with_bits if self.config.compete == "bits" else with_digits)(part.images, amount, name)

    def _cell(self, part: GridPart) -> Cell:
        """On the column's own images, which are made where they are not there yet."""
        cell = super()._cell(part)
        place = self.folder.path.resolve() / "data"
        file, other = (place / f"{part.column.replace(' ', '-')}{end}.npz" for end in ("", "-read"))
        if not file.exists():  # it is written last
            made = {name: self._made(pictures, part.column, name) for name, pictures in self._pictures.items()}
            arrays = {f"x_{name}": images for name, (images, _) in made.items()}
            train, test = made["train"][1], made["test"][1]
            both = np.intersect1d(train, test)  # a small test part may lack some
            if len(both) > 1:
                known = [np.where(np.isin(each, both), each, -1) for each in (train, test)]
                _write(other, arrays | dict(zip(("y_train", "y_test"), known, strict=True)))
            _write(file, arrays | {f"y_{name}": pictures.labels for name, pictures in self._pictures.items()})
        work = cell.work | {"data": str(file), "test": None} | ({"other": str(other)} if other.exists() else {})
        return Cell(cell.place, work)

    def table(self, cells: Sequence[Score]) -> Table:
        """Linear accuracy of the classes, and below that of what competes."""
        table = super().table(cells)
        rows, columns = list(dict.fromkeys(c.row for c in cells)), list(dict.fromkeys(c.column for c in cells))
        body = []
        for row, line in zip(rows, table.rows, strict=True):
            read = [[c.more.get("other_top1") for c in cells if (c.row, c.column) == (row, col)] for col in columns]
            known = [[value for value in values if value is not None] for values in read]
            body += [[f"{row}: classes", *line[1:]]]
            body += [[f"{row}: {self.config.compete}", *(spread(values) if values else "" for values in known)]]
        what = (
            f"of the first {_READ} bits, as one of 8 numbers" if self.config.compete == "bits" else "of the ten digits"
        )
        note = f"{table.note} Below the classes the same {what}."
        return dataclasses.replace(table, rows=body, note=note)


def _pictures(source: Source, side: int | None) -> Pictures:
    """A part's labelled images in one size; UserError where they have several and none is asked for."""
    labels = np.asarray(source.labels)
    images, kept = list[NDArray[np.uint8]](), []
    for index in np.flatnonzero(labels >= 0).tolist():
        try:
            image = source.read(index)
        except BadImage as error:
            source.skipped.add(error.path, error.reason)
            continue
        if side is not None and image.shape[:2] != (side, side):
            image = _square(image, side)
        if images and image.shape != images[0].shape:
            raise UserError(f"{source.name} has images of {images[0].shape} and of {image.shape}: give --side 32")
        images.append(image)
        kept.append(index)
    return Pictures(np.stack(images), labels[kept])


def _square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle of an image [H, W, C], scaled to [side, side, C]."""
    height, width = image.shape[:2]
    own = min(height, width)
    top, left = (height - own) // 2, (width - own) // 2
    middle = torch.from_numpy(np.ascontiguousarray(image[top : top + own, left : left + own]))
    scaled = F.interpolate(middle.permute(2, 0, 1)[None].float(), (side, side), mode="bicubic", antialias=True)
    result: NDArray[np.uint8] = scaled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return result


def _write(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    write_atomically(file, lambda place: np.savez_compressed(place, allow_pickle=False, **arrays))
