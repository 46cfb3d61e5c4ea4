"""Which files a table, a manifest or a cell may name: those in its own folder, unless the user allows more."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from twofold.data.config import DataConfig
from twofold.errors import Option, UserError
from twofold.text import printable


def inside(home: Path, base: Path, name: str, config: DataConfig, place: str) -> str:
    """The path of a file that some data name.

    What comes from others could name any file of the reader's, which would then be embedded or shown. Links in the
    folder are followed: who may make them there may read what they lead to.

    Args:
        home: the folder that it must lie in: that of the table.
        base: what a relative name is relative to.
        name: as it is written there.
        config: `outside` applies.
        place: where it is written, for messages.

    Raises:
        UserError: it leads out of `home`, and `outside` is not set.
    """
    path = base / name
    plain = ".." not in name and not name.startswith("/")
    try:
        allowed = plain or config.outside or _lies_in(path, home)
    except ValueError as error:  # a zero byte, half a surrogate
        raise UserError(f"{place} names {printable(name)}, as which no file can be called: {error}") from error
    if not allowed:
        raise UserError(
            f"{place} names {name}, which lies outside {home}: whoever wrote it could so have any file read. If these "
            "files are meant, allow them with ", Option("data.outside"), " true",
        )  # fmt: skip
    return str(path)


def _lies_in(path: Path, home: Path) -> bool:
    if ".." in path.parts[len(home.parts) if path.is_relative_to(home) else 0 :]:  # behind a link it leads elsewhere
        return Path(os.path.realpath(path)).is_relative_to(_names_of(home)[1])
    return any(path.absolute().is_relative_to(folder) for folder in _names_of(home))


@functools.lru_cache(maxsize=64)  # asked for each of a million rows
def _names_of(folder: Path) -> tuple[Path, Path]:
    return folder.absolute(), Path(os.path.realpath(folder))
