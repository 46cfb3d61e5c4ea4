"""SimCLR's and MoCo's ablations as studies: augmentations, heads, losses, batch, and MoCo's rows.

Each is a table of short pretrainings on your own data, scored by a linear classifier on the frozen encoder. The papers'
numbers stand beside where a place of the table is theirs; those are of ImageNet at full length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from twofold.encoders import load_head
from twofold.errors import UserError
from twofold.options import merge
from twofold.published import values_of
from twofold.report import Figure, Series, Table, heat_figure, line_figure
from twofold.studies.grid import Contrast, GridConfig, GridStudy, Place, Score, axes_of, values

Operators = Literal["crop", "cutout", "color", "sobel", "noise", "blur", "rotate"]
_OPERATORS: tuple[Operators, ...] = ("crop", "cutout", "color", "sobel", "noise", "blur", "rotate")
AS_H = "as h"
"""The column of what has as many outputs as the encoder has features."""


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
        """Row the first operator, column the second, the diagonal one alone."""
        base = {"operators_on": "first", "shared_crop": True, "color_strength": 0.0, "blur": 0.0}
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
class HeadsConfig(GridConfig):
    """Which heads are compared."""

    varied = ("outputs",)

    outputs: tuple[int, ...] = (32, 128)
    """Outputs of the head; without a head it has the features' number, once."""
    eigenvalues: bool = False
    """Train a linear head with as many outputs as the encoder has features, too, and show its eigenvalues."""


class HeadsStudy(GridStudy):
    """Figure 8: no head, a linear one and a nonlinear one, by the number of its outputs."""

    name = "heads"
    Config = HeadsConfig
    title = "Projection heads"
    rows_are, columns_are = "head", "outputs"
    source: ClassVar[str] = "figure 8 of arXiv 2002.05709"
    needs_width = True
    width: int | None = None

    def prepare(self, width: int, channels: int) -> None:  # noqa: ARG002
        """A square head needs the number of features."""
        self.width = width

    def places(self) -> Sequence[Place]:
        """Row the kind, column the outputs."""
        sizes = [str(size) for size in self.config.outputs]
        kinds = ("nonlinear", "linear")
        found = [Place(k, size, {"head": {"kind": k, "out_dim": int(size)}}) for k in kinds for size in sizes]
        if self.config.eigenvalues:
            found.append(Place("linear", AS_H, {"head": {"kind": "linear", "out_dim": self.width}}))
        return [*found, Place("none", AS_H, {"head": {"kind": "none"}})]

    def contrasts(self) -> Sequence[Contrast]:
        """Nonlinear against linear at each size, and linear against none."""
        sizes = [str(size) for size in self.config.outputs]
        found = [Contrast(f"nonlinear less linear, {s} outputs", ("nonlinear", s), ("linear", s)) for s in sizes]
        return [*found, Contrast("linear less none", ("linear", sizes[-1]), ("none", AS_H))]

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Bars over kinds and outputs; the eigenvalues where they were asked for."""
        figures = list(super().figures(cells))
        part = next((part for part in self.parts if (part.row, part.column) == ("linear", AS_H)), None)
        if part is not None:
            figures.append(eigenvalue_figure(self.folder.path / part.name / "encoder.safetensors"))
        return figures


def eigenvalues(weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squares of the real parts of a square matrix's eigenvalues, the largest first (appendix of the paper)."""
    found: NDArray[np.float64] = np.sort(np.linalg.eigvals(weight.astype(np.float64)).real ** 2)[::-1]
    return found


def eigenvalue_figure(file: Path) -> Figure:
    """The eigenvalues of a square linear head, as shares of the largest: few large ones mean that it keeps little."""
    head = load_head(file)
    assert head is not None  # the study trained one
    found = eigenvalues(head.layers[0][0].weight.detach().numpy())  # type: ignore[index]
    shares = [float(value / found[0]) for value in found]
    large = int((found > 0.1 * found[0]).sum())
    note = (
        f"Squares of the real parts of the eigenvalues of the linear head's {len(found)} x {len(found)} matrix, as "
        f"shares of the largest; {large} of them reach a tenth of it."
    )
    return line_figure(
        "Eigenvalues of the linear head", "number", list(range(1, len(found) + 1)), [Series("share", shares)], note=note
    )


