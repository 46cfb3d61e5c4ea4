"""How many labels do I need? Accuracy against their number, for three ways to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from twofold.console import print_rank0
from twofold.data import DataConfig
from twofold.data.groups import group_numbers, groups_of
from twofold.devices import choose_device
from twofold.encoders import read_header
from twofold.encoders.load import load
from twofold.errors import Diverged, Stopped, UserError
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.features import Extractor
from twofold.evaluation.few_labels import LabelEfficiency, label_efficiency
from twofold.evaluation.grouped import groups_in_words
from twofold.evaluation.label_subsets import label_positions
from twofold.evaluation.parts import Parts, evaluation_parts, labelled_parts
from twofold.evaluation.protocols.beside import PLAIN, without_encoder
from twofold.evaluation.splits import check_test_labels
from twofold.files import check_out, write_atomically
from twofold.kinds import Kind
from twofold.options import option
from twofold.reading import read_json
from twofold.report import Report, label_figure, label_table, write_report
from twofold.report.tables import averaged
from twofold.runs.finetune import finetune
from twofold.studies.base import Study, check_one_label
from twofold.studies.diverging import kept
from twofold.text import counted
from twofold.verdicts import paired, unpaired

Way = Literal["linear", "plain", "finetuned", "scratch"]
NAMES: dict[Way, str] = {
    "linear": "linear classifier",
    "plain": "linear classifier without an encoder",
    "finetuned": "fine-tuned",
    "scratch": "from scratch",
}


_TRAINED = {"ways": ("finetuned", "scratch")}


@dataclass(frozen=True)
class LabelsConfig:
    """What is compared."""

    counts: tuple[int, ...] | None = None
    """Numbers of labels in all; when not given 1, 4, 16 and 64 of each class, as far as there are as many."""
    ways: tuple[Way, ...] = ("linear", "plain", "finetuned", "scratch")
    """linear: logistic regression on the frozen encoder; plain: the same on raw pixels or on the filterbank, of which
    nothing is learned; finetuned: classifier and encoder trained; scratch: the same net from a random start, the
    control."""
    draws: int = 3
    """Repetitions with other labelled images; all ways get the same ones."""
    seed: int = 0
    """Of the choice of labels, and of the nets that are trained."""
    from_head: int = option(0, when=_TRAINED)
    """Output of the projection head that fine-tuning starts from."""
    epochs: float | None = option(None, when=_TRAINED)
    """Of fine-tuning and training from scratch; see `twofold finetune`."""
    batch: int | None = option(None, when=_TRAINED)
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


class LabelsPart(NamedTuple):
    """One way to use the labels, with each of some numbers of them."""

    way: Way
    counts: tuple[int, ...]


class LabelsFolder:
    """`labels.json`, `labels.html` and a run for each training: of one encoder and one data set.

    Args:
        path: of the folder.
        subject: hashes of what is compared, and on what.
        facts: what else `labels.json` says.
        resume: go on with what is in the folder.
    """

    def __init__(self, path: Path, subject: Mapping[str, str], facts: Mapping[str, Any], resume: bool) -> None:
        self._path, self.subject, self.facts, self.resume = path, subject, facts, resume

    @property
    def path(self) -> Path:
        return self._path

    @property
    def file(self) -> Path:
        return self._path / "labels.json"

    def start(self) -> None:
        """Raise a UserError if the folder holds the result of another encoder or of other data."""
        trained = next(self._path.glob("*-draw*/config.yaml"), None) is not None
        check_out(self._path, self.file.exists() or trained, "study", self.resume)
        if not self.file.exists():
            return
        try:
            subject = dict(read_json(self.file)["subject"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.file} is damaged: {error!r}; remove it, or choose another --out") from error
        differing = [name for name, value in self.subject.items() if subject.get(name) != value]
        if differing:
            message = f"{self.file} is the result with another {' and '.join(differing)}"
            raise UserError(f"{message}; choose another --out, or remove it")

    def finish(self, document: Mapping[str, Any], report: Report | None) -> Path | None:
        """Write `labels.json` and `labels.html`."""
        found = {"cells": document["results"], "interpretation": document["interpretation"]}
        text = json.dumps(found | {"subject": dict(self.subject), **self.facts}, indent=2) + "\n"
        write_atomically(self.file, lambda file: file.write(text.encode()))
        return None if report is None else write_report(self._path / "labels.html", report)


class LabelsStudy(Study[LabelsPart, LabelEfficiency]):
    """What few labels buy: a part is a way with a number of labels, every draw of them a run of its own."""

    name = "labels"
    Config = LabelsConfig
    remedy = "give another --batch, which the rate goes by, or --ways '[linear, plain]', of which no net is trained"
    table = staticmethod(label_table)

    def __init__(
        self, file: Path, data: Any, test: Any, config: LabelsConfig, given: Mapping[str, Any],
        module: nn.Module | None, resume: bool,
    ) -> None:  # fmt: skip
        """`given` are the options that the user set, nested."""
        self.encoder, self.data, self.scored, self.config = file, data, test, config
        self.given, self.module, self.resume = given, module, resume

    def plan(self) -> Sequence[LabelsPart]:
        """A part for the linear classifier, which needs features but once, and one for each number of labels."""
        config, path = self.config, self.encoder
        self.device = choose_device(config.device, "--device")
        channels = read_header(path)["spec"].get("channels")
        reading = dataclasses.replace(config.data, channels=config.data.channels or channels)
        self.train, self.test = labelled_parts(*evaluation_parts(self.data, self.scored, reading), seed=config.seed)
        self.targets = check_test_labels(self.train, self.test)
        check_one_label(self.train, self.test, "`twofold labels`")
        counts = _counts(config.counts, self.labels)
        for count in counts:
            label_positions(self.train, count, config.seed)  # refuse before hours go into the smaller ones
        self.folder = LabelsFolder(
            Path(config.out) if config.out else path.parent / "labels", self.subject, self._facts(), self.resume
        )
        parts = []
        for way in config.ways:
            groups = [tuple(counts)] if way in ("linear", "plain") else [(count,) for count in counts]
            parts += [LabelsPart(way, group) for group in groups]
        return parts

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N] of the training data, -1 where there is none."""
        return cast(NDArray[np.int64], self.train.labels)

    @cached_property
    def subject(self) -> dict[str, str]:
        """Hashes of what is compared, and on what."""
        with self.encoder.open("rb") as file:
            encoder = hashlib.file_digest(file, "sha256").hexdigest()
        return {"encoder": encoder, "training data": self.train.fingerprint(), "test data": self.test.fingerprint()}

    def _facts(self) -> dict[str, Any]:
        train, test = self.train, self.test
        return {
            "draws": self.config.draws, "seed": self.config.seed,
            "train": {"name": train.name, "images": len(train)}, "test": {"name": test.name, "images": len(test)},
            "groups": groups_in_words(
                self.config.data.group, {"training": groups_of(train), "test": groups_of(test)}
            ),
        }  # fmt: skip

    def run(self, part: LabelsPart) -> Sequence[LabelEfficiency]:
        """A classifier on frozen features, or a net trained in a run for each draw."""
        if part.way in ("linear", "plain"):
            return self._linear(list(part.counts), part.way)
        cells = []
        for count in part.counts:
            try:
                cells.append(self._trained(count, part.way))
            except Diverged as error:  # of fewer draws than the other ways it would not stand beside them
                self.leave_out(f"{NAMES[part.way]}, {counted(count, 'label')}", error)
        return cells

    def _linear(self, counts: list[int], way: Way) -> list[LabelEfficiency]:
        """A linear classifier with each number of labels."""
        model, name = load(self.encoder, self.module, self.device), NAMES[way]
        cache = FeatureCache.beside(self.encoder)
        extractor = Extractor.of(self.encoder, workers=self.config.data.workers, cache=cache)
        if way == "plain":
            try:
                rows = without_encoder(model, Parts(self.train, self.test), extractor)
            except UserError as error:
                if self.config.ways == ("plain",):
                    raise
                print_rank0(f"without {PLAIN[model.input.kind]}: {error}")
                return []
            name, (model, extractor) = _on_plain(model.input.kind), (rows[0][0].encoder, rows[0][0].extractor)
        bank, queries = (extractor.extract(model, part) for part in (self.train, self.test))
        known, groups = self.targets[queries.index] >= 0, group_numbers(self.train)
        return label_efficiency(
            {name: (bank.h, queries.h[known])}, self.labels[bank.index], self.targets[queries.index][known],
            counts, self.config.draws, self.config.seed, groups=None if groups is None else groups[bank.index],
        )  # fmt: skip

    def _trained(self, count: int, way: Way) -> LabelEfficiency:
        """One way with one number of labels."""
        config, accuracies = self.config, []
        # Another encoder and other data get folders of their own, though the first was stopped before its result.
        key = hashlib.sha256(json.dumps(self.subject).encode()).hexdigest()[:8]
        setting = f"{config.from_head}-{config.epochs or 'auto'}-{config.batch or 'auto'}-{config.seed}-{key}"
        budget = {name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None}
        for draw in range(config.draws if count < int((self.labels >= 0).sum()) else 1):
            options: dict[str, Any] = {"labels": str(count), "draw": draw, "seed": config.seed}
            options |= {"from_head": config.from_head, "from_scratch": way == "scratch"} | budget
            options |= {"training": {"device": config.device}, "data": self.given.get("data", {})}
            print_rank0(f"{NAMES[way]}, {counted(count, 'label')}, draw {draw + 1}")
            run = self.folder.path / f"{way}-{count}-{setting}-draw{draw}"
            result = kept(run, partial(
                finetune, self.encoder, self.train, self.test, run, options, module=self.module
            ))  # fmt: skip
            if not result.complete:
                raise Stopped.at(f"in {run}", result.stopped_by or signal.SIGINT)
            accuracies.append(result.metric)
        return LabelEfficiency(NAMES[way], count, tuple(accuracies), ())

    def interpretation(self, cells: Sequence[LabelEfficiency]) -> str:
        """What the ways are worth, and what more labels buy."""
        return interpret(cells, control=NAMES["scratch"])

    def measured(self, cell: LabelEfficiency) -> Mapping[str, float]:
        """Mean accuracy by way and number of labels."""
        return {f"{cell.features}, {cell.labels:,} labels: top1": cell.mean}

    def as_dict(self, cell: LabelEfficiency) -> dict[str, Any]:
        """With the mean and the deviation."""
        return super().as_dict(cell) | {"mean": cell.mean, "std": cell.std}

    def page(self, cells: Sequence[LabelEfficiency]) -> Report:
        """Accuracy against the number of labels."""
        train, test = self.train, self.test
        note = f"Test accuracy in %, {averaged(self.config.draws, 'draw', ' of labels')}."
        facts = {"data": train.name, "training images": len(train), "test images": len(test)}
        return Report(
            title=f"{self.encoder.parent.name}: how many labels do I need?", facts=facts,
            lead=self.interpretation(cells), tables=[label_table(cells, note=note)], figures=[label_figure(cells)],
        )  # fmt: skip


