"""The page of a run whose outcome is a score: fine-tuning and distillation; and what evaluations found, as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twofold.console import duration
from twofold.report.canvas import Figure
from twofold.report.page import Report, write_report
from twofold.report.plots import Series, line_figure
from twofold.report.records import documents, published_in, read_record
from twofold.report.tables import Table
from twofold.text import counted
from twofold.training.rundir import RunDirectory


def write_outcome_report(run: RunDirectory) -> Path:
    """Write `report.html` into the folder of a fine-tuning or a distillation: its scores, options and curves.

    Raises:
        UserError: matplotlib or jinja2 is missing, the folder holds no run, or the disk refuses.
    """
    record = read_record(run.path)
    scores = {name: value for name, value in record.results.items() if ": " not in name}
    rows = [[name, shown(value)] for name, value in scores.items()]
    tables = [Table("Result", ["measured", "value"], rows, "\n".join(record.published.get("", ())))]
    options = record.options
    last = record.rows[-1] if record.rows else {}
    began = record.facts.get("base") or record.facts.get("teacher")
    facts = {
        "data": f"{record.facts['data']}, {counted(record.facts['images'], 'example')}",
        ("encoder" if record.command == "finetune" else "teacher"): began,
        "labels": options.get("labels") or "none",
        "training": f"{counted(options['epochs'], 'epoch')} of batches of {options['batch']}",
        **({"time": duration(last["seconds"])} if "seconds" in last else {}),
        "optimiser": f"{options['optim.name']}, lr {options['optim.lr']:g}",
        "recipe": record.facts.get("recipe") or "none",
        "seed": record.seed,
        "torch": record.facts["versions"]["torch"],
    }
    title = f"{run.path.name}: {record.command} on {record.facts['data']}"
    tables = [*(tables if scores else []), *evaluation_tables(run.path)]
    report = Report(title=title, facts=facts, tables=tables, curves=_curves(record.rows))
    return write_report(run.path / "report.html", report)


_BESIDE = {"chance": "the same answer to all", "by_chance": "answers dealt out at random"}
"""What is drawn beside a curve, by its column."""


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Loss, shares that were right, both beside what chance gets, and learning rate over the epochs; what was not
    logged is left out.
    """
    names = {name for row in rows for name in row}
    titles = {"loss": "Training loss", "lr": "Learning rate"}
    titles |= {name: name.replace("_", " ") for name in sorted(names) if re.search("top1|accuracy|agreement", name)}
    figures = []
    for name, title in titles.items():
        known = [row for row in rows if isinstance(row.get(name), int | float) and "epoch" in row]
        if len(known) > 1:
            at, values = [float(row["epoch"]) for row in known], [float(row[name]) for row in known]
            series = [Series(name, values)]
            other = {"loss": "chance", "train_accuracy": "by_chance", "agreement": "by_chance"}.get(name, "")
            if all(isinstance(row.get(other), int | float) for row in known):
                series.append(Series(_BESIDE[other], [float(row[other]) for row in known]))
            figures.append(line_figure(title, "epoch", at, series, percent=name not in ("loss", "lr")))
    return figures


def evaluation_tables(path: Path) -> list[Table]:
    """What the evaluations in a run's folder found, the newest last; nothing where there are none."""
    rows, told, published = [], dict[str, str](), dict[str, list[str]]()
    for name, document in documents(path):
        metrics = document.get("metrics")
        if isinstance(metrics, dict) and metrics:
            protocol = str(document.get("protocol", name))
            told[protocol] = f"{protocol}: {document.get('words', '')}."
            rows += [[protocol, measure, shown(value), name] for measure, value in metrics.items()]
            for line in published_in(document):
                published.setdefault(line, []).append(name)
    several = len(published) > 1  # which line is of which evaluation
    beside = [line + (f" (beside {', '.join(names)})" if several else "") for line, names in published.items()]
    note = "\n".join([" ".join(["The newest last.", *told.values()]), *beside])
    return [Table("Evaluations", ["protocol", "measured", "value", "file"], rows, note)] if rows else []


def shown(value: float) -> str:
    """A measured number: shares, which lie in [0, 1], in percent."""
    return f"{100 * value:.2f} %" if 0 <= value <= 1 else f"{value:.4g}"
