"""Distillation as a run like any other: resumable, leaves a student with its classifier, compares both at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twofold.console import print_rank0
from twofold.data import Order, Source
from twofold.data.base import class_count
from twofold.data.batches.loader import Batch, Loader
from twofold.distributed import rank, world_size
from twofold.encoders import Encoder, EncoderConfig, adapt, build_encoder, read_header, save_encoder
from twofold.encoders.adapters import CustomEncoder
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.features import extract
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.label_subsets import label_positions
from twofold.evaluation.splits import labels_fingerprint, match_classes, single_labels
from twofold.methods.distill import Distill
from twofold.optim import build_optimizer, build_schedule
from twofold.options import OptionsParser, merge, plain
from twofold.runs.config import DistillConfig
from twofold.runs.defaults import choose
from twofold.runs.starting import check_same_data, start_accelerator, start_run
from twofold.runs.teacher import Comparison, TeacherSource, compare, load_teacher
from twofold.training.loop import Training
from twofold.training.rundir import RunDirectory
from twofold.views import ImageViews
from twofold.views.resample import Resample

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

    @classmethod
    def read(cls, run: RunDirectory) -> DistillResult | None:
        """What an earlier call left in `run`; None if it is not done."""
        file = run.path / RESULT
        if not file.exists():
            return None
        try:
            values = json.loads(file.read_text())
            return cls(**{**values, "comparison": Comparison(**values["comparison"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}; remove it to have both measured again") from error

    def summary(self) -> str:
        """For people."""
        if self.comparison is None:
            return f"stopped at step {self.steps:,}; --resume goes on"
        c = self.comparison
        share = c.student_parameters / c.teacher_parameters
        lines = [f"agreement {c.agreement:.2%} on {c.images:,} images ({self.scored_on})"]
        if c.teacher_top1 is not None and c.student_top1 is not None:
            kept = "" if c.kept is None else f": {c.kept:.1%} of it kept"
            lines.insert(0, f"teacher {c.teacher_top1:.2%}, student {c.student_top1:.2%}{kept}")
        lines.append(f"{c.student_parameters:,} of {c.teacher_parameters:,} parameters ({share:.1%})")
        return "\n".join([*lines, self.text, f"teacher unchanged: sha256 {self.digest[:16]}... before and after"])


def default_options(teacher: TeacherSource) -> dict[str, Any]:
    """The teacher's geometry of views, without colour and blur, and its architecture for the student.

    That is crop and flip, as published; the student that nothing is said of is a self-distillation's.
    """
    seen, spec = teacher.views(), teacher.header()["spec"]
    size = seen.get("size") or spec.get("size")
    views = {"size": size} if size else {}
    views |= {name: seen[name] for name in ("crop_area", "crop_aspect", "crop_rule", "resample", "flip", "rotation")
              if name in seen}  # fmt: skip
    return {"views": views | {"color_strength": 0.0, "grayscale": 0.0, "blur": 0.0}}


def student_as_teacher(teacher: TeacherSource) -> dict[str, Any]:
    """Options of an encoder like the teacher's; UserError for a module of the user's own."""
    spec = dict(teacher.header()["spec"])
    kind = spec.pop("kind", None)
    if kind == "resnet":
        depth = spec.pop("depth")
        return {"name": f"resnet{depth}", **spec}
    if kind in ("timm", "torchvision"):
        name = f"{kind}:{spec.pop('name')}"
        spec.pop("size", None)
        return {"name": name} | {key: value for key, value in spec.items() if value is not None}
    raise UserError("the teacher is a module of your own, which no student can be built like: give --encoder.name")


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
    """Train a student on what a teacher says of images, then compare both.

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
    given = merge(default_options(own), options or {}, {} if student is None else {"encoder": {"name": "custom"}})
    resuming = run.config_file.exists()
    if resuming:
        given.pop("test", None)  # what both are compared on changes nothing in what is trained
        config = run.check_resumable(DistillConfig, given)
    else:
        if not given.get("encoder", {}).get("name"):
            given = merge({"encoder": student_as_teacher(own)}, given)
        config = OptionsParser(DistillConfig).build(given)
    accelerator, done = start_accelerator(config.training, run), None
    if resuming:
        check_same_data(run, train)
        done = DistillResult.read(run)
        if done is not None and done.test == labels_fingerprint(test or train):
            return done
    else:
        config = resolve(config, train, own, accelerator, student)
    net, classes = _teacher(run, own, config, train.channels, resuming, accelerator.device)
    before = tensor_digests(net)
    _check_classes(net, classes, config, train, test)
    if resuming and run.facts().get("teacher_digest") != digest(before):
        raise UserError(f"the run in {run.path} began with another teacher than {teacher}; give the same one")
    if done is not None:
        return _compared_anew(done, net, run, config, train, test, own, accelerator, student)
    training = assemble(net, own, train, config, run, accelerator, student)
    if not resuming:  # only now: what is wrong with the options leaves no folder behind
        start_run(run, config, train, train.name, recipe, teacher=own.name, teacher_digest=digest(before))
        if config.teacher_labels is not None and rank() == 0 and isinstance(net, EncoderWithClassifier):
            extra = own.header()["extra"] | {"class_names": classes}
            save_encoder(run.path / TEACHER, net.encoder, None, extra, net.classifier, 0)
    training.resume()
    if training.step:
        print_rank0(f"resumed {run.path} at step {training.step:,} of {training.steps:,}")
    training.fit()
    return _finish(training, net, classes, config, train, test, own, before)


