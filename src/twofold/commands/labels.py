"""`twofold labels`: how many labels do I need? Accuracy against their number, for three ways to use them."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from twofold.commands.evaluate import evaluation_parts, labelled_parts
from twofold.commands.load import encoder_path, load
from twofold.data import DataConfig, Source
from twofold.encoders import read_header
from twofold.errors import Stopped, UserError
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.finetune import finetune
from twofold.evaluation.labels import Cell, label_efficiency
from twofold.evaluation.splits import check_test_labels
from twofold.evaluation.subsets import label_positions
from twofold.report import Report, label_figure, label_table, write_report
from twofold.training.config import OptionsParser
from twofold.training.progress import console
from twofold.training.rundir import RunDirectory

Way = Literal["linear", "finetuned", "scratch"]
NAMES: dict[Way, str] = {
    "linear": "linear classifier",
    "finetuned": "fine-tuned",
    "scratch": "from scratch",
}


@dataclass(frozen=True)
class LabelsConfig:
    """What is compared."""

    counts: tuple[int, ...] | None = None
    """Numbers of labels in all; when not given 1, 4, 16 and 64 of each class, as far as there are as many."""
    ways: tuple[Way, ...] = ("linear", "finetuned", "scratch")
    """linear: logistic regression on the frozen encoder; finetuned: classifier and encoder trained; scratch: the same
    net from a random start, the control."""
    draws: int = 3
    """Repetitions with other labelled images; all ways get the same ones."""
    seed: int = 0
    """Of the choice of labels, and of the nets that are trained."""
    from_head: int = 0
    """Output of the projection head that fine-tuning starts from."""
    epochs: float | None = None
    """Of fine-tuning and training from scratch; see `twofold finetune`."""
    batch: int | None = None
    """Images per step of both."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"--draws must be at least 1, got {self.draws}")
        if not self.ways or (self.counts is not None and not self.counts):
            raise UserError("--ways and --counts need one entry at least")


