"""Pretraining as a run: resumable, leaves an encoder; labels, where there are any, are watched and never learned."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from twofold.console import print_rank0
from twofold.data import ArraySource, Loader, Source, open_source
from twofold.data.base import class_count
from twofold.data.batches.loader import AsLoaded
from twofold.data.groups import group_numbers
from twofold.data.sources.subset import subset
from twofold.distributed import rank
from twofold.encoders import build_encoder, save_encoder
from twofold.encoders.adapters import adapt_as
from twofold.errors import UserError
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.frozen import digest
from twofold.evaluation.monitors import EXTRACTOR, LabelMonitor, ProbeRule, hold_out
from twofold.evaluation.prepared import Prepared
from twofold.files import check_out, write_atomically
from twofold.heads import ProjectionHead
from twofold.kinds import Kind
from twofold.methods import ContrastiveMethod
from twofold.options import plain
from twofold.runs.build import build_training
from twofold.runs.config import RunConfig, build
from twofold.runs.defaults import choose
from twofold.runs.extending import begin_extension, extended_config
from twofold.runs.from_weights import StartingPoint, from_start, read_start
from twofold.runs.looks import LOOKING_SHARE, MOST, plan_looks
from twofold.runs.minutes import Rate, check_minutes, epochs_within, measure_rate
from twofold.runs.starting import check_same_data, owned_run, start_accelerator, start_run
from twofold.runs.tracking import release, start_tracking
from twofold.text import counted
from twofold.training.inputs import TwoViews
from twofold.training.loop import AnyTraining
from twofold.training.micro_batch import or_advise, train_or_advise
from twofold.training.rundir import RunDirectory
from twofold.views.overlap import told_apart


@dataclass(frozen=True)
class PretrainOutcome:
    """What came of a pretraining run.

    Attributes:
        run: its folder.
        source: the data.
        kind: of the examples.
        complete: whether the last step was done.
        step, steps: taken, and in all.
        seen: examples that went through the encoder, repetitions included.
        seconds: of training, earlier parts of the run included.
        time: seconds of this call by part of a step.
        stopped_by: number of the signal that ended it early.
        first: this process is the one that writes and prints.
        trackers: that are still open, see `tracking.finish`.
    """

    run: RunDirectory
    source: Source
    kind: Kind
    complete: bool
    step: int
    steps: int
    seen: int
    seconds: float
    time: Mapping[str, float]
    stopped_by: int | None
    first: bool
    trackers: Sequence[Any] = ()


def pretrain(
    data: Any,
    out: str | Path,
    options: Mapping[str, Any],
    *,
    recipe: str | None = None,
    resume: bool = False,
    extend: float | None = None,
    minutes: float | None = None,
    module: nn.Module | None = None,
) -> PretrainOutcome:
    """Train an encoder without labels, or go on with a run.

    Args:
        data: whatever `open_source` takes.
        out: the run's folder, new or empty unless `resume`.
        options: fields of `RunConfig`, nested or dotted.
        recipe: whose options they are, for the record.
        resume: go on with the run in `out`; starts it if there is none yet.
        extend: go on with the finished run in `out` for so many more epochs.
        minutes: choose the epochs so that the training takes about as long; the run's configuration then has them, and
            a run that is resumed keeps those that it has. `options` name no epochs.
        module: your own module as the encoder.

    Raises:
        UserError: for anything wrong in the options or the data.
    """
    if minutes is not None:
        check_minutes(minutes)
        if extend is not None:
            raise UserError(f"--minutes {minutes:g} chooses the epochs of a new run: leave it out with --extend")
    run = RunDirectory(out)
    resuming = (resume and run.config_file.exists()) or extend is not None
    point = None
    if extend is not None:
        config = extended_config(run, options, extend, resume)
    elif resuming:
        config = run.check_resumable(RunConfig, dict(options))
    else:
        point, given = from_start(options)
        config = build(given)
    if not resume and not resuming:  # what a killed start left behind is removed by a run that is resumed
        check_out(run.path, run.config_file.exists(), "run", resume=False)
    accelerator = start_accelerator(config.training, run)
    with owned_run(run):
        source = open_source(data, config.data, split=config.data.split)
        if resuming:
            check_same_data(run, source, config.training.changed_data)
            if config.start_from is not None and run.latest() is None:  # killed before its first checkpoint
                point = read_start(config.start_from, config.start_prefix, plain(config.encoder))
        else:
            facts = source.facts()
            if point is not None:
                point.check_kind(facts.kind)
                print_rank0(point.told)
            if facts.layout:
                print_rank0(facts.layout)
            if minutes is not None:
                print_rank0(f"a short trial tells how many epochs fit into {counted(minutes, 'minute')}")

                def resolved(epochs: float) -> RunConfig:
                    return choose(dataclasses.replace(config, epochs=epochs), facts, accelerator.device)[0]

                epochs = _within(minutes, resolved, source, run, accelerator, module, point)
                config = dataclasses.replace(config, epochs=epochs)
            config, message = choose(config, facts, accelerator.device)
            print_rank0(message)
            apart = told_apart(config.views, facts.median_height, facts.median_width) if facts.kind == "image" else ""
            if apart:
                print_rank0(f"warning: {apart}")
        training = assemble(config, source, run, accelerator, module, point)
        if training.method.notice():
            print_rank0(training.method.notice())
        if point is not None:
            _keep_start(run, config, training, source, data, recipe, resuming)
        elif not resuming:
            start_run(run, config, source, data, recipe)
        start_tracking(accelerator, config, run)
        if extend is not None:
            begin_extension(run, config, training)
            training.resume()
        if resume:
            training.resume()
            print_rank0(
                f"resumed {run.path} at step {training.step:,} of {training.steps:,}"
                if training.step
                else f"starting {run.path}"
            )
        return _finish(training, source, train_or_advise(training, config.micro_batch))


_TRIAL = 1e4
"""Epochs of which a trial takes the first steps: more than it needs, whatever the data."""


def _within(
    minutes: float, resolved: Callable[[float], RunConfig], source: Source, run: RunDirectory, accelerator: Accelerator,
    module: nn.Module | None, point: StartingPoint | None,
) -> float:  # fmt: skip
    """As many epochs as fit into some minutes; the trials leave nothing behind.

    What a method chooses by the number of steps may change what a step costs. Where it chooses anything by it, the
    fewest steps that can be timed tell about how many there will be, and the trial proper is of what that chooses.

    Args:
        resolved: gives the run's configuration for a number of epochs.
        minutes, source, run, accelerator, module, point: as `pretrain` and `assemble` have them.
    """

    def tried(config: RunConfig, budget: float, spent: float = 0.0) -> tuple[Rate, float, str]:
        own = copy.deepcopy(module)  # a module of the user's is trained in place
        trial = assemble(dataclasses.replace(config, epochs=_TRIAL), source, run, accelerator, own, point)
        rate = or_advise(lambda: measure_rate(trial, budget), trial, config.micro_batch)
        rate, watched = dataclasses.replace(rate, spent=rate.spent + spent), config.monitor
        within = LOOKING_SHARE if watched.every is None or watched.samples is None else 1.0
        return rate, *epochs_within(minutes, rate, trial.steps_per_epoch, watched.every or 0, within)

    config, spent = resolved(_TRIAL), 0.0
    if config.method != resolved(1.0).method:
        rate, epochs, _ = tried(config, 0.0)
        config, spent = resolved(epochs), rate.spent
    _, epochs, told = tried(config, minutes, spent)
    print_rank0(f"epochs {epochs:g} ({told})")
    return epochs


def _keep_start(
    run: RunDirectory, config: RunConfig, training: AnyTraining, source: Source, data: Any, recipe: str | None,
    resuming: bool,
) -> None:  # fmt: skip
    """Write down which weights the run begins with, and keep them: the file is not needed again."""
    facts = {"start": {"from": str(config.start_from), "digest": digest(training.method.encoder)}}
    if not resuming:
        start_run(run, config, source, data, recipe, **facts)
    elif run.facts()["start"]["digest"] != facts["start"]["digest"]:
        raise UserError(
            f"--start_from {config.start_from} holds other weights than those that the run in {run.path} began with, "
            "and no checkpoint was written since: put them back, or start another run in another folder"
        )
    training.save()


def assemble(
    config: RunConfig, source: Source, run: RunDirectory, accelerator: Accelerator, module: nn.Module | None,
    point: StartingPoint | None = None,
) -> AnyTraining:  # fmt: skip
    """Build every part of the run from its resolved configuration, its encoder with the weights of `point`."""
    if config.encoder.name == "custom" and module is None:
        raise UserError("the run trains a module of your own (encoder.name custom): give it as `encoder` from Python")
    torch.manual_seed(config.seed)  # initial weights
    encoder = (
        build_encoder(config.encoder, config.views.size)
        if module is None
        else adapt_as(config.encoder, module, source.channels, config.views.size)
    )
    if encoder.input.channels != source.channels:
        raise UserError(
            f"the encoder takes {counted(encoder.input.channels, 'channel')} and the images have {source.channels}; "
            "set --data.channels and --encoder.channels to the same number"
        )
    if point is not None:
        point.fill(encoder)
    source = source_for(source, encoder, config.seed, fit=config.start_from is None)
    method = config.method.build(encoder, config.head, config.seed)
    training = build_training(
        config, method, source, TwoViews, run, accelerator, span=config.method.hidden_span(),
        extensions=config.extensions,
    )  # fmt: skip
    training.monitors, training.monitor_every = watch(config, training, source)
    if training.monitors:
        training.save_best = lambda score: save_net(training, run.best_file, config, {"score": score})
    return training


def watch(config: RunConfig, training: AnyTraining, source: Source) -> tuple[list[LabelMonitor], int]:
    """The monitors that the data's labels allow, and the steps between two looks."""
    wanted, labels = config.monitor, source.labels
    if wanted.every == 0 or not (wanted.probe or wanted.knn) or labels is None or labels.ndim != 1 or len(source) < 20:
        return [], 0
    groups = group_numbers(source)
    whole = hold_out(labels, config.seed, 0.1, MOST if wanted.samples is None else wanted.samples, groups)
    if not all(map(len, whole)):
        return [], 0
    epochs = training.steps / training.steps_per_epoch
    looks = plan_looks(wanted, epochs, training.steps * training.batch, *map(len, whole))
    bank, queries = hold_out(labels, config.seed, 0.1, (looks.bank, looks.queries), groups)
    read = (
        cast(Source, AsLoaded(training.loader))
        if not isinstance(source, ArraySource) and isinstance(training.loader, Loader)
        else source
    )
    rule = ProbeRule(config.optim, training.batch, lambda: training.schedule(training.step))
    monitor = LabelMonitor(
        training.method,
        subset(read, bank),
        subset(read, queries),
        wanted.probe,
        wanted.knn,
        dataclasses.replace(EXTRACTOR, size=config.views.size, resample=config.views.resample, memory=Prepared()),
        training.accelerator.autocast,
        k=wanted.knn_k,
        temperature=wanted.knn_temperature,
        features=wanted.knn_features,
        classes=class_count(labels, source.classes),
        complete=bool((labels >= 0).all()),
        layer=wanted.probe_layer,
        rule=rule if wanted.probe_rule == "run" else None,
    )
    return [monitor], max(1, round(looks.every * training.steps_per_epoch))


