"""SimCLR v2's Table 2: what a student should learn from, labels, its teacher, or both, and on which images.

A pretrained encoder is fine-tuned on a share of the labels, and students learn from that teacher and from the same
labels. With several students it is the paper's figure of distillation against the student's size.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from twofold.data import DataConfig, Source
from twofold.data.sources.subset import subset
from twofold.devices import choose_device
from twofold.encoders import build_encoder, load_head, read_header
from twofold.encoders.load import encoder_path
from twofold.errors import Diverged, Stopped, UserError
from twofold.evaluation.features import Pixels
from twofold.evaluation.label_subsets import label_positions
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.files import write_atomically
from twofold.options import OptionsParser, merge, plain
from twofold.reading import read_json
from twofold.report import Figure, Points, Report, Series, Table, bar_figure, point_figure
from twofold.report.tables import spread
from twofold.runs import distill as distillation
from twofold.runs.config import DistillConfig
from twofold.runs.defaults import choose
from twofold.runs.finetune import finetune
from twofold.runs.teacher import TeacherSource
from twofold.studies.base import Folder, Study, check_one_label, shared_options
from twofold.studies.cells import Cell, run_cells
from twofold.studies.comparing import Comparison, compare, in_words, on_page
from twofold.studies.grid import over_seeds
from twofold.studies.nets import net_options, title
from twofold.text import counted

TARGETS = {
    "labels": "labels",
    "both-labelled": "both, labelled images",
    "both-all": "both, all images",
    "teacher": "teacher, all images",
}
"""What a student learns from, labels, teacher or both, as folders and as tables have it."""
SET_BY_THE_STUDY = {
    "encoder": "and name the students by --students",
    "temperature": "and give it to the study, as --temperature",
    "alpha": "and give it to the study, as --alpha",
    "labels": "and name the shares by --labels",
    "teacher_labels": "the teacher is fine-tuned on --labels",
    "epochs": "and give it to the study, as --epochs",
    "batch": "and give it to the study, as --batch",
    "seed": "each run has its own; say how many by --seeds",
    "test": "and give it to the study, as --test",
    "unlabelled": "the students are scored",
    "data": "and give it to the study, as --data.*",
}
"""Options of distillation that a file of options cannot set, and what to do instead."""


@dataclass(frozen=True)
class TargetsConfig:
    """What is compared."""

    run: str | None = None
    """The pretrained encoder that the teachers are made of: a run's folder, or an encoder.safetensors."""
    labels: tuple[str, ...] = ("1%", "10%")
    """Shares or numbers of labels, as `twofold finetune --labels` takes them, for teachers and students."""
    students: tuple[str, ...] | None = None
    """Students as NAME or NAME@WIDTH, e.g. resnet18@0.5; one built as the teacher when not given."""
    from_head: int | None = None
    """Output of the projection head that teachers are fine-tuned from; 1 as SimCLR v2 where the head has three layers,
    or else 0."""
    alpha: float = 0.5
    """The teacher's share of the loss where a student learns from labels, too. The default is ours."""
    temperature: float = 1.0
    """Temperature of distillation."""
    seeds: int = 3
    """Runs of each cell, each with a choice of labels and a teacher of its own."""
    epochs: float | None = None
    """Passes over all images; on labelled images alone as many steps are made. Chosen from the data when not given."""
    batch: int | None = None
    """Images per step, or all labelled images where there are fewer. Chosen from the data when not given."""
    teacher_epochs: float | None = None
    """Passes over the labelled images of fine-tuning a teacher; chosen from their number when not given."""
    config: str | None = None
    """A YAML file of further options of distillation."""
    jobs: int = 1
    """Cells at a time: on GPUs in turn, on CPUs sharing the cores."""
    test: str | None = None
    """Data for the scores; without it the data's own test split, or else a fifth of each class, held out."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("--run is missing: name the pretrained run that the teachers are made of")
        for name in ("labels", "students"):
            given = getattr(self, name)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise UserError(f"--{name} must name at least one, and none twice; got {list(given)}")
        if "all" in self.labels:
            raise UserError("--labels all leaves no image without a label: give shares such as 10%")
        if min(self.seeds, self.jobs) < 1:
            raise UserError(f"--seeds and --jobs must be at least 1, got {self.seeds} and {self.jobs}")
        if not 0 < self.alpha < 1:
            raise UserError(
                f"--alpha must lie between 0 and 1, got {self.alpha}: it is the teacher's share of the loss"
            )


@dataclass(frozen=True)
class Taught:
    """A student: its share of labels, what it learned from, its seed, accuracies in [0, 1], and parameters."""

    student: str
    labels: str
    target: str
    seed: int
    top1: float
    teacher_top1: float
    parameters: int
    teacher_parameters: int


class TargetPart(NamedTuple):
    """A teacher (no student) or a student to be trained, in a folder of that name; `work` is for its process."""

    name: str
    student: str
    labels: str
    target: str
    seed: int
    work: dict[str, Any]


class TargetsStudy(Study[TargetPart, Taught]):
    """Labels, teacher and both, by share of labels and student; a part is a run in a process of its own."""

    name = "distill-targets"
    Config = TargetsConfig
    source: ClassVar[str] = "Table 2 of arXiv 2006.10029, whose values are not confirmed here"

    def __init__(self, data: str, config: TargetsConfig, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder

    def plan(self) -> Sequence[TargetPart]:
        """All teachers, and then all students."""
        config = self.config
        file = encoder_path(str(config.run)).resolve()
        head = load_head(file)
        layers = len(head.layers) if head else 0
        entry = int(layers >= 3) if config.from_head is None else config.from_head
        if not 0 <= entry <= layers:
            raise UserError(f"--from_head {entry}: the run's head has {counted(layers, 'layer')}; give 0..{layers}")
        reading = Pixels.of(read_header(file)).fill(config.data)
        train, test = _parts(self.data, config.test, reading)
        check_one_label(train, test)
        options = self._options(file, reading, train)
        shared = {"data": self.data, "test": config.test, "reading": plain(reading), "kind": "target"}
        tuning = {"from_head": entry, "training": options.get("training", {})}
        if config.teacher_epochs is not None:
            tuning["epochs"] = config.teacher_epochs
        teachers, students = [], []
        for number, labels in enumerate(config.labels):
            for seed in range(config.seeds):
                count = len(label_positions(train, labels, seed))
                place = f"teacher-labels{number}-seed{seed}"
                work = shared | {"encoder": str(file), "options": tuning | {"labels": labels, "seed": seed}}
                teachers.append(TargetPart(place, "", labels, "", seed, work))
                for at, (student, encoder) in enumerate(self._students(file, train).items()):
                    for target in TARGETS:
                        own = merge(options, {"encoder": encoder, "seed": seed}, self._of(target, labels, count))
                        _check(own)
                        work = shared | {"teacher": place, "labels": labels, "target": target, "options": own}
                        name = f"student{at}-labels{number}-{target}-seed{seed}"
                        students.append(TargetPart(name, student, labels, target, seed, work))
        self.parts = [*teachers, *students]
        return self.parts

    def _options(self, file: Path, reading: DataConfig, train: Source) -> dict[str, Any]:
        """What all students share, with the batch and the length that their data ask for."""
        config = self.config
        own = {name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None}
        given = shared_options(config.config, reading, SET_BY_THE_STUDY)
        options = merge(given, {"temperature": config.temperature}, own)
        student = next(iter(self._students(file, train).values()))
        asked = merge(TeacherSource(file).default_options(), options, {"encoder": student})
        built = OptionsParser(DistillConfig).build(asked, config.config or "options")
        chosen, _ = choose(built.as_run(), train.facts(), choose_device(built.training.device))
        self.images, self.epochs, self.batch = len(train), chosen.epochs or 1.0, chosen.batch or 1
        return merge(options, {"epochs": self.epochs, "batch": self.batch})

    def _students(self, file: Path, train: Source) -> dict[str, dict[str, Any]]:
        """The students' encoders by name."""
        own = TeacherSource(file).student_options()
        if self.config.students is None:
            return {title(own): own}
        stem = {"stem": own["stem"]} if own.get("stem") else {}
        return {
            name: net_options(name, "students") | {"channels": train.channels}
            | (stem if name.startswith("resnet") else {})
            for name in self.config.students
        }  # fmt: skip

    def _of(self, target: str, labels: str, count: int) -> dict[str, Any]:
        """Options of a target: on labelled images alone as many steps as on all."""
        if target == "teacher":
            return {}
        if target == "both-all":
            return {"alpha": self.config.alpha, "labels": labels}
        batch = min(self.batch, count)
        steps = self.epochs * self.images / self.batch
        alpha = 0.0 if target == "labels" else self.config.alpha
        return {"alpha": alpha, "labels": "all", "batch": batch, "epochs": steps * batch / count}

    def describe(self, part: TargetPart) -> str:
        """Which teacher, or which student learns what."""
        if not part.student:
            return f"a teacher with {part.labels} of the labels, seed {part.seed}"
        return f"{part.student} from {TARGETS[part.target]}, {part.labels} of the labels, seed {part.seed}"

    def run(self, part: TargetPart) -> Sequence[Taught]:
        """Train all that is left of the teachers or of the students, `jobs` at a time, or read what there is.

        Nothing is made of a student whose teacher diverged.
        """
        if not self._taught(part):
            return []
        if self._found(part) is None:
            jobs, left = self.config.jobs, [part]
            if jobs > 1:
                left = [each for each in self.parts if bool(each.student) == bool(part.student)]
                left = [each for each in left if self._found(each) is None and self._taught(each)]
            run_cells([Cell(self.folder.path / each.name, each.work) for each in left], jobs)
        found = self._found(part)
        if found is None:
            raise UserError(f"{self.folder.path / part.name} came to nothing: it has no cell.json")
        if "diverged" in found:
            alone = "" if part.student else ", and the students that it was to teach"
            self.leave_out(self.describe(part) + alone, Diverged(found["diverged"]))
            return []
        return [Taught(part.student, part.labels, part.target, part.seed, **found)] if part.student else []

    def _taught(self, part: TargetPart) -> bool:
        """Whether there is who teaches it: of a student, that its teacher did not diverge."""
        return not part.student or "diverged" not in (self._found_in(part.work["teacher"]) or {})

    def _found(self, part: TargetPart) -> dict[str, Any] | None:
        return self._found_in(part.name)

    def _found_in(self, name: str) -> dict[str, Any] | None:
        """What the cell in a folder came to, or under "diverged" why to nothing; None of one that is not done."""
        file = self.folder.path / name / "cell.json"
        if not file.exists():
            return None
        try:
            return dict(read_json(file))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}; remove it to have the cell measured again") from error

    def table(self, cells: Sequence[Taught]) -> Table:
        """A row for each student and target and the teachers' own, a column for each share."""
        shares, students = (list(dict.fromkeys(getattr(c, name) for c in cells)) for name in ("labels", "student"))
        rows = []
        for student in students:
            for target, words in TARGETS.items():
                found = [list(_values(cells, student, share, target).values()) for share in shares]
                rows.append([words if len(students) == 1 else f"{student}: {words}", *map(spread, found)])
        teachers = [list(_teachers(cells, share).values()) for share in shares]
        rows.append(["the teacher itself, fine-tuned", *map(spread, teachers)])
        note = (
            f"Test accuracy in %, {over_seeds(cells)}, each with its own labels. Students make the same steps; "
            f"alpha {self.config.alpha:g}, temperature {self.config.temperature:g}. After {self.source}."
        )
        return Table("What a student learns from", ["learned from", *(f"{s} of labels" for s in shares)], rows, note)

    compared: ClassVar[str] = "Accuracy from the teacher on all images, less that of others"

    def comparisons(self, cells: Sequence[Taught]) -> list[Comparison]:
        """The teacher on all images against labels alone, and against the teacher with labels, at the seeds that have
        both."""
        shares, students = (list(dict.fromkeys(getattr(c, name) for c in cells)) for name in ("labels", "student"))
        found = []
        for student in students:
            for share in shares:
                own = _values(cells, student, share, "teacher")
                for target in ("labels", "both-labelled", "both-all"):
                    other = _values(cells, student, share, target)
                    if pairs := [(own[seed], other[seed]) for seed in own if seed in other]:
                        found.append(compare(f"{student}, {share} of labels, less {TARGETS[target]}", pairs))
        return found

    def interpretation(self, cells: Sequence[Taught]) -> str:
        """Each comparison in plain words."""
        return in_words(self.compared, self.comparisons(cells))

    def measured(self, cell: Taught) -> Mapping[str, float]:
        """Accuracies by student, share and target."""
        name = f"{cell.student}, {cell.labels}, {TARGETS[cell.target]}"
        return {f"{name}: top1": cell.top1, f"{cell.labels}: teacher_top1": cell.teacher_top1}

    def page(self, cells: Sequence[Taught]) -> Report:
        """Bars by share of labels for each student; accuracy against the student's size where there are several."""
        lead, more = on_page(self.compared, self.comparisons(cells))
        tables = [self.table(cells), *more]
        return Report(
            "What a student learns from", {"data": self.data}, tables=tables, figures=_figures(cells), lead=lead
        )


