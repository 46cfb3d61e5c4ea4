"""How a command ends early: by an error that the user can mend, or by a signal.

Each error names the option or file, its value and the remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something in the command, the configuration or the data that the user can change.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


class Stopped(Exception):
    """A signal ended the run early; it left a checkpoint and can be resumed.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the names in `known` that are close to `name`, or nothing."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else f"; there are: {', '.join(known)}"


@contextmanager
def named(*options: str) -> Iterator[None]:
    """Inside, a UserError's `--room.option` is called `--option` for each `room.option` given; also a decorator."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for option in options:
            text = re.sub(rf"--{re.escape(option)}\b", f"--{option.rpartition('.')[2]}", text)
        raise UserError(text) from error
