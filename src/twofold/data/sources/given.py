"""Files that a user names one by one, beside data of every other kind, to be read as they are: nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import Source, require_pairs
from twofold.data.config import DataConfig
from twofold.data.decoding.images import find_images
from twofold.data.groups import take_groups
from twofold.data.sources.audio import AudioSource, Recording
from twofold.data.sources.audio_layouts import open_audio
from twofold.data.sources.files import FileSource
from twofold.data.sources.listed import as_listed
from twofold.data.sources.open import check_path, format_of, open_source
from twofold.data.sources.pieces import in_pieces
from twofold.errors import UserError
from twofold.files import at_home
from twofold.kinds import Kind


def open_given(what: Any, config: DataConfig, kind: Kind) -> Source:
    """Data of any kind, or files that are named one by one; one example is enough.

    Args:
        what: as for `open_source`; or the path of one image or recording; or a list of such paths, in which a folder
            stands for all that lies in it.
        config: how to read it.
        kind: of the examples, where files are named.

    Raises:
        NothingReadable: there are files, and none can be read.
        UserError: as `open_source`.
    """
    what = as_listed(what)
    if isinstance(what, list | tuple) and len(what) == 1 and isinstance(what[0], str | Path):
        what = what[0]
    if isinstance(what, list) or (isinstance(what, tuple) and what and all(isinstance(e, str | Path) for e in what)):
        return _named([str(each) for each in what], config, kind)
    if isinstance(what, str | Path) and at_home(what).is_file() and format_of(str(what)) is None:
        return _named([str(what)], config, kind)
    return open_source(what, config, least=1)


def _named(paths: Sequence[str], config: DataConfig, kind: Kind) -> Source:
    if not paths:
        raise UserError("no file is named: give the paths of some, or of a folder")
    names: list[str] = []
    for path in paths:
        check_path(path)
        place = at_home(path)
        names += _inside(place, config, kind) if place.is_dir() else [str(place)]
    title = f"{len(names):,} files" if len(names) > 1 else names[0]
    if kind == "audio":
        recordings: Any = AudioSource([Recording(name) for name in names], config, title)
        return recordings  # type: ignore[no-any-return]  # what it reads are recordings
    source = FileSource(Path(), names, config, name=title)
    take_groups(source, config.group)
    pieces = in_pieces(source, config)
    require_pairs(pieces, 1)
    return pieces


def _inside(folder: Path, config: DataConfig, kind: Kind) -> list[str]:
    """The files of a folder among others that are named."""
    if kind == "audio":
        return [each.path for each in open_audio(folder, config.split, config).recordings]
    found = find_images(folder)
    if not found:
        raise UserError(f"{folder} holds no image")
    return [str(folder / name) for name in found]


def names_of(source: Source, index: NDArray[np.int64], data: Any, per_file: bool = False) -> NDArray[np.str_]:
    """Paths below the data's folder, whole ones elsewhere; positions where the data are not made of files."""
    path = getattr(source, "file" if per_file else "path", None)
    if path is None:
        return index.astype(np.str_)
    return np.array([short_name(path(int(i)), data) for i in index], dtype=np.str_)


def short_name(path: str, data: Any) -> str:
    """A file's path below the folder of the data that it is of, or as it is."""
    if isinstance(data, list | tuple) and len(data) == 1:
        data = data[0]
    base = at_home(data) if isinstance(data, str | Path) else Path()
    base = base.parent if base.is_file() else base
    place = Path(path)
    return (place.relative_to(base) if place != base and place.is_relative_to(base) else place).as_posix()
