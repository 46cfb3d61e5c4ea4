"""One door to all kinds of data: a folder, an array or its file, a data set's name, a PyTorch data set."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from twofold.data.base import Source, require_pairs
from twofold.data.config import AudioConfig, DataConfig
from twofold.data.decoding.images import find_images, image_extensions
from twofold.data.sources.arrays import ArraySource, npz_splits, open_array_file
from twofold.data.sources.audio import EXTENSIONS, AudioSource
from twofold.data.sources.audio_layouts import MANIFESTS, audio_splits, open_audio
from twofold.data.sources.datasets import DatasetSource
from twofold.data.sources.files import folder_splits, open_folder
from twofold.data.sources.hub import PREFIX as HUB
from twofold.data.sources.hub import hub_splits, is_hub_dataset, is_saved_dataset, open_hub
from twofold.data.sources.shards import PREFIX as SHARDS
from twofold.data.sources.shards import is_shard_folder, open_shards, shard_splits
from twofold.data.sources.torchvision_sets import NAMED_SETS, open_named
from twofold.errors import UserError

_ARRAY_FILES = (".npy", ".npz")


def open_source(what: Any, config: DataConfig | None = None, split: str | None = None) -> Source:
    """Open data of any kind.

    Args:
        what: path of a folder of images (see `files.open_folder`), of recordings (`audio_layouts.open_audio`), of tar
            archives (`shards.open_shards`) or of a saved Hugging Face data set (`hub.open_hub`), or of a manifest of
            recordings, or of an .npy or .npz file (`arrays.open_array_file`);
            ``shards:PATTERN`` or ``hf:NAME``; the name of a data set (`torchvision_sets.NAMED_SETS`) unless a path of
            that name exists; an array or tensor of images (`pixels.images_to_tensor`), or a pair (images, labels); a
            PyTorch or Hugging Face data set of images, or of pairs (image, label), where images are PIL images or
            tensors; or a source.
        config: how to read it.
        split: which part; `config.split` by default.

    Raises:
        UserError: nothing of that name, nothing readable in it, no such split, fewer than two images, ...
    """
    config = config or DataConfig()
    split = split if split is not None else config.split
    source = _open(what, config, split)
    if config.audio != AudioConfig() and not isinstance(source, AudioSource):
        raise UserError("the options of --data.audio are for recordings, and the data are images: leave them out")
    require_pairs(source)
    return source


@dataclass(frozen=True)
class Splits:
    """What parts some data have."""

    names: tuple[str, ...]
    """What `--data.split` can be; empty where the data are one whole."""
    evaluation: tuple[str, str] | None
    """The parts that classifiers are trained and tested on; None where there are no two."""
    validation: tuple[str, str] | None = None
    """The parts to fit on and to choose settings on, where the data have both beside a test part."""


def splits_of(what: Any) -> Splits:
    """The splits of `what` (as for `open_source`), without reading images."""
    if not isinstance(what, str | Path):
        return Splits((), None)
    if str(what).startswith(SHARDS):
        what = str(what).removeprefix(SHARDS)
    path = Path(what).expanduser()
    if str(what).startswith(HUB) or (path.is_dir() and is_saved_dataset(path)):
        return _with_evaluation(hub_splits(what))
    if path.exists():
        names: tuple[str, ...] = ()
        if _holds_audio(path):
            names = audio_splits(path)
        elif path.is_dir():
            names = tuple(shard_splits(path) if is_shard_folder(path) else folder_splits(path))
        elif path.suffix.lower() == ".npz":
            names = npz_splits(path)
        return _with_evaluation(names)
    entry = NAMED_SETS.get(str(what))
    if entry is None:
        return Splits((), None)
    divided = entry.evaluation == ("trainval", "test") and {"train", "val"} <= set(entry.splits)
    return Splits(entry.splits, entry.evaluation, ("train", "val") if divided else None)


def _with_evaluation(names: tuple[str, ...]) -> Splits:
    test = next((name for name in ("test", "val", "validation") if name in names), None)
    if test is None or "train" not in names:
        return Splits(names, None)
    choice = next((name for name in ("val", "validation") if name in names and name != test), None)
    return Splits(names, ("train", test), ("train", choice) if choice else None)


def _open(what: Any, config: DataConfig, split: str | None) -> Source:
    if isinstance(what, str | Path):
        return _open_path(what, config, split)
    if is_hub_dataset(what):
        return open_hub(what, split, config)
    if split is not None:
        raise UserError(f"--data.split {split}: data given as {type(what).__name__} have no splits")
    if isinstance(what, np.ndarray | torch.Tensor):
        return ArraySource(what, channels=config.channels)
    if isinstance(what, tuple) and len(what) == 2:
        return ArraySource(what[0], what[1], channels=config.channels)
    if isinstance(what, IterableDataset):
        raise UserError(f"{type(what).__name__} is an IterableDataset; a data set with len() and [index] is needed")
    if isinstance(what, Dataset):
        return DatasetSource(what, config)
    if isinstance(what, AudioSource):
        return what  # type: ignore[return-value]  # what it reads are recordings
    if all(hasattr(what, name) for name in ("read", "size", "facts", "fingerprint")):
        return what  # a source of the user's own
    raise UserError(
        f"data given as {type(what).__name__}: give a path, a data set's name, an array, a tensor, a pair "
        "(images, labels), a PyTorch data set or a source"
    )


def _open_path(what: str | Path, config: DataConfig, split: str | None) -> Source:
    path = Path(what).expanduser()
    if str(what).startswith(HUB) or (path.is_dir() and is_saved_dataset(path)):
        return open_hub(what, split, config)
    if _holds_audio(path):
        return open_audio(path, split, config)  # type: ignore[return-value]  # what it reads are recordings
    if str(what).startswith(SHARDS) or (path.is_dir() and is_shard_folder(path)):
        return open_shards(what, split, config)
    if path.is_dir():
        return open_folder(path, split, config)
    if path.suffix.lower() in _ARRAY_FILES and path.is_file():
        return open_array_file(path, split, config.channels)
    if path.exists():
        raise UserError(f"{path}: neither a folder nor an .npy or .npz file; give the folder that holds the images")
    if str(what) in NAMED_SETS:
        return open_named(str(what), split, config)
    raise UserError(_not_found(str(what), path))


def _holds_audio(path: Path) -> bool:
    """Whether this is a manifest, or a folder of recordings with no images on top of it."""
    if path.is_file():
        return path.suffix.lower() in MANIFESTS
    if not path.is_dir():
        return False
    pictures = image_extensions()
    for _, folders, names in os.walk(path):  # the first file that is either decides for images: trees can be large
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kinds = {Path(name).suffix.lower() for name in names if name[0] != "."}
        if kinds & pictures:
            return False
        if kinds & set(EXTENSIONS):
            return not find_images(path)
    return False


def _not_found(what: str, path: Path) -> str:
    """What could have been meant by a path or name that is none."""
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    inside = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    wanted = path.absolute().relative_to(parent).parts[0]
    close = difflib.get_close_matches(what.lower(), NAMED_SETS, n=3) + [
        str(parent / name) for name in difflib.get_close_matches(wanted, inside, n=3)
    ]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"{what}: no such folder or file, and no data set of that name.{hint} Give a folder of images, an .npy or .npz "
        f"file, {SHARDS}PATTERN, {HUB}NAME, or one of {', '.join(NAMED_SETS)}"
    )
