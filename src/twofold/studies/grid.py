"""Studies that pretrain once for each cell of a table and score the frozen encoder: rows by columns by seeds.

A study says what its cells are, which of them are compared, and what the paper reports; training, resuming, the table,
the plot and the verdicts are here.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from twofold.data import DataConfig, Order, Source, open_source
from twofold.devices import choose_device
from twofold.errors import UserError
from twofold.evaluation.parts import evaluation_parts
from twofold.evaluation.splits import check_labels
from twofold.options import merge
from twofold.recipe import read_layers
from twofold.report import Report, Series, Table, line_figure
from twofold.report.tables import spread
from twofold.runs.config import RunConfig, build
from twofold.runs.defaults import choose
from twofold.studies.base import INTERVAL, Folder, Study, reading_options
from twofold.studies.cells import Cell, run_cells
from twofold.studies.methods import RunSpec, read_outcome
from twofold.verdicts import paired

MOST_CURVES = 5


@dataclass(frozen=True)
class GridConfig:
    """What all cells share."""

    epochs: float | None = None
    """Passes over the data in every cell that does not say its own. Chosen from the data when not given."""
    batch: int | None = None
    """Images per step in every cell that does not say its own. Chosen from the data when not given."""
    seeds: int = 3
    """Runs of each cell, with seeds 0, 1, ...; of one seed no difference counts."""
    recipe: str | None = None
    """A recipe whose options all cells take, under their own."""
    config: str | None = None
    """A YAML file of options that all cells take, over the recipe's and under their own."""
    jobs: int = 1
    """Cells at a time: on GPUs in turn, on CPUs sharing the cores."""
    test: str | None = None
    """Data for the scores; without it the data's own test split, or else a fifth of each class, held out."""
    k: int = 200
    """Neighbours that vote."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "k"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")


class Place(NamedTuple):
    """A place in the table, and the options of pretraining that make it."""

    row: str
    column: str
    options: dict[str, Any]


class GridPart(NamedTuple):
    """One run: its folder's name, where it stands in the table, its seed, and its options."""

    name: str
    row: str
    column: str
    seed: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """What a run came to: its place, its seed, test accuracies in [0, 1], and seconds of training.

    Attributes:
        other_top1: linear accuracy of other labels of the same images, where the study has such.
    """

    row: str
    column: str
    seed: int
    linear_top1: float
    knn_top1: float
    seconds: float
    other_top1: float | None = None


class Contrast(NamedTuple):
    """Two places that are compared: what is said of them, (row, column) of the one, and of the other."""

    words: str
    first: tuple[str, str]
    second: tuple[str, str]


