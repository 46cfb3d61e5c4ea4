"""What the studies of fine-tuning, distillation and classes run: each cell is a resumable run in the study's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from twofold.commands.evaluate import evaluation_parts
from twofold.commands.load import encoder_path, load
from twofold.commands.pretrain import read_layers
from twofold.data import DataConfig, Source
from twofold.encoders import build_encoder, load_head, read_header
from twofold.errors import Stopped, UserError
from twofold.evaluation import distill as distillation
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.finetune import FinetuneConfig, finetune
from twofold.evaluation.scores import Scores
from twofold.evaluation.splits import check_test_labels, single_labels
from twofold.evaluation.subsets import label_positions
from twofold.evaluation.teacher import Given
from twofold.studies import classes, distilling, finetuning
from twofold.studies.classes import ClassesStudy
from twofold.studies.distilling import DistillStudy, Pair, student_options
from twofold.studies.finetuning import FinetuneStudy, Trial
from twofold.studies.folder import StudyFolder
from twofold.studies.spread import terminal
from twofold.training.config import OptionsParser, merge
from twofold.training.distilling import DistillConfig
from twofold.training.progress import console
from twofold.training.starting import choose_device


def study_classes(data: str, folder: StudyFolder, study: ClassesStudy) -> str:
    """Transfer of one encoder against the number of classes."""
    file = encoder_path(str(study.run))
    model, views = (
        load(file, device=choose_device(study.device, "--device")),
        read_header(file)["extra"].get("options", {}).get("views", {}),
    )
    train, test = _parts(data, study.test, study.data, model.input.channels)
    y_test = check_test_labels(train, test)
    single_labels(train.labels, train.name)
    folder.start()
    size, resample = views.get("size"), views.get("resample", "antialias")
    cache = FeatureCache.beside(file)
    bank, queries = (cache.extract(model, source, size, resample=resample) for source in (train, test))
    points = classes.measure(study, bank.h, np.asarray(bank.labels), queries.h, y_test[queries.index])
    page = folder.finish([asdict(point) for point in points], classes.report(points, data))
    return f"{terminal(classes.table(points))}\n{classes.reading(points)}\n{folder.file}\n{page}"


def study_finetune(data: str, folder: StudyFolder, study: FinetuneStudy) -> str:
    """Fine-tuning against labels and head layer, with training from scratch as the control."""
    file = encoder_path(str(study.run))
    head = load_head(file)
    cells = finetuning.plan(study, len(head.layers) if head else 0)
    train, test = _parts(data, study.test, study.data, load(file).input.channels)
    _one_label_each(train, test)
    shared = _shared(study.config, study.data, finetuning.SET_BY_THE_STUDY)
    for *_, options in (cells[0], cells[-1]):  # whatever is wrong with one is said before the first is trained
        OptionsParser(FinetuneConfig).build(merge(shared, options), study.config or "options")
    for labels in study.labels:
        label_positions(train, labels)
    folder.start()
    trials = []
    for number, (name, labels, entry, draw, options) in enumerate(cells, 1):
        console.print(f"run {number} of {len(cells)}: {name}", markup=False)
        found = finetune(file, train, test, folder.path / name, merge(shared, options), quiet=True)
        if not found.complete:
            raise Stopped("stopped; the same command with --resume goes on", found.stopped_by or 2)
        assert isinstance(found.scores, Scores)  # of one label an image
        trials.append(Trial(labels, found.labels, entry, draw, found.scores.top1))
    page = folder.finish([asdict(trial) for trial in trials], finetuning.report(trials, data))
    return f"{terminal(finetuning.table(trials))}\n{finetuning.reading(trials)}\n{folder.file}\n{page}"


def study_distillation(data: str, folder: StudyFolder, study: DistillStudy) -> str:
    """Every student from every teacher, with teachers of the same and of another architecture."""
    files = [encoder_path(teacher) for teacher in study.teachers]
    headers = [read_header(file) for file in files]
    channels = {header["spec"].get("channels") for header in headers}
    train, test = _parts(data, study.test, study.data, next(iter(channels)))
    _one_label_each(train, test)
    shared = _shared(study.config, study.data, distilling.SET_BY_THE_STUDY)
    stem = next((header["spec"].get("stem") for header in headers if header["spec"].get("stem")), None)
    own = [distillation.student_as_teacher(Given(file)) for file in files]
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
    found = distillation.distill(file, train, place, options, test=test, labelled=train)
    if found.comparison is None:
        raise Stopped("stopped; the same command with --resume goes on", found.stopped_by or 2)
    c = found.comparison
    if c.teacher_top1 is None or c.student_top1 is None:
        raise UserError(f"{test.name} has no labels to score both on")
    same = read_header(place / "encoder.safetensors")["spec"] == read_header(file)["spec"]
    return Pair(_title(teacher), student, same, options["temperature"], options["seed"], c.teacher_top1, c.student_top1,
                c.agreement)  # fmt: skip


def _shared(config: str | None, data: DataConfig, taken: Mapping[str, str]) -> dict[str, Any]:
    """Options of all runs: those of `--config` and of the data; UserError for one of `--config` that the study sets."""
    found = read_layers(None, config, {})
    for name, remedy in taken.items():
        if found.get(name) is not None and found[name] is not False:
            raise UserError(f"--config {config} sets {name}, which the study sets itself: leave it out, {remedy}")
    return merge({name: value for name, value in found.items() if value is not None}, {"data": data})


def _one_label_each(train: Source, test: Source) -> None:
    """Raise a UserError for labels that the study cannot count, before anything is trained."""
    check_test_labels(train, test)
    if train.labels is not None and train.labels.ndim != 1:
        raise UserError(
            f"{train.name} has several labels an image, and this study counts one right class: give single labels"
        )


def _title(encoder: dict[str, Any]) -> str:
    """An architecture as the options name it."""
    width = encoder.get("width", 1.0)
    return encoder["name"] if width == 1.0 else f"{encoder['name']}@{width:g}"


def _parts(data: str, test: str | None, config: DataConfig, channels: int | None) -> tuple[Source, Source]:
    """Labelled images to train on and to score on."""
    train, scored = evaluation_parts(data, test, dataclasses.replace(config, channels=config.channels or channels))
    if scored is None:
        raise UserError(f"{train.name} has no test part: give --test with labelled images of the same classes")
    return train, scored
