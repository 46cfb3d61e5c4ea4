"""Starting a run: the device and the processes, the run's folder, the data it began with."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from twofold.data import Source
from twofold.data.content import content_digest
from twofold.devices import choose_device, choose_precision, keep_freed_memory
from twofold.distributed import rank, world_size
from twofold.errors import UserError
from twofold.runs.joining import join
from twofold.training.config import TrainingConfig
from twofold.training.rundir import RunDirectory


def start_accelerator(config: TrainingConfig, run: RunDirectory) -> Accelerator:
    """Take the device and precision, and join the other processes if there are any."""
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()
    track = config.track
    if track == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError('--training.track tensorboard needs an extra: pip install "twofold[track]"')
    # Accelerate keeps its settings for the life of the process; an earlier run's need not be this one's.
    AcceleratorState._reset_state(reset_partial_state=world_size() == 1)
    join(config.join_patience, device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=choose_precision(config.precision, device),
        log_with=None if track == "none" else track,
        project_dir=str(run.path),
    )
    # Whoever looks for a run to resume has looked before the first process writes one.
    accelerator.wait_for_everyone()
    if track != "none":
        accelerator.init_trackers("tensorboard")
    return accelerator


def start_run(run: RunDirectory, config: Any, source: Source, data: Any, recipe: str | None, **more: Any) -> None:
    """Write the run's configuration, a dataclass with a seed, and facts, `more` among them.

    Every rank learns if that was refused.
    """
    problem: list[str | None] = [None]
    if rank() == 0:
        facts = {"data": str(data) if isinstance(data, (str, os.PathLike)) else source.name, "images": len(source)}
        facts |= {"fingerprint": source.fingerprint(), "content": content_digest(source)}
        facts |= {"recipe": recipe, "seed": config.seed} | more
        try:
            run.create(config, facts)
        except UserError as error:
            problem = [str(error)]
    if world_size() > 1:
        broadcast_object_list(problem)
    if problem[0] is not None:
        raise UserError(problem[0])


def check_same_data(run: RunDirectory, source: Source) -> None:
    """Refuse to resume on other data than the run began with."""
    facts = run.facts()
    if source.fingerprint() != facts["fingerprint"]:
        raise UserError(
            f"the data has changed since the run in {run.path} began ({facts['images']} images "
            f"then, {len(source)} now, or other files); give the same data to resume, or start a new run"
        )
    if facts.get("content") not in (None, content_digest(source)):
        raise UserError(
            f"the data has changed since the run in {run.path} began: files of {source.name} have the same names and "
            "lengths, and hold something else; give the same data to resume, or start a new run"
        )
