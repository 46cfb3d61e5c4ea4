"""Starting a run: the device and the processes, the run's folder, the data it began with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from twofold.console import print_rank0
from twofold.data import AudioSource, Source
from twofold.data.content import changed_files, content_digest, file_states, files_of
from twofold.devices import choose_device, choose_precision, keep_freed_memory
from twofold.distributed import rank, world_size
from twofold.errors import UserError
from twofold.runs.joining import join
from twofold.runs.tracking import check_tracker
from twofold.text import counted, printable
from twofold.training.config import TrainingConfig
from twofold.training.ownership import owned, remove_leftovers
from twofold.training.rundir import RunDirectory

_EXAMPLES = ("images", "recordings")


def start_accelerator(config: TrainingConfig, run: RunDirectory) -> Accelerator:
    """Take the device and precision, and join the other processes if there are any."""
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()
    check_tracker(config)
    # Accelerate keeps its settings for the life of the process; an earlier run's need not be this one's.
    AcceleratorState._reset_state(reset_partial_state=world_size() == 1)
    join(config.join_patience, device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=choose_precision(config.precision, device),
        log_with=None if config.track == "none" else config.track,
        project_dir=str(run.path),
    )
    # Whoever looks for a run to resume has looked before the first process writes one.
    accelerator.wait_for_everyone()
    return accelerator


@contextmanager
def owned_run(run: RunDirectory) -> Iterator[None]:
    """Own the run's folder, for all ranks, while the block lasts; what a killed save left there is removed.

    Raises:
        UserError: on every rank, if another process writes the run.
    """
    with ExitStack() as lock:

        def take() -> None:
            lock.enter_context(owned(run.path))
            remove_leftovers(run.path)

        _on_first_rank(take)
        yield


def recipe_of(encoder_file: Path) -> str | None:
    """The recipe that the run of an encoder was started from; None where there is no run, or it had none.

    A damaged configuration is as none: what is asked here is not worth a measurement that is done.
    """
    run = RunDirectory(encoder_file.parent)
    try:
        recipe = run.facts().get("recipe") if run.config_file.exists() else None
    except (UserError, OSError):
        return None
    return recipe if isinstance(recipe, str) else None


def start_run(run: RunDirectory, config: Any, source: Source, data: Any, recipe: str | None, **more: Any) -> None:
    """Write the run's configuration, a dataclass with a seed, and facts, `more` among them.

    Every rank learns if that was refused.
    """

    def write() -> None:
        if config.training.changed_data != "refuse":
            raise UserError(
                f"--training.changed_data {config.training.changed_data} is for going on with a run, and the one in "
                f"{run.path} begins: leave it out"
            )
        facts = {"data": str(data) if isinstance(data, (str, os.PathLike)) else source.name, "images": len(source)}
        facts |= {"fingerprint": source.fingerprint(), "content": content_digest(source)}
        facts |= {"recipe": recipe, "seed": config.seed} | more
        run.create(config, facts)
        paths = files_of(source)
        if paths is not None:
            run.write_states(file_states(paths))

    _on_first_rank(write)


def check_same_data(run: RunDirectory, source: Source, changed: Literal["refuse", "allow"] = "refuse") -> None:
    """Refuse to resume on other data than the run began with.

    Their number, names and lengths have to be the same, and what they hold. A file that was written anew and holds the
    same is the same.

    Args:
        run: that is to go on.
        source: the data now.
        changed: "allow" only tells what has changed, where there are as many examples.

    Raises:
        UserError: on every rank.
    """

    def check() -> None:
        problem = _difference(run, source)
        if problem is None:
            return
        count = run.facts()["images"]
        if changed == "allow" and count == len(source):
            print_rank0(
                f"the data has changed since the run in {run.path} began: {problem}; they are taken as they are"
            )
            return
        remedy = "give the same data to resume, or start a new run"
        if count == len(source):
            remedy += "; if the change is meant, --training.changed_data allow goes on with it"
        raise UserError(f"the data has changed since the run in {run.path} began: {problem}; {remedy}")

    _on_first_rank(check)


def _difference(run: RunDirectory, source: Source) -> str | None:
    """What of the data is not as it was when the run began, in words; None where nothing is known to differ."""
    facts, paths, before = run.facts(), files_of(source), run.states()
    if len(source) != facts["images"]:
        return f"{facts['images']} {_EXAMPLES[isinstance(source, AudioSource)]} then, {len(source)} now"
    if before is not None and paths is not None and len(before) == len(paths):
        changed = changed_files(before, file_states(paths, before))
        if len(changed):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            unread = "" if before["digest"].any() else " (they were written since; so many are not read whole)"
            return f"{printable(paths[changed[0]])}{more} of {counted(len(paths), 'file')}{unread}"
    if source.fingerprint() != facts["fingerprint"]:
        return "other files, or of other lengths"
    if facts.get("content") not in (None, content_digest(source)):
        return f"files of {source.name} have the same names and lengths, and hold something else"
    return None


def _on_first_rank(work: Callable[[], None]) -> None:
    """Do something on the first rank alone; its UserError is raised on all."""
    problem: list[str | None] = [None]
    if rank() == 0:
        try:
            work()
        except UserError as error:
            problem = [str(error)]
    if world_size() > 1:
        broadcast_object_list(problem)
    if problem[0] is not None:
        raise UserError(problem[0])
