"""Distillation as a run like any other: resumable, leaves a student with its classifier, compares both at the end."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twofold.console import print_rank0
from twofold.data import Source
from twofold.data.batches.base import Draw, Examples
from twofold.distributed import rank
from twofold.encoders import Encoder, EncoderConfig, build_encoder, read_header, save_encoder
from twofold.encoders.adapters import CustomEncoder, adapt_as
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.features import Pixels
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.label_subsets import label_positions
from twofold.evaluation.splits import labels_fingerprint, single_labels, without_label
from twofold.kinds import EXAMPLE, Kind
from twofold.methods.distill import Distill
from twofold.options import OptionsParser, merge, plain
from twofold.reading import read_json
from twofold.runs.build import build_training
from twofold.runs.config import DistillConfig
from twofold.runs.defaults import choose
from twofold.runs.standing import of_distillation
from twofold.runs.starting import check_same_data, owned_run, start_accelerator, start_run
from twofold.runs.teacher import Comparison, TeacherSource, check_classes, compare, load_teacher
from twofold.runs.tracking import start_tracking
from twofold.text import counted
from twofold.training.inputs import CachedTeacher, OnlineTeacher, TaughtView, Teacher, Views
from twofold.training.loop import AnyTraining
from twofold.training.micro_batch import train_or_advise
from twofold.training.rundir import RunDirectory

RESULT, TEACHER = "distillation.json", "teacher.safetensors"


@dataclass(frozen=True)
class DistillResult:
    """What came of a distillation; everything in it is plain data.

    Attributes:
        comparison: of both networks; None where the run has not reached its last step.
        scored_on: which images, in words.
        complete: whether the last step was done.
        steps, seconds: of training.
        text: teacher, student and loss in words.
        digest: SHA-256 over every tensor of the teacher, the same before and after.
        stopped_by: number of the signal that ended it early.
        test: fingerprint of what both were compared on (see `labels_fingerprint`).
        kind: of the examples.
        published: lines that set what is published for the recipe beside it.
    """

    comparison: Comparison | None
    scored_on: str
    complete: bool
    steps: int
    seconds: float
    text: str
    digest: str
    stopped_by: int | None = None
    test: str = ""
    kind: Kind = "image"
    published: tuple[str, ...] = ()

    @classmethod
    def read(cls, run: RunDirectory) -> DistillResult | None:
        """What an earlier call left in `run`; None if it is not done."""
        file = run.path / RESULT
        if not file.exists():
            return None
        try:
            values = read_json(file)
            told = tuple(values.get("published", ()))
            return cls(**{**values, "comparison": Comparison(**values["comparison"]), "published": told})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}; remove it to have both measured again") from error

    def summary(self) -> str:
        """For people."""
        if self.comparison is None:
            return f"stopped at step {self.steps:,}; --resume goes on"
        c = self.comparison
        share = c.student_parameters / c.teacher_parameters
        lines = [f"agreement {c.agreement:.2%} on {counted(c.images, EXAMPLE[self.kind])} ({self.scored_on})"]
        if c.teacher_top1 is not None and c.student_top1 is not None:
            kept = "" if c.kept is None else f": {c.kept:.1%} of it kept"
            lines.insert(0, f"teacher {c.teacher_top1:.2%}, student {c.student_top1:.2%}{kept}")
        lines.append(f"{c.student_parameters:,} of {counted(c.teacher_parameters, 'parameter')} ({share:.1%})")
        return "\n".join([*lines, self.text, f"teacher unchanged: sha256 {self.digest[:16]}... before and after"])


def distill(
    teacher: str | Path | nn.Module,
    train: Source,
    out: str | Path,
    options: dict[str, Any] | None = None,
    *,
    test: Source | None = None,
    labelled: Source | None = None,
    module: nn.Module | None = None,
    student: nn.Module | None = None,
    recipe: str | None = None,
) -> DistillResult:
    """Train a student on what a teacher says of images or recordings, then compare both.

    The same call again goes on where an earlier one was stopped, and only reads the result of one that was done; with
    other test images, it compares both on those.

    Args:
        teacher: an `encoder.safetensors` with a classifier; one without, with the option `teacher_labels`; or a module
            [n, C, S, S] in [0, 1] -> logits [n, K] (with `teacher_labels`, -> features).
        train: images; their labels are used with the option `alpha` alone.
        out: the run's folder, new or of the same run.
        options: fields of `DistillConfig`, nested or dotted.
        test: images to compare both on, `train` if not given; accuracy is told where they have labels.
        labelled: images that `teacher_labels` are taken from, `train` if not given.
        module: your own module, if the teacher's file was made from one.
        student: your own module as the student, [n, C, S, S] in [0, 1] -> features [n, d].
        recipe: whose options they are, for the record.

    Raises:
        UserError: wrong options, a teacher without a classifier or of other classes than the labels, another run in
            `out`.
        NotFrozenError: the teacher changed.
    """
    run = RunDirectory(out)
    own = TeacherSource(teacher, labelled or (train if train.labels is not None else None), module)
    own.check_kind(train)
    given = merge(own.default_options(), options or {}, {} if student is None else {"encoder": {"name": "custom"}})
    resuming = run.config_file.exists()
    if resuming:
        given.pop("test", None)  # what both are compared on changes nothing in what is trained
        config = run.check_resumable(DistillConfig, given)
    else:
        if not given.get("encoder", {}).get("name"):
            given = merge({"encoder": own.student_options()}, given)
        config = OptionsParser(DistillConfig).build(given)
    accelerator, done = start_accelerator(config.training, run), None
    with owned_run(run):
        if resuming:
            check_same_data(run, train, config.training.changed_data)
            done = DistillResult.read(run)
            if done is not None and done.test == labels_fingerprint(test or train):
                return _written(done, run, teacher, test)
        else:
            config = resolve(config, train, own, accelerator, student)
        net, classes = _teacher(run, own, config, train.channels, resuming, accelerator.device)
        before = tensor_digests(net)
        check_classes(net, classes, config, train, test)
        if resuming and run.facts().get("teacher_digest") != digest(before):
            raise UserError(f"the run in {run.path} began with another teacher than {teacher}; give the same one")
        if done is not None:
            done = _compared_anew(done, net, run, config, train, test, own, accelerator, student)
            return _written(done, run, teacher, test)
        training = assemble(net, own, train, config, run, accelerator, student)
        if not resuming:  # only now: what is wrong with the options leaves no folder behind
            start_run(run, config, train, train.name, recipe, teacher=own.name, teacher_digest=digest(before))
            if config.teacher_labels is not None and rank() == 0 and isinstance(net, EncoderWithClassifier):
                extra = own.header()["extra"] | {"class_names": classes}
                save_encoder(run.path / TEACHER, net.encoder, None, extra, net.classifier, 0)
        start_tracking(accelerator, config, run)
        training.resume()
        if training.step:
            print_rank0(f"resumed {run.path} at step {training.step:,} of {training.steps:,}")
        train_or_advise(training, config.micro_batch)
        result = _finish(training, net, classes, config, train, test, own, before)
        return _written(result, run, teacher, test) if result.complete else result


def resolve(
    config: DistillConfig,
    train: Source,
    teacher: TeacherSource,
    accelerator: Accelerator,
    module: nn.Module | None = None,
) -> DistillConfig:
    """Fill what was left open, and say what was chosen; `module` is the student, if it is the user's own."""
    facts = train.facts()
    if facts.layout:
        print_rank0(facts.layout)
    selection, message = choose(config.as_run(facts.kind), facts, accelerator.device)
    student = _student(selection.encoder, selection.views.size, train.channels, module)
    if student.input.channels != train.channels:
        raise UserError(
            f"the student takes {counted(student.input.channels, 'channel')} and the images have {train.channels}; set "
            "--data.channels and --encoder.channels to the same number"
        )
    temperature = config.temperature
    if temperature is None:
        same = student.spec() == teacher.header()["spec"]
        temperature = 0.1 if same else 1.0
        message += f"; temperature {temperature:g} ({'student built as its teacher' if same else 'another student'})"
    print_rank0(message)
    return dataclasses.replace(
        config, epochs=selection.epochs, batch=selection.batch, data=selection.data, views=selection.views,
        encoder=selection.encoder, optim=selection.optim, temperature=temperature,
    )  # fmt: skip


