"""The contract of a study: what is asked is a plan of parts; each part is run once, and its cells make the page.

A study is a subclass of `Study` in a file of its own, with its options as a nested `Config`. The folder, resuming, the
order of the parts and the files that are written are the same for all of them, and here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from twofold.console import print_rank0
from twofold.data import DataConfig, Source
from twofold.distributed import started_first, world_size
from twofold.errors import Diverged, UserError
from twofold.evaluation.parts import evaluation_parts
from twofold.evaluation.splits import check_test_labels
from twofold.files import check_out, check_place, write_atomically
from twofold.options import flatten, merge, plain
from twofold.reading import read_json
from twofold.recipe import read_layers
from twofold.report import Report, Table, write_report
from twofold.report.tables import terminal
from twofold.results import in_json
from twofold.studies.diverging import check_some, left_out
from twofold.training.ownership import owned
from twofold.versions import environment

Part = TypeVar("Part")
Cell = TypeVar("Cell")


INTERVAL = "differences with their 95 % intervals by Student's t, each a comparison of its own"
"""What `twofold.verdicts` gives, in a sentence's words."""


@dataclass(frozen=True)
class StudyResult(Generic[Cell]):
    """What a study came to.

    Attributes:
        name: of the study.
        path, file, page: its folder, its JSON, and its page, None where none is made.
        cells: what was measured, one by one.
        table: of them.
        interpretation: what they say, in plain words; empty where the table is left to speak.
        metrics: the mean of everything measured, by name.
        published: what papers report, at their own size, under the names of `metrics` and in their units.
    """

    name: str
    path: Path
    file: Path
    page: Path | None
    cells: tuple[Cell, ...]
    table: Table
    interpretation: str
    metrics: Mapping[str, float]
    published: Mapping[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """For people."""
        words = [self.interpretation] if self.interpretation else []
        places = [str(self.file), *([str(self.page)] if self.page else [])]
        return "\n".join([terminal(self.table), *words, *places])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "study": self.name,
            "cells": in_json(self.cells),
            "interpretation": self.interpretation,
            "metrics": dict(self.metrics),
            "published": dict(self.published),
            "file": str(self.file),
            "page": None if self.page is None else str(self.page),
        }


class Folder(Protocol):
    """Where a study is done."""

    @property
    def path(self) -> Path: ...

    @property
    def file(self) -> Path:
        """Its JSON."""

    def start(self) -> None:
        """Begin here, or go on with what is here; UserError where that cannot be."""

    def finish(self, document: Mapping[str, Any], report: Report | None) -> Path | None:
        """Write the page, and what was found, in JSON's types: `results`, `interpretation`, `metrics` and `published`;
        returns the page's path."""