def save_net(training: AnyTraining, path: Path, config: RunConfig, more: Mapping[str, float] | None = None) -> None:
    """Write the encoder, with the head if there is one, as it is now."""
    method = training.method
    facts = {
        "steps": training.step, "of": training.steps, "seconds": round(training.seconds, 3), "options": plain(config),
        **(more or {}),
    }  # fmt: skip
    head = method.head if isinstance(method, ContrastiveMethod) else None
    save_encoder(path, method.encoder, head if isinstance(head, ProjectionHead) else None, extra=facts)


def _finish(training: AnyTraining, source: Source, complete: bool) -> PretrainOutcome:
    """Leave the encoder in the run's folder, and a list of what could not be read."""
    run, method, first = training.run, training.method, rank() == 0  # asked now: the group of processes ends below
    if first:
        save_net(training, run.encoder_file, run.read(RunConfig)[0])
        if source.skipped:
            lines = "".join(f"{path}\t{reason}\n" for path, reason in source.skipped)
            text = lines.encode(errors="surrogateescape")  # bytes as on disk
            write_atomically(run.path / "skipped.tsv", lambda file: file.write(text))
    trackers = release(training.accelerator)
    training.accelerator.end_training()
    return PretrainOutcome(
        run, source, method.encoder.input.kind, complete, training.step, training.steps,
        training.step * training.batch, training.seconds, training.clock.seconds, training.stopped_by, first, trackers,
    )  # fmt: skip
