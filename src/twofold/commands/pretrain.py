"""`twofold pretrain`: from a folder of images, or any other source, to an encoder."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import nn

from twofold import recipes
from twofold.commands.summary import write_run_report
from twofold.data import Source, open_source
from twofold.data.subset import subset
from twofold.distributed import rank, world_size
from twofold.encoders import adapt, build_encoder
from twofold.encoders.weights import save_encoder
from twofold.errors import Stopped, UserError
from twofold.evaluation.monitors import LabelMonitor, hold_out
from twofold.heads import ProjectionHead
from twofold.methods import Method, build_method
from twofold.optim import build_optimizer, build_schedule
from twofold.training.clock import describe_time
from twofold.training.config import RunConfig, build, merge, plain, to_yaml
from twofold.training.defaults import choose
from twofold.training.loop import Training
from twofold.training.micro_batch import run_in_chunks, train_or_advise
from twofold.training.parts import make_loader, make_order, make_views, match
from twofold.training.progress import console, duration
from twofold.training.rundir import RunDirectory
from twofold.training.starting import check_same_data, choose_device, say, start_accelerator, start_run


def pretrain(
    data: Any,
    out: str | Path,
    *,
    recipe: str | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    encoder: nn.Module | Mapping[str, Any] | None = None,
    report: bool = True,
    **options: Any,
) -> RunDirectory:
    """Pretrain an encoder on unlabelled data.

    Args:
        data: a folder, an .npz or .npy file, the name of a torchvision data set, an array of images, a pair of images
            and labels, or a torch data set. Labels are watched where there are any and never trained on.
        out: the run's folder; must be new or empty unless `resume`.
        recipe: name of a recipe (`twofold recipes` lists them).
        config: a YAML file of options.
        resume: continue the run in `out`; starts it if there is none yet.
        encoder: options of a named encoder (``{"name": "resnet18"}``), or your own module, which takes
            [n, C, S, S] in [0, 1] and returns [n, d].
        report: write `report.html` at the end.
        options: fields of `RunConfig`, nested (``optim={"lr": 1e-3}``) or dotted (``**{"optim.lr": 1e-3}``).
            They win over `config`, which wins over `recipe`.

    Returns:
        The run's directory: configuration, metrics, checkpoints, `encoder.safetensors`, `report.html`.

    Raises:
        UserError: for anything wrong in the options or the data.
        Stopped: if SIGINT, SIGTERM or SIGUSR1 ended it early; `resume=True` continues it.
    """
    run = RunDirectory(out)
    module = encoder if isinstance(encoder, nn.Module) else None
    if encoder is not None:
        options["encoder"] = {"name": "custom"} if isinstance(encoder, nn.Module) else encoder
    given = read_layers(recipe, config, options)
    resuming = resume and run.config_file.exists()
    resolved = run.check_resumable(given) if resuming else build(given)
    accelerator = start_accelerator(resolved.training, run)
    source = open_source(data, resolved.data, split=resolved.data.split)
    if resuming:
        check_same_data(run, source)
    else:
        resolved, told = choose(resolved, source.facts(), accelerator.device)
        say(told)
    training = assemble(resolved, source, run, accelerator, module)
    if training.method.remark():
        say(training.method.remark())
    if not resuming:
        start_run(run, resolved, source, data, recipe)
    if resume:
        training.resume()
        say(
            f"resumed {run.path} at step {training.step:,} of {training.steps:,}"
            if training.step
            else f"starting {run.path}"
        )
    return finish(training, source, train_or_advise(training, resolved.micro_batch), report, module)


def read_layers(
    recipe: str | None, config: str | Path | None, options: Mapping[str, Any], command: str = "pretrain"
) -> dict[str, Any]:
    """Merge recipe < file < options into nested options; UserError for a recipe of another command."""
    layers: list[Mapping[str, Any]] = []
    if recipe is not None:
        found = recipes.load(recipe)
        if found.command != command:
            raise UserError(f"--recipe {recipe} is for `twofold {found.command}`, not for `twofold {command}`")
        layers.append(found.options)
    if config is not None:
        try:
            document = yaml.safe_load(Path(config).read_text()) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {config} cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise UserError(f"--config {config} must hold options by name, got {type(document).__name__}")
        layers.append(document.get("options", document))  # a run's own config.yaml works as it is
    return merge(*layers, options)


def assemble(
    config: RunConfig, source: Source, run: RunDirectory, accelerator: Accelerator, module: nn.Module | None
) -> Training:
    """Build every part of the run from its resolved configuration."""
    if config.encoder.name == "custom" and module is None:
        raise UserError("the run trains a module of your own (encoder.name custom): give it as `encoder` from Python")
    batch, epochs = config.batch or 0, config.epochs or 0.0
    torch.manual_seed(config.seed)  # initial weights
    encoder = build_encoder(config.encoder, config.views.size) if module is None else adapt(module, source.channels)
    if encoder.input.channels != source.channels:
        raise UserError(
            f"the encoder takes {encoder.input.channels} channels and the images have {source.channels}; "
            "set --data.channels and --encoder.channels to the same number"
        )
    source = match(source, encoder, config.seed, fit=True)
    method = build_method(config.method, encoder, config.head, config.seed).to(accelerator.device)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    method.to(memory_format=memory_format)
    if config.micro_batch:
        run_in_chunks(method, batch, config.micro_batch, config.training.compile)
    elif config.training.compile:
        method.encoder.body().compile()
    optimizer = build_optimizer(config.optim, method.trained(), batch=batch)
    order = make_order(config, source)
    steps = order.steps(epochs) + (
        config.data.last_batch == "straddle"
    )  # the reference trains one step more (its first has lr 0)
    schedule = build_schedule(config.optim, images=len(source), batch=batch, epochs=epochs, steps=steps)
    views = make_views(config, source)
    loader = make_loader(config, source, views, order, rank(), world_size(), accelerator.device.type == "cuda")
    per_epoch = order.steps_per_epoch
    monitors, look_every = watch(config, method, source, accelerator, steps, per_epoch)
    return Training(
        method, views, loader, optimizer, schedule, accelerator, run, config.seed, batch, steps, per_epoch,
        log_every=config.training.log_every or max(1, min(round(per_epoch), steps // 20 or 1)),
        look_every=look_every,
        checkpoint_every=config.training.checkpoint_every or max(1, round(per_epoch)),
        keep=config.training.keep, memory_format=memory_format, monitors=monitors,
    )  # fmt: skip


def watch(
    config: RunConfig, method: Method, source: Source, accelerator: Accelerator, steps: int, per_epoch: float
) -> tuple[list[LabelMonitor], int]:
    """The monitors that the data's labels allow, and the steps between two looks."""
    wanted, labels = config.monitor, source.labels
    if wanted.every == 0 or not (wanted.probe or wanted.knn) or labels is None or labels.ndim != 1 or len(source) < 20:
        return [], 0
    bank, queries = hold_out(labels, config.seed, 0.1, wanted.samples)
    if len(bank) == 0 or len(queries) == 0:
        return [], 0
    monitor = LabelMonitor(
        method,
        subset(source, bank),
        subset(source, queries),
        wanted.probe,
        wanted.knn,
        config.views.size,
        config.views.resample,
        accelerator.autocast,
        k=wanted.knn_k,
        temperature=wanted.knn_temperature,
        features=wanted.knn_features,
        complete=bool((labels >= 0).all()),
    )
    epochs = wanted.every or max(1, round(steps / per_epoch / 20))
    return [monitor], max(1, round(epochs * per_epoch))


