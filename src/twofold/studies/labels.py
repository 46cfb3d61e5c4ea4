"""`twofold labels`: how many labels do I need? Accuracy against their number, for three ways to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from twofold.console import console
from twofold.data import DataConfig, Source
from twofold.devices import choose_device
from twofold.encoders import read_header
from twofold.encoders.load import encoder_path, load
from twofold.errors import Stopped, UserError, named
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.few_labels import LabelEfficiency, label_efficiency
from twofold.evaluation.label_subsets import label_positions
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.evaluation.splits import check_test_labels
from twofold.options import OptionsParser, merge
from twofold.report import Report, label_figure, label_table, write_report
from twofold.runs.finetune import finetune
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
    out: str | None = None
    """Folder of the results and of the trainings; `labels` in the run's folder when not given. One folder is for one
    encoder and one data set."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
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

    cells: tuple[LabelEfficiency, ...]
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


@named("training.device")
def labels(
    run: str | Path, data: Any, *, test: Any = None, encoder: nn.Module | None = None, **options: Any
) -> LabelsReport:
    """Measure what few labels buy with a pretrained encoder, and without it.

    Each training is a run in the folder `out`, so that the same call goes on where one was stopped.

    Args:
        run: a run's folder.
        data: labelled images: whatever `twofold.pretrain` takes.
        test: data for the score; without it the data's own test split, or else a fifth of each class, held out.
        encoder: your own module, if the run was trained with one.
        options: fields of `LabelsConfig`, nested or dotted.

    Returns:
        The accuracies; `labels.json` and `labels.html` in the folder `out` hold them.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data; results of another encoder or other data
            in `out`.
        Stopped: if SIGINT or SIGTERM ended it early.
    """
    config, path = OptionsParser(LabelsConfig).build(options), encoder_path(run)
    _refuse_unused(config, options)
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
    folder = Path(config.out) if config.out else path.parent / "labels"
    task = _Task(config, path, encoder, train, scored, folder, merge(options).get("data", {}))
    task.check_folder()
    cells: list[LabelEfficiency] = []
    for way in config.ways:
        if way == "linear":
            cells += task.linear(y, targets, counts)
        else:
            cells += [task.trained(count, way) for count in counts]
    return task.write(cells)


def _refuse_unused(config: LabelsConfig, options: Mapping[str, Any]) -> None:
    """Raise a UserError for an option of the trainings where nothing is trained."""
    for name in ("epochs", "batch", "from_head"):
        if config.ways == ("linear",) and options.get(name) is not None:
            raise UserError(
                f"--{name} {options[name]} has no effect with --ways [linear], which trains no net: leave it out, or "
                "add finetuned or scratch to --ways"
            )


def _counts(wanted: Sequence[int] | None, y: NDArray[np.int64]) -> list[int]:
    """The numbers of labels, ascending."""
    classes, each = np.unique(y[y >= 0], return_counts=True)
    if wanted is not None:
        return sorted(set(wanted))
    return [n * len(classes) for n in (1, 4, 16, 64) if n <= each.min()]


