"""SimCLR's ablations as studies: augmentations and batch.

Each is a table of short pretrainings on your own data, scored by a linear classifier on the frozen encoder. The paper's
numbers stand beside where a place of the table is theirs; those are of ImageNet at full length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from twofold.errors import UserError
from twofold.published import values_of
from twofold.report import Figure, Table, heat_figure
from twofold.studies.grid import Contrast, GridConfig, GridStudy, Place, Score, Trend, axes_of, values
from twofold.text import counted

Operators = Literal["crop", "cutout", "color", "sobel", "noise", "blur", "rotate"]
_OPERATORS: tuple[Operators, ...] = ("crop", "cutout", "color", "sobel", "noise", "blur", "rotate")


@dataclass(frozen=True)
class AugmentationsConfig(GridConfig):
    """Which operators are composed."""

    varied = ("operators",)

    seeds: int = 1
    """Runs of each cell, with seeds 0, 1, ...; of one seed no difference counts."""
    operators: tuple[Operators, ...] = _OPERATORS
    """Operators: each alone, and each after each other."""


class AugmentationsStudy(GridStudy):
    """Figure 5: operators on one view alone, one by one and composed, both views sharing a first crop."""

    name = "augmentations"
    Config = AugmentationsConfig
    title = "Composition of augmentations"
    rows_are, columns_are = "first", "second"
    source: ClassVar[str] = "figure 5 of arXiv 2002.05709"

    def places(self) -> Sequence[Place]:
        """Row the first operator, column the second, the diagonal one alone; a recipe's own changes are left out."""
        base = {"operators_on": "first", "shared_crop": True, "color_strength": 0.0, "blur": 0.0, "rotation": 0.0}
        return [
            Place(first, second, {"views": base | {"operators": [first] if first == second else [first, second]}})
            for first in self.config.operators
            for second in self.config.operators
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """The paper's finding: crop with colour against each of them alone."""
        both = ("crop", "color")
        return [Contrast(f"crop, then color, less {one} alone", both, (one, one)) for one in both]

    def _means(self, cells: Sequence[Score]) -> list[list[float | None]]:
        rows, columns = axes_of(cells)
        found = [[values(cells, (row, column)) for column in columns] for row in rows]
        return [[float(np.mean(each)) if each else None for each in row] for row in found]

    def table(self, cells: Sequence[Score]) -> Table:
        """With the average of each row, as the figure has it."""
        table = super().table(cells)
        averages = [np.mean([v for v in row if v is not None]) for row in self._means(cells)]
        rows = [[*row, f"{100 * average:.1f}"] for row, average in zip(table.rows, averages, strict=True)]
        return dataclasses.replace(table, columns=[*table.columns, "average"], rows=rows)

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """The matrix as a heat map."""
        rows, columns = axes_of(cells)
        note = "Linear accuracy in %; on the diagonal one operator alone."
        words = {"rows_are": "first operator", "columns_are": "second operator"}
        return [heat_figure("Composition of operators", rows, columns, self._means(cells), note=note, **words)]


@dataclass(frozen=True)
class BatchConfig(GridConfig):
    """Which batches and lengths are compared."""

    varied = ("batches", "lengths")

    batches: tuple[int, ...] = (32, 128)
    """Images per step."""
    lengths: tuple[float, ...] = (5, 20)
    """Passes over the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, instead in (("batch", "batches"), ("epochs", "lengths")):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} is what this study varies: use --{instead}")


class BatchStudy(GridStudy):
    """Figure 9 and Table B.1: batch by length of training."""

    name = "batch"
    Config = BatchConfig
    title = "Batch and length of training"
    rows_are, columns_are = "batch", "epochs"
    source: ClassVar[str] = "Table B.1 of arXiv 2002.05709, by the same rule of the learning rate"

    def places(self) -> Sequence[Place]:
        """Row the batch, column the epochs."""
        return [
            Place(str(batch), f"{epochs:g}", {"batch": batch, "epochs": epochs})
            for batch in sorted(self.config.batches)
            for epochs in sorted(self.config.lengths)
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """The largest batch against the smallest, at each length: the paper finds the gap smaller with more epochs."""
        low, high = str(min(self.config.batches)), str(max(self.config.batches))
        return [
            Contrast(
                f"batch {high} less {low}, {counted(epochs, 'epoch')}", (high, f"{epochs:g}"), (low, f"{epochs:g}")
            )
            for epochs in sorted(self.config.lengths)
            if low != high
        ]

    def trends(self) -> Sequence[Trend]:
        """What the larger batch gains in the shortest training against what it gains in the longest."""
        found = self.contrasts()
        if len(found) < 2:
            return []
        words = f"{found[0].words}, less the same at {found[-1].words.rpartition(', ')[2]}"
        return [Trend(words, found[0], found[-1])]

    def published(self, row: str, column: str) -> float | None:
        """Table B.1 under the rule that the cells' options name; nothing where they name none."""
        rule = self.shared.get("optim", {}).get("lr_rule")
        return values_of("simclr/table-b1").get((row, column, str(rule)))
