"""A training that diverges is left out of its study with a word: it costs neither the others nor the study's end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twofold.distributed import world_size
from twofold.errors import Diverged, UserError
from twofold.files import write_atomically
from twofold.reading import read_json

FILE = "diverged.json"
"""What a training's folder holds once it has diverged: it would again."""
Result = TypeVar("Result")


def kept(place: Path, train: Callable[[], Result]) -> Result:
    """What a training comes to; of one that diverged before, that it did, without training again.

    Args:
        place: the training's folder.
        train: trains there, or reads the result of a training that is done.

    Raises:
        Diverged: it diverges, or did in an earlier call.
        UserError: the note of an earlier call is damaged; whatever else `train` raises.
    """
    file = place / FILE
    if file.exists():
        raise Diverged(_told(file))
    try:
        return train()
    except Diverged as error:
        if world_size() == 1:  # of several processes the others do not know of it
            text = json.dumps({"diverged": str(error)}) + "\n"
            place.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda opened: opened.write(text.encode()))
        raise


def _told(file: Path) -> str:
    """Why a training diverged, as an earlier call left it."""
    try:
        return str(read_json(file)["diverged"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error!r}; remove it to have the net trained again") from error


def left_out(diverged: Sequence[str]) -> str:
    """Whose training diverged, in a sentence; empty where none did."""
    return f"Left out, since their training diverged: {'; '.join(diverged)}." if diverged else ""


def check_some(cells: Sequence[Any], diverged: Sequence[str], remedy: str) -> None:
    """Raise a UserError for a study of which every cell diverged; `remedy` says what to do."""
    if not cells and diverged:
        raise UserError(f"training diverged in every cell ({'; '.join(diverged)}), as told above: {remedy}")