def _on_plain(kind: Kind) -> str:
    """What the way `plain` is called."""
    return f"{NAMES['linear']} on {PLAIN[kind]}"


def _counts(wanted: Sequence[int] | None, y: NDArray[np.int64]) -> list[int]:
    """The numbers of labels, ascending."""
    classes, each = np.unique(y[y >= 0], return_counts=True)
    if wanted is not None:
        return sorted(set(wanted))
    return [n * len(classes) for n in (1, 4, 16, 64) if n <= each.min()]


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
        also = f"; not clearly better than {alike}" if alike and best[most].std is not None else ""
        lines.append(
            f"{most:,} labels give {_words(best[most])} ({best[most].features}{also}), {gain * 100:+z.1f} points."
        )
    lines += _against_control(counts, rows, control)
    # Little is bought where every later number stays within a point, not where one step happens to be small.
    enough = next((a for a in counts[:-1] if all(best[b].mean - best[a].mean < LITTLE for b in counts if b > a)), None)
    if enough:
        lines.append(f"From about {counted(enough, 'label')} on, more of them buy less than a point.")
    return " ".join(lines)


def leads(a: LabelEfficiency, b: LabelEfficiency) -> bool:
    """Whether a's mean lies above b's beyond what the draws' scatter makes likely by chance (Student's t, 5 %).

    All ways get the same labelled images in a draw, so that they are compared draw by draw. Of a single draw the
    scatter is not known, and no lead counts.
    """
    judge = paired if len(a.top1) == len(b.top1) else unpaired
    found = judge(a.top1, b.top1)
    return found.clear and found.mean > 0


