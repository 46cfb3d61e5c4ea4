"""Checkpoints are whole or absent: written beside, synced, renamed. Only tensors and plain values are read back."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import torch

from twofold.archives import DamagedFile, read_tensors
from twofold.console import console
from twofold.errors import UserError
from twofold.files import write_atomically

_NAME = re.compile(r"step-(\d{9})\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    result = (folder / "checkpoints").glob("step-*.pt")
    return sorted(path for path in result if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written, by its name."""
    return int(path.stem.rpartition("-")[2])


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int, spare: int | None = None) -> Path:
    """Write the state after `step` steps and remove all but the last `keep`, and the one of the step `spare`."""
    path = folder / "checkpoints" / f"step-{step:09d}.pt"
    write_atomically(path, lambda file: torch.save(state, file))
    for old in checkpoints(folder)[:-keep]:
        if step_of(old) != spare:
            try:
                old.unlink(missing_ok=True)
            except OSError as error:  # one too many costs room and nothing else
                console.print(f"warning: an old checkpoint stays: {error}")
    return path


def load_checkpoint(path: Path, steps: int | None = None) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted, and every checksum is compared.

    Args:
        path: the file.
        steps: of the whole run, where they are known: no checkpoint can lie beyond.

    Raises:
        UserError: if the file is damaged, holds anything else, or a step that the run does not have.
    """
    try:
        state = read_tensors(path)
    except (DamagedFile, OSError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({error})") from error
    if not isinstance(state, dict) or "step" not in state:
        raise UserError(f"{path} is not a checkpoint of a Twofold run: it has no 'step'")
    step, seconds = state["step"], state.get("seconds", 0.0)
    if type(step) is not int or step < 0 or (steps is not None and step > steps):
        raise UserError(f"{path} is of step {step!r}, which a run of {steps} steps does not have")
    if not isinstance(seconds, float | int) or not 0 <= seconds < 2**63:
        raise UserError(f"{path} says that {seconds!r} seconds were trained")
    if wrong := next((name for name, right in _FACTS.items() if name in state and not right(state[name])), None):
        raise UserError(f"{path} holds no '{wrong}' as a run writes it")
    return state


def _is_mark(value: Any) -> bool:
    """What is noted of metrics.jsonl: its length and sum."""
    names = ("bytes", "crc32")
    return value is None or (
        isinstance(value, dict) and all(type(value.get(name)) is int and value[name] >= 0 for name in names)
    )


def _is_best(value: Any) -> bool:
    """The step and the score of the best checkpoint."""
    return value is None or (
        isinstance(value, list)
        and len(value) == 2
        and type(value[0]) is int
        and type(value[1]) in (int, float)
        and math.isfinite(value[1])
    )


def _are_sums(value: Any) -> bool:
    """Sums since the last row: of losses, steps and what else a row has means of, or none."""
    return (
        isinstance(value, dict)
        and (not value or value.keys() >= {"loss", "steps"})
        and all(isinstance(name, str) for name in value)
        and all(isinstance(each, torch.Tensor) and each.ndim == 0 for each in value.values())
    )


def _are_of_ranks(value: Any) -> bool:
    """The same sums, of each process by itself."""
    if not isinstance(value, dict) or not all(
        isinstance(each, torch.Tensor) and each.ndim == 1 for each in value.values()
    ):
        return False
    return len({len(each) for each in value.values()}) <= 1 and all(
        _are_sums(dict(zip(value, each, strict=True))) for each in zip(*value.values(), strict=True)
    )


_FACTS: dict[str, Callable[[Any], bool]] = {
    "metrics": _is_mark,
    "best": _is_best,
    "sums": _are_sums,
    "rank_sums": _are_of_ranks,
}
"""What a checkpoint holds beside the states of the run's parts."""


