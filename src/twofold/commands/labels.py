"""`twofold labels`: how many labels do I need? Accuracy against their number, for three ways to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from twofold.commands.evaluate import evaluation_parts, labelled_parts
from twofold.commands.load import encoder_path, load
from twofold.commands.naming import named
from twofold.commands.reading import read_out
from twofold.data import DataConfig, Source
from twofold.encoders import read_header
from twofold.errors import Stopped, UserError
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.finetune import finetune
from twofold.evaluation.labels import Cell, label_efficiency
from twofold.evaluation.splits import check_test_labels
from twofold.evaluation.subsets import label_positions
from twofold.report import Report, label_figure, label_table, write_report
from twofold.training.config import OptionsParser, merge
from twofold.training.progress import console
from twofold.training.rundir import RunDirectory
from twofold.training.starting import choose_device

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
    cells: list[Cell] = []
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
            told = f"{path} is the result with another {' and '.join(differing)}"
            raise UserError(f"{told}; choose another --out, or remove it")

    def linear(self, y: NDArray[np.int64], targets: NDArray[np.int64], counts: list[int]) -> list[Cell]:
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

    def trained(self, count: int, way: Way) -> Cell:
        """One way with one number of labels, every draw of them a run of its own."""
        config, accuracies = self.config, []
        assert self.train.labels is not None
        # Another encoder and other data get folders of their own, though the first was stopped before its result.
        key = hashlib.sha256(json.dumps(self.subject).encode()).hexdigest()[:8]
        told = f"{config.from_head}-{config.epochs or 'auto'}-{config.batch or 'auto'}-{config.seed}-{key}"
        for draw in range(config.draws if count < int((self.train.labels >= 0).sum()) else 1):
            options: dict[str, Any] = {"labels": str(count), "draw": draw, "seed": config.seed}
            options |= {"from_head": config.from_head, "from_scratch": way == "scratch"}
            options |= {
                name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None
            }
            options |= {"training": {"device": config.device}, "data": self.given}
            console.print(f"{NAMES[way]}, {count:,} labels, draw {draw + 1}")
            run = self.folder / f"{way}-{count}-{told}-draw{draw}"
            result = finetune(self.file, self.train, self.test, run, options, module=self.module)
            if not result.complete:
                raise Stopped("stopped; nothing is lost: the same command goes on", result.stopped_by or signal.SIGINT)
            accuracies.append(result.metric)
        return Cell(NAMES[way], count, tuple(accuracies), ())

    def write(self, cells: list[Cell]) -> LabelsReport:
        """Leave JSON and, where the extra is installed, a page in the folder."""
        config, train, test = self.config, self.train, self.test
        reading = read_out(cells, control=NAMES["scratch"])
        found = {
            "cells": [dataclasses.asdict(cell) | {"mean": cell.mean, "std": cell.std} for cell in cells],
            "reading": reading, "draws": config.draws, "seed": config.seed, "subject": self.subject,
            "train": {"name": train.name, "images": len(train)}, "test": {"name": test.name, "images": len(test)},
        }  # fmt: skip
        file, page = RunDirectory(self.folder).write_json("labels.json", found), None
        if importlib.util.find_spec("matplotlib") and importlib.util.find_spec("jinja2"):
            note = f"Test accuracy in %, mean ± standard deviation over {config.draws} draws of labels."
            facts = {"data": train.name, "training images": len(train), "test images": len(test)}
            report = Report(
                title=f"{self.file.parent.name}: how many labels do I need?", facts=facts, lead=reading,
                tables=[label_table(cells, note=note)], figures=[label_figure(cells)],
            )  # fmt: skip
            page = write_report(self.folder / "labels.html", report)
        return LabelsReport(tuple(cells), reading, file, page)
