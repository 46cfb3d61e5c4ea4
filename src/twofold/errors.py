"""How a command ends early: by an error that the user can mend, or by a signal.

Each error names the option or file, its value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


class Option(str):
    """An option's name as the room that raises knows it, such as `data.root`; a piece of a `UserError`."""


class UserError(Exception):
    """Something in the command, the configuration or the data that the user can change.

    The command line prints the message alone, without a traceback, and exits with status 2.

    Args:
        pieces: the message, in one piece or in several that are put together. An `Option` among them is written as
            `--name`, under the name that it has in the command that was called (see `called`).
    """

    def __init__(self, *pieces: str) -> None:
        super().__init__(*pieces)

    @property
    def options(self) -> tuple[str, ...]:
        """The options that the message names, in its order."""
        return tuple(str(piece) for piece in self.args if isinstance(piece, Option))

    def renamed(self, names: Mapping[str, str]) -> UserError:
        """The same error with each option under the name that `names` gives it."""
        pieces = (Option(names.get(piece, piece)) if isinstance(piece, Option) else piece for piece in self.args)
        return type(self)(*pieces)

    def __str__(self) -> str:
        return "".join(f"--{str.__str__(piece)}" if isinstance(piece, Option) else piece for piece in self.args)


class Diverged(UserError):
    """Training whose loss or weights became infinite or no numbers; where several settings are tried, one of them."""


class Stopped(Exception):
    """A signal ended the run early; it left a checkpoint and can be resumed.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number

    @classmethod
    def at(cls, place: str, number: int) -> Stopped:
        """Says where it stopped, such as `at step 7 of 9`, and how it goes on."""
        return cls(f"stopped {place}; nothing is lost: the same command with --resume goes on", number)


class RankLost(Exception):
    """Another process of the run has died, hangs or never came: what --resume mends.

    The command line prints the message alone, and exits with the status.

    Args:
        message: which process, where, and what it was doing; how the run goes on is added where that mends it.
        status: 75 (EX_TEMPFAIL of sysexits.h: try again), by which schedulers start again, or another process's own.
    """

    status = 75

    def __init__(self, message: str, status: int = status) -> None:
        again = "; the same command with --resume goes on from the newest checkpoint"
        super().__init__(message + (again if status == RankLost.status and again not in message else ""))
        self.status = status


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the names in `known` that are close to `name`, or nothing."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else f"; there are: {', '.join(known)}"


@contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """Inside, a UserError's options have the names that `names` gives them; also a decorator of functions.

    For a command whose options go to rooms that know them by other names.
    """
    try:
        yield
    except UserError as error:
        raise error.renamed(names) from error
