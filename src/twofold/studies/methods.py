"""Which method for my data? SimCLR and MoCo v2 at several batch sizes, each shown equally many images.

What is held equal is the number of images seen, not of operations: a step of SimCLR sends both views forward and
backward; one of MoCo sends one view forward and backward and the other only forward, so it costs about two thirds.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from twofold.console import duration
from twofold.data import DataConfig, Order, Source, open_source
from twofold.devices import choose_device
from twofold.errors import Diverged, UserError
from twofold.evaluation.parts import evaluation_parts
from twofold.evaluation.splits import check_labels
from twofold.methods import MethodConfig
from twofold.options import merge
from twofold.reading import read_json
from twofold.recipe import read_layers
from twofold.report import Report, Series, Table, line_figure
from twofold.report.tables import averaged, spread
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.studies.base import Folder, Study, reading_options
from twofold.studies.cells import Cell, run_cells

TITLES = {"simclr": "SimCLR", "moco": "MoCo v2"}
EQUAL = "Every cell saw {images:,} images (up to a batch): equal images, not equal operations, which time shows."


@dataclass(frozen=True)
class MethodsConfig:
    """What is compared."""

    batches: tuple[int, ...] = (32, 128)
    """Batch sizes to train each method at."""
    methods: tuple[Literal["simclr", "moco"], ...] = ("simclr", "moco")
    """Methods to compare."""
    epochs: float | None = None
    """Passes over the data in every cell. Chosen from the number of images when not given."""
    seeds: int = 1
    """Runs of each cell, with seeds 0, 1, ...; from 2 on the spread is shown."""
    recipe: str | None = None
    """A recipe whose options all cells take, but for the method, the batch and the epochs."""
    config: str | None = None
    """A YAML file of options that all cells take, over the recipe's. Options of one method reach that method alone."""
    test: str | None = None
    """Data for the scores; without it the data's own test split, or else a fifth of each class, held out."""
    k: int = 200
    """Neighbours that vote."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        for name in ("batches", "methods"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"--{name} must name at least one, and none twice; got {list(values)}")
        if min(self.batches) < 2:
            raise UserError(f"--batches must be 2 or more, got {list(self.batches)}")
        if self.seeds < 1:
            raise UserError(f"--seeds must be at least 1, got {self.seeds}")


@dataclass(frozen=True)
class RunSpec:
    """One run to be made: `options` are those of pretraining."""

    method: str
    batch: int
    seed: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-batch{self.batch}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a cell's run came to.

    Attributes:
        method, batch, seed: which cell.
        linear_top1, knn_top1: test accuracies in [0, 1].
        seconds: of training.
        images: that training saw.
        memory: bytes at the peak of training: of the process with its libraries on a CPU, of tensors on a GPU.
        device: "cpu", "cuda" or "mps".
        more: what else a study measured of the run's encoder, by name.
        parameters: of the run's encoder; 0 where it was not counted.
        diverged: why training came to nothing, where it did; then nothing was measured.
        lost: what else was to be measured and diverged, by name, and why.
    """

    method: str
    batch: int
    seed: int
    linear_top1: float
    knn_top1: float
    seconds: float
    images: int
    memory: int
    device: str
    more: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    diverged: str = ""
    lost: dict[str, str] = field(default_factory=dict)


def plan(study: MethodsConfig, shared: dict[str, Any], epochs: float) -> list[RunSpec]:
    """The cells, smallest batch first.

    Args:
        study: what is compared.
        shared: nested options of pretraining that all cells take.
        epochs: of every cell.
    """
    cells = []
    for batch in sorted(study.batches):
        for seed in range(study.seeds):
            for method in study.methods:
                options = MethodConfig.variant_of(method).select(shared.get("method", {}))
                own = {"method": options | {"name": method}}
                fixed = {"batch": batch, "epochs": epochs, "seed": seed}
                rest = {name: value for name, value in shared.items() if name != "method"}
                cells.append(RunSpec(method, batch, seed, merge(rest, own, fixed)))
    return cells