def _student(config: EncoderConfig, size: int | None, channels: int, module: nn.Module | None) -> Encoder:
    """A student that its options name, or one of the user's own."""
    if module is not None:
        return adapt_as(config, module, channels, size)
    if config.name == "custom":
        raise UserError("the student is a module of your own (encoder.name custom): give it as `encoder` from Python")
    return build_encoder(config, size)


def assemble(
    net: Encoder, teacher: TeacherSource, train: Source, config: DistillConfig, run: RunDirectory,
    accelerator: Accelerator,
    module: nn.Module | None = None,
) -> AnyTraining:  # fmt: skip
    """Build every part of the run; `config` must be resolved."""
    torch.manual_seed(config.seed)  # the student's start
    student = _student(config.encoder, config.views.size, train.channels, module)
    if {id(p) for p in student.parameters()} & {id(p) for p in net.parameters()}:
        raise UserError("the student has weights of its teacher, which must not change: give a copy (copy.deepcopy)")
    source = source_for(train, student, config.seed, fit=True)
    _check_rates(net, student, config)
    decay = (config.optim.weight_decay or 0.0) if config.optim.name == "lars" else 0.0
    temperature = config.temperature if config.temperature is not None else 1.0
    method = Distill(student, net.feature_dim, temperature, config.squared_temperature, config.alpha, decay)
    net.to(accelerator.device).requires_grad_(False).eval()
    known = _known(train, config)
    teach: Teacher = OnlineTeacher(net, accelerator.autocast)
    if config.targets == "cached":
        teach = CachedTeacher(_ask(net, teacher, train, config))

    def inputs(
        views: Views[Examples, Draw], device: torch.device, memory_format: torch.memory_format
    ) -> TaughtView[Examples, Draw]:
        return TaughtView(views, device, memory_format, teach, known)

    return build_training(config, method, source, inputs, run, accelerator)


