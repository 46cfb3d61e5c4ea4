"""SimCLR's losses as a study: Table 4, each loss at the best of its grid, and Table 5, NT-Xent by temperature."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from twofold.errors import UserError
from twofold.published import find, values_of
from twofold.report import Figure, Report, Table, bar_figure
from twofold.studies.comparing import Comparison, compare
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
from twofold.training.rundir import RunDirectory

Loss = Literal["NT-Xent", "NT-Logistic", "NT-Logistic (semi-hard)", "margin", "margin (semi-hard)"]
LOSSES: dict[Loss, dict[str, Any]] = {
    "NT-Xent": {},
    "NT-Logistic": {"loss": "nt_logistic"},
    "NT-Logistic (semi-hard)": {"loss": "nt_logistic", "mining": "semi_hard"},
    "margin": {"loss": "margin_triplet"},
    "margin (semi-hard)": {"loss": "margin_triplet", "mining": "semi_hard"},
}
"""The rows of Table 4, and the options of the method that make each."""
NORMALISED, PRODUCT = "NT-Xent, normalised, temperature ", "NT-Xent, not normalised, temperature "
"""The rows of Table 5, but for their temperatures."""
_MEASURES = {"contrastive_entropy": 1.0, "contrastive_top1": 100.0}
"""What Table 5 tells of the end of training, and the unit that it tells it in."""


@dataclass(frozen=True)
class LossesConfig(GridConfig):
    """Which losses are compared, and over which grids."""

    losses: tuple[Loss, ...] = tuple(LOSSES)
    """Losses of Table 4; none leaves the table to the temperatures of Table 5."""
    rates: tuple[float, ...] = ()
    """Learning rates to try with each loss, before the rule that scales them; the one that all cells share when not
    given. The paper tries 0.01, 0.1, 0.3, 0.5 and 1."""
    margins: tuple[float, ...] = ()
    """Margins to try with the triplet; the paper tries 0, 0.4, 0.8 and 1.6. Semi-hard mining leaves out 0, which has no
    such negative."""
    temperatures: tuple[float, ...] = ()
    """Temperatures to try with NT-Logistic; the paper tries 0.1, 0.2, 0.5 and 1."""
    normalised: tuple[float, ...] = ()
    """Temperatures of NT-Xent on normalised outputs, for Table 5; the paper has 0.05, 0.1, 0.5 and 1."""
    products: tuple[float, ...] = ()
    """Temperatures of NT-Xent on outputs that are not normalised, for Table 5; the paper has 10 and 100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("losses", "rates", "margins", "temperatures", "normalised", "products"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise UserError(f"--{name} must name none twice; got {list(given)}")
        if not (self.losses or self.normalised or self.products):
            raise UserError("--losses [] leaves nothing: name losses, or --normalised or --products")
        for name, of in (("margins", "margin"), ("temperatures", "NT-Logistic")):
            if getattr(self, name) and not any(loss.startswith(of) for loss in self.losses):
                raise UserError(f"--{name} {list(getattr(self, name))} is of {of}, which --losses leaves out")

    def grid(self, loss: Loss) -> list[tuple[str, dict[str, Any]]]:
        """The settings of a loss that are tried: each in words, "" where there is one alone, with its options."""
        name, tried = "", tuple[float, ...]()
        if loss.startswith("margin"):
            name, tried = "margin", self.margins
        elif loss.startswith("NT-Logistic"):
            name, tried = "temperature", self.temperatures
        own = [value for value in tried if not (value == 0 and name == "margin" and "semi-hard" in loss)]
        if tried and not own:
            raise UserError(f"--margins {list(tried)}: {loss} needs a margin above 0")
        found = []
        for rate in self.rates or (None,):
            for value in own or (None,):
                words = [f"rate {rate:g}"] if rate is not None else []
                words += [f"{name} {value:g}"] if value is not None else []
                options: dict[str, Any] = {} if value is None else {"method": {name: value}}
                found.append((", ".join(words), options | ({} if rate is None else {"optim": {"lr": rate}})))
        return found


class LossesStudy(GridStudy):
    """Table 4: NT-Xent against NT-Logistic and the margin triplet, each with and without semi-hard mining, at the best
    of its grid; and Table 5: NT-Xent by temperature, with normalised outputs and without."""

    name = "losses"
    Config = LossesConfig
    title = "Losses"
    rows_are, columns_are = "loss", "setting"
    source: ClassVar[str] = "Table 4 of arXiv 2002.05709, each the best of its grid"

    def places(self) -> Sequence[Place]:
        """A row a loss, a column a setting of its grid; and a row for each temperature of Table 5."""
        found = []
        for loss in self.config.losses:
            method = {"name": "simclr"} | LOSSES[loss]
            if "loss" in method and "scale" in self.shared.get("method", {}):
                method["scale"] = "mean_2n"  # NT-Xent alone has two directions, which a recipe adds up
            for words, options in self.config.grid(loss):
                own = {"method": method | options.get("method", {})}
                found.append(Place(loss, words, options | own))
        for row, temperatures, normalize in (
            (NORMALISED, self.config.normalised, True), (PRODUCT, self.config.products, False),
        ):  # fmt: skip
            found += [
                Place(f"{row}{t:g}", "", {"method": {"name": "simclr", "normalize": normalize, "temperature": t}})
                for t in sorted(temperatures)
            ]
        return found

    def contrasts(self) -> Sequence[Contrast]:
        """NT-Xent against each other loss where none has a grid, and the normalised temperatures against the second
        of them, the paper's best; of grids see `comparisons`."""
        losses = self.config.losses
        found = [
            Contrast(f"NT-Xent less {name}", ("NT-Xent", ""), (name, ""))
            for name in losses
            if name != "NT-Xent" and "NT-Xent" in losses and not self._grids()
        ]
        tried = sorted(self.config.normalised)
        usual = 0.1 if 0.1 in tried else tried[0] if tried else None
        others = [(NORMALISED, t) for t in tried if t != usual] + [(PRODUCT, t) for t in sorted(self.config.products)]
        if usual is not None:
            here = (f"{NORMALISED}{usual:g}", "")
            found += [Contrast(f"{here[0]} less {row}{t:g}", here, (f"{row}{t:g}", "")) for row, t in others]
        return found

    def _grids(self) -> bool:
        return any(len(self.config.grid(loss)) > 1 or self.config.grid(loss)[0][0] for loss in self.config.losses)

    def best(self, cells: Sequence[Score]) -> dict[str, str]:
        """The setting of each loss that was best in the mean."""
        found: dict[str, dict[str, float]] = {}
        for cell in cells:
            if cell.row in LOSSES:
                mean = float(np.mean(values(cells, (cell.row, cell.column))))
                found.setdefault(cell.row, {})[cell.column] = mean
        return {row: max(settings, key=lambda name: settings[name]) for row, settings in found.items()}

    def comparisons(self, cells: Sequence[Score]) -> list[Comparison]:
        """The contrasts; of grids NT-Xent at its best setting against each other loss at its own."""
        found = super().comparisons(cells)
        best = self.best(cells)
        if self._grids() and "NT-Xent" in best:
            here = ("NT-Xent", best["NT-Xent"])
            for row, setting in best.items():
                pairs = Contrast("", here, (row, setting)).pairs(cells)
                if row != "NT-Xent" and pairs:
                    found.append(compare(f"NT-Xent less {row}, each at its best", list(pairs.values())))
        return found

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # the paper tells the best alone
        """Table 4, and Table 5."""
        return values_of("simclr/table-4").get((row,)) or values_of("simclr/table-5").get((_case(row),))

    def reported(self, cells: Sequence[Score]) -> Mapping[str, float]:
        """Those of the places that the tables show: of a grid its best."""
        best = self.best(cells)
        return super().reported([cell for cell in cells if best.get(cell.row, cell.column) == cell.column])

    def table(self, cells: Sequence[Score]) -> Table:
        """Each loss at its best setting, then the temperatures; with the paper's."""
        best, body = self.best(cells), []
        for row in [row for row in axes_of(cells)[0] if row in best]:
            found = beside(values(cells, (row, best[row])), self.published(row, ""))
            body.append([row, *([best[row]] if self._grids() else []), found])
        words = "the setting that was best on the test images, which flatters each; " if self._grids() else ""
        note = (
            f"Linear test accuracy in %, {words}{over_seeds(cells)}. In brackets the paper's, of ImageNet at its own "
            f"size ({self.source})."
        )
        heads = [self.rows_are, *(["best setting"] if self._grids() else []), "linear"]
        return Table(self.title, heads, body, note) if body else self._temperatures(cells)

    def _temperatures(self, cells: Sequence[Score]) -> Table:
        """Table 5, with entropy and accuracy of the contrast at the end of training."""
        paper = {row.keys["case"]: row.values for row in find("simclr/table-5")[0].rows}
        body = []
        for row in [row for row in axes_of(cells)[0] if row not in LOSSES]:
            known = paper.get(_case(row), {})
            ends = self._ends(row)
            entropy = _number(ends["contrastive_entropy"], known.get("contrastive_entropy"))
            accuracy = _number(ends["contrastive_top1"], known.get("contrastive_accuracy"))
            body.append([row, entropy, accuracy, beside(values(cells, (row, "")), known.get("top1"))])
        note = (
            "Entropy in nats and accuracy in % of the contrast at the end of training, linear test accuracy in %, "
            f"{over_seeds(cells)}. In brackets the paper's, of ImageNet at its own size (Table 5 of arXiv 2002.05709); "
            "entropy and accuracy of the contrast depend on the batch."
        )
        return Table("Temperature", [self.rows_are, "entropy", "contrastive accuracy", "linear"], body, note)

    def _ends(self, row: str) -> dict[str, list[float]]:
        """What training came to in the runs of a row, seed by seed."""
        found: dict[str, list[float]] = {name: [] for name in _MEASURES}
        for part in self.parts:
            own = part.row == row and self.describe(part) not in self.diverged
            last = RunDirectory(self.folder.path / part.name).rows()[-1:] if own else []
            for name, unit in _MEASURES.items():
                found[name] += [unit * float(each[name]) for each in last if name in each]
        return found

    def _grid(self, cells: Sequence[Score]) -> Table:
        """Every setting that was tried."""
        body = [
            [row, column, beside(values(cells, (row, column)), None)]
            for row, column in dict.fromkeys((cell.row, cell.column) for cell in cells)
            if row in LOSSES
        ]
        return Table("Grids", [self.rows_are, self.columns_are, "linear"], body, f"In %, {over_seeds(cells)}.")

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Bars over the losses at their best, and over the temperatures."""
        best, figures = self.best(cells), list[Figure]()
        if best:
            line = series("linear", cells, [((row, best[row]), "linear") for row in best])
            figures.append(bar_figure("Linear accuracy", self.rows_are, list(best), [line]))
        if rows := [row for row in axes_of(cells)[0] if row not in LOSSES]:
            line = series("linear", cells, [((row, ""), "linear") for row in rows])
            names = [row.removeprefix("NT-Xent, ") for row in rows]
            figures.append(bar_figure("Linear accuracy by temperature", "NT-Xent", names, [line]))
        return figures

    def page(self, cells: Sequence[Score]) -> Report:
        """With the grids, and with Table 5 below Table 4."""
        page, more = super().page(cells), list[Table]()
        if any(cell.row not in LOSSES for cell in cells) and self.best(cells):
            more.append(self._temperatures(cells))
        if self._grids():
            more.append(self._grid(cells))
        return dataclasses.replace(page, tables=[page.tables[0], *more, *page.tables[1:]])

    def interpretation(self, cells: Sequence[Score]) -> str:
        """The comparisons; and what of Table 5 the first table does not show."""
        told = super().interpretation(cells)
        if any(cell.row not in LOSSES for cell in cells) and self.best(cells):
            return f"{told}\nThe temperatures are in a table of their own in the report."
        return told


def _case(row: str) -> str:
    """What Table 5's row is called in the registry; the row itself where it is none of its."""
    for words, case in ((NORMALISED, "cosine-"), (PRODUCT, "product-")):
        if row.startswith(words):
            return case + row.removeprefix(words)
    return row


def _number(found: Sequence[float], paper: float | None) -> str:
    """A mean with its spread, the paper's in brackets behind it."""
    if not found:
        return ""
    text = f"{np.mean(found):.1f}" + (f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else "")
    return text if paper is None else f"{text} ({paper:.1f})"
