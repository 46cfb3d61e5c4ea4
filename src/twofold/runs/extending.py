"""More epochs for a run that has come to its end: what has to be there, and what is written down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from twofold.console import print_rank0
from twofold.distributed import rank
from twofold.encoders import read_header
from twofold.errors import UserError
from twofold.optim import in_words
from twofold.runs.config import RunConfig
from twofold.text import counted
from twofold.training.checkpoint import step_of
from twofold.training.loop import AnyTraining
from twofold.training.rundir import RunDirectory
from twofold.versions import environment


def extended_config(run: RunDirectory, options: Mapping[str, Any], epochs: float, resume: bool) -> RunConfig:
    """The configuration of the run with so many epochs added.

    Raises:
        UserError: there is no run, the number makes no sense, or an option would change the run.
    """
    if resume:
        raise UserError(
            f"--extend {epochs:g} adds epochs to a finished run, and --resume goes on with what was begun, an "
            "extension too: give one of them"
        )
    if not (math.isfinite(epochs) and epochs > 0):
        raise UserError(f"--extend {epochs:g}: give the number of epochs to add, above 0")
    if not run.config_file.exists():
        raise UserError(
            f"--extend {epochs:g}: there is no run in {run.path} to add epochs to; name its folder as --out, or leave "
            "--extend out to start one"
        )
    config = run.check_resumable(RunConfig, dict(options), "extend the run")
    return dataclasses.replace(config, extensions=(*config.extensions, float(epochs)))


def begin_extension(run: RunDirectory, config: RunConfig, training: AnyTraining) -> None:
    """Check that the run has come to its end with all that it takes to go on; write the extension down and say it.

    Raises:
        UserError: the run is not finished, or its last checkpoint is not there.
    """
    _check_finished(run, training.ends[-2])
    begin, end, epochs = training.ends[-2], training.ends[-1], config.extensions[-1]
    if rank() == 0:
        run.record_extension(config, {"from_step": begin, "epochs": epochs} | environment())
    print_rank0(
        f"{run.path} is extended by {epochs:g} epoch{'' if epochs == 1 else 's'}, steps {begin + 1:,} to {end:,}; "
        f"the learning rate {in_words(training.schedule, begin, end)}"
    )


def _check_finished(run: RunDirectory, end: int) -> None:
    newest = run.latest()
    step = 0 if newest is None else step_of(newest)
    if step == end:
        return
    if _reached(run) < end:
        raise UserError(
            f"--extend adds epochs to a finished run, and the one in {run.path} has done {step:,} of its "
            f"{counted(end, 'step')}: finish it with --resume first"
        )
    rest = f"--resume trains again from step {step:,}, the last one that is kept" if newest else "none is kept"
    raise UserError(
        f"--extend goes on from the state after the last step, optimiser and all, and {run.path} does not hold it "
        f"(checkpoints/step-{end:09d}.pt): put it back ({rest}), or start a new run from the weights alone: twofold "
        f"pretrain DATA --out NEW --start_from {run.path}"
    )


def _reached(run: RunDirectory) -> int:
    """The last step that the run has left an encoder of."""
    return int(read_header(run.encoder_file)["extra"].get("steps", 0)) if run.encoder_file.exists() else 0