def _check_rates(net: Encoder, student: Encoder, config: DistillConfig) -> None:
    """Both hear the same view, so it has one sample rate."""
    theirs, ours = net.input.sample_rate, student.input.sample_rate
    if config.targets == "online" and theirs != ours:
        raise UserError(
            f"the teacher takes recordings at {theirs:,} Hz and the student at {ours:,} Hz, and with --targets online "
            f"both take the same view: give --encoder.speech.sample_rate {theirs}, or --targets cached"
        )


def _teacher(
    run: RunDirectory,
    teacher: TeacherSource,
    config: DistillConfig,
    channels: int,
    resuming: bool,
    device: torch.device,
) -> tuple[Encoder, list[str] | None]:
    """The teacher and its classes' names, if they are known; one that was fitted for this run is taken from it."""
    fitted = run.path / TEACHER
    if resuming and fitted.exists():
        return load_teacher(fitted, module=teacher.custom()), read_header(fitted)["extra"].get("class_names")
    return teacher.load(config, channels, device), teacher.class_names(config)


def _ask(net: Encoder, teacher: TeacherSource, train: Source, config: DistillConfig) -> Tensor:
    """The teacher's logits for every image, [N, K]; not a number for images that cannot be read."""
    result = teacher.extractor(config).extract(net, train)
    out = torch.full((len(train), net.feature_dim), torch.nan)
    out[torch.from_numpy(result.index)] = torch.from_numpy(result.h)
    return out


def _known(train: Source, config: DistillConfig) -> Tensor | None:
    """Labels [N] to learn from, -1 where an image's is not used; None where the teacher alone is listened to."""
    if config.alpha is None:
        return None
    y = single_labels(train.labels, train.name)
    known = np.full(len(y), -1, dtype=np.int64)
    selection = label_positions(train, config.labels or "all", config.seed)
    known[selection] = y[selection]
    return torch.from_numpy(known)