def resolve(
    config: DistillConfig,
    train: Source,
    teacher: TeacherSource,
    accelerator: Accelerator,
    module: nn.Module | None = None,
) -> DistillConfig:
    """Fill what was left open, and say what was chosen; `module` is the student, if it is the user's own."""
    selection, message = choose(config.as_run(), train.facts(), accelerator.device)
    student = _student(selection.encoder, selection.views.size, train.channels, module)
    if student.input.channels != train.channels:
        raise UserError(
            f"the student takes {student.input.channels} channels and the images have {train.channels}; set "
            "--data.channels and --encoder.channels to the same number"
        )
    temperature = config.temperature
    if temperature is None:
        same = student.spec() == teacher.header()["spec"]
        temperature = 0.1 if same else 1.0
        message += f"; temperature {temperature:g} ({'student built as its teacher' if same else 'another student'})"
    print_rank0(message)
    return dataclasses.replace(
        config, epochs=selection.epochs, batch=selection.batch, views=selection.views, encoder=selection.encoder,
        optim=selection.optim, temperature=temperature,
    )  # fmt: skip


def _student(config: EncoderConfig, size: int | None, channels: int, module: nn.Module | None) -> Encoder:
    """A student that its options name, or one of the user's own."""
    if module is not None:
        return adapt(module, channels)
    if config.name == "custom":
        raise UserError("the student is a module of your own (encoder.name custom): give it as `encoder` from Python")
    return build_encoder(config, size)