class StudyFolder:
    """A study's folder: one JSON file (question, versions, results), a page, and a folder for each part's run.

    Args:
        path: of the folder.
        name: of the study.
        asked: data and options, in JSON's types: what makes it another study if it differs.
        resume: go on with the study in the folder; starts it if there is none.
        defaults: what of `asked` is where nothing is given: a study of a version without an option had that.
    """

    def __init__(
        self, path: str | Path, name: str, asked: Mapping[str, Any], resume: bool = False,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._path, self.name, self.resume = Path(path), name, resume
        self.asked: dict[str, Any] = json.loads(json.dumps(asked))
        self.defaults: dict[str, Any] = flatten(json.loads(json.dumps(defaults or {})))

    @property
    def path(self) -> Path:
        return self._path

    @property
    def file(self) -> Path:
        return self._path / "study.json"

    def start(self) -> None:
        """Begin the study here, or go on with it.

        Raises:
            UserError: the folder holds other files, a study already (without `resume`), or another study.
        """
        if not check_out(self.path, self.file.exists(), "study", self.resume):
            self._write({"study": self.name, "asked": self.asked, **environment(), "results": None})
            return
        before = self.read()
        if before.get("study") != self.name:
            raise UserError(f"--out {self.path} holds the study '{before.get('study')}', not '{self.name}'")
        then, now = flatten(before["asked"]), flatten(self.asked)
        for option in sorted((then.keys() | now.keys()) - {"options.jobs"}):  # how many at a time changes no result
            was = then.get(option, self.defaults.get(option))
            if was != now.get(option):
                raise UserError(
                    f"{option} is {now.get(option)!r}, but the study in {self.path} was started with "
                    f"{was!r}; resume with the same, or start another study in another folder"
                )

    def read(self) -> dict[str, Any]:
        """What `study.json` holds; UserError if there is none or it is damaged."""
        try:
            document = read_json(self.file)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file} cannot be read: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("asked"), dict):
            raise UserError(f"{self.file} is no study's: it does not say what was asked")
        return document

    def finish(self, document: Mapping[str, Any], report: Report | None) -> Path | None:
        """Write what was found, in JSON's types, and the page; returns the page's path."""
        self._write(self.read() | dict(document))
        return None if report is None else write_report(self.path / "report.html", report)

    def _write(self, document: dict[str, Any]) -> None:
        text = json.dumps(document, indent=2) + "\n"
        write_atomically(self.file, lambda file: file.write(text.encode()))