def load_newest(
    folder: Path, take: Callable[[Path], None], agreed: Callable[[bool], bool]
) -> tuple[Path | None, list[str]]:
    """Give the newest checkpoint that can be taken up to `take`; go back to the one before where it cannot.

    Args:
        folder: of the run.
        take: loads a checkpoint; a UserError means that it cannot be used.
        agreed: whether a checkpoint was taken on every rank, given whether it was on this one.

    Returns:
        The one that was taken, None if the run has none, and what was wrong with those that were passed over.

    Raises:
        UserError: there are checkpoints and none can be used.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(folder)):
        problem = ""
        try:
            take(path)
        except UserError as error:
            problem = str(error)
        if agreed(not problem):
            return path, problems
        problems.append(problem or f"{path} cannot be read by another process")
    if problems:
        raise UserError(
            f"none of the checkpoints in {folder} can be used: {'; '.join(problems)}. Bring them back from a copy, or "
            "start again in another folder"
        )
    return None, problems


def set_aside(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, which could not be used, so that they are not counted among those kept."""
    result = []
    for path in checkpoints(folder):
        if step_of(path) > step:
            try:
                result.append(path.rename(path.with_name(f"{path.name}.damaged")))
            except OSError as error:
                raise UserError(f"cannot rename {path}, which is damaged, out of the way: {error}") from error
    return result


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None if it has none yet."""
    result = checkpoints(folder)
    return result[-1] if result else None


def check_state_fits(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise a ValueError where a saved state is not one of this optimiser, which `load_state_dict` does not look at.

    A fused step trusts shapes and types of what is kept, and would write beyond tensors that are too small.

    Args:
        optimizer: whose parameters count.
        state: what its `state_dict` gave.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    sizes, theirs_too = [len(group["params"]) for group in groups], [len(group["params"]) for group in saved]
    if sizes != theirs_too:
        raise ValueError(f"its optimiser has {sum(theirs_too)} parameters, this run's {sum(sizes)}")
    if (numbers := [number for group in saved for number in group["params"]]) != list(range(len(numbers))):
        raise ValueError("the optimiser's parameters are not numbered in order")
    if odd := [key for key, kept in state["state"].items() if not isinstance(kept, dict)]:
        raise ValueError(f"what the optimiser keeps of parameter {odd[0]!r} has no names")
    for ours, theirs in zip(groups, saved, strict=True):
        for name in ours.keys() & theirs.keys() - {"params"}:
            if not _alike(ours[name], theirs[name]):
                raise ValueError(f"the optimiser's {name} is {theirs[name]!r}")
        usual = _kept_of_one(optimizer, theirs)
        for number, parameter in zip(theirs["params"], ours["params"], strict=True):
            if kept := state["state"].get(number):  # one that was never moved has nothing
                _check_kept(kept, usual, number, parameter)


def _kept_of_one(optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> dict[str, Any]:
    """What an optimiser keeps of a parameter with these settings, once it has moved it: one of two numbers here."""
    trial = copy(optimizer)
    parameter = torch.nn.Parameter(torch.zeros(2, device=optimizer.param_groups[0]["params"][0].device))
    parameter.grad = torch.zeros_like(parameter)
    # (as load_state_dict takes them up: what an older version of PyTorch did not write is filled in)
    trial.__setstate__({"state": defaultdict(dict), "param_groups": [settings | {"params": [parameter]}]})
    trial.step()
    return dict(trial.state[parameter])


def _check_kept(kept: dict[str, Any], usual: dict[str, Any], number: int, parameter: torch.Tensor) -> None:
    """Raise a ValueError unless `kept` of a parameter has what is `usual`, and in its shape and type."""
    for name, value in usual.items():
        found, what = kept.get(name), f"the optimiser's {name} of parameter {number}"
        if type(found) is not type(value):
            raise ValueError(f"{what} is no {type(value).__name__}")
        if not isinstance(found, torch.Tensor) or not isinstance(value, torch.Tensor):
            continue
        each = value.ndim > 0  # a number for each of the parameter's, or one for all
        shape, dtype = (parameter.shape, parameter.dtype) if each else (value.shape, value.dtype)
        if found.shape != shape:
            raise ValueError(f"{what} has the shape {tuple(found.shape)} instead of {tuple(shape)}")
        if found.dtype != dtype or found.layout != parameter.layout:
            raise ValueError(f"{what} is of {found.dtype} ({found.layout}) instead of {dtype} ({parameter.layout})")


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether a setting can stand in another's place: a finite number for a number, what is open for what is open."""
    if isinstance(ours, bool) or ours is None:
        return theirs is None or (isinstance(theirs, bool) and ours in (theirs, None))
    if isinstance(ours, int | float):
        return type(theirs) in (int, float) and abs(theirs) < math.inf
    if isinstance(ours, tuple | list):
        return (
            isinstance(theirs, tuple | list)
            and len(ours) == len(theirs)
            and all(_alike(a, b) for a, b in zip(ours, theirs, strict=True))
        )
    return type(ours) is type(theirs)
