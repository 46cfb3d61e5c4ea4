"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from twofold.errors import UserError


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
