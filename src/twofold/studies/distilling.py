"""Does a student learn better from a teacher of its own kind? (arXiv 2108.00587, second strand)

The abstract states that distillation is better when both share the same base model. Asked as: every student from every
teacher, and its accuracy from a teacher of its own architecture against that from another. Where one teacher is better
than the other that would measure the teachers, so a student is judged only between teachers that are matched in
accuracy; and where every student met every teacher, what own kind is worth beside the effects of the teachers and of
the students is told, too. The protocol is ours; the paper's own was not available.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from twofold.data import DataConfig
from twofold.encoders import build_encoder, read_header
from twofold.encoders.load import encoder_path
from twofold.errors import Stopped, UserError
from twofold.evaluation.features import Pixels
from twofold.evaluation.label_subsets import label_positions
from twofold.options import OptionsParser, merge
from twofold.report import Figure, Report, Series, Table, bar_figure
from twofold.report.tables import averaged, spread
from twofold.runs import distill as distillation
from twofold.runs.config import DistillConfig
from twofold.runs.teacher import TeacherSource
from twofold.studies.base import INTERVAL, Folder, Study, check_one_label, shared_options, train_and_test
from twofold.studies.diverging import kept
from twofold.studies.nets import net_options, title
from twofold.verdicts import paired

SET_BY_THE_STUDY = {
    "encoder": "and name the students by --students",
    "temperature": "and name them by --temperatures",
    "seed": "each run of a pair has its own; say how many by --seeds",
    "test": "and give it to the study, as --test",
    "unlabelled": "both are scored",
    "data": "and give it to the study, as --data.*",
}
"""Options of distillation that a file of options cannot set, and what to do instead."""


@dataclass(frozen=True)
class DistillStudyConfig:
    """What is compared."""

    teachers: tuple[str, ...] = ()
    """Runs, or encoder.safetensors files, each of another architecture."""
    students: tuple[str, ...] | None = None
    """Architectures as NAME or NAME@WIDTH, e.g. resnet18@0.5; those of the teachers when not given."""
    teacher_labels: str | None = None
    """Fit each teacher's classifier on so many labels first, as `twofold distill` does."""
    shares: tuple[str, ...] | None = None
    """Shares or numbers of labels to compare, as `--teacher_labels` takes them: each teacher's classifier is fitted on
    so many, and with --alpha the students learn from so many, too."""
    matched: float = 1.0
    """Points by which teachers may differ in accuracy for a student to be judged between them."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures to try, each for every pair."""
    alpha: float | None = None
    """Learn from the labels, too: the teacher's share of the loss."""
    seeds: int = 3
    """Runs of each pair."""
    epochs: float | None = None
    """Passes over the data; chosen from their number when not given."""
    batch: int | None = None
    """Images per step; chosen from the data when not given."""
    config: str | None = None
    """A YAML file of further options of distillation."""
    test: str | None = None
    """Labelled data for the scores; the data's own test split when not given."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise UserError("--teachers must name at least one run, none twice, e.g. --teachers '[runs/a, runs/b]'")
        if self.seeds < 1 or not self.temperatures:
            raise UserError("--seeds must be at least 1, and --temperatures name at least one")
        if self.shares is not None and (not self.shares or len(set(self.shares)) < len(self.shares)):
            raise UserError(f"--shares must name at least one, none twice; got {list(self.shares)}")
        if self.shares is not None and self.teacher_labels is not None:
            raise UserError(f"--teacher_labels {self.teacher_labels} is one of --shares {list(self.shares)}: give one")
        if not self.matched >= 0:
            raise UserError(f"--matched must be 0 points or more, got {self.matched}")


@dataclass(frozen=True)
class Pair:
    """One run: both architectures, whether they are the same, temperature, seed, accuracies in [0, 1], agreement; and
    the share of labels, "" where none is compared."""

    teacher: str
    student: str
    same_base: bool
    temperature: float
    seed: int
    teacher_top1: float
    student_top1: float
    agreement: float
    labels: str = ""

    @property
    def gap(self) -> float:
        """Student's accuracy less its teacher's."""
        return self.student_top1 - self.teacher_top1


def student_options(name: str, stem: str | None) -> dict[str, Any]:
    """Encoder options of NAME or NAME@WIDTH; the teacher's stem for ResNets. UserError for a width that is none."""
    options = net_options(name, "students")
    return options | ({"stem": stem} if stem and name.startswith("resnet") else {})