@dataclass(frozen=True)
class _Task:
    """What the cells of one call share; `given` are the options of the data that the user set."""

    config: LabelsConfig
    file: Path
    module: nn.Module | None
    train: Source
    test: Source
    folder: Path
    given: Mapping[str, Any]

    @cached_property
    def subject(self) -> dict[str, str]:
        """Hashes of what is compared, and on what."""
        with self.file.open("rb") as file:
            encoder = hashlib.file_digest(file, "sha256").hexdigest()
        return {"encoder": encoder, "training data": self.train.fingerprint(), "test data": self.test.fingerprint()}

    def check_folder(self) -> None:
        """Raise a UserError if the folder holds the result of another encoder or of other data."""
        path = self.folder / "labels.json"
        if not path.exists():
            return
        try:
            subject = dict(json.loads(path.read_text())["subject"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error!r}; remove it, or choose another --out") from error
        differing = [name for name, value in self.subject.items() if subject.get(name) != value]
        if differing:
            message = f"{path} is the result with another {' and '.join(differing)}"
            raise UserError(f"{message}; choose another --out, or remove it")

    def linear(self, y: NDArray[np.int64], targets: NDArray[np.int64], counts: list[int]) -> list[LabelEfficiency]:
        """A linear classifier with each number of labels."""
        views = read_header(self.file)["extra"].get("options", {}).get("views", {})
        size, resample = views.get("size"), views.get("resample", "antialias")
        model = load(self.file, self.module, choose_device(self.config.device))
        cache, workers = FeatureCache.beside(self.file), self.config.data.workers
        bank, queries = (
            cache.extract(model, part, size, resample=resample, workers=workers) for part in (self.train, self.test)
        )
        known = targets[queries.index] >= 0
        return label_efficiency(
            {NAMES["linear"]: (bank.h, queries.h[known])}, y[bank.index], targets[queries.index][known],
            counts, self.config.draws, self.config.seed,
        )  # fmt: skip

    def trained(self, count: int, way: Way) -> LabelEfficiency:
        """One way with one number of labels, every draw of them a run of its own."""
        config, accuracies = self.config, []
        assert self.train.labels is not None
        # Another encoder and other data get folders of their own, though the first was stopped before its result.
        key = hashlib.sha256(json.dumps(self.subject).encode()).hexdigest()[:8]
        message = f"{config.from_head}-{config.epochs or 'auto'}-{config.batch or 'auto'}-{config.seed}-{key}"
        for draw in range(config.draws if count < int((self.train.labels >= 0).sum()) else 1):
            options: dict[str, Any] = {"labels": str(count), "draw": draw, "seed": config.seed}
            options |= {"from_head": config.from_head, "from_scratch": way == "scratch"}
            options |= {
                name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None
            }
            options |= {"training": {"device": config.device}, "data": self.given}
            console.print(f"{NAMES[way]}, {count:,} labels, draw {draw + 1}")
            run = self.folder / f"{way}-{count}-{message}-draw{draw}"
            result = finetune(self.file, self.train, self.test, run, options, module=self.module)
            if not result.complete:
                raise Stopped("stopped; nothing is lost: the same command goes on", result.stopped_by or signal.SIGINT)
            accuracies.append(result.metric)
        return LabelEfficiency(NAMES[way], count, tuple(accuracies), ())

    def write(self, cells: list[LabelEfficiency]) -> LabelsReport:
        """Leave JSON and, where the extra is installed, a page in the folder."""
        config, train, test = self.config, self.train, self.test
        reading = interpret(cells, control=NAMES["scratch"])
        result = {
            "cells": [dataclasses.asdict(cell) | {"mean": cell.mean, "std": cell.std} for cell in cells],
            "reading": reading, "draws": config.draws, "seed": config.seed, "subject": self.subject,
            "train": {"name": train.name, "images": len(train)}, "test": {"name": test.name, "images": len(test)},
        }  # fmt: skip
        file, page = RunDirectory(self.folder).write_json("labels.json", result), None
        if importlib.util.find_spec("matplotlib") and importlib.util.find_spec("jinja2"):
            note = f"Test accuracy in %, mean ± standard deviation over {config.draws} draws of labels."
            facts = {"data": train.name, "training images": len(train), "test images": len(test)}
            report = Report(
                title=f"{self.file.parent.name}: how many labels do I need?", facts=facts, lead=reading,
                tables=[label_table(cells, note=note)], figures=[label_figure(cells)],
            )  # fmt: skip
            page = write_report(self.folder / "labels.html", report)
        return LabelsReport(tuple(cells), reading, file, page)


LITTLE = 0.01
"""A gain below this, one point, is called little."""


def interpret(cells: Sequence[LabelEfficiency], control: str) -> str:
    """What the cells say. `control` names the way that uses no pretrained net."""
    counts = sorted({cell.labels for cell in cells})
    rows = {count: [cell for cell in cells if cell.labels == count] for count in counts}
    best = {count: max(row, key=lambda cell: cell.mean) for count, row in rows.items()}
    few, most = counts[0], counts[-1]
    lines = [_first(few, rows[few])]
    if most > few:
        gain = best[most].mean - best[few].mean
        alike = _names(_alike(best[most], rows[most]))
        also = f"; alike within the spread: {alike}" if alike else ""
        lines.append(
            f"{most:,} labels give {_words(best[most])} ({best[most].features}{also}), {gain * 100:+.1f} points."
        )
    lines += _against_control(counts, rows, control)
    # Little is bought where every later number stays within a point, not where one step happens to be small.
    enough = next((a for a in counts[:-1] if all(best[b].mean - best[a].mean < LITTLE for b in counts if b > a)), None)
    if enough:
        lines.append(f"From about {enough:,} labels on, more of them buy less than a point.")
    return " ".join(lines)


def beyond_spread(a: LabelEfficiency, b: LabelEfficiency) -> bool:
    """Whether a's mean lies above b's by more than the differences of the draws scatter (one standard deviation).

    All ways get the same labelled images in a draw, so that their differences are compared draw by draw. Of a single
    draw the spread is not known, and any lead counts.
    """
    lead = a.mean - b.mean
    if len(a.top1) == len(b.top1) > 1:
        return lead > float(np.std(np.subtract(a.top1, b.top1), ddof=1))
    return lead > math.hypot(a.std or 0.0, b.std or 0.0)


def _first(count: int, row: Sequence[LabelEfficiency]) -> str:
    """Which way is best with so few labels."""
    best = max(row, key=lambda cell: cell.mean)
    if len(row) == 1:
        return f"With {count:,} labels: {best.features}, {_words(best)}."
    alike = [best, *_alike(best, row)]
    if len(alike) == 1:
        once = " (of one draw of labels: its spread is not known)" if best.std is None else ""
        return f"With {count:,} labels the best is: {best.features}, {_words(best)}{once}."
    listed = [f"{cell.features}, {_words(cell)}" for cell in alike]
    return f"With {count:,} labels the best are alike within the spread of the draws: {'; '.join(listed)}."


def _against_control(counts: Sequence[int], rows: dict[int, list[LabelEfficiency]], control: str) -> list[str]:
    """What pretraining is worth in labels; nothing where one side was not measured, or the control wins."""
    few = counts[0]
    scratch = {count: cell for count in counts for cell in rows[count] if cell.features == control}
    others = [cell for cell in rows[few] if cell.features != control]
    if not scratch or not others:
        return []
    pretrained = max(others, key=lambda cell: cell.mean)
    message = f"Trained from scratch, {few:,} labels give {scratch[few].mean * 100:.1f} %"
    if beyond_spread(scratch[few], pretrained):
        return []
    if not beyond_spread(pretrained, scratch[few]):
        return [f"{message}, which differs from the pretrained net's by no more than the spread of the draws."]
    place = next((i for i, count in enumerate(counts) if scratch[count].mean >= pretrained.mean), None)
    if place is None:
        return [f"{message}; even {counts[-1]:,} stay below what the pretrained net reaches with {few:,}."]
    enough, short = counts[place], counts[place - 1]
    message += f"; it takes {enough:,} of them ({short:,} are too few) to reach what"
    return [f"{message} the pretrained net reaches with {few:,}."]


def _alike(best: LabelEfficiency, row: Sequence[LabelEfficiency]) -> list[LabelEfficiency]:
    """The other ways that `best` does not lead by more than the spread, better ones first."""
    near = [cell for cell in row if cell is not best and not beyond_spread(best, cell)]
    return sorted(near, key=lambda cell: -cell.mean)


def _names(cells: Sequence[LabelEfficiency]) -> str:
    return " and ".join(cell.features for cell in cells)


def _words(cell: LabelEfficiency) -> str:
    spread = f" ± {cell.std * 100:.1f}" if cell.std is not None else ""
    return f"{cell.mean * 100:.1f}{spread} %"
