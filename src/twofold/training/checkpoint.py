"""Checkpoints are whole or absent: written beside, synced, renamed. Only tensors and plain values are read back."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

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


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps and remove all but the last `keep` checkpoints."""
    path = folder / "checkpoints" / f"step-{step:09d}.pt"
    write_atomically(path, lambda file: torch.save(state, file))
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted.

    It is a zip file with a checksum of each member, which PyTorch writes and does not compare: that is done here.

    Raises:
        UserError: if the file is damaged or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"the checksum of {broken} in it differs")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways inside zip and unpickling
        raise UserError(
            f"{path} cannot be read as a checkpoint ({error}); remove it to resume from the one before"
        ) from error
    if not isinstance(state, dict) or "step" not in state:
        raise UserError(f"{path} is not a checkpoint of a Twofold run: it has no 'step'")
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None if it has none yet."""
    result = checkpoints(folder)
    return result[-1] if result else None
