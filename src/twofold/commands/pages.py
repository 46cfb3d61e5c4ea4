"""The page at the end of a command: that there is none is told, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from twofold.console import console
from twofold.errors import UserError


def page_or_word(write: Callable[[], Path]) -> Path | None:
    """What `write` wrote; None, and a line that says why, where it failed: a run that is whole must not end in it."""
    try:
        return write()
    except Exception as error:  # whatever it was: hours of training must not end in it
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        console.print(f"no report: {kind}{error}; the run itself is whole, and `twofold report RUN` tries again")
        return None
