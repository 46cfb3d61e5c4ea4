"""One door to all kinds of data: a folder, an array or its file, a data set's name, a PyTorch data set."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from twofold.data.base import Format, Source, Splits, require_pairs
from twofold.data.config import DataConfig, TableConfig
from twofold.data.groups import take_groups
from twofold.data.sources.arrays import ARRAY_FILE, ArraySource
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.audio_layouts import AUDIO
from twofold.data.sources.datasets import DatasetSource
from twofold.data.sources.files import FOLDER
from twofold.data.sources.hub import HUB, is_hub_dataset, open_hub
from twofold.data.sources.listed import as_listed
from twofold.data.sources.pieces import in_pieces
from twofold.data.sources.shards import SHARDS
from twofold.data.sources.tables import TABLE
from twofold.data.sources.torchvision_sets import NAMED, NAMED_SETS
from twofold.errors import UserError
from twofold.files import at_home
from twofold.options import refuse_unused
from twofold.reading import regular, usable
from twofold.text import counted

FORMATS = [HUB, TABLE, AUDIO, SHARDS, FOLDER, ARRAY_FILE, NAMED]
"""Every form in which data are given by a path or a name; the first that takes it opens it."""


def open_source(what: Any, config: DataConfig | None = None, split: str | None = None, *, least: int = 2) -> Source:
    """Open data of any kind.

    Args:
        what: path of a folder of images (see `files.open_folder`), of recordings (`audio_layouts.open_audio`), of tar
            archives (`shards.open_shards`) or of a saved Hugging Face data set (`hub.open_hub`), or of a manifest of
            recordings, or of an .npy or .npz file (`arrays.open_array_file`);
            ``shards:PATTERN`` or ``hf:NAME``; the name of a data set (`torchvision_sets.NAMED_SETS`) unless a path of
            that name exists; an array or tensor of images (`pixels.images_to_tensor`), or a pair (images, labels)
            or (images, labels, groups); a
            PyTorch or Hugging Face data set of images, or of pairs (image, label), where images are PIL images or
            tensors; or a source.
        config: how to read it.
        split: which part; `config.split` by default.
        least: examples that there have to be; contrast needs two.

    Raises:
        UserError: nothing of that name, nothing readable in it, no such split, fewer images than `least`, ...
    """
    config = config or DataConfig()
    split = split if split is not None else config.split
    if isinstance(what, str | Path):
        check_path(what)
    try:
        return _checked(what, config, split, least)
    except OSError as error:  # (a folder that may not be read, a disk that went away)
        raise UserError(f"{what} cannot be read: {error}") from error


def check_path(what: str | Path) -> None:
    """Raise a UserError for words that can be no path of data: empty, too long, the root of the file system."""
    text = str(what)
    problem = usable(text)
    if problem is None and os.path.normpath(text).strip("/") == "":
        problem = "is the root of all files"
    if problem is not None:
        shown = text if len(text) < 100 else f"{text[:100]}..."
        raise UserError(f"the path of the data '{shown}' {problem}: give that of a folder or a file of data")


def _checked(what: Any, config: DataConfig, split: str | None, least: int) -> Source:
    what = as_listed(what)
    if config.table != TableConfig() and not (isinstance(what, str | Path) and format_of(str(what)) is TABLE):
        raise UserError("--data.table.* is for tables and lists of images, and the data are none: leave it out")
    source = _open(what, config, split)
    refuse_unused(config, "data.", kind="audio" if isinstance(source, AudioSource) else "image")
    take_groups(source, config.group)
    if not isinstance(source, AudioSource):
        source = in_pieces(source, config)
    require_pairs(source, least)
    return source


def splits_of(what: Any) -> Splits:
    """The splits of `what` (as for `open_source`), without reading images."""
    if not isinstance(what, str | Path):
        return Splits()
    check_path(what)
    try:
        form = format_of(str(what))
        return form.splits(str(what)) if form else Splits()
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error}") from error


def format_of(what: str) -> Format | None:
    """The form in which a path or a name gives data; None where it has none that is known."""
    return next((form for form in FORMATS if form.takes(what)), None)


def _open(what: Any, config: DataConfig, split: str | None) -> Source:
    if isinstance(what, str | Path):
        return _open_path(str(what), config, split)
    if is_hub_dataset(what):
        return open_hub(what, split, config)
    if split is not None:
        raise UserError(f"--data.split {split}: data given as {type(what).__name__} have no splits")
    if isinstance(what, np.ndarray | torch.Tensor):
        return ArraySource.of(what, None, config)
    if isinstance(what, tuple) and len(what) in (2, 3):
        images, labels, *groups = what
        return ArraySource.of(images, labels, config, groups=groups[0] if groups else None)
    if isinstance(what, IterableDataset):
        raise UserError(f"{type(what).__name__} is an IterableDataset; a data set with len() and [index] is needed")
    if isinstance(what, Dataset):
        return DatasetSource(what, config)
    if isinstance(what, AudioSource):
        return what  # type: ignore[return-value]  # what it reads are recordings
    if all(hasattr(what, name) for name in ("read", "size", "facts", "fingerprint")):
        source: Source = what  # of the user's own
        return source
    if isinstance(what, list) and what and all(isinstance(each, str | Path) for each in what):
        raise UserError(f"data given as a list of {counted(len(what), 'path')}: write them to a .txt file, one a line")
    raise UserError(
        f"data given as {type(what).__name__}: give a path, a data set's name, an array, a tensor, a pair "
        "(images, labels), a list of pictures, a PyTorch data set or a source"
    )


def _open_path(what: str, config: DataConfig, split: str | None) -> Source:
    form, path = format_of(what), at_home(what)
    if form:
        return form.open(what, split, config)
    if path.exists() and not path.is_dir():
        try:
            regular(path)
        except OSError as error:
            raise UserError(f"{what} is no data: {error}") from error
    if not path.exists():
        raise UserError(f"{what}: {_not_found(what, path)}")
    raise UserError(f"{what}: not a file of data; of an image, give the folder that holds the images. {_forms()}")


def _forms() -> str:
    return f"Give {', '.join(form.example for form in FORMATS)}"


def _not_found(what: str, path: Path) -> str:
    """That a path or name is none, and what could have been meant by it.

    What has a slash or a suffix is no name of a data set: of these nothing is said then.
    """
    if "://" in what:
        return f"data are not read from addresses: fetch them first, and give the folder that they lie in. {_forms()}"
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    try:
        inside = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    except OSError:  # (a folder that may be passed and not listed)
        inside = []
    wanted = path.absolute().relative_to(parent).parts[0]
    shown = [str(parent / name) if path.is_absolute() else os.path.relpath(parent / name) for name in inside]
    close = [shown[inside.index(name)] for name in difflib.get_close_matches(wanted, inside, n=3)]
    if is_path(what):
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        missing = "" if parent == path.absolute().parent else f", because there is no folder {parent / wanted}"
        return f"no such file or folder{missing}.{hint}"
    close = difflib.get_close_matches(what.lower(), NAMED_SETS, n=3) + close
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"no such file or folder, and no data set of that name.{hint} {_forms()}"


def is_path(what: str) -> bool:
    """Whether words can only be a path: they have a separator or a suffix, or begin as paths do."""
    separators = [os.sep, os.altsep or os.sep]
    return any(each in what for each in separators) or what.startswith(("~", ".")) or bool(Path(what).suffix)