class Study(ABC, Generic[Part, Cell]):
    """A question, and how it is answered.

    Attributes:
        name: as the command line has it.
        Config: frozen dataclass of its options.
        folder: where it is done.
        many_calls: whether several calls at a time may work in one folder, each at parts of its own.
        remedy: what to do where every training diverges.
        diverged: what was left out since its training diverged, in words.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    folder: Folder
    many_calls: ClassVar[bool] = False
    remedy: ClassVar[str] = "give a lower optim.lr in --config, and begin in another folder"
    diverged: tuple[str, ...] = ()

    @abstractmethod
    def plan(self) -> Sequence[Part]:
        """The parts, in the order in which they are done. Whatever is wrong with one of them is said here, before the
        first is begun: raises UserError."""

    @abstractmethod
    def run(self, part: Part) -> Sequence[Cell]:
        """Do a part and measure it. One that was done already is read; one that was stopped goes on.

        Raises:
            Stopped: a signal ended it early.
            Diverged: its training came to nothing; the study goes on without it.
        """

    def describe(self, part: Part) -> str:
        """A line that says which part begins; empty to say nothing."""
        return str(getattr(part, "name", ""))

    @abstractmethod
    def table(self, cells: Sequence[Cell], /) -> Table:
        """The cells side by side."""

    def interpretation(self, cells: Sequence[Cell], /) -> str:  # noqa: ARG002  # what most studies say, and some do not
        """What the cells say, in plain words."""
        return ""

    def page(self, cells: Sequence[Cell], /) -> Report | None:  # noqa: ARG002
        """The page; None where none is made. It is asked for only where the extra `report` is installed."""
        return None

    @abstractmethod
    def measured(self, cell: Cell) -> Mapping[str, float]:
        """What was measured in a cell, by names that say of what; equal names are averaged."""

    def reported(self, cells: Sequence[Cell], /) -> Mapping[str, float]:  # noqa: ARG002  # most studies are ours
        """What papers report, under the names of `measured` and in their units: what the table has in brackets."""
        return {}

    def as_dict(self, cell: Cell) -> dict[str, Any]:
        """A cell in JSON's types."""
        document: dict[str, Any] = in_json(cell)
        return document

    def perform(self) -> StudyResult[Cell]:
        """Do the whole study, or what is left of it.

        Raises:
            UserError: for anything wrong in the options, the data or the folder.
            Stopped: a signal ended a part early; the same with `resume` goes on.
        """
        parts = self.plan()
        with self._owned():
            self.folder.start()
            cells: list[Cell] = []
            for number, part in enumerate(parts, 1):
                if words := self.describe(part):
                    print_rank0(f"{number} of {len(parts)}: {words}")
                try:
                    cells += self.run(part)
                except Diverged as error:
                    self.leave_out(words or str(part), error)
            return self.finish(cells)

    def leave_out(self, what: str, error: Diverged) -> None:
        """Say that something is left out since its training diverged; where several processes train, raise that: each
        of them would have to know."""
        if world_size() > 1:
            raise error
        if what not in self.diverged:
            print_rank0(f"{what} is left out: {error}", markup=False)
            self.diverged += (what,)

    def _owned(self) -> AbstractContextManager[None]:
        """The folder's, of the first rank alone; UserError where another process does this study there."""
        check_place(self.folder.path)
        return nullcontext() if self.many_calls or not started_first() else owned(self.folder.path)

    def finish(self, cells: Sequence[Cell]) -> StudyResult[Cell]:
        """Write the results and the page, and what was left out; UserError where no cell came to anything."""
        check_some(cells, self.diverged, self.remedy)
        lost = left_out(self.diverged)
        words = "\n".join(each for each in (self.interpretation(cells), lost) if each)
        report = self.page(cells) if _can_draw() else None
        if report is not None and lost:
            report = dataclasses.replace(report, lead=" ".join(each for each in (report.lead, lost) if each))
        metrics, published = self.means(cells), dict(self.reported(cells))
        results = [self.as_dict(cell) for cell in cells]
        found = {"results": results, "interpretation": words, "metrics": metrics, "published": published}
        page = self.folder.finish(found, report)
        return StudyResult(
            self.name, self.folder.path, self.folder.file, page, tuple(cells), self.table(cells), words, metrics,
            published,
        )  # fmt: skip

    def means(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Everything that was measured, averaged over the cells that give it one name."""
        values: dict[str, list[float]] = {}
        for cell in cells:
            for name, value in self.measured(cell).items():
                values.setdefault(name, []).append(value)
        return {name: float(np.mean(each)) for name, each in values.items()}


def _can_draw() -> bool:
    """Whether the extra `report` is installed: hours of training are not to fail for want of a page."""
    return all(importlib.util.find_spec(name) is not None for name in ("matplotlib", "jinja2"))


def shared_options(config: str | None, data: DataConfig, own: Mapping[str, str]) -> dict[str, Any]:
    """Options of all runs of a study: those of its file `config`, and those of its data.

    Args:
        config: a YAML file of options, or None.
        data: how the study reads its data.
        own: options that the study sets itself, and what to do in place of setting them.

    Raises:
        UserError: the file sets one of those.
    """
    options = read_layers(None, config, {})
    for name, remedy in own.items():
        if options.get(name) is not None and options[name] is not False:
            raise UserError(f"--config {config} sets {name}, which the study sets itself: leave it out, {remedy}")
    return merge({name: value for name, value in options.items() if value is not None}, reading_options(data))


def reading_options(data: DataConfig) -> dict[str, Any]:
    """How a study reads its data as options of its runs: what is left open each of them chooses."""
    defaults = flatten(plain(DataConfig()))
    return {"data": merge({name: value for name, value in flatten(plain(data)).items() if value != defaults[name]})}


def check_one_label(train: Source, test: Source, whose: str = "this study") -> None:
    """Raise a UserError for labels that a study cannot count, before anything is trained."""
    check_test_labels(train, test)
    if train.labels is not None and train.labels.ndim != 1:
        raise UserError(
            f"{train.name} has several labels an image, and {whose} counts one right class: give single labels"
        )


def train_and_test(data: Any, test: Any, config: DataConfig, channels: int | None) -> tuple[Source, Source]:
    """Labelled images to train on and to score on; UserError where the second is missing."""
    train, scored = evaluation_parts(data, test, dataclasses.replace(config, channels=config.channels or channels))
    if scored is None:
        raise UserError(f"{train.name} has no test part: give --test with labelled images of the same classes")
    return train, scored