def _figures(cells: Sequence[Taught]) -> list[Figure]:
    shares, students = (list(dict.fromkeys(getattr(c, name) for c in cells)) for name in ("labels", "student"))
    if len(students) == 1:
        lines = []
        for target, words in TARGETS.items():
            found = [list(_values(cells, students[0], share, target).values()) for share in shares]
            if not any(found):
                continue
            error = [float(np.std(each, ddof=1)) if len(each) > 1 else None for each in found]
            lines.append(Series(words, [float(np.mean(each)) if each else None for each in found], error))
        return [bar_figure(f"Student {students[0]}", "share of labels", shares, lines)]
    figures = []
    for share in shares:
        sizes = {s: next(c.parameters for c in cells if c.student == s) for s in students}
        order = sorted(students, key=sizes.__getitem__)
        clouds = []
        for target, words in TARGETS.items():
            known = {s: list(each.values()) for s in order if (each := _values(cells, s, share, target))}
            if known:
                means = [100 * float(np.mean(each)) for each in known.values()]
                clouds.append(Points(words, [float(sizes[s]) for s in known], means, joined=True))
        teacher = 100 * float(np.mean(list(_teachers(cells, share).values())))
        clouds.append(Points("the teacher", [float(cells[0].teacher_parameters)], [teacher]))
        name = f"With {share} of the labels"
        figures.append(point_figure(name, "parameters", "accuracy in %", clouds, log_x=True))
    return figures


