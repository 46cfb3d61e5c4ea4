"""Does a student learn better from a teacher of its own kind? (arXiv 2108.00587, second strand)

The abstract states that distillation is better when both share the same base model. Asked as: every student from every
teacher, the gap from student to teacher where both have one architecture against the gap where they have not. The
protocol is ours; the paper's own was not available.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twofold.console import console
from twofold.data import DataConfig, Source
from twofold.encoders import build_encoder, read_header
from twofold.encoders.load import encoder_path
from twofold.errors import Stopped, UserError
from twofold.options import OptionsParser, merge
from twofold.report import Report, Series, Table, line_figure
from twofold.report.tables import spread, terminal
from twofold.runs import distill as distillation
from twofold.runs.config import DistillConfig
from twofold.runs.teacher import TeacherSource
from twofold.studies import distilling
from twofold.studies.folder import StudyFolder, _one_label_each, _parts, _shared

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
class DistillStudy:
    """What is compared."""

    teachers: tuple[str, ...] = ()
    """Runs, or encoder.safetensors files, each of another architecture."""
    students: tuple[str, ...] | None = None
    """Architectures as NAME or NAME@WIDTH, e.g. resnet18@0.5; those of the teachers when not given."""
    teacher_labels: str | None = None
    """Fit each teacher's classifier on so many labels first, as `twofold distill` does."""
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


@dataclass(frozen=True)
class Pair:
    """One run: both architectures, whether they are the same, temperature, seed, accuracies in [0, 1], agreement."""

    teacher: str
    student: str
    same_base: bool
    temperature: float
    seed: int
    teacher_top1: float
    student_top1: float
    agreement: float

    @property
    def gap(self) -> float:
        """Student's accuracy less its teacher's."""
        return self.student_top1 - self.teacher_top1


def student_options(name: str, stem: str | None) -> dict[str, Any]:
    """Encoder options of NAME or NAME@WIDTH; the teacher's stem for ResNets. UserError for a width that is none."""
    model, at, width = name.partition("@")
    options: dict[str, Any] = {"name": model}
    if at:
        try:
            options["width"] = float(width)
        except ValueError as error:
            raise UserError(f"--students {name}: {width!r} is no width; write e.g. resnet18@0.5") from error
    return options | ({"stem": stem} if stem and model.startswith("resnet") else {})


def table(pairs: Sequence[Pair]) -> Table:
    """A row for each pair and temperature."""
    rows = []
    for key in dict.fromkeys((p.teacher, p.student, p.temperature) for p in pairs):
        group = [p for p in pairs if (p.teacher, p.student, p.temperature) == key]
        message = "same" if group[0].same_base else "other"
        names = ("teacher_top1", "student_top1", "gap", "agreement")
        rows.append([key[0], key[1], message, f"{key[2]:g}", *(spread([getattr(p, n) for p in group]) for n in names)])
    columns = ["teacher", "student", "base", "temperature", "teacher", "student", "gap", "agreement"]
    seeds = len({p.seed for p in pairs})
    note = f"Test accuracy and agreement in %, mean ± standard deviation over {seeds} seeds of the student."
    return Table("Same base or another?", columns, rows, note)


def reading(pairs: Sequence[Pair]) -> str:
    """What came of it: each student from the teacher of its own kind against the others, in plain words."""
    parts = []
    for student in dict.fromkeys(p.student for p in pairs):
        same = [p.gap for p in pairs if p.student == student and p.same_base]
        other = [p.gap for p in pairs if p.student == student and not p.same_base]
        if not same or not other:
            continue
        difference = 100 * (float(np.mean(same)) - float(np.mean(other)))
        few = min(len(same), len(other)) < 2
        error = 0.0 if few else 100 * float(np.sqrt(sum(np.var(v, ddof=1) / len(v) for v in (same, other))))
        clear = not few and abs(difference) > 2 * error
        message = (
            ("better from its own kind" if difference > 0 else "better from another kind")
            if clear
            else "no clear difference"
        )
        parts.append(f"{student}: gap {difference:+.1f} points (standard error {error:.1f}): {message}")
    return "Own kind less another kind. " + "; ".join(parts) + "." if parts else "No student met both kinds of teacher."