def read_outcome(folder: Path) -> Outcome | None:
    """What a cell came to, if it is done; UserError if its file is damaged."""
    file = folder / "cell.json"
    if not file.exists():
        return None
    try:
        return Outcome(**read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}; remove it to have the cell measured again") from error


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each batch and method; means, and the sample standard deviation where there are several seeds."""
    groups = _groups(outcomes)
    rows, best = [], set()
    for (batch, method), cells in groups.items():
        percent = [spread([getattr(o, name) for o in cells]) for name in ("linear_top1", "knn_top1")]
        seconds = float(np.mean([o.seconds for o in cells]))
        memory = max(o.memory for o in cells) / 2**20
        rows.append([f"{TITLES[method]}, batch {batch}", *percent, duration(seconds), f"{memory:,.0f} MiB"])
    for column, name in ((1, "linear_top1"), (2, "knn_top1")):
        means = [float(np.mean([getattr(o, name) for o in cells])) for cells in groups.values()]
        best |= {(row, column) for row, mean in enumerate(means) if mean == max(means)}
    over = averaged(len({o.seed for o in outcomes}), "seed")
    what = "of the process, libraries included" if outcomes[0].device == "cpu" else "of tensors"
    note = (
        f"Test accuracy in %, {over}. {EQUAL.format(images=max(o.images for o in outcomes))} Time is of training on "
        f"{outcomes[0].device}; memory is the peak {what}."
    )
    return Table("SimCLR and MoCo v2", ["", "linear", "kNN", "time", "peak memory"], rows, note, frozenset(best))


def page(outcomes: Sequence[Outcome], data: str) -> Report:
    """The page: the table, and accuracy and time against the batch size."""
    batches = sorted({o.batch for o in outcomes})
    methods = list(dict.fromkeys(o.method for o in outcomes))
    groups = _groups(outcomes)

    def curves(name: str) -> list[Series]:
        lines = []
        for method in methods:
            values = [[float(getattr(o, name)) for o in groups.get((batch, method), [])] for batch in batches]
            error = [float(np.std(v, ddof=1)) if len(v) > 1 else None for v in values]
            lines.append(Series(TITLES[method], [float(np.mean(v)) if v else None for v in values], error))
        return lines

    figures = [
        line_figure("Linear accuracy", "batch", batches, curves("linear_top1"), percent=True, log_x=True),
        line_figure("kNN accuracy", "batch", batches, curves("knn_top1"), percent=True, log_x=True),
        line_figure("Seconds of training", "batch", batches, curves("seconds"), log_x=True),
    ]
    return Report(f"Which method for {Path(data).name}?", {"data": data}, tables=[table(outcomes)], figures=figures)


def _groups(outcomes: Sequence[Outcome]) -> dict[tuple[int, str], list[Outcome]]:
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.batch, outcome.method), []).append(outcome)
    return groups


class MethodsStudy(Study[RunSpec, Outcome]):
    """SimCLR and MoCo v2 at several batch sizes, equal images each; a part is a run in a process of its own."""

    name = "methods"
    Config = MethodsConfig
    table = staticmethod(table)

    def __init__(self, data: str, config: MethodsConfig, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder

    def plan(self) -> Sequence[RunSpec]:
        """One part a run."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("a study is one process that starts others: run it without torchrun")
        config = self.config
        shared = merge(reading_options(config.data), read_layers(config.recipe, config.config, {}))
        source = open_source(self.data, config.data)
        train, test = evaluation_parts(self.data, config.test, config.data)
        check_labels(train, test)
        cells = plan(config, shared, _epochs(config, shared, source))
        for cell in cells:
            choose(build(cell.options, origin=cell.name), source.facts(), choose_device("auto"))
            Order(len(source), cell.batch, cell.seed)
        return cells

    def run(self, part: RunSpec) -> Sequence[Outcome]:
        """Train and score in a process of its own, or read what that left."""
        place = self.folder.path / part.name
        if read_outcome(place) is None:
            work = {"data": self.data, "test": self.config.test, "k": self.config.k, "cell": dataclasses.asdict(part)}
            run_cells([Cell(place, work)])
        outcome = read_outcome(place)
        if outcome is None:
            raise UserError(f"{place} came to nothing: it has no cell.json")
        if outcome.diverged:
            raise Diverged(outcome.diverged)
        return [outcome]

    def measured(self, cell: Outcome) -> Mapping[str, float]:
        """Accuracies and seconds by method and batch."""
        name = f"{TITLES[cell.method]}, batch {cell.batch}"
        return {f"{name}: {what}": getattr(cell, what) for what in ("linear_top1", "knn_top1", "seconds")}

    def page(self, cells: Sequence[Outcome]) -> Report:
        """Accuracies and time against the batch size."""
        return page(cells, self.data)


def _epochs(study: MethodsConfig, shared: dict[str, Any], source: Source) -> float:
    """Those given, or those that pretraining would choose."""
    if study.epochs is not None:
        return study.epochs
    options = {**shared, "method": {}, "batch": min(study.batches), "epochs": None}
    selection, _ = choose(build(options), source.facts(), choose_device("auto"))
    return selection.epochs or 1.0