_MEASURED = ("teacher_top1", "student_top1", "gap", "agreement")


def table(pairs: Sequence[Pair]) -> Table:
    """A row for each pair and temperature."""
    rows, shares = [], any(p.labels for p in pairs)
    for key in dict.fromkeys((p.teacher, p.student, p.temperature, p.labels) for p in pairs):
        group = [p for p in pairs if (p.teacher, p.student, p.temperature, p.labels) == key]
        base = "same" if group[0].same_base else "other"
        values = (spread([getattr(p, name) for p in group]) for name in _MEASURED)
        rows.append([key[0], key[1], base, f"{key[2]:g}", *([key[3]] if shares else []), *values])
    columns = [
        "teacher", "student", "base", "temperature", *(["labels"] if shares else []), "teacher's accuracy",
        "student's accuracy", "gap", "agreement",
    ]  # fmt: skip
    seeds = len({p.seed for p in pairs})
    note = f"Test accuracy and agreement in %, {averaged(seeds, 'seed', ' of the student')}."
    return Table("Same base or another?", columns, rows, note)


def interpretation(pairs: Sequence[Pair], matched: float = 1.0) -> str:
    """What came of it, in plain words: each student from its own kind against the others, then all of them at once.

    Args:
        pairs: all runs.
        matched: points by which two kinds of teacher may differ for a verdict between them.
    """
    told = []
    for share in dict.fromkeys(p.labels for p in pairs):
        own = [p for p in pairs if p.labels == share]
        students = dict.fromkeys(p.student for p in own)
        parts = [words for student in students if (words := _one(own, student, matched))]
        if parts:
            told += [f"With {share} of the labels:"] if share else []
            told += [*parts, *_all(own)]
    if not told:
        return "No student met both kinds of teacher."
    return f"In points, {INTERVAL}. Own kind less another kind. {' '.join(told)}"


def _one(pairs: Sequence[Pair], student: str, matched: float) -> str:
    """A student's accuracy from its own kind against that from another, with the teachers' beside it."""
    own_pairs = _whole([p for p in pairs if p.student == student])
    same, other = (
        {name: _by_seed([p for p in own_pairs if p.same_base == own], name)
         for name in ("student_top1", "teacher_top1")}
        for own in (True, False)
    )  # fmt: skip
    seeds = [seed for seed in same["student_top1"] if seed in other["student_top1"]]
    if not seeds:
        return ""
    found, teachers = (
        paired([same[name][s] for s in seeds], [other[name][s] for s in seeds]).times(100)
        for name in ("student_top1", "teacher_top1")
    )
    means = [100 * float(np.mean(list(side["student_top1"].values()))) for side in (same, other)]
    if abs(teachers.mean) > matched:
        apart = f"{teachers.mean:+z.1f}, more than --matched {matched:g}"
        verdict = f"no verdict, since the teachers themselves differ by {apart}"
    elif not found.clear:
        verdict = "no clear difference"
    else:
        verdict = "better from its own kind" if found.mean > 0 else "better from another kind"
    return f"{student}: {means[0]:.1f} and {means[1]:.1f} %, {found.words()}: {verdict}."


