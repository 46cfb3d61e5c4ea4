"""`twofold report`: the page of a run, made anew from the files in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, new_parser
from twofold.data import Source, open_source
from twofold.errors import UserError
from twofold.report.outcome import write_outcome_report
from twofold.report.records import read_record
from twofold.report.run import write_run_report
from twofold.results import in_json
from twofold.runs.config import RunConfig
from twofold.text import counted
from twofold.training.rundir import RunDirectory


@dataclass(frozen=True)
class ReportResult:
    """The page of a run.

    Attributes:
        file: the page.
        left_out: what it lacks and why; "" where it lacks nothing.
    """

    file: Path
    left_out: str

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        return f"report: {self.file}" + (f"\n{self.left_out}" if self.left_out else "")

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = in_json(self)
        return document


def report(run: str | Path, data: Any = None, /, *, encoder: nn.Module | None = None) -> ReportResult:
    """Write a run's `report.html` anew, with the evaluations that lie in its folder by now.

    Args:
        run: a run's folder: of a pretraining, a fine-tuning or a distillation.
        data: what a pretraining was trained on, for the pictures and the map; where the run says it was, if not given.
            Where that can no longer be opened, the page is made without them.
        encoder: your own module, if the run was trained with one.

    Raises:
        UserError: the folder holds no run, or one that has left no encoder, or `data` are not the run's.
    """
    record, folder = read_record(run), RunDirectory(run)
    if record.command != "pretrain":
        if data is not None:
            raise UserError(f"{run} is a {record.command} run, whose page shows no examples: leave {data} out")
        return ReportResult(write_outcome_report(folder), "")
    source, left_out = _data(folder, data)
    return ReportResult(write_run_report(folder, source, module=encoder), left_out)


def _data(run: RunDirectory, data: Any) -> tuple[Source | None, str]:
    """The data of a pretraining, or why there are none."""
    config, facts = run.read(RunConfig)
    given = facts["data"] if data is None else data
    try:
        source = open_source(given, config.data, split=config.data.split)
    except UserError as error:
        if data is not None:
            raise
        return None, f"without views, neighbours and map: {error}; `twofold report RUN DATA` takes them from elsewhere"
    if len(source) != facts["images"]:
        words = f"{given} holds {counted(len(source), 'example')}, and the run in {run.path} had {facts['images']:,}"
        if data is not None:
            raise UserError(f"{words}: give the data that it was trained on")
        return None, f"without views, neighbours and map: {words}"
    return source, ""


def parser() -> ArgumentParser:
    """Of `twofold report`."""
    parser = new_parser("Make the page of a run anew from its files.")
    parser.add_argument("run", help="a run's folder: of pretrain, finetune or distill")
    add_data(parser, f"the data of a pretraining, where they lie elsewhere by now: {EITHER}", nargs="?", default=None)
    return parser


def run(options: dict[str, Any]) -> ReportResult:
    """`twofold report`."""
    return report(options["run"], options.get(PATH))