def report(pairs: Sequence[Pair], data: str) -> Report:
    """The page."""
    students = list(dict.fromkeys(p.student for p in pairs))
    at = list(range(len(students)))
    lines = []
    for same, name in ((True, "same base"), (False, "other base")):
        groups = [[p.gap for p in pairs if p.student == s and p.same_base == same] for s in students]
        if not any(groups):  # of one teacher alone, one of the two does not occur
            continue
        means = [float(np.mean(g)) if g else None for g in groups]
        bars = [float(np.std(g, ddof=1)) if len(g) > 1 else None for g in groups]
        lines.append(Series(name, means, bars))
    note = ", ".join(f"{i}: {name}" for i, name in enumerate(students))
    figure = line_figure("Student less teacher", "student", at, lines, percent=True, note=note)
    return Report("Same base or another?", {"data": data}, tables=[table(pairs)], figures=[figure], lead=reading(pairs))


def study_distillation(data: str, folder: StudyFolder, study: DistillStudy) -> str:
    """Every student from every teacher, with teachers of the same and of another architecture."""
    files = [encoder_path(teacher) for teacher in study.teachers]
    headers = [read_header(file) for file in files]
    channels = {header["spec"].get("channels") for header in headers}
    train, test = _parts(data, study.test, study.data, next(iter(channels)))
    _one_label_each(train, test)
    shared = _shared(study.config, study.data, distilling.SET_BY_THE_STUDY)
    stem = next((header["spec"].get("stem") for header in headers if header["spec"].get("stem")), None)
    own = [distillation.student_as_teacher(TeacherSource(file)) for file in files]
    students = {_title(options): options for options in own}
    if study.students is not None:
        students = {s: student_options(s, stem) | {"channels": train.channels} for s in study.students}
    names = ("epochs", "batch", "alpha", "teacher_labels")
    shared |= {name: getattr(study, name) for name in names if getattr(study, name) is not None}
    for options in students.values():  # whatever is wrong with one is said before the first is trained
        parser, origin = OptionsParser(DistillConfig), study.config or "options"
        build_encoder(parser.build(merge(shared, {"encoder": options}), origin).encoder)
    folder.start()
    pairs = []
    for t, file in enumerate(files):
        for s, (name, encoder) in enumerate(students.items()):
            for k, temperature in enumerate(study.temperatures):
                for seed in range(study.seeds):
                    options = {"encoder": encoder, "temperature": temperature, "seed": seed}
                    place = folder.path / f"teacher{t}-student{s}-temperature{k}-seed{seed}"
                    pairs.append(_pair(file, own[t], name, train, test, place, merge(shared, options)))
    page = folder.finish([asdict(pair) | {"gap": pair.gap} for pair in pairs], distilling.report(pairs, data))
    return f"{terminal(distilling.table(pairs))}\n{distilling.reading(pairs)}\n{folder.file}\n{page}"


def _pair(
    file: Path, teacher: dict[str, Any], student: str, train: Source, test: Source, place: Path, options: dict[str, Any]
) -> Pair:
    """One student from one teacher."""
    console.print(f"{place.name}: {student} from {_title(teacher)}", markup=False)
    result = distillation.distill(file, train, place, options, test=test, labelled=train)
    if result.comparison is None:
        raise Stopped("stopped; the same command with --resume goes on", result.stopped_by or 2)
    c = result.comparison
    if c.teacher_top1 is None or c.student_top1 is None:
        raise UserError(f"{test.name} has no labels to score both on")
    same = read_header(place / "encoder.safetensors")["spec"] == read_header(file)["spec"]
    return Pair(_title(teacher), student, same, options["temperature"], options["seed"], c.teacher_top1, c.student_top1,
                c.agreement)  # fmt: skip


def _title(encoder: dict[str, Any]) -> str:
    """An architecture as the options name it."""
    width = encoder.get("width", 1.0)
    return encoder["name"] if width == 1.0 else f"{encoder['name']}@{width:g}"