def _all(pairs: Sequence[Pair]) -> list[str]:
    """What own kind is worth where every student met every teacher: neither the better teacher nor the better student
    takes part, as each has an effect of its own (the interaction in a two-way table)."""
    pairs = _whole(pairs)
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for teacher, student in dict.fromkeys((p.teacher, p.student) for p in pairs):
        cells[teacher, student] = _by_seed(
            [p for p in pairs if (p.teacher, p.student) == (teacher, student)], "student_top1"
        )
    teachers, students = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    own = {(p.teacher, p.student) for p in pairs if p.same_base}
    if len(cells) != len(teachers) * len(students) or len(teachers) < 2 or len(students) < 2:
        return []
    at = np.array([[(t, s) in own for s in students] for t in teachers], float)
    design = at - at.mean(0) - at.mean(1, keepdims=True) + at.mean()
    if not np.abs(design).max() > 1e-9:
        return []
    effects = []
    for seed in sorted(set.intersection(*(set(values) for values in cells.values()))):
        table = np.array([[cells[t, s][seed] for s in students] for t in teachers])
        effects.append(100 * float((design * table).sum() / (design**2).sum()))
    found = paired(effects, [0.0] * len(effects))
    verdict = ("better" if found.mean > 0 else "worse") if found.clear else "no clear difference"
    return [
        f"All students and teachers at once, each with an effect of its own: {found.words()} for own kind, {verdict}."
    ]


def _whole(pairs: Sequence[Pair]) -> list[Pair]:
    """Those at seeds and temperatures at which all pairings came to their end: what diverged has no counterpart."""
    pairings = {(p.teacher, p.student) for p in pairs}
    found: dict[tuple[int, float], set[tuple[str, str]]] = {}
    for p in pairs:
        found.setdefault((p.seed, p.temperature), set()).add((p.teacher, p.student))
    return [p for p in pairs if found[p.seed, p.temperature] == pairings]


def _by_seed(pairs: Sequence[Pair], name: str) -> dict[int, float]:
    """The mean of each seed: teachers and temperatures of one seed are no repetitions of one another."""
    seeds = dict.fromkeys(p.seed for p in pairs)
    return {seed: float(np.mean([getattr(p, name) for p in pairs if p.seed == seed])) for seed in seeds}


def page(pairs: Sequence[Pair], data: str, matched: float = 1.0) -> Report:
    """The page: the accuracy of each student by kind of teacher, and, where shares are compared, against these."""
    shares = list(dict.fromkeys(p.labels for p in pairs))
    students = list(dict.fromkeys(p.student for p in pairs))
    figures = [_figure(pairs, "student", students)]
    if len(shares) > 1:
        figures.append(_figure(pairs, "labels", shares))
    lead = interpretation(pairs, matched)
    return Report("Same base or another?", {"data": data}, tables=[table(pairs)], figures=figures, lead=lead)


def _figure(pairs: Sequence[Pair], by: str, names: Sequence[str]) -> Figure:
    """The students' accuracy from both kinds of teacher, side by side for each name that `by` takes."""
    lines = []
    for same, name in ((True, "same base"), (False, "other base")):
        groups = [[p.student_top1 for p in pairs if getattr(p, by) == n and p.same_base == same] for n in names]
        if not any(groups):  # of one teacher alone, one of the two does not occur
            continue
        means = [float(np.mean(g)) if g else None for g in groups]
        bars = [float(np.std(g, ddof=1)) if len(g) > 1 else None for g in groups]
        lines.append(Series(name, means, bars))
    return bar_figure("Student's accuracy", by, names, lines)


class DistillPart(NamedTuple):
    """A run to be made: its folder's name, the teacher's number, the student's name, its options, and the share of
    labels, "" where none is compared."""

    name: str
    teacher: int
    student: str
    options: dict[str, Any]
    labels: str = ""