def _first(count: int, row: Sequence[LabelEfficiency]) -> str:
    """Which way is best with so few labels."""
    best = max(row, key=lambda cell: cell.mean)
    if len(row) == 1:
        return f"With {counted(count, 'label')}: {best.features}, {_words(best)}."
    if best.std is None:
        listed = [f"{cell.features}, {_words(cell)}" for cell in sorted(row, key=lambda cell: -cell.mean)]
        return f"With {counted(count, 'label')}, of one draw, whose spread is not known: {'; '.join(listed)}."
    alike = [best, *_alike(best, row)]
    if len(alike) == 1:
        return f"With {counted(count, 'label')} the best is: {best.features}, {_words(best)}."
    listed = [f"{cell.features}, {_words(cell)}" for cell in alike]
    return f"With {counted(count, 'label')} none of the best is clearly ahead: {'; '.join(listed)}."


def _against_control(counts: Sequence[int], rows: dict[int, list[LabelEfficiency]], control: str) -> list[str]:
    """What pretraining is worth in labels; nothing where one side was not measured, or the control wins."""
    few = counts[0]
    scratch = {count: cell for count in counts for cell in rows[count] if cell.features == control}
    counts = [count for count in counts if count in scratch]  # what diverged was left out
    plain = {_on_plain(kind) for kind in PLAIN}
    others = [cell for cell in rows[few] if cell.features != control and cell.features not in plain]
    if few not in scratch or not others:
        return []
    pretrained = max(others, key=lambda cell: cell.mean)
    gives = "gives" if few == 1 else "give"
    message = f"Trained from scratch, {counted(few, 'label')} {gives} {scratch[few].mean * 100:.1f} %"
    if leads(scratch[few], pretrained):
        return []
    if not leads(pretrained, scratch[few]):
        once = pretrained.std is None
        return [f"{message}, {'of one draw' if once else 'which is not clearly less than the pretrained net has'}."]
    place = next((i for i, count in enumerate(counts) if scratch[count].mean >= pretrained.mean), None)
    if place is None:
        return [f"{message}; even {counts[-1]:,} stay below what the pretrained net reaches with {few:,}."]
    enough, short = counts[place], counts[place - 1]
    message += f"; it takes {enough:,} of them ({short:,} are too few) to reach what"
    return [f"{message} the pretrained net reaches with {few:,}."]


def _alike(best: LabelEfficiency, row: Sequence[LabelEfficiency]) -> list[LabelEfficiency]:
    """The other ways that `best` does not clearly lead, better ones first."""
    near = [cell for cell in row if cell is not best and not leads(best, cell)]
    return sorted(near, key=lambda cell: -cell.mean)


def _names(cells: Sequence[LabelEfficiency]) -> str:
    return " and ".join(cell.features for cell in cells)


def _words(cell: LabelEfficiency) -> str:
    spread = f" ± {cell.std * 100:.1f}" if cell.std is not None else ""
    return f"{cell.mean * 100:.1f}{spread} %"
