"""`twofold pretrain`: from a folder of images, or any other source, to an encoder."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from twofold.console import console, duration, print_rank0
from twofold.data import Source, open_source
from twofold.devices import choose_device
from twofold.distributed import rank
from twofold.encoders.weights import save_encoder
from twofold.errors import Stopped
from twofold.heads import ProjectionHead
from twofold.kinds import EXAMPLE
from twofold.options import plain
from twofold.recipes import read_layers
from twofold.report.run import write_run_report
from twofold.runs.config import RunConfig, build, to_yaml
from twofold.runs.defaults import choose
from twofold.runs.pretrain import assemble
from twofold.runs.starting import check_same_data, start_accelerator, start_run
from twofold.training.clock import describe_time
from twofold.training.loop import Training
from twofold.training.micro_batch import train_or_advise
from twofold.training.rundir import RunDirectory


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
    resolved = run.check_resumable(RunConfig, given) if resuming else build(given)
    accelerator = start_accelerator(resolved.training, run)
    source = open_source(data, resolved.data, split=resolved.data.split)
    if resuming:
        check_same_data(run, source)
    else:
        resolved, message = choose(resolved, source.facts(), accelerator.device)
        print_rank0(message)
    training = assemble(resolved, source, run, accelerator, module)
    if training.method.notice():
        print_rank0(training.method.notice())
    if not resuming:
        start_run(run, resolved, source, data, recipe)
    if resume:
        training.resume()
        print_rank0(
            f"resumed {run.path} at step {training.step:,} of {training.steps:,}"
            if training.step
            else f"starting {run.path}"
        )
    return finish(training, source, train_or_advise(training, resolved.micro_batch), report, module)


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
            "options": plain(run.read(RunConfig)[0]),
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
        seen = f"{training.step * training.batch:,} {EXAMPLE[training.method.encoder.input.kind]}s"
        console.print(f"{seen} in {duration(training.seconds)}; encoder: {run.encoder_file}")
        if any(training.clock.seconds.values()):  # a run that was done already has spent none
            console.print(describe_time(training.clock.seconds))
        if report:
            console.print(f"report: {write_run_report(run, source, module=module)}")
    return run