@dataclass(frozen=True)
class LabelsReport:
    """Cells by way and number of labels, what they say, and the files in the run."""

    cells: tuple[Cell, ...]
    reading: str
    file: Path
    page: Path | None

    def text(self) -> str:
        """For people."""
        table = label_table(self.cells)
        widths = [
            max(len(str(table.columns[j])), *(len(table.text(i, j)) for i in range(len(table.rows))))
            for j in range(len(table.columns))
        ]
        rows = [list(table.columns), *([table.text(i, j) for j in range(len(widths))] for i in range(len(table.rows)))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        where = f"{self.file}" + (f", {self.page}" if self.page else "")
        return "\n".join(["Test accuracy in %, mean ± standard deviation over draws", *lines, self.reading, where])


def labels(
    run: str | Path, data: Any, *, test: Any = None, encoder: nn.Module | None = None, **options: Any
) -> LabelsReport:
    """Measure what few labels buy with a pretrained encoder, and without it.

    Each training is a run in the folder `labels` of the run, so that the same call goes on where one was stopped.

    Args:
        run: a run's folder.
        data: labelled images: whatever `twofold.pretrain` takes.
        test: data for the score; without it the data's own test split, or else a fifth of each class, held out.
        encoder: your own module, if the run was trained with one.
        options: fields of `LabelsConfig`, nested or dotted.

    Returns:
        The accuracies; `labels/labels.json` and `labels/labels.html` in the run hold them.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data.
        Stopped: if SIGINT or SIGTERM ended it early.
    """
    config, path = OptionsParser(LabelsConfig).build(options), encoder_path(run)
    channels = read_header(path)["spec"].get("channels")
    reading = dataclasses.replace(config.data, channels=config.data.channels or channels)
    train, scored = labelled_parts(*evaluation_parts(data, test, reading), seed=config.seed)
    targets = check_test_labels(train, scored)
    y = cast(NDArray[np.int64], train.labels)
    if y.ndim != 1:
        raise UserError(
            f"{train.name} has several labels an image, and `twofold labels` counts one right class: give single labels"
        )
    counts = _counts(config.counts, y)
    for count in counts:
        label_positions(train, count, config.seed)  # refuse before hours go into the smaller ones
    cells: list[Cell] = []
    for way in config.ways:
        if way == "linear":
            cells += _linear(path, train, scored, y, targets, counts, config, encoder)
        else:
            cells += [_trained(path, train, scored, count, way, config, encoder) for count in counts]
    return _write(path, cells, config, train, scored)


def _counts(wanted: Sequence[int] | None, y: NDArray[np.int64]) -> list[int]:
    """The numbers of labels, ascending."""
    classes, each = np.unique(y[y >= 0], return_counts=True)
    if wanted is not None:
        return sorted(set(wanted))
    return [n * len(classes) for n in (1, 4, 16, 64) if n <= each.min()]


def _linear(
    path: Path, train: Source, test: Source, y: NDArray[np.int64], targets: NDArray[np.int64], counts: list[int],
    config: LabelsConfig, module: nn.Module | None,
) -> list[Cell]:  # fmt: skip
    views = read_header(path)["extra"].get("options", {}).get("views", {})
    size, resample = views.get("size"), views.get("resample", "antialias")
    model = load(path, module)
    cache = FeatureCache.beside(path)
    bank, queries = (cache.extract(model, part, size, resample=resample) for part in (train, test))
    known = targets[queries.index] >= 0
    return label_efficiency(
        {NAMES["linear"]: (bank.h, queries.h[known])}, y[bank.index], targets[queries.index][known],
        counts, config.draws, config.seed,
    )  # fmt: skip


def _trained(
    path: Path, train: Source, test: Source, count: int, way: Way, config: LabelsConfig, module: nn.Module | None
) -> Cell:
    """One way with one number of labels, every draw of them a run of its own."""
    accuracies = []
    assert train.labels is not None
    for draw in range(config.draws if count < int((train.labels >= 0).sum()) else 1):
        options: dict[str, Any] = {"labels": str(count), "draw": draw, "seed": config.seed}
        options |= {"from_head": config.from_head, "from_scratch": way == "scratch"}
        options |= {name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None}
        told = f"{config.from_head}-{config.epochs or 'auto'}-{config.batch or 'auto'}-{config.seed}"
        folder = path.parent / "labels" / f"{way}-{count}-{told}-draw{draw}"
        console.print(f"{NAMES[way]}, {count:,} labels, draw {draw + 1}")
        result = finetune(path, train, test, folder, options, module=module)
        if not result.complete:
            raise Stopped("stopped; nothing is lost: the same command goes on", result.stopped_by or signal.SIGINT)
        accuracies.append(result.metric)
    return Cell(NAMES[way], count, tuple(accuracies), ())


def read_out(cells: Sequence[Cell]) -> str:
    """What the numbers say, in plain words."""
    counts = sorted({cell.labels for cell in cells})
    by = {(cell.features, cell.labels): cell for cell in cells}
    best = {
        count: max((by[name, count] for name in {c.features for c in cells}), key=lambda c: c.mean) for count in counts
    }
    few, most = counts[0], counts[-1]
    lines = [f"With {few:,} labels the best is: {best[few].features}, {_words(best[few])}."]
    if most > few:
        gain = best[most].mean - best[few].mean
        lines.append(f"{most:,} labels give {_words(best[most])} ({best[most].features}), {gain * 100:+.1f} points.")
    if NAMES["scratch"] in {cell.features for cell in cells} and best[few].features != NAMES["scratch"]:
        control = {count: by[NAMES["scratch"], count].mean for count in counts}
        enough = next((count for count in counts if control[count] >= best[few].mean), None)
        lines.append(
            f"From scratch, {few:,} labels give {control[few] * 100:.1f} %; "
            + (f"as much as the pretrained net takes {enough:,} labels." if enough else
               f"even {most:,} labels stay below what the pretrained net reaches with {few:,}.")
        )  # fmt: skip
    step = next((b for a, b in itertools.pairwise(counts) if best[b].mean - best[a].mean < 0.01), None)
    if step:
        lines.append(f"From about {counts[counts.index(step) - 1]:,} labels on, more of them buy less than a point.")
    return " ".join(lines)


def _words(cell: Cell) -> str:
    spread = f" ± {cell.std * 100:.1f}" if cell.std is not None else ""
    return f"{cell.mean * 100:.1f}{spread} %"


def _write(path: Path, cells: list[Cell], config: LabelsConfig, train: Source, test: Source) -> LabelsReport:
    """Leave JSON and, where the extra is installed, a page in the run."""
    reading, run = read_out(cells), RunDirectory(path.parent)
    found = {
        "cells": [dataclasses.asdict(cell) | {"mean": cell.mean, "std": cell.std} for cell in cells],
        "reading": reading, "draws": config.draws, "seed": config.seed,
        "train": {"name": train.name, "images": len(train), "fingerprint": train.fingerprint()},
        "test": {"name": test.name, "images": len(test), "fingerprint": test.fingerprint()},
    }  # fmt: skip
    file, page = run.write_json("labels/labels.json", found), None
    if importlib.util.find_spec("matplotlib") and importlib.util.find_spec("jinja2"):
        note = f"Test accuracy in %, mean ± standard deviation over {config.draws} draws of labels."
        facts = {"data": train.name, "training images": len(train), "test images": len(test)}
        report = Report(
            title=f"{path.parent.name}: how many labels do I need?", facts=facts, lead=reading,
            tables=[label_table(cells, note=note)], figures=[label_figure(cells)],
        )  # fmt: skip
        page = write_report(path.parent / "labels" / "labels.html", report)
    return LabelsReport(tuple(cells), reading, file, page)
