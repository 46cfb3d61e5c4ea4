"""SimCLR's Table 1: how strong the colours should be distorted, without labels and with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from twofold.published import values_of
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

Strength = Literal["0.125", "0.25", "0.5", "1", "1-blur", "AutoAugment"]
_STRENGTHS: tuple[Strength, ...] = ("0.125", "0.25", "0.5", "1", "1-blur", "AutoAugment")
SIMCLR, SUPERVISED = "SimCLR", "supervised"


@dataclass(frozen=True)
class StrengthConfig(GridConfig):
    """Which strengths are compared."""

    varied = ("strengths",)

    strengths: tuple[Strength, ...] = _STRENGTHS
    """Strengths of colour distortion; 1-blur: of 1, and blur; AutoAugment: its policy for ImageNet in their place."""
    supervised_epochs: float | None = None
    """Passes over the data of training with labels; chosen from the number of images when not given."""
    supervised_batch: int | None = None
    """Images per step of training with labels; chosen from their number when not given."""


def views_of(strength: str) -> dict[str, Any]:
    """Options of the views of a column."""
    if strength == "AutoAugment":
        return {"color_strength": 0.0, "blur": 0.0, "operators": ["autoaugment"]}
    number, blurred, _ = strength.partition("-blur")
    return {"color_strength": float(number), "grayscale": 0.2, "blur": 0.5 if blurred else 0.0}


class StrengthStudy(GridStudy):
    """Table 1: strength of colour distortion in SimCLR, and in training the same net from a random start with labels
    on the same views."""

    name = "color"
    Config = StrengthConfig
    title = "Strength of colour distortion"
    rows_are, columns_are = "training", "strength"
    source: ClassVar[str] = "Table 1 of arXiv 2002.05709"
    compared: ClassVar[str] = "Accuracy"

    def places(self) -> Sequence[Place]:
        """A column for each strength."""
        return [Place(SIMCLR, strength, {"views": views_of(strength)}) for strength in self.config.strengths]

    def after(self, place: Place, seed: int) -> Sequence[After]:
        """The supervised counterpart."""
        own = {"epochs": self.config.supervised_epochs, "batch": self.config.supervised_batch}
        options = {"labels": "all", "from_scratch": True, "seed": seed, "views": place.options["views"]}
        return [After(SUPERVISED, "finetune", options | {n: value for n, value in own.items() if value is not None})]

    def contrasts(self) -> Sequence[Contrast]:
        """The paper's finding: the strongest against the weakest, which helps without labels and harms with them."""
        numbered = [s for s in self.config.strengths if s not in ("1-blur", "AutoAugment")]
        low, high = min(numbered, key=float, default=""), max(numbered, key=float, default="")
        if low == high:
            return []
        return [
            Contrast(f"strength {high} less {low}, {words}", (SIMCLR, high), (SIMCLR, low), of)
            for words, of in ((SIMCLR, "linear"), (SUPERVISED, SUPERVISED))
        ]

    def published_as(self, row: str, column: str, measure: str) -> float | None:  # noqa: ARG002  # cells have one row
        """Table 1, of linear evaluation and of training with labels."""
        training = {"linear": SIMCLR, SUPERVISED: SUPERVISED}.get(measure)
        return values_of("simclr/table-1").get((str(training), column))

    def table(self, cells: Sequence[Score]) -> Table:
        """A row for training without labels and one with them, the paper's numbers in brackets."""
        columns = axes_of(cells)[1]
        rows = [
            [row, *(beside(values(cells, (SIMCLR, column), of), self.published_as(SIMCLR, column, of))
                    for column in columns)]
            for row, of in ((SIMCLR, "linear"), (SUPERVISED, SUPERVISED))
        ]  # fmt: skip
        note = (
            f"Test accuracy in %, of SimCLR by linear evaluation, {over_seeds(cells)}. In brackets the paper's, of "
            f"ImageNet at its own size ({self.source}, which leaves open which policy of AutoAugment it took)."
        )
        return Table(self.title, [self.rows_are, *columns], rows, note)

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Bars for both kinds of training."""
        columns = axes_of(cells)[1]
        lines = [series(name, cells, [((SIMCLR, column), of) for column in columns])
                 for name, of in ((SIMCLR, "linear"), (SUPERVISED, SUPERVISED))]  # fmt: skip
        return [bar_figure(self.title, self.columns_are, columns, lines)]
