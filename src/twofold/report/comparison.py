"""Runs beside one another: which repeat which, what differs in their options, and by how much their results do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from twofold.options import as_written
from twofold.report.canvas import Figure
from twofold.report.outcome import shown
from twofold.report.plots import Series, line_figure
from twofold.report.records import Record, defaults_of
from twofold.report.tables import Table
from twofold.training.rundir import OPERATIONAL

CONFIDENCE = 0.95
_FIGURES = {
    "loss": ("Training loss", False), "knn_top1": ("Nearest neighbours on held-out examples", True),
    "probe_top1": ("Linear probe on held-out examples", True), "train_accuracy": ("Training accuracy", True),
    "contrastive_top1": ("Contrastive accuracy", True),
    "effective_rank": ("Effective rank", False), "lr": ("Learning rate", False),
}  # fmt: skip
_CURVES = 5
"""What a figure tells apart."""


@dataclass(frozen=True)
class Group:
    """Runs of one configuration on the same data, which differ in their seed alone.

    Attributes:
        name: the names of the runs' folders.
        runs: in the order given.
    """

    name: str
    runs: tuple[Record, ...]

    def values(self, result: str) -> list[float]:
        """One result of the runs that have it."""
        return [run.results[result] for run in self.runs if result in run.results]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Spread:
    """One result of a group of runs, and how it differs from the first group's.

    Attributes:
        mean: over the runs.
        sd: sample standard deviation (n - 1); None of one run.
        n: runs that have the result.
        difference: of the mean to that of the first group; None for the first itself, or where it lacks the result.
        interval: in which the difference lies with 95 % confidence, by Welch's t-test (two-sided, unequal variances);
            None where a group has one run, or where neither has any spread.
    """

    mean: float
    sd: float | None
    n: int
    difference: float | None = None
    interval: tuple[float, float] | None = None


def grouped(records: Sequence[Record]) -> list[Group]:
    """The runs by configuration, data and command, in the order of their first ones."""
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(_identity(record), []).append(record)
    return [Group(", ".join(run.path.name or str(run.path) for run in runs), tuple(runs)) for runs in found.values()]


def _identity(record: Record) -> Any:
    """What repetitions have in common: all that is learned but for the seed."""
    options = sorted((name, as_written(_tuple(value))) for name, value in _shaping(record).items() if name != "seed")
    start = record.facts.get("encoder") or record.facts.get("teacher_digest") or ""
    return record.command, record.facts["fingerprint"], str(start), tuple(options)


def _shaping(record: Record) -> dict[str, Any]:
    """The options that change what is learned."""
    return {name: value for name, value in record.options.items() if not OPERATIONAL.fullmatch(name)}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def differences(groups: Sequence[Group]) -> list[tuple[str, Any, list[Any]]]:
    """Options and facts that are not the same in all groups: name, default, and each group's value."""
    first = [group.runs[0] for group in groups]
    found: list[tuple[str, Any, list[Any]]] = []
    if len({run.command for run in first}) > 1:
        found.append(("command", None, [run.command for run in first]))
    for fact in ("data", "images", "fingerprint", "base", "encoder", "teacher"):
        values = [run.facts.get(fact) for run in first]
        if len({*map(str, values)}) > 1:
            found.append((fact, None, [value[:12] if fact in ("fingerprint", "encoder") and value else value
                                       for value in values]))  # fmt: skip
    options = [_shaping(run) for run in first]
    defaults = {name: value for run in reversed(first) for name, value in defaults_of(run.command).items()}
    for name in dict.fromkeys(name for each in options for name in each):
        values = [_tuple(each.get(name, "")) for each in options]  # "" where a command has no such option
        if name != "seed" and len({*map(repr, values)}) > 1:
            found.append((f"--{name}", defaults.get(name), values))
    return found


def spreads(groups: Sequence[Group], result: str) -> list[Spread | None]:
    """One result of each group; None for a group without it."""
    base = groups[0].values(result)
    return [_spread(group.values(result), None if place == 0 else base) for place, group in enumerate(groups)]


def _spread(values: Sequence[float], base: Sequence[float] | None) -> Spread | None:
    if not values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    mean = float(np.mean(values))
    if not base:
        return Spread(mean, sd, len(values))
    return Spread(mean, sd, len(values), mean - float(np.mean(base)), welch(values, base))


