"""Studies that pretrain once for each cell of a table and score the frozen encoder: rows by columns by seeds.

A study says what its cells are, which of them are compared, and what the paper reports; training, resuming, the table,
the plot and the verdicts are here.
"""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from twofold.data import DataConfig, Order, Source, open_source
from twofold.devices import choose_device
from twofold.encoders import build_encoder
from twofold.errors import Diverged, UserError
from twofold.evaluation.parts import evaluation_parts
from twofold.evaluation.splits import check_labels
from twofold.options import merge
from twofold.recipe import read_layers
from twofold.report import MOST_BARS, Figure, Report, Series, Table, bar_figure
from twofold.report.tables import averaged, spread
from twofold.runs.config import RunConfig, build
from twofold.runs.defaults import choose
from twofold.studies.after import After, check
from twofold.studies.base import Folder, Study, reading_options
from twofold.studies.cells import Cell, run_cells
from twofold.studies.comparing import Comparison, compare, in_words, on_page
from twofold.studies.methods import RunSpec, read_outcome

Also = Literal["z", "baselines"]
"""What else linear evaluation can tell of a cell: accuracy on z, and what stands beside the number (a filterbank or
pixels, the untrained encoder), which takes longer than the number itself."""


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

    varied: ClassVar[tuple[str, ...]] = ()
    """Options that name what a study varies: each at least one value, none twice."""

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "k"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in self.varied:
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise UserError(f"--{name} must name at least one, and none twice; got {list(given)}")


class Place(NamedTuple):
    """A place in the table, and the options of pretraining that make it."""

    row: str
    column: str
    options: dict[str, Any]


class GridPart(NamedTuple):
    """One run: its folder's name, its place in the table, its seed, its options, and what else is measured."""

    name: str
    row: str
    column: str
    seed: int
    options: dict[str, Any]
    after: tuple[After, ...] = ()


@dataclass(frozen=True)
class Score:
    """What a run came to: its place, its seed, test accuracies in [0, 1], seconds of training, what else was measured
    of its encoder, by name, and how many parameters the encoder has (0: not known)."""

    row: str
    column: str
    seed: int
    linear_top1: float
    knn_top1: float
    seconds: float
    more: dict[str, float] = field(default_factory=dict)
    parameters: int = 0

    @property
    def place(self) -> str:
        """Row and column in words."""
        return f"{self.row}, {self.column}" if self.column else self.row

    def value(self, measure: str) -> float | None:
        """What was measured under a name: "linear", "knn", or one of `more`; None where that was not measured."""
        return {"linear": self.linear_top1, "knn": self.knn_top1, **self.more}.get(measure)


class Contrast(NamedTuple):
    """Two places, or two measures of one, that are compared.

    Attributes:
        words: what is said of them.
        first, second: (row, column) of the one and of the other.
        of: what is compared, see `Score.value`.
        against: what of the second, where it is another measure.
    """

    words: str
    first: tuple[str, str]
    second: tuple[str, str]
    of: str = "linear"
    against: str | None = None

    def pairs(self, cells: Sequence[Score]) -> dict[int, tuple[float, float]]:
        """Both shares by seed, where both were measured."""
        sides = (self.first, self.of), (self.second, self.against or self.of)
        by = [
            {cell.seed: cell.value(measure) for cell in cells if (cell.row, cell.column) == place}
            for place, measure in sides
        ]
        found = {seed: (by[0][seed], by[1].get(seed)) for seed in sorted(by[0])}
        return {seed: (a, b) for seed, (a, b) in found.items() if a is not None and b is not None}


class Trend(NamedTuple):
    """Two comparisons of which the first is to be the larger: what a paper finds to grow or to shrink.

    Attributes:
        words: what is said of them.
        more, less: the comparisons; less is taken from more, seed by seed.
    """

    words: str
    more: Contrast
    less: Contrast


