"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from twofold.errors import UserError
from twofold.reading import usable
from twofold.text import printable

LOCK, CELL_LOCK = ".lock", ".cell.lock"
"""The files in a folder that its owner has locked: whose the run or the study is, and whose the cell of a study."""

_OCCUPIED = "--out {out} exists and is no empty folder; choose another one, so that nothing is overwritten"


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, sync it, and rename it to `path`.

    Raises:
        UserError: if the disk refuses (full, read-only); whatever was at `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):  # where even that is refused, the first reason is the one to tell
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error}. Nothing saved before is lost; free some space, then go on with --resume"
        ) from error


def check_out(out: Path, begun: bool, what: str, resume: bool) -> bool:
    """Whether a command goes on with what is in `out`; every command that works in parts asks this, and no other way.

    Args:
        out: the folder that the command writes into.
        begun: whether it holds what an earlier call of the command began.
        what: what that is, in words: "run".
        resume: whether the user gave --resume.

    Raises:
        UserError: a name that libraries cannot open; something was begun and is not to be resumed; nothing was, and
            the folder holds other files.
    """
    check_place(out)
    if begun and not resume:
        raise UserError(f"--out {out} already holds a {what}; continue it with --resume, or choose another folder")
    if not begun and out.exists() and any(path.name not in (LOCK, CELL_LOCK) for path in out.iterdir()):
        raise UserError(_OCCUPIED.format(out=out))
    return begun


def check_place(out: Path) -> None:
    """Raise a UserError for a path that can be no folder: a name that libraries cannot open, or a file's."""
    if (problem := usable(str(out))) is not None:
        raise UserError(f"--out {str(out)[:100]} {problem}; give the path of a folder")
    if printable(str(out)) != str(out):
        raise UserError(f"--out {out}: a name that is not UTF-8, or holds control characters; choose another folder")
    if out.exists() and not out.is_dir():
        raise UserError(_OCCUPIED.format(out=out))


def at_home(path: str | Path) -> Path:
    """A path whose ~ or ~user is that home; as it stands where nobody of that name is known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises a RuntimeError for such a name)