class DistillStudy(Study[DistillPart, Pair]):
    """Every student from every teacher, with teachers of the same and of another architecture; a part is a run."""

    name = "distillation"
    Config = DistillStudyConfig
    table = staticmethod(table)

    def __init__(self, data: str, config: DistillStudyConfig, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder

    def plan(self) -> Sequence[DistillPart]:
        """One part a run: teachers by students by temperatures by seeds."""
        config = self.config
        self.files = [encoder_path(teacher) for teacher in config.teachers]
        headers = [read_header(file) for file in self.files]
        channels = {header["spec"].get("channels") for header in headers}
        reading = Pixels.of(headers[0]).fill(config.data)
        self.train, self.test = train_and_test(self.data, config.test, reading, next(iter(channels)))
        check_one_label(self.train, self.test)
        taken = {} if config.shares is None else dict.fromkeys(("labels", "teacher_labels"), "and name it by --shares")
        shared = shared_options(config.config, reading, SET_BY_THE_STUDY | taken)
        for share in config.shares or ():
            label_positions(self.train, share)
        stem = next((header["spec"].get("stem") for header in headers if header["spec"].get("stem")), None)
        self.teachers = [TeacherSource(file).student_options() for file in self.files]
        students = {title(options): options for options in self.teachers}
        if config.students is not None:
            students = {s: student_options(s, stem) | {"channels": self.train.channels} for s in config.students}
        names = ("epochs", "batch", "alpha", "teacher_labels")
        shared |= {name: getattr(config, name) for name in names if getattr(config, name) is not None}
        self.learns_labels = shared.get("alpha") is not None
        for options in students.values():
            parser, origin = OptionsParser(DistillConfig), config.config or "options"
            build_encoder(parser.build(merge(shared, {"encoder": options}), origin).encoder)
        return [
            DistillPart(
                f"teacher{t}-student{s}{f'-labels{n}' if share else ''}-temperature{k}-seed{seed}", t, student,
                merge(shared, {"encoder": encoder, "temperature": temperature, "seed": seed}, self._share(share)),
                share,
            )
            for n, share in enumerate(config.shares or ("",))
            for t in range(len(self.files))
            for s, (student, encoder) in enumerate(students.items())
            for k, temperature in enumerate(config.temperatures)
            for seed in range(config.seeds)
        ]  # fmt: skip

    def _share(self, share: str) -> dict[str, Any]:
        """Options of a share of labels: the teachers', and the students' where these learn from labels."""
        if not share:
            return {}
        return {"teacher_labels": share} | ({"labels": share} if self.learns_labels else {})

    def describe(self, part: DistillPart) -> str:
        """Who learns from whom."""
        return f"{part.name}: {part.student} from {title(self.teachers[part.teacher])}"

    def run(self, part: DistillPart) -> Sequence[Pair]:
        """One student from one teacher, or the result of a run that is done."""
        file, place, options = self.files[part.teacher], self.folder.path / part.name, part.options
        result = kept(
            place, lambda: distillation.distill(file, self.train, place, options, test=self.test, labelled=self.train)
        )
        if result.comparison is None:
            raise Stopped.at(f"in {place}", result.stopped_by or signal.SIGINT)
        c = result.comparison
        if c.teacher_top1 is None or c.student_top1 is None:
            raise UserError(f"{self.test.name} has no labels to score both on")
        same = read_header(place / "encoder.safetensors")["spec"] == read_header(file)["spec"]
        teacher, temperature, seed = title(self.teachers[part.teacher]), options["temperature"], options["seed"]
        scored = c.teacher_top1, c.student_top1, c.agreement
        return [Pair(teacher, part.student, same, temperature, seed, *scored, part.labels)]

    def measured(self, cell: Pair) -> Mapping[str, float]:
        """Accuracies, gap and agreement by teacher, student and temperature."""
        name = f"{cell.student} from {cell.teacher}, temperature {cell.temperature:g}"
        name += f", {cell.labels} labels" if cell.labels else ""
        return {f"{name}: {what}": getattr(cell, what) for what in _MEASURED}

    def as_dict(self, cell: Pair) -> dict[str, Any]:
        """With the gap."""
        return super().as_dict(cell) | {"gap": cell.gap}

    def interpretation(self, cells: Sequence[Pair]) -> str:
        """Each student between matched teachers, and all at once."""
        return interpretation(cells, self.config.matched)

    def page(self, cells: Sequence[Pair]) -> Report:
        """The accuracy of each student, by kind of teacher."""
        return page(cells, self.data, self.config.matched)