def _finish(
    training: AnyTraining, net: Encoder, classes: list[str] | None, config: DistillConfig, train: Source,
    test: Source | None, teacher: TeacherSource, before: dict[str, str],
) -> DistillResult:  # fmt: skip
    """Check that the teacher stayed, save the student, and compare both if the last step is done."""
    assert_frozen(before, tensor_digests(net))
    run, method = training.run, training.method
    assert isinstance(method, Distill)
    for tracker in training.accelerator.trackers:
        tracker.finish()
    complete = training.step == training.steps
    student = EncoderWithClassifier(method.encoder, method.classifier)
    comparison, scored_on, mark = _compared(net, student, config, train, test, teacher, complete)
    result = DistillResult(
        comparison, scored_on, complete, training.step, round(training.seconds, 3),
        _text(config, teacher, method.encoder, train), digest(before), training.stopped_by, mark, net.input.kind,
    )  # fmt: skip
    if rank() == 0:
        names = classes or (None if config.unlabelled else train.classes)
        facts = {"steps": training.step, "of": training.steps, "options": plain(config), "class_names": names}
        save_encoder(run.encoder_file, method.encoder, None, facts, method.classifier, 0)
    return result


def _written(
    result: DistillResult, run: RunDirectory, teacher: str | Path | nn.Module, test: Source | None
) -> DistillResult:
    """The result of a run that is done, with what is published beside it, as `distillation.json` then holds it."""
    tested = None if test is None else len(test)
    result = dataclasses.replace(result, published=of_distillation(teacher, run, result.comparison, tested))
    if rank() == 0 and result != DistillResult.read(run):
        run.write_json(RESULT, asdict(result))
    return result


def _compared(
    net: Encoder, student: Encoder, config: DistillConfig, train: Source, test: Source | None, teacher: TeacherSource,
    complete: bool = True,
) -> tuple[Comparison | None, str, str]:  # fmt: skip
    """Both on the images of the score, which these are in words, and their fingerprint; of a whole run alone."""
    source = test if test is not None else train
    example = EXAMPLE[net.input.kind]
    words = source.name if test is not None else f"{source.name}, the {example}s of training themselves"
    if not complete:
        return None, words, ""
    if not config.unlabelled and source.labels is not None and (source.labels >= 0).any():
        left_out = without_label({"": int((source.labels < 0).sum())}, example)
        words += f"; {left_out} of the accuracies" if left_out else ""
    theirs = teacher.extractor(config)
    ours = dataclasses.replace(theirs, size=config.views.size)
    result = compare((net, theirs), (student, ours), source, not config.unlabelled)
    return result, words, labels_fingerprint(source)


def _compared_anew(
    done: DistillResult, net: Encoder, run: RunDirectory, config: DistillConfig, train: Source, test: Source | None,
    teacher: TeacherSource, accelerator: Accelerator, module: nn.Module | None,
) -> DistillResult:  # fmt: skip
    """The result of a run that is done, on other images than both were compared on."""
    example = EXAMPLE[net.input.kind]
    print_rank0(f"{run.path} was scored on other {example}s: both are compared on those of {(test or train).name}")
    student = load_teacher(run.encoder_file, module=module)
    results, words, mark = _compared(
        net.to(accelerator.device), student.to(accelerator.device), config, train, test, teacher
    )
    return dataclasses.replace(done, comparison=results, scored_on=words, test=mark)


def _text(config: DistillConfig, teacher: TeacherSource, student: Encoder, train: Source) -> str:
    """Who learned from whom, and how."""
    name = config.encoder.title()
    if isinstance(student, CustomEncoder):
        name = type(student.module).__name__
    squared = " times temperature^2" if config.squared_temperature else ""
    loss = f"cross entropy with the teacher's probabilities at temperature {config.temperature:g}{squared}"
    if config.alpha is not None:
        loss = f"{config.alpha:g} of {loss}, and {1 - config.alpha:g} of that with {config.labels or 'all'} labels"
    differing = Pixels.of(teacher.header()).differences(train)
    read = f"; images read with {differing}" if differing else ""
    fitted = ""
    if config.teacher_labels is not None:
        fitted = f", classifier fitted on {config.teacher_labels} label{'' if config.teacher_labels == '1' else 's'}"
    return (
        f"teacher {teacher.name}{fitted}; student {name}; {loss}; targets {config.targets}; "
        f"{counted(config.epochs or 0, 'epoch')} of batches of {config.batch}, {config.optim.name}, "
        f"lr {config.optim.lr:g}; seed {config.seed}{read}"
    )
