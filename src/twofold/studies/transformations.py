"""SimCLR's Table 3: which transformation a view has been through is still in h, and no more in z."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from twofold.errors import UserError
from twofold.published import find
from twofold.report import Figure, Table, bar_figure
from twofold.studies.after import After
from twofold.studies.grid import (
    Contrast,
    GridConfig,
    GridStudy,
    Place,
    Score,
    axes_of,
    beside,
    over_seeds,
    series,
    values,
)
from twofold.studies.kept import TRANSFORMATIONS
from twofold.text import counted

Name = Literal["color", "rotation", "noise", "sobel"]
_NAMES: dict[Name, str] = dict(zip(("color", "rotation", "noise", "sobel"), TRANSFORMATIONS, strict=True))
_COLUMNS = {"chance": "chance", "h": "h", "z": "g(h)"}
"""What is told of each transformation, and what the paper's table calls it."""


@dataclass(frozen=True)
class TransformationsConfig(GridConfig):
    """What is told from the representations."""

    transformations: tuple[Name, ...] | None = None
    """What an MLP is to tell: color (from grey), rotation (by how many quarter turns), noise and sobel (from the
    original). When not given all, and of images that have no colour all but color."""
    images: int = 2000
    """Views that each MLP is fitted on, and at most as many test images that it is scored on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 10:
            raise UserError(f"--images must be at least 10, got {self.images}")
        if self.transformations is not None and len(set(self.transformations)) != max(len(self.transformations), 1):
            raise UserError(f"--transformations must name at least one, none twice; got {list(self.transformations)}")


class TransformationsStudy(GridStudy):
    """Table 3: each transformation is added to the views of a pretraining, and then told from h and from z."""

    name = "transformations"
    Config = TransformationsConfig
    title = "What h keeps and z does not"
    rows_are, columns_are = "transformation", ""
    source: ClassVar[str] = "Table 3 of arXiv 2002.05709"
    compared: ClassVar[str] = "Accuracy of telling the transformation"
    needs_width = True
    width: int | None = None
    channels = 3

    def prepare(self, width: int, channels: int) -> None:
        """z is to have as many numbers as h; grey images have no colour to be told."""
        self.width, self.channels = width, channels
        if channels != 3 and "color" in (self.config.transformations or ()):
            raise UserError(
                f"--transformations color: the images have {counted(channels, 'channel')} and no colour; leave it out"
            )

    def places(self) -> Sequence[Place]:
        """A row for each transformation."""
        wanted = self.config.transformations
        if wanted is None:
            wanted = tuple(name for name in _NAMES if name != "color" or self.channels == 3)
        head = {"kind": "nonlinear", "layers": 2, "out_dim": self.width or 128}
        return [
            Place(_NAMES[name], "", {"head": head, "views": _views(TRANSFORMATIONS[_NAMES[name]])}) for name in wanted
        ]

    def after(self, place: Place, seed: int) -> Sequence[After]:  # noqa: ARG002
        """An MLP on h and one on z."""
        return [After(place.row, "transformation", {"images": self.config.images})]

    def contrasts(self) -> Sequence[Contrast]:
        """h against z."""
        return [
            Contrast(f"{place.row}, h less z", (place.row, ""), (place.row, ""), f"{place.row}, h", f"{place.row}, z")
            for place in self.places()
        ]

    def published_as(self, row: str, column: str, measure: str) -> float | None:  # noqa: ARG002  # there is one column
        """Table 3."""
        known = {each.keys["transformation"]: each.values for each in find("simclr/table-3")[0].rows}.get(row, {})
        return known.get(_COLUMNS.get(measure.removeprefix(f"{row}, "), ""))

    def table(self, cells: Sequence[Score]) -> Table:
        """Chance, h and z, the paper's numbers in brackets."""
        rows = []
        for row in axes_of(cells)[0]:
            measures = [f"{row}, {what}" for what in _COLUMNS]
            found = [beside(values(cells, (row, ""), each), self.published_as(row, "", each)) for each in measures]
            rows.append([row, *found])
        note = (
            f"Test accuracy in % of an MLP that tells the transformation, {over_seeds(cells)}; z = g(h) has as many "
            f"numbers as h. In brackets the paper's, of ImageNet at its own size ({self.source})."
        )
        return Table(self.title, [self.rows_are, *_COLUMNS], rows, note)

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Bars of chance, h and z."""
        rows = axes_of(cells)[0]
        lines = [series(what, cells, [((row, ""), f"{row}, {what}") for row in rows]) for what in ("h", "z", "chance")]
        return [bar_figure("Telling the transformation", self.rows_are, rows, lines)]


def _views(operators: list[Any]) -> dict[str, Any]:
    return {"operators": operators} if operators else {}