class LossesStudy(GridStudy):
    """Table 4: NT-Xent against NT-Logistic and the margin triplet, each with and without semi-hard mining."""

    name = "losses"
    Config = GridConfig
    title = "Losses"
    rows_are, columns_are = "loss", ""
    source: ClassVar[str] = "Table 4 of arXiv 2002.05709, each the best of its grid"
    cases: ClassVar[dict[str, dict[str, Any]]] = {
        "NT-Xent": {},
        "NT-Logistic": {"loss": "nt_logistic"},
        "NT-Logistic (semi-hard)": {"loss": "nt_logistic", "mining": "semi_hard"},
        "margin": {"loss": "margin_triplet"},
        "margin (semi-hard)": {"loss": "margin_triplet", "mining": "semi_hard"},
    }

    def places(self) -> Sequence[Place]:
        """A row a loss, all at the rate and the temperature that all cells share."""
        return [Place(name, "", {"method": {"name": "simclr"} | options}) for name, options in self.cases.items()]

    def contrasts(self) -> Sequence[Contrast]:
        """NT-Xent against each other."""
        return [
            Contrast(f"NT-Xent less {name}", ("NT-Xent", ""), (name, "")) for name in self.cases if name != "NT-Xent"
        ]

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # there is one column
        """Table 4."""
        return values_of("simclr/table-4").get((row,))


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
        lengths = [f"{epochs:g}" for epochs in sorted(self.config.lengths)]
        return [Contrast(f"batch {high} less {low}, {e} epochs", (high, e), (low, e)) for e in lengths if low != high]

    def published(self, row: str, column: str) -> float | None:
        """Table B.1 under the rule that the cells' options name; nothing where they name none."""
        rule = self.shared.get("optim", {}).get("lr_rule")
        return values_of("simclr/table-b1").get((row, column, str(rule)))


@dataclass(frozen=True)
class MocoConfig(GridConfig):
    """How long the cases are trained."""

    epochs: float | None = 20.0
    """Passes over the data in every cell; MoCo's rate falls to a tenth at 60 and again at 80 % of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None or self.epochs < 5:
            raise UserError(f"--epochs {self.epochs}: MoCo's rate falls at 60 and 80 % of them; give 5 or more")


class MocoStudy(GridStudy):
    """MoCo v2's Table 1: MoCo's head, views and schedule, one change after the other."""

    name = "moco"
    Config = MocoConfig
    title = "From MoCo to MoCo v2"
    rows_are, columns_are = "case", ""
    source: ClassVar[str] = "Table 1 of arXiv 2003.04297; README of facebookresearch/moco"
    changes: ClassVar[dict[str, str]] = {"v1": "", "a": "MLP", "b": "aug+", "c": "MLP aug+", "v2": "MLP aug+ cos"}

    def places(self) -> Sequence[Place]:
        """v1, a (a deeper head), b (stronger views), c (both), v2 (and the cosine)."""
        falls = [round(share * self.config.epochs) for share in (0.6, 0.8)]
        steps: dict[str, Any] = {"optim": {"schedule": "step", "milestones": falls}}
        deep: dict[str, Any] = {"head": {"kind": "nonlinear", "layers": 2}, "method": {"temperature": 0.2}}
        flat: dict[str, Any] = {"head": {"kind": "linear"}, "method": {"temperature": 0.07}}
        strong: dict[str, Any] = {"views": {"blur": 0.5, "jitter": 0.8, "jitter_ranges": [0.4, 0.4, 0.4, 0.1]}}
        plain: dict[str, Any] = {"views": {"blur": 0.0, "jitter": 1.0, "jitter_ranges": [0.4, 0.4, 0.4, 0.4]}}
        cosine: dict[str, Any] = {"optim": {"schedule": "cosine_epoch"}}
        return [
            Place(name, "", merge({"method": {"name": "moco"}}, deep if "MLP" in words else flat,
                                  strong if "aug+" in words else plain, cosine if "cos" in words else steps))
            for name, words in self.changes.items()
        ]  # fmt: skip

    def contrasts(self) -> Sequence[Contrast]:
        """Each change against MoCo, and both against MoCo v2."""
        found = [Contrast(f"{name} less v1", (name, ""), ("v1", "")) for name in ("a", "b", "c", "v2")]
        return [*found, Contrast("v2 less c", ("v2", ""), ("c", ""))]

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # there is one column
        """What the README confirms."""
        return values_of("moco/readme").get((f"{row}-200",))

    def table(self, cells: Sequence[Score]) -> Table:
        """With a mark for each change, as the paper has it."""
        table, names = super().table(cells), ("MLP", "aug+", "cos")
        rows = [
            [row[0], *("x" if name in self.changes[str(row[0])] else "" for name in names),
             f"{self.config.epochs:g}", *row[1:]]
            for row in table.rows
        ]  # fmt: skip
        return dataclasses.replace(table, columns=[self.rows_are, *names, "epochs", "linear"], rows=rows)