class GridStudy(Study[GridPart, Score]):
    """A table of pretrained encoders; a part is a run in a process of its own.

    Attributes:
        title: of the table and the page.
        rows_are: what a row is, in a word.
        columns_are: what a column is, in a word.
        source: the paper's place, told in the note.
    """

    title: ClassVar[str]
    rows_are: ClassVar[str]
    columns_are: ClassVar[str]
    source: ClassVar[str]
    config: Any

    def __init__(self, data: str, config: Any, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder

    @abstractmethod
    def places(self) -> Sequence[Place]:
        """The table's places, row by row."""

    @abstractmethod
    def contrasts(self) -> Sequence[Contrast]:
        """What is compared; places that are not in the table are left out."""

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # most tables have none
        """The paper's linear accuracy in %, at its size; None where none is known."""
        return None

    def check(self, source: Source) -> None:  # most tables take any
        """Raise a UserError for data that the table is not for."""

    def check_order(self, config: RunConfig, source: Source) -> None:
        """Raise a UserError for data of which a run's batches cannot be made."""
        Order(len(source), config.batch or 1, 0)

    def scoring(self) -> dict[str, Any]:
        """Options of `twofold evaluate` by which cells are scored, beside those that all studies share."""
        return {}

    def plan(self) -> Sequence[GridPart]:
        """One part a run; what is wrong with any is said before the first."""
        config = self.config
        source = open_source(self.data, config.data)
        self.check(source)
        train, test = evaluation_parts(self.data, config.test, config.data)
        check_labels(train, test)
        own = {name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None}
        shared = merge(reading_options(config.data), read_layers(config.recipe, config.config, {}), own)
        parts = []
        for seed in range(config.seeds):
            for number, place in enumerate(self.places()):
                options = merge(shared, place.options, {"seed": seed})
                name = f"cell{number:02}-seed{seed}"
                parts.append(GridPart(name, place.row, place.column, seed, options))
        for part in parts[: len(self.places())]:
            chosen, _ = choose(build(part.options, origin=self.describe(part)), source.facts(), choose_device("auto"))
            self.check_order(chosen, source)
        self.parts = parts
        return parts

    def describe(self, part: GridPart) -> str:
        """Which place, and which seed."""
        column = f", {self.columns_are} {part.column}" if part.column else ""
        return f"{self.rows_are} {part.row}{column}, seed {part.seed}"

    def run(self, part: GridPart) -> Sequence[Score]:
        """Train and score all that is left, `jobs` at a time, or read what an earlier call left."""
        if read_outcome(self.folder.path / part.name) is None:
            jobs, left = self.config.jobs, [part]
            if jobs > 1:
                left = [each for each in self.parts if read_outcome(self.folder.path / each.name) is None]
            run_cells([self._cell(each) for each in left], jobs)
        found = read_outcome(self.folder.path / part.name)
        if found is None:
            raise UserError(f"{self.folder.path / part.name} came to nothing: it has no cell.json")
        accuracies = found.linear_top1, found.knn_top1, found.seconds, found.other_top1
        return [Score(part.row, part.column, part.seed, *accuracies)]

    def _cell(self, part: GridPart) -> Cell:
        method = part.options.get("method", {}).get("name") or "simclr"
        spec = RunSpec(method, part.options.get("batch") or 0, part.seed, part.options)
        work = {"data": self.data, "test": self.config.test, "k": self.config.k, "cell": dataclasses.asdict(spec)}
        work["scoring"] = self.scoring()
        return Cell(self.folder.path / part.name, work)

    def table(self, cells: Sequence[Score]) -> Table:
        """Linear accuracy, rows by columns, the paper's behind ours where it is known."""
        rows, columns = (list(dict.fromkeys(getattr(cell, axis) for cell in cells)) for axis in ("row", "column"))
        known = any(self.published(row, column) is not None for row in rows for column in columns)
        body = []
        for row in rows:
            line = [row]
            for column in columns:
                values = [c.linear_top1 for c in cells if (c.row, c.column) == (row, column)]
                paper = self.published(row, column)
                line.append(
                    (spread(values) if values else "") + (f" ({paper:g})" if paper is not None and values else "")
                )
            body.append(line)
        seeds = len({cell.seed for cell in cells})
        over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed: no spread is known"
        words = f" In brackets the paper's at its own size ({self.source})." if known else f" After {self.source}."
        note = f"Linear test accuracy in %, {over}.{words}"
        return Table(self.title, [self.rows_are, *(column or "linear" for column in columns)], body, note)

    def interpretation(self, cells: Sequence[Score]) -> str:
        """Each comparison, seed by seed, in plain words."""
        found: dict[tuple[str, str], dict[int, float]] = {}
        for cell in cells:
            found.setdefault((cell.row, cell.column), {})[cell.seed] = cell.linear_top1
        parts = []
        for words, first, second in self.contrasts():
            if first not in found or second not in found:
                continue
            seeds = sorted(found[first].keys() & found[second].keys())
            gap = paired([found[first][s] for s in seeds], [found[second][s] for s in seeds]).times(100)
            verdict = ("better" if gap.mean > 0 else "worse") if gap.clear else "no clear difference"
            parts.append(f"{words}: {gap.words()}{' (one seed)' if gap.error is None else ''}, {verdict}")
        return f"Linear accuracy in points, {INTERVAL}. {'; '.join(parts)}." if parts else ""

    def measured(self, cell: Score) -> Mapping[str, float]:
        """Accuracies by place."""
        name = f"{cell.row}, {cell.column}" if cell.column else cell.row
        return {f"{name}: {what}": getattr(cell, what) for what in ("linear_top1", "knn_top1")}

    def page(self, cells: Sequence[Score]) -> Report:
        """The table and a plot: a curve for each row over the columns, or one over the rows."""
        rows, columns = (list(dict.fromkeys(getattr(cell, axis) for cell in cells)) for axis in ("row", "column"))
        names, across, along = (rows, columns, "column") if len(columns) > 1 else ([self.title], rows, "row")
        numbers = _numbers(across)
        lines = []
        for name in names[:MOST_CURVES]:
            groups = [
                [c.linear_top1 for c in cells if getattr(c, along) == at and (along == "row" or c.row == name)]
                for at in across
            ]
            error = [float(np.std(g, ddof=1)) if len(g) > 1 else None for g in groups]
            lines.append(Series(name, [float(np.mean(g)) if g else None for g in groups], error))
        x, note = (numbers, "") if numbers else (list(range(len(across))), _legend(across))
        what = (self.columns_are if along == "column" else self.rows_are).replace(" ", "-")
        figure = line_figure("Linear accuracy", what, x, lines, percent=True, note=note, log_x=bool(numbers))
        return Report(
            self.title, {"data": self.data}, tables=[self.table(cells)], figures=[figure],
            lead=self.interpretation(cells),
        )  # fmt: skip


def _numbers(names: Sequence[str]) -> list[float]:
    """The names as ascending numbers above 0; nothing where they are none."""
    try:
        found = [float(name) for name in names]
    except ValueError:
        return []
    return found if found == sorted(found) and found[0] > 0 else []


def _legend(names: Sequence[str]) -> str:
    return ", ".join(f"{at}: {name}" for at, name in enumerate(names))
