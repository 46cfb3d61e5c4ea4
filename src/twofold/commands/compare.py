"""`twofold compare`: runs beside one another, as a table, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from twofold.commands.arguments import new_parser
from twofold.errors import UserError
from twofold.files import check_out, write_atomically
from twofold.recipe import load, names
from twofold.report.comparison import (
    Group,
    curve_figures,
    difference_table,
    document,
    grouped,
    result_table,
    spreads,
)
from twofold.report.page import Report, write_report
from twofold.report.records import read_record
from twofold.report.tables import Table, terminal


@dataclass(frozen=True)
class CompareResult:
    """Runs beside one another.

    Attributes:
        groups: repetitions of one configuration each.
        path: the folder with `comparison.json` and `comparison.html`; None where neither was written.
    """

    groups: tuple[Group, ...]
    path: Path | None = None

    @property
    def metrics(self) -> Mapping[str, float]:
        """The mean of each result, by the group's name and its own."""
        return {
            f"{group.name}: {name}": spread.mean
            for name in self.to_dict()["results"]
            for group, spread in zip(self.groups, spreads(self.groups, name), strict=True)
            if spread is not None
        }

    @cached_property
    def tables(self) -> list[Table]:
        """Results, what was published for the recipes, and what differs."""
        return [result_table(self.groups), *published(self.groups), difference_table(self.groups)]

    def text(self) -> str:
        """For people."""
        parts = []
        for table in self.tables:
            parts.append(f"{table.title}\n{terminal(table) if table.rows else 'nothing'}")
        if self.path is not None:
            parts.append(f"written: {self.path / 'comparison.html'} and comparison.json")
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return document(self.groups)


def compare(*runs: str | Path, out: str | Path | None = None) -> CompareResult:
    """Compare runs: results with their spread over seeds, options that differ, and curves.

    Args:
        runs: folders of runs, two or more, of any kind. Those that differ in their seed alone are one group.
        out: a new or empty folder for `comparison.json` and `comparison.html`; nothing is written if not given.

    Raises:
        UserError: fewer than two runs, one given twice, a folder without a run, or `out` is occupied.
    """
    if len(runs) < 2:
        raise UserError(f"a comparison needs two runs, got {', '.join(map(str, runs)) or 'none'}: give their folders")
    places = [Path(run).resolve() for run in runs]
    twice = next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice: a run cannot be compared with itself")
    if out is not None:
        check_out(Path(out), (Path(out) / "comparison.json").exists(), "comparison", resume=False)
    result = CompareResult(tuple(grouped([read_record(run) for run in runs])), None if out is None else Path(out))
    if out is not None:
        _write(Path(out), result)
    return result


def published(groups: tuple[Group, ...]) -> list[Table]:
    """What the recipes of the runs should reach, and what each result was told to stand beside, with all in which the
    two are not alike; nothing without recipes."""
    rows = []
    for name in dict.fromkeys(run.facts.get("recipe") for group in groups for run in group.runs):
        if name is not None and name.partition(":")[0] in names():
            recipe = load(name)
            whose = ", ".join(g.name for g in groups if any(run.facts.get("recipe") == name for run in g.runs))
            rows.append([name, recipe.result, recipe.data, recipe.source, whose])
    note = "Each is for its data and its protocol alone, with no option changed."
    beside = [
        [run.path.name, name or run.command, line]
        for group in groups
        for run in group.runs
        for name, lines in run.published.items()
        for line in lines
    ]
    tables = [
        Table("Published", ["recipe", "should reach", "data", "source", "runs"], rows, note),
        Table("Beside each result", ["run", "measured by", "what is published"], beside),
    ]
    return [table for table in tables if table.rows]


def _write(out: Path, result: CompareResult) -> None:
    """The JSON document and the page."""
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    write_atomically(out / "comparison.json", lambda file: file.write(text.encode()))
    runs = sum(len(group.runs) for group in result.groups)
    lead = f"{runs} runs of {len(result.groups)} configuration{'s' if len(result.groups) > 1 else ''}."
    facts = {
        f"{chr(65 + place)}" if place < 26 else str(place): f"{group.name} (seed {', '.join(map(str, group.seeds))})"
        for place, group in enumerate(result.groups)
    }
    tables = [table for table in result.tables if table.rows]
    title = f"Comparison of {' and '.join(group.name for group in result.groups[:3])}"
    page = Report(title=title, lead=lead, facts=facts, tables=tables, curves=curve_figures(result.groups))
    write_report(out / "comparison.html", page)


def parser() -> ArgumentParser:
    """Of `twofold compare`."""
    parser = new_parser("Compare runs: results with their spread over seeds, options that differ, and curves.")
    parser.add_argument("runs", nargs="+", help="folders of runs; those that differ in their seed alone are one group")
    parser.add_argument("--out", type=str, help="a new or empty folder for comparison.html and comparison.json")
    return parser


def run(options: dict[str, Any]) -> CompareResult:
    """`twofold compare`."""
    return compare(*options["runs"], out=options.get("out"))