def assemble(
    net: Encoder, teacher: TeacherSource, train: Source, config: DistillConfig, run: RunDirectory,
    accelerator: Accelerator,
    module: nn.Module | None = None,
) -> Distilling:  # fmt: skip
    """Build every part of the run; `config` must be resolved."""
    torch.manual_seed(config.seed)  # the student's start
    student = _student(config.encoder, config.views.size, train.channels, module)
    if {id(p) for p in student.parameters()} & {id(p) for p in net.parameters()}:
        raise UserError("the student has weights of its teacher, which must not change: give a copy (copy.deepcopy)")
    decay = (config.optim.weight_decay or 0.0) if config.optim.name == "lars" else 0.0
    temperature = config.temperature if config.temperature is not None else 1.0
    method = Distill(student, net.feature_dim, temperature, config.squared_temperature, config.alpha, decay)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    method.to(accelerator.device).to(memory_format=memory_format)
    net.to(accelerator.device).requires_grad_(False)
    batch, epochs = config.batch or 1, config.epochs or 1.0
    order = Order(len(train), batch, config.seed, config.data.last_batch)
    steps = order.steps(epochs) + (config.data.last_batch == "straddle")  # as the reference counts them
    pin = accelerator.device.type == "cuda"
    views = ImageViews(config.views)
    loader = Loader(train, views, order, config.seed, rank(), world_size(), config=config.data, pin_memory=pin)
    per_epoch = order.steps_per_epoch
    return Distilling(
        method, views, loader, build_optimizer(config.optim, method.trained(), batch),
        build_schedule(config.optim, len(train), batch, epochs, steps), accelerator, run, config.seed, batch, steps,
        per_epoch, log_every=config.training.log_every or max(1, min(round(per_epoch), steps // 20 or 1)),
        monitor_every=0,
        checkpoint_every=config.training.checkpoint_every or max(1, round(per_epoch)), keep=config.training.keep,
        memory_format=memory_format, teacher=net.eval(),
        cached=_ask(net, teacher, train, config) if config.targets == "cached" else None,
        known=_known(train, config),
    )  # fmt: skip


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
    size, resample = _preprocessing(teacher, config)
    result = extract(net, train, size, resample=resample)
    out = torch.full((len(train), net.feature_dim), torch.nan)
    out[torch.from_numpy(result.index)] = torch.from_numpy(result.h)
    return out


def _preprocessing(teacher: TeacherSource, config: DistillConfig) -> tuple[int | None, Resample]:
    """Side and interpolation of the teacher's test images."""
    views = teacher.views()
    return views.get("size") or config.views.size, views.get("resample", config.views.resample)


def _known(train: Source, config: DistillConfig) -> Tensor | None:
    """Labels [N] to learn from, -1 where an image's is not used; None where the teacher alone is listened to."""
    if config.alpha is None:
        return None
    y = single_labels(train.labels, train.name)
    known = np.full(len(y), -1, dtype=np.int64)
    selection = label_positions(train, config.labels or "all", config.seed)
    known[selection] = y[selection]
    return torch.from_numpy(known)


def _check_classes(
    net: Encoder, names: list[str] | None, config: DistillConfig, train: Source, test: Source | None
) -> None:
    """Refuse labels of other classes than the teacher's before anything is trained."""
    if config.unlabelled:
        return
    labelled = [source for source in (train, test) if source is not None and source.labels is not None]
    for source in labelled:
        labels = single_labels(source.labels, source.name, least=1)
        count = class_count(labels, source.classes)
        if count != net.feature_dim:
            raise UserError(
                f"the teacher knows {net.feature_dim} classes, {source.name} has {count}: give a teacher of the same "
                "classes, or --unlabelled to take the images without their labels"
            )
        if names and source.classes and list(names) != list(source.classes):
            theirs, ours = (", ".join(map(str, part[:5])) for part in (names, source.classes))
            raise UserError(
                f"the teacher's classes are {theirs}{' ...' if len(names) > 5 else ''}, those of {source.name} in "
                f"their order {ours}{' ...' if len(source.classes) > 5 else ''}: give a teacher of the same classes, "
                "name them alike, or --unlabelled to take the images without their labels"
            )
    if len(labelled) == 2:
        first, second = (single_labels(source.labels, source.name, least=1) for source in labelled)
        moved = match_classes(first[first >= 0], train.classes, second[second >= 0], labelled[1].classes)
        if not np.array_equal(moved, second[second >= 0]):
            raise UserError(f"{train.name} and {labelled[1].name} number their classes differently; name them alike")


def _finish(
    training: Distilling, net: Encoder, classes: list[str] | None, config: DistillConfig, train: Source,
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
        _text(config, teacher, method.encoder), digest(before), training.stopped_by, mark,
    )  # fmt: skip
    if rank() == 0:
        names = classes or (None if config.unlabelled else train.classes)
        facts = {"steps": training.step, "of": training.steps, "options": plain(config), "class_names": names}
        save_encoder(run.encoder_file, method.encoder, None, facts, method.classifier, 0)
        if complete:
            run.write_json(RESULT, asdict(result))
    return result


def _compared(
    net: Encoder, student: Encoder, config: DistillConfig, train: Source, test: Source | None, teacher: TeacherSource,
    complete: bool = True,
) -> tuple[Comparison | None, str, str]:  # fmt: skip
    """Both on the images of the score, which these are in words, and their fingerprint; of a whole run alone."""
    source = test if test is not None else train
    words = source.name if test is not None else f"{source.name}, the images of training themselves"
    if not complete:
        return None, words, ""
    size, resample = _preprocessing(teacher, config)
    result = compare(net, student, source, config.views.size, resample, not config.unlabelled, teacher_size=size)
    return result, words, labels_fingerprint(source)


def _compared_anew(
    done: DistillResult, net: Encoder, run: RunDirectory, config: DistillConfig, train: Source, test: Source | None,
    teacher: TeacherSource, accelerator: Accelerator, module: nn.Module | None,
) -> DistillResult:  # fmt: skip
    """The result of a run that is done, on other images than both were compared on."""
    print_rank0(f"{run.path} was scored on other images: both are compared on those of {(test or train).name}")
    student = load_teacher(run.encoder_file, module=module)
    results, words, mark = _compared(
        net.to(accelerator.device), student.to(accelerator.device), config, train, test, teacher
    )
    result = dataclasses.replace(done, comparison=results, scored_on=words, test=mark)
    if rank() == 0:
        run.write_json(RESULT, asdict(result))
    return result


def _text(config: DistillConfig, teacher: TeacherSource, student: Encoder) -> str:
    """Who learned from whom, and how."""
    name = f"{config.encoder.name} at width {config.encoder.width:g}"
    if isinstance(student, CustomEncoder):
        name = type(student.module).__name__
    squared = " times temperature^2" if config.squared_temperature else ""
    loss = f"cross entropy with the teacher's probabilities at temperature {config.temperature:g}{squared}"
    if config.alpha is not None:
        loss = f"{config.alpha:g} of {loss}, and {1 - config.alpha:g} of that with {config.labels or 'all'} labels"
    fitted = f", classifier fitted on {config.teacher_labels} labels" if config.teacher_labels is not None else ""
    return (
        f"teacher {teacher.name}{fitted}; student {name}; {loss}; targets {config.targets}; {config.epochs:g} epochs "
        f"of batches of {config.batch}, {config.optim.name}, lr {config.optim.lr:g}; seed {config.seed}"
    )


@dataclass
class Distilling(Training):
    """A run whose method takes a view and what is known of its image.

    Attributes:
        teacher: views [n, C, S, S] -> logits [n, K]; or
        cached: its logits for every image of the data, [N, K].
        known: labels of every image of the data, [N], -1 where unknown; None: no labels are used.
    """

    teacher: Callable[[Tensor], Tensor] | None = None
    cached: Tensor | None = None
    known: Tensor | None = None

    def make_inputs(self, batch: Batch) -> Any:
        """The first view of a batch, and (the teacher's logits, labels or None), on the device."""
        device, draw = self.accelerator.device, batch.draws[0]
        images = (batch.images[0] if batch.cropped else batch.images).to(device, non_blocking=True)
        view = self.views.photometric(images if batch.cropped else self.views.crop(images, draw), draw)
        view = view.contiguous(memory_format=self.memory_format)
        labels = None if self.known is None else self.known[batch.index].to(device)
        return view, (self._targets(view, batch.index).to(device), labels)

    @torch.no_grad()
    def _targets(self, view: Tensor, index: Tensor) -> Tensor:
        if self.cached is not None:
            return self.cached[index]
        if self.teacher is None:
            raise ValueError("either a teacher or its cached logits are needed")
        with self.accelerator.autocast():
            return self.teacher(view)
