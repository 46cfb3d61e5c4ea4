"""What an encoder is worth on the 12 data sets of SimCLR's transfer study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from torch import nn

from twofold.console import duration, print_rank0
from twofold.data import DataConfig
from twofold.devices import choose_device
from twofold.encoders import Encoder, read_header
from twofold.encoders.load import encoder_path, load
from twofold.errors import UserError
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.frozen import digest
from twofold.evaluation.logistic import PAPER_GRID
from twofold.files import check_out, write_atomically
from twofold.options import option
from twofold.report import Report, Table
from twofold.studies.base import Study
from twofold.studies.transfer import linear as measuring
from twofold.studies.transfer.finetune import DECAYED, Budget, RandomBudget, finetune_grid
from twofold.studies.transfer.linear import DataSplits, TransferResult
from twofold.studies.transfer.permutation import p_value, unpacked
from twofold.studies.transfer.sets import METRICS, SETS, Protocol, Start, reported
from twofold.text import counted
from twofold.views.resample import Resample

_LINEAR = {"protocol": ("linear", "both", "all")}
_PROTOCOLS: dict[str, tuple[Protocol, ...]] = {
    "linear": ("linear",), "finetune": ("finetune",), "random": ("random",), "both": ("linear", "finetune"),
    "all": ("linear", "finetune", "random"),
}  # fmt: skip
LEVEL = 0.05
"""Of the paper's permutation test."""


@dataclass(frozen=True)
class TransferConfig:
    """How an encoder is transferred."""

    data: str = "all"
    """Data sets of the study by name, divided by commas, or all 12."""
    root: str = "data"
    """Folder in which the data sets live, each in its own layout."""
    protocol: Literal["linear", "finetune", "random", "both", "all"] = "linear"
    """linear: L-BFGS on frozen features, 45 penalties; finetune: the whole net, a grid of 7 rates x 8 decays; random:
    the same net from a random start, its control, a grid of its own; both: linear and finetune; all: these three."""
    supervised: str | None = None
    """An encoder that was trained with labels (a run's folder, or an encoder.safetensors), measured in the same way
    beside the run's; a permutation test says whether one of them is better."""
    out: str | None = None
    """Folder of the results, one JSON file a data set and protocol; `transfer` in the run's folder when not given.
    With --resume, what is there already is not measured again."""
    seed: int = 0
    """Of the held-out validation parts and of fine-tuning."""
    size: int | None = None
    """Side of the images in pixels; the side that the encoder was trained on when not given."""
    resample: Resample | None = None
    """How images are resized; as in the encoder's training when not given."""
    batch: int = option(256, when=_LINEAR, instead="use --budget.batch")
    """Images at a time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    download: bool = False
    """Fetch missing data sets where that is possible."""
    max_skipped: float = 0.2
    """Share of a part's files that may be unreadable; more is an error."""
    workers: int | None = option(None, when=_LINEAR)
    """Threads that decode; chosen from the number of cores when not given."""
    budget: Budget = option(factory=Budget, when={"protocol": ("finetune", "both", "all")})
    """Fine-tuning: the published budget and grid unless told otherwise"""
    random_budget: RandomBudget = option(factory=RandomBudget, when={"protocol": ("random", "all")})
    """Random start: the published budget and grid unless told otherwise"""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"--batch must be at least 1, got {self.batch}")


class TransferPart(NamedTuple):
    """One data set under one protocol from one start, with its parts."""

    name: str
    protocol: Protocol
    splits: DataSplits
    start: Start = "run"


class Subject(NamedTuple):
    """An encoder that is measured: its file, itself, how it reads images, the side they get, and the user's module."""

    file: Path
    model: Encoder
    extractor: Extractor
    size: int
    module: nn.Module | None


class TransferFolder:
    """A JSON file for each data set and protocol, `table.json` with all of them, and the runs of fine-tuning."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path, self.resume = path, resume

    @property
    def path(self) -> Path:
        return self._path

    @property
    def file(self) -> Path:
        return self._path / "table.json"

    def cell(self, name: str, protocol: Protocol, start: Start = "run") -> Path:
        """The file of a data set under a protocol."""
        return self._path / (f"{name}-{protocol}.json" if start == "run" else f"{name}-{protocol}-{start}.json")

    def start(self) -> None:
        """Raise a UserError where results are there, and nobody said that they go on."""
        names = [self.cell(*each) for each in _every_cell()]
        begun = any(path.exists() for path in (self.file, self._path / "runs", *names))
        check_out(self._path, begun, "study", self.resume)

    def finish(self, document: Mapping[str, Any], report: Report | None) -> None:
        """Nothing is left to write: each result and the table were, as soon as they were measured."""

    def write_table(self, asked: Mapping[Start, dict[str, Any]]) -> None:
        """`table.json`: each result in the folder that was asked for like this call's, beside the paper's.

        Whatever data sets and protocols the call itself is for: they all belong into one table.
        """
        found = (
            measuring.cell_like(self.cell(name, protocol, start), asked[start])
            for name, protocol, start in _every_cell()
            if start in asked
        )
        rows = [
            {"data": cell.name, "protocol": cell.protocol, "metric": cell.metric, "result": round(100 * cell.value, 2)}
            | ({} if cell.start == "run" else {"start": cell.start})
            | {"paper": reported(cell.name, cell.protocol, cell.start)}
            for cell in found
            if cell is not None
        ]
        text = json.dumps(rows, indent=2) + "\n"
        write_atomically(self.file, lambda file: file.write(text.encode()))


def _every_cell() -> list[tuple[str, Protocol, Start]]:
    """What a folder can hold, in the table's order; a random start has no supervised counterpart."""
    return [
        (name, protocol, start)
        for name in SETS
        for protocol in get_args(Protocol)
        for start in get_args(Start)
        if not (protocol == "random" and start == "supervised")
    ]