def _values(cells: Sequence[Taught], student: str, labels: str, target: str) -> dict[int, float]:
    """The accuracy of a student's runs, by seed."""
    return {c.seed: c.top1 for c in cells if (c.student, c.labels, c.target) == (student, labels, target)}


def _teachers(cells: Sequence[Taught], labels: str) -> dict[int, float]:
    """The accuracy of the teachers with a share of labels, by seed: all students of a seed have the same."""
    return {c.seed: c.teacher_top1 for c in cells if c.labels == labels}


def _check(options: Mapping[str, Any]) -> None:
    config = OptionsParser(DistillConfig).build(dict(options))
    build_encoder(config.encoder, config.views.size)


def _parts(data: Any, test: Any, reading: DataConfig) -> tuple[Source, Source]:
    return labelled_parts(*evaluation_parts(data, test, reading))


def train_part(place: Path, work: Mapping[str, Any]) -> None:
    """Train a teacher or a student in this process, and write its `cell.json`; of one that diverges it says that alone.

    Raises:
        Stopped: a signal ended it early.
    """
    try:
        found = _trained(place, work)
    except Diverged as error:
        found = {"diverged": str(error)}
    write_atomically(place / "cell.json", lambda file: file.write((json.dumps(found) + "\n").encode()))


def _trained(place: Path, work: Mapping[str, Any]) -> dict[str, Any]:
    """What a teacher or a student comes to, by the names that `Taught` has for it."""
    train, test = _parts(work["data"], work["test"], OptionsParser(DataConfig).build(work["reading"]))
    if "teacher" not in work:
        result = finetune(work["encoder"], train, test, place, work["options"], quiet=True)
        if not result.complete:
            raise Stopped.at(f"in {place}", result.stopped_by or signal.SIGINT)
        return {"top1": result.metric}
    options, everything = work["options"], train
    if work["target"] in ("labels", "both-labelled"):
        train = subset(train, label_positions(train, work["labels"], options["seed"]))
    teacher = place.parent / work["teacher"] / "encoder.safetensors"
    done = distillation.distill(teacher, train, place, options, test=test, labelled=everything)
    found = done.comparison
    if found is None:
        raise Stopped.at(f"in {place}", done.stopped_by or signal.SIGINT)
    if found.student_top1 is None or found.teacher_top1 is None:
        raise UserError(f"{test.name} has no labels to score both on")
    return {
        "top1": found.student_top1, "teacher_top1": found.teacher_top1, "parameters": found.student_parameters,
        "teacher_parameters": found.teacher_parameters,
    }  # fmt: skip