class GridStudy(Study[GridPart, Score]):
    """A table of pretrained encoders; a part is a run in a process of its own.

    Attributes:
        title: of the table and the page.
        rows_are: what a row is, in a word.
        columns_are: what a column is, in a word.
        source: the paper's place, told in the note.
        paper_data: what the paper's numbers are of.
        compared: what the comparisons are of.
        needs_width: whether its cells depend on the encoder's number of features, see `prepare`.
    """

    title: ClassVar[str]
    rows_are: ClassVar[str]
    columns_are: ClassVar[str]
    source: ClassVar[str]
    paper_data: ClassVar[str] = "ImageNet"
    compared: ClassVar[str] = "Linear accuracy"
    needs_width: ClassVar[bool] = False
    config: Any

    def __init__(self, data: str, config: Any, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder
        self.shared: dict[str, Any] = {}
        self.parts: Sequence[GridPart] = ()

    def prepare(self, width: int, channels: int) -> None:
        """What cells depend on: the number of features of the encoder that they share, and the images' channels.

        Called before `places`, where `needs_width` says so.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what {width} features of {channels} channels do")

    @abstractmethod
    def places(self) -> Sequence[Place]:
        """The table's places, row by row."""

    @abstractmethod
    def contrasts(self) -> Sequence[Contrast]:
        """What is compared; places that are not in the table are left out."""

    def trends(self) -> Sequence[Trend]:  # most papers say none of a table
        """Comparisons that are compared with each other."""
        return ()

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # most tables have none
        """The paper's linear accuracy in %, at its size; None where none is known."""
        return None

    def published_as(self, row: str, column: str, measure: str) -> float | None:
        """The paper's accuracy in % under a measure, see `Score.value`; None where none is known."""
        return self.published(row, column) if measure == "linear" else None

    def check(self, source: Source) -> None:  # most tables take any
        """Raise a UserError for data that the table is not for."""

    def check_order(self, config: RunConfig, source: Source) -> None:
        """Raise a UserError for data of which a run's batches cannot be made."""
        Order(len(source), config.batch or 1, 0)

    def scoring(self) -> dict[str, Any]:
        """Options of `twofold evaluate` by which cells are scored, beside those that all studies share."""
        return {}

    def also(self, part: GridPart) -> Sequence[Also]:  # noqa: ARG002  # most tables show nothing else
        """What else linear evaluation is to tell of a cell, under its name in `Score.more`."""
        return ()

    def after(self, place: Place, seed: int) -> Sequence[After]:  # noqa: ARG002  # most studies ask nothing more
        """What else is measured of a place's encoder."""
        return ()

    def plan(self) -> Sequence[GridPart]:
        """One part a run; what is wrong with any is said before the first."""
        config = self.config
        source = open_source(self.data, config.data)
        self.check(source)
        train, test = evaluation_parts(self.data, config.test, config.data)
        check_labels(train, test)
        own = {name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None}
        shared = merge(reading_options(config.data), read_layers(config.recipe, config.config, {}), own)
        self.shared, parts, device = shared, [], choose_device("auto")
        if self.needs_width:
            chosen, _ = choose(build(shared), source.facts(), device)
            width = build_encoder(chosen.encoder, chosen.views.size).feature_dim
            self.prepare(width, source.channels)
        for seed in range(config.seeds):
            for number, place in enumerate(self.places()):
                options = merge(shared, place.options, {"seed": seed})
                name = f"cell{number:02}-seed{seed}"
                parts.append(GridPart(name, place.row, place.column, seed, options, tuple(self.after(place, seed))))
        for part in parts[: len(self.places())]:
            chosen, _ = choose(build(part.options, origin=self.describe(part)), source.facts(), device)
            self.check_order(chosen, source)
        asked = {json.dumps(after): after for part in parts for after in part.after}
        check(list(asked.values()), self.data, config.test, config.data)
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
        if found.diverged:
            raise Diverged(found.diverged)
        for name, why in found.lost.items():
            self.leave_out(f"{self.describe(part)}, {name}", Diverged(why))
        measured = (found.linear_top1, found.knn_top1, found.seconds, found.more, found.parameters)
        return [Score(part.row, part.column, part.seed, *measured)]

    def _cell(self, part: GridPart) -> Cell:
        method = part.options.get("method", {}).get("name") or "simclr"
        spec = RunSpec(method, part.options.get("batch") or 0, part.seed, part.options)
        work = {"data": self.data, "test": self.config.test, "k": self.config.k, "cell": dataclasses.asdict(spec)}
        work["scoring"], work["also"] = self.scoring(), list(self.also(part))
        work["after"] = [list(after) for after in part.after]
        return Cell(self.folder.path / part.name, work)

    def table(self, cells: Sequence[Score]) -> Table:
        """Linear accuracy, rows by columns, the paper's behind ours where it is known."""
        rows, columns = axes_of(cells)
        known = any(self.published(row, column) is not None for row in rows for column in columns)
        body = []
        for row in rows:
            line = [row]
            for column in columns:
                line.append(beside(values(cells, (row, column)), self.published(row, column)))
            body.append(line)
        words = f"In brackets the paper's, of {self.paper_data} at its own size ({self.source})."
        words = words if known else f"After {self.source}."
        note = f"Linear test accuracy in %, {over_seeds(cells)}. {words}"
        return Table(self.title, [self.rows_are, *(column or "linear" for column in columns)], body, note)

    def comparisons(self, cells: Sequence[Score]) -> list[Comparison]:
        """Each contrast and each trend, seed by seed; those that were not measured are left out."""
        found = [compare(each.words, list(pairs.values())) for each in self.contrasts() if (pairs := each.pairs(cells))]
        for trend in self.trends():
            gaps = [{seed: a - b for seed, (a, b) in each.pairs(cells).items()} for each in (trend.more, trend.less)]
            if both := [(gaps[0][seed], gaps[1][seed]) for seed in gaps[0] if seed in gaps[1]]:
                found.append(compare(trend.words, both, ("larger", "smaller")))
        return found

    def remark(self, cells: Sequence[Score]) -> str:  # noqa: ARG002
        """What else the cells say, in a sentence; most studies leave it at the comparisons."""
        return ""

    def interpretation(self, cells: Sequence[Score]) -> str:
        """Each comparison in plain words."""
        parts = [in_words(self.compared, self.comparisons(cells)), self.remark(cells)]
        return "\n".join(each for each in parts if each)

    def measured(self, cell: Score) -> Mapping[str, float]:
        """Accuracies by place."""
        found = {"linear_top1": cell.linear_top1, "knn_top1": cell.knn_top1, **cell.more}
        return {f"{cell.place}: {what}": value for what, value in found.items()}

    def reported(self, cells: Sequence[Score]) -> Mapping[str, float]:
        """The paper's accuracies by place, as shares."""
        found = {
            f"{cell.place}: {name}": self.published_as(cell.row, cell.column, measure)
            for cell in cells
            for name, measure in (("linear_top1", "linear"), *((name, name) for name in cell.more))
        }
        return {name: value / 100 for name, value in found.items() if value is not None}

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """The plots: bars for each row within the columns, or over the rows where there is one column."""
        rows, columns = axes_of(cells)
        if len(columns) > 1:
            lines = [
                series(row if not row[:1].isdigit() else f"{self.rows_are} {row}", cells,
                       [((row, column), "linear") for column in columns])
                for row in rows[:MOST_BARS]
            ]  # fmt: skip
            note = left_off(MOST_BARS, rows)
            return [bar_figure("Linear accuracy", self.columns_are, columns, lines, note=note)]
        line = series("linear", cells, [((row, columns[0]), "linear") for row in rows])
        return [bar_figure("Linear accuracy", self.rows_are, rows, [line])]

    def page(self, cells: Sequence[Score]) -> Report:
        """The table and the plots."""
        lead, more = on_page(self.compared, self.comparisons(cells))
        return Report(
            self.title, {"data": self.data}, tables=[self.table(cells), *more], figures=self.figures(cells),
            lead=" ".join(each for each in (lead, self.remark(cells)) if each),
        )  # fmt: skip


def axes_of(cells: Sequence[Score]) -> tuple[list[str], list[str]]:
    """Rows and columns of the table, in the order in which they were measured."""
    rows, columns = (list(dict.fromkeys(getattr(cell, axis) for cell in cells)) for axis in ("row", "column"))
    return rows, columns


def left_off(most: int, names: Sequence[str]) -> str:
    """A plot's caption where it tells only so many of these apart; empty where it shows all."""
    return f"Of {len(names)} the first {most}; the table has all." if len(names) > most else ""


def values(cells: Sequence[Score], place: tuple[str, str], measure: str = "linear") -> list[float]:
    """A measure at one place, seed by seed."""
    found = [cell.value(measure) for cell in cells if (cell.row, cell.column) == place]
    return [value for value in found if value is not None]


def series(name: str, cells: Sequence[Score], at: Sequence[tuple[tuple[str, str], str]]) -> Series:
    """The means at some places and measures, with bars of one standard deviation."""
    groups = [values(cells, place, measure) for place, measure in at]
    error = [float(np.std(group, ddof=1)) if len(group) > 1 else None for group in groups]
    return Series(name, [float(np.mean(group)) if group else None for group in groups], error)


def beside(found: Sequence[float], paper: float | None) -> str:
    """Shares as they stand in a table, the paper's in brackets behind them."""
    if not found or paper is None:
        return spread(found) if found else ""
    decimals = max(1, len(f"{paper:g}".partition(".")[2]))  # as many as the paper has, and those of ours at least
    return f"{spread(found)} ({paper:.{decimals}f})"


def over_seeds(cells: Sequence[Any]) -> str:
    """What the numbers of a table are averaged over, in words."""
    return averaged(len({cell.seed for cell in cells}), "seed")