class TransferStudy(Study[TransferPart, TransferResult]):
    """What an encoder is worth on the data sets of SimCLR's study; a part is a data set under a protocol."""

    name = "transfer"
    Config = TransferConfig
    remedy = "give lower --budget.rates and --random_budget.rates, and begin in another folder"
    many_calls = True  # each of some calls may measure other data sets

    def __init__(self, file: Path, config: TransferConfig, module: nn.Module | None, resume: bool) -> None:
        self.encoder, self.config, self.module = file, config, module
        self.folder: TransferFolder = TransferFolder(
            Path(config.out) if config.out else file.parent / "transfer", resume
        )

    def plan(self) -> Sequence[TransferPart]:
        """Opens every data set, and looks through it for classes without images, before the first is measured."""
        config = self.config
        self.subjects: dict[Start, Subject] = {"run": self._subject(self.encoder, self.module)}
        if config.supervised is not None:
            self.subjects["supervised"] = self._subject(encoder_path(config.supervised), None)
        first = self.subjects["run"]
        for start, subject in self.subjects.items():
            if subject.model.input.channels != first.model.input.channels:
                raise UserError(
                    f"--{start} {subject.file} takes {counted(subject.model.input.channels, 'channel')}, "
                    f"{first.file} {first.model.input.channels}: both are measured on the same images"
                )
        data = Pixels.of(read_header(self.encoder)).of_whole_images().fill(DataConfig(
            root=config.root, download=config.download, max_skipped=config.max_skipped,
            channels=first.model.input.channels, workers=config.workers,
        ))  # fmt: skip
        self.splits = {name: measuring.open_parts(name, data, config.seed) for name in _names(config.data)}
        wanted = _PROTOCOLS[config.protocol]
        return [
            TransferPart(name, protocol, self.splits[name], start)
            for name, protocol, start in _every_cell()
            if name in self.splits and protocol in wanted and start in self.subjects
        ]

    def _subject(self, file: Path, module: nn.Module | None) -> Subject:
        """An encoder and how it reads images; UserError where it does not say which side they have."""
        config = self.config
        model = load(file, module, choose_device(config.device, "--device"))
        extractor = Extractor.of(
            file, size=config.size, preprocessing="resize", resample=config.resample, batch=config.batch,
            workers=config.workers, cache=FeatureCache.beside(file),
        )  # fmt: skip
        size = extractor.size or model.input.size
        if size is None:
            raise UserError(f"{file} does not say which side its images had: give --size, 224 for ImageNet's nets")
        return Subject(file, model, extractor, size, module)

    def describe(self, part: TransferPart) -> str:
        """The data set, the protocol, and whose encoder where it is not the run's."""
        return f"{part.name}, {part.protocol}{'' if part.start == 'run' else f', {part.start}'}"

    def run(self, part: TransferPart) -> Sequence[TransferResult]:
        """Measure a data set, or read its result."""
        cell = self._cell(part)
        value, whose = f"{METRICS[cell.metric]} {cell.value:.2%}", "" if part.start == "run" else f", {part.start}"
        print_rank0(f"{SETS[part.name].title}, {part.protocol}{whose}: {value} in {duration(cell.seconds)}")
        self.folder.write_table(
            {start: self._asked(subject) | {"encoder": digest(subject.model)}
             for start, subject in self.subjects.items()}
        )  # fmt: skip
        return [cell]

    def _cell(self, part: TransferPart) -> TransferResult:
        config, subject, (name, protocol, parts, start) = self.config, self.subjects[part.start], part
        place = self.folder.cell(name, protocol, start)
        if protocol == "linear":
            question = measuring.question(subject.model, parts, self._asked(subject) | {"grid": list(PAPER_GRID)})
            return measuring.measured(
                place, question, name, protocol, parts,
                lambda: measuring.linear(subject.model, name, parts, subject.extractor, PAPER_GRID), start,
            )  # fmt: skip
        budget = config.budget if protocol == "finetune" else config.random_budget
        asked = self._asked(subject) | {"budget": asdict(budget), "decayed": DECAYED}
        kind = {"finetune": "", "random": "-random"}[protocol] + ("" if start == "run" else f"-{start}")
        runs = self.folder.path / "runs" / f"{name}{kind}"
        return measuring.measured(
            place, measuring.question(subject.model, parts, asked), name, protocol, parts,
            lambda: finetune_grid(subject.file, name, parts, runs, budget, subject.size, subject.extractor.resample,
                                  config.seed, subject.module, config.device), start,
        )  # fmt: skip

    def _asked(self, subject: Subject) -> dict[str, Any]:
        pixels: dict[str, Any] = (
            (subject.extractor.pixels or Pixels()).of_whole_images().options()["data"]
        )  # of the defaults nothing, as ever
        return {"size": subject.size, "resample": subject.extractor.resample, "seed": self.config.seed} | pixels

    def measured(self, cell: TransferResult) -> Mapping[str, float]:
        """The data set's own metric, by data set and protocol."""
        whose = "" if cell.start == "run" else f", {cell.start}"
        return {f"{cell.name}, {cell.protocol}{whose}: {cell.metric}": cell.value}

    def reported(self, cells: Sequence[TransferResult]) -> Mapping[str, float]:
        """The paper's, of both of its widths, with what was transferred behind each name."""
        return {
            f"{name} ({whose})": value / 100
            for cell in cells
            for name in self.measured(cell)
            for whose, value in reported(cell.name, cell.protocol, cell.start).items()
        }

    def table(self, cells: Sequence[TransferResult]) -> Table:
        """A row for each data set, linear or fine-tuned, the paper's results for ResNet-50 beside ours."""
        measured = {(cell.name, cell.protocol, cell.start): f"{100 * cell.value:.1f}" for cell in cells}
        families = dict.fromkeys((c.name, "linear" if c.protocol == "linear" else "finetune") for c in cells)
        rows: list[list[str]] = []
        for name, family in families:
            linear: Protocol = "linear" if family == "linear" else "finetune"
            ours = {
                "SimCLR": measured.get((name, linear, "run"), ""),
                "supervised": measured.get((name, linear, "supervised"), ""),
                # A linear classifier on random features is not in the paper: nothing stands there.
                "random start": measured.get((name, "random", "run"), "") if linear == "finetune" else "",
            }
            paper = reported(name, linear)
            row = [SETS[name].title, family, METRICS[SETS[name].metric]]
            for start, value in ours.items():
                row += [value, "/".join(f"{v:.1f}" for key, v in paper.items() if key.startswith(start))]
            rows.append(row)
        columns = ["data", "protocol", "metric", "ours", "SimCLR", "ours, supervised", "supervised",
                   "ours, random start", "random start"]  # fmt: skip
        shown = [at for at, _ in enumerate(columns) if at < 5 or at == 6 or any(row[at] for row in rows)]
        note = "In %; the paper's (arXiv 2002.05709) are of a ResNet-50 at widths 1x/4x, from ImageNet."
        return Table("Transfer", [columns[at] for at in shown], [[row[at] for at in shown] for row in rows], note)

    def interpretation(self, cells: Sequence[TransferResult]) -> str:
        """The permutation test on each data set, of the run against the supervised encoder and against its control."""
        found = {(cell.name, cell.protocol, cell.start): cell for cell in cells}
        told = []
        for (name, protocol, start), cell in found.items():
            if start != "run" or protocol == "random":
                continue
            others = {"the supervised encoder": found.get((name, protocol, "supervised"))}
            others["a random start"] = found.get((name, "random", "run")) if protocol == "finetune" else None
            for whose, other in others.items():
                if other is not None:
                    told.append(self._compare(cell, other, whose))
        if not told:
            return ""
        return f"Permutation tests at {LEVEL:.0%}, each by itself: {'; '.join(told)}."

    def _compare(self, cell: TransferResult, other: TransferResult, whose: str) -> str:
        """One data set's test in words."""
        words = f"{SETS[cell.name].title}, {cell.protocol}, {100 * (cell.value - other.value):+z.1f} against {whose}"
        if not cell.hits or not other.hits:
            return f"{words}: not tested, for a result of an earlier version does not say which images were right"
        labels = np.asarray(self.splits[cell.name].test.labels)
        p = p_value(unpacked(cell.hits), unpacked(other.hits), labels, cell.metric, self.config.seed)
        verdict = "no clear difference" if p >= LEVEL else "better" if cell.value > other.value else "worse"
        return f"{words}: {verdict} (p {'< 0.0001' if p < 1e-4 else f'= {p:.4f}'})"


def _names(asked: str) -> list[str]:
    """The data sets asked for, in the paper's order."""
    wanted = list(SETS) if asked == "all" else [name.strip() for name in asked.split(",")]
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise UserError(f"--data {', '.join(unknown)}: the transfer study has {', '.join(SETS)}, or all")
    return [name for name in SETS if name in wanted]