def describe_config(data: Any, *, recipe: str | None = None, config: str | Path | None = None, **options: Any) -> str:
    """Every option of `pretrain` as it would be used on `data`, as YAML that `config` reads back."""
    resolved = build(read_layers(recipe, config, options))
    source = open_source(data, resolved.data, split=resolved.data.split)
    return to_yaml(choose(resolved, source.facts(), choose_device(resolved.training.device))[0])


def finish(training: Training, source: Source, complete: bool, report: bool, module: nn.Module | None) -> RunDirectory:
    """Leave the encoder and the report in the run's folder, and say where they are."""
    run, first = training.run, rank() == 0  # asked now: ending the training dissolves the group of processes
    if first:
        facts = {
            "steps": training.step,
            "of": training.steps,
            "seconds": round(training.seconds, 3),
            "options": plain(run.read()[0]),
        }
        head = training.method.head if isinstance(training.method.head, ProjectionHead) else None
        save_encoder(run.encoder_file, training.method.encoder, head, extra=facts)
        skipped = list(source.skipped)
        for path, reason in skipped[:10]:
            console.print(f"skipped {path}: {reason}")
        if skipped:
            lines = "".join(f"{path}\t{reason}\n" for path, reason in skipped)
            (run.path / "skipped.tsv").write_text(lines)
            console.print(f"{len(skipped)} file(s) skipped in all; listed in {run.path / 'skipped.tsv'}")
    training.accelerator.end_training()
    if not complete:
        raise Stopped(
            f"stopped at step {training.step:,} of {training.steps:,}; nothing is lost: the same command "
            "with --resume goes on",
            training.stopped_by or signal.SIGINT,
        )
    if first:
        seen = f"{training.step * training.batch:,} {training.method.encoder.input.kind.replace('speech', 'sound')}s"
        console.print(f"{seen} in {duration(training.seconds)}; encoder: {run.encoder_file}")
        if any(training.clock.seconds.values()):  # a run that was done already has spent none
            console.print(describe_time(training.clock.seconds))
        if report:
            console.print(f"report: {write_run_report(run, source, module=module)}")
    return run
