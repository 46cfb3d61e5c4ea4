"""One run, one owner: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from twofold.console import console
from twofold.errors import UserError
from twofold.files import LOCK
from twofold.text import printable

if sys.platform != "win32":
    import fcntl

_held: set[Path] = set()
"""Locks that this process has: the system's are those of processes, and do not know of two runs in one."""
_LOOK = 0.2
"""Seconds between two tries to get a lock that is waited for."""


@contextmanager
def owned(folder: Path, name: str = LOCK, patience: float = 0.0) -> Iterator[None]:
    """Own a folder, which is made if need be, until the block ends.

    The lock is a POSIX record lock on a file in the folder. The system takes it off when the process ends, also by kill
    or power failure; forked processes do not inherit it; on network file systems with locking (NFS, Lustre, GPFS) it
    holds between machines. Where the file system has none, that is said and the run goes on without.

    Args:
        folder: of a run, of a study or of a study's cell.
        name: of the file, which says what of the folder is owned.
        patience: seconds for which an owner is waited for that is about to end.

    Raises:
        UserError: another process owns the folder, with its name, or the folder cannot be written.
    """
    folder = folder.resolve()
    path = folder / name
    if path in _held:
        raise UserError(f"--out {folder} is being written by another run of this process; wait for it to end")
    try:
        fresh = not folder.exists()
        file = _locked(path, time.monotonic() + patience)
    except OSError as error:
        raise UserError(f"--out {printable(str(folder))} cannot be written: {error}; choose another folder") from error
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        if file is not None:
            with contextlib.suppress(OSError):  # a disk that vanished keeps a file, whose lock ends all the same
                path.unlink()
            os.close(file)
        if fresh:
            with contextlib.suppress(OSError):  # it is empty where the run was refused, and only there
                folder.rmdir()


def _locked(path: Path, deadline: float) -> int | None:
    """A descriptor of the lock file, with the lock; None where the file system has no locks.

    Until `deadline` an owner is waited for, which is told.
    """
    folder, waited = path.parent, False
    if sys.platform == "win32":
        _say_unlocked(folder, "Windows has no POSIX locks")
        return None
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # (its maker may have taken it away just now)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = printable(os.read(file, 1000).decode(errors="replace"))
            os.close(file)
            if time.monotonic() < deadline:
                if not waited:
                    console.print(f"{printable(str(folder))} waits for the end of {_described(owner)}", markup=False)
                waited = True
                time.sleep(_LOOK)
                continue
            raise UserError(
                f"--out {printable(str(folder))} is being written by another process ({_described(owner)}): wait until "
                "it ends, stop it, or choose another folder"
            ) from error
        except PermissionError:  # the other of the two answers that POSIX allows
            os.close(file)
            raise
        except OSError as error:
            os.close(file)
            _say_unlocked(folder, str(error))
            return None
        here = os.fstat(file)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(here, path.stat()):
                break
        os.close(file)  # its owner ended and removed it between our opening and locking it
    facts = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(facts).encode(), 0)
    return file


def _say_unlocked(folder: Path, reason: str) -> None:
    console.print(
        f"warning: {printable(str(folder))} cannot be locked ({reason}): take care that one process alone writes there",
        markup=False,
    )


def _described(owner: str) -> str:
    try:
        facts = json.loads(owner)
        return f"process {facts['process']} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        return "which has not said its name yet"


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that a killed run left in its folder; only for one who owns it.

    They are those of `write_atomically` and of encoder files: a dot, the file's name, a dot and a number.
    """
    result = []
    for path in [*folder.glob(".*"), *(folder / "checkpoints").glob(".*")]:
        parts = path.name.removesuffix(".tmp").rsplit(".", 1)
        if path.is_file() and len(parts) == 2 and len(parts[0]) > 1 and parts[1].isdigit():
            with contextlib.suppress(OSError):  # it costs room and nothing else
                path.unlink(missing_ok=True)
                result.append(path)
    return result
