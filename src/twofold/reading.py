"""Opening what others wrote: only regular files, and no more of them than the reader has room for."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from twofold.text import printable

LONGEST = 4096
"""Characters of a path that systems take (Linux's PATH_MAX)."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotRegular(OSError):
    """Something that bears a name and is no file with contents of its own: a pipe, a socket, a device, a folder."""


class TooLarge(OSError):
    """A file with more bytes than its reader takes."""


class Facts(NamedTuple):
    """What the file system says of a regular file."""

    size: int
    """Bytes."""
    changed: int
    """Nanoseconds of the last change."""


def regular(path: str | Path) -> Facts:
    """What the file system says of a regular file, or of what a link leads to; nothing is opened.

    To be asked before a file is opened: opening a pipe waits for a writer, perhaps for ever, and inside a library no
    signal ends that.

    Raises:
        NotRegular: it is none.
        OSError: there is nothing of that name, or it may not be looked at.
    """
    try:
        facts = Path(path).stat()
    except ValueError as error:  # a zero byte, half a surrogate
        raise FileNotFoundError(errno.ENOENT, f"no file can be called so ({error})", printable(str(path))) from error
    if not stat.S_ISREG(facts.st_mode):
        raise NotRegular(f"it is {next((name for test, name in _KINDS if test(facts.st_mode)), 'no file')}, no file")
    return Facts(facts.st_size, facts.st_mtime_ns)


def read_bytes(path: str | Path, most: int) -> bytes:
    """All of a regular file of at most `most` bytes.

    Raises:
        TooLarge, NotRegular: as their names say.
        OSError: it cannot be read.
    """
    regular(path)
    # What is opened is looked at again: it may be another by now. Without O_NONBLOCK a pipe would wait.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegular("it is no file")
        if facts.st_size > most:
            raise TooLarge(f"it has {facts.st_size:,} bytes, more than the {most:,} that are read")
        data = file.read(most + 1)
    if len(data) > most:  # (files of /proc say that they have none)
        raise TooLarge(f"it has more than the {most:,} bytes that are read")
    return data


def read_text(path: str | Path, most: int, encoding: str = "utf-8") -> str:
    """The text of a regular file of at most `most` bytes, every kind of line end as a new line.

    Raises:
        TooLarge, NotRegular: as their names say.
        OSError: it cannot be read.
        UnicodeDecodeError: it is written otherwise.
        LookupError: there is no such encoding, or it is none of text in general (idna, punycode).
    """
    data = read_bytes(path, most)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # codecs of special kinds of names raise others
        raise LookupError(f"nothing can be read as {encoding!r}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path) -> Any:
    """What a regular file of at most a gigabyte holds as JSON.

    Raises:
        ValueError: it is no JSON, or nested deeper than it can be walked through.
        OSError: it is no such file, or cannot be read.
    """
    try:
        return json.loads(read_text(path, 2**30))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def usable(path: str) -> str | None:
    """What is wrong with words that are to be a path, before any system is asked; None where nothing is."""
    if not path.strip():
        return "is empty"
    if "\0" in path:
        return "holds a zero byte"
    if len(os.fsencode(path)) > LONGEST or any(len(os.fsencode(part)) > 255 for part in path.split("/")):
        return f"is longer than a path can be ({LONGEST} bytes, 255 a name)"
    return None


def reason_of(error: Exception) -> str:
    """What went wrong with a file, in one line: of the system's errors without number and path, which a message has."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split()) or type(error).__name__


def unreadable_folder(error: OSError) -> None:
    """For `os.walk(onerror=...)`, which passes over folders that may not be read, and with them what is in them.

    Raises:
        OSError: the same error, but for `lost+found`, which file systems have at their top and nobody may read.
    """
    if Path(str(error.filename)).name != "lost+found":
        raise error


_REACH = 5.0
"""Seconds within which a hub answers a connection, or counts as away."""


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Inside, Hugging Face's libraries look into their caches alone where the hub cannot be reached; gives whether not.

    Their own way is to ask six times, for half a minute, before they look or give up.
    """
    from huggingface_hub import constants

    holders = [constants, *([sys.modules["datasets.config"]] if "datasets.config" in sys.modules else [])]
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = [(each, name, getattr(each, name)) for each in holders for name in names if hasattr(each, name)]
    reached = constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT)
    try:
        for each, name, value in before:
            setattr(each, name, value or not reached)
        yield reached and not constants.HF_HUB_OFFLINE
    finally:
        for each, name, value in before:
            setattr(each, name, value)


def _answers(address: str) -> bool:
    """Whether the server of an address, or the proxy on the way to it, takes a connection."""
    wanted = urlsplit(address)
    proxy = None if proxy_bypass(wanted.hostname or "") else getproxies().get(wanted.scheme)
    asked = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}") if proxy else wanted
    port = asked.port or (443 if asked.scheme == "https" else 80)
    try:
        socket.create_connection((asked.hostname or "", port), timeout=_REACH).close()
    except OSError:
        return False
    return True