def welch(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The interval in which mean(a) - mean(b) lies, by Welch's t-test; None where it says nothing.

    That is where one of them has fewer than two values, or where neither has any spread.
    """
    if min(len(a), len(b)) < 2 or float(np.ptp(a)) + float(np.ptp(b)) == 0:
        return None
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (a, b)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True)
    )  # Welch and Satterthwaite's
    middle = float(np.mean(a)) - float(np.mean(b))
    half = float(student.ppf((1 + confidence) / 2, freedom)) * math.sqrt(sum(parts))
    return middle - half, middle + half


def results_of(groups: Sequence[Group]) -> list[str]:
    """The names of all results: scores first, then evaluations, then what the runs watched."""
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.results)
    return sorted(names, key=lambda name: 2 if name.startswith("run: ") else ": " in name)


def result_table(groups: Sequence[Group]) -> Table:
    """A row a result, a column a group: mean, standard deviation and n, and the difference to the first group."""
    columns = ["result", *(group.name for group in groups)]
    rows = [
        [name, *(_cell(spread, len(group.runs)) for spread, group in zip(spreads(groups, name), groups, strict=True))]
        for name in results_of(groups)
    ]
    spread = (
        "Mean ± sample standard deviation over n runs that differ in their seed alone; in brackets the difference to "
        "the first column, of shares in percentage points, with its 95 % interval by Welch's t-test. An interval needs "
        "two seeds on either side; it holds for a result that was chosen beforehand, not for the best of many."
    )
    single = (
        "One run each: a difference has no interval, as nothing says how much a seed changes. Repeat each with other "
        "seeds (--seed), and give all of them."
    )
    note = spread if any(len(group.runs) > 1 for group in groups) else single
    return Table("Results", columns, rows, note)


def _cell(spread: Spread | None, runs: int) -> str | None:
    if spread is None:
        return None
    share = 0 <= spread.mean <= 1
    text = shown(spread.mean) + ("" if spread.sd is None else f" ± {_number(spread.sd, share)}")
    text += f" (n = {spread.n})" if runs > 1 else ""
    if spread.difference is not None:
        inside = " to ".join(_signed(end, share) for end in spread.interval or ())
        text += f" [{_signed(spread.difference, share)}{'; ' if inside else ''}{inside}]"
    return text


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.2f}" if share else f"{value:.4g}"


def _signed(value: float, share: bool) -> str:
    return f"{100 * value:+z.2f}" if share else f"{value:+z.4g}"


def difference_table(groups: Sequence[Group]) -> Table:
    """A row an option that differs, with its default."""
    rows = [
        [name, "" if default is None else as_written(default), *map(_written, values)]
        for name, default, values in differences(groups)
    ]
    note = (
        "Options that are the same everywhere are left out, and so are seeds, devices and what else changes nothing in "
        "what is learned; a default that is empty is chosen from the data."
    )
    return Table("What differs", ["option", "default", *(group.name for group in groups)], rows, note)


def _written(value: Any) -> str:
    return "not set" if value is None else as_written(value)


def curve_figures(groups: Sequence[Group]) -> list[Figure]:
    """The curves of the groups in common figures, the mean of each over its runs; of the first five groups."""
    shown_groups = groups[:_CURVES]
    figures = []
    axis = (
        "epoch" if all("epoch" in row for group in shown_groups for run in group.runs for row in run.rows) else "step"
    )
    for key, (title, percent) in _FIGURES.items():
        means = [_mean_curve(group, key, axis) for group in shown_groups]
        at = sorted({x for curve in means for x in curve})
        if len(at) < 2:
            continue
        series = [
            Series(f"{chr(65 + place)}: {_short(group.name)}", [curve.get(x) for x in at])
            for place, (group, curve) in enumerate(zip(shown_groups, means, strict=True))
            if curve
        ]
        note = "The mean over the runs of each." if any(len(group.runs) > 1 for group in shown_groups) else ""
        note += f" Of {len(groups)} the first {_CURVES}." if len(groups) > _CURVES else ""
        figures.append(line_figure(title, axis, at, series, note=note.strip(), percent=percent))
    return figures


def _mean_curve(group: Group, key: str, axis: str) -> Mapping[float, float]:
    """One value by place, where all runs of the group have it."""
    found: dict[float, list[float]] = {}
    for run in group.runs:
        for row in run.rows:
            value, x = row.get(key), row.get(axis)
            if isinstance(value, int | float) and isinstance(x, int | float) and math.isfinite(value):
                found.setdefault(float(x), []).append(float(value))
    return {x: float(np.mean(values)) for x, values in found.items() if len(values) == len(group.runs)}


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def document(groups: Sequence[Group]) -> dict[str, Any]:
    """The comparison in JSON's types."""
    return {
        "groups": [
            {
                "name": group.name,
                "runs": [str(run.path) for run in group.runs],
                "seeds": group.seeds,
                "published": {
                    str(run.path): {name: list(lines) for name, lines in run.published.items()}
                    for run in group.runs
                    if run.published
                },
            }
            for group in groups
        ],
        "differences": [
            {"name": name, "default": _plain([default])[0], "values": _plain(values)}
            for name, default, values in differences(groups)
        ],
        "confidence": CONFIDENCE,
        "results": {
            name: [None if each is None else vars(each) for each in spreads(groups, name)]
            for name in results_of(groups)
        },
    }


def _plain(values: Iterable[Any]) -> list[Any]:
    return [list(value) if isinstance(value, tuple) else value for value in values]
