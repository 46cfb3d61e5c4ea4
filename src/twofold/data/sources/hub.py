"""Hugging Face data sets: by name, saved in a folder, or opened by the user."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twofold.data.base import Format, Splits, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.opening import BadImage
from twofold.data.labels import class_labels
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.outside import inside
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.reading import read_bytes

PREFIX = "hf:"
_IMAGES, _LABELS = ("image", "img", "jpg", "png"), ("label", "labels", "cls", "fine_label")


class HubSource(EncodedSource):
    """A map-style Hugging Face data set with a column of images; these stay encoded until they are read.

    Args:
        dataset: `datasets.Dataset`. Its image column is the only one of the type Image, or called image, img, jpg or
            png; labels are a column of the type ClassLabel, or of whole numbers called label, labels, cls, fine_label.
        config: `channels` and how to decode.
        name: for messages.
        home: the folder that files named by cells must lie in; None for an object of the user's own.

    Raises:
        UserError: no such column, several that could be meant, or a cell that names a file elsewhere.
    """

    def __init__(self, dataset: Any, config: DataConfig, name: str, home: Path | None = None) -> None:
        from datasets import Image

        self._column = image_column(dataset.features, name)
        label = label_column(dataset.features)
        labels = None
        if label is not None:
            # (as Arrow holds them: the format "numpy" makes int64 of all, and of what needs 64 bits negative numbers)
            labels = dataset.select_columns([label]).with_format("arrow")[:][label].to_numpy()
        classes = getattr(dataset.features[label], "names", None) if label is not None else None
        if labels is not None and (labels.ndim != 1 or (len(labels) and labels.min() < 0)):
            labels, classes = None, None  # a test split whose labels are withheld has -1
        if labels is not None:
            labels, classes = class_labels(labels, len(labels), name, classes)
        self._home = home
        super().__init__(len(dataset), config, labels=labels, classes=classes and list(classes), name=name)
        self._table = dataset.with_format(None).select_columns([self._column])
        self._table = self._table.cast_column(self._column, Image(decode=False))
        self.examine()

    def __len__(self) -> int:
        return len(self._table)

    def locate(self, index: int) -> tuple[str, bytes | None]:
        """``name[index]`` and the encoded image, or the file that the cell names."""
        cell = self._table[int(index)][self._column]
        where = f"{self.name}[{index}]"
        if not cell or not (cell.get("bytes") or cell.get("path")):
            raise BadImage(where, "an empty cell")
        if cell.get("bytes"):
            return where, cell["bytes"]
        return self._allowed(str(cell["path"]), where), None

    def _allowed(self, path: str, where: str) -> str:
        """The file that a cell names; raises UserError where it lies outside the data."""
        return path if self._home is None else inside(self._home, self._home, path, self.config, where)

    def keep(self, good: Sequence[int]) -> None:
        """Leave out all images but these."""
        self._table = self._table.select(good)

    def fingerprint(self) -> str:
        """sha256 of the length, the labels and a sample of the encoded images."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        for index in sample_indices(len(self)).tolist():
            try:
                path, contents = self.locate(index)
                digest.update(read_bytes(path, available_memory() // 8) if contents is None else contents)
            except (BadImage, OSError):
                digest.update(b"unreadable")
        return digest.hexdigest()


def require_datasets() -> None:
    """UserError if the extra is missing."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError('Hugging Face data sets need an extra: pip install "twofold[shards]"')


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def is_hub_dataset(what: Any) -> bool:
    """Whether an object is a Hugging Face data set, map-style or streaming, without importing their library."""
    return any(kind.__module__.startswith("datasets.") for kind in type(what).__mro__)


def open_hub(what: Any, split: str | None, config: DataConfig) -> HubSource:
    """Open ``hf:NAME``, ``hf:NAME:CONFIG``, a folder written by `save_to_disk`, or a data set's object.

    Raises:
        UserError: the extra is missing, no such data set or split, or it streams.
    """
    require_datasets()
    dataset, name = _load(what, split)
    if not hasattr(dataset, "select_columns") or not hasattr(dataset, "__len__"):
        raise UserError(
            f"{name} streams: it has neither a length nor [index], which an order that can be resumed needs; pack it "
            "once with `twofold shard hf:NAME --out FOLDER --stream true`, and train on the folder"
        )
    return HubSource(dataset, config, name, _home_of(what))


def _home_of(what: Any) -> Path | None:
    """Where the files of a data set lie: in its folder, or in what the hub's client keeps."""
    if not isinstance(what, str | Path):
        return None
    folder = Path(str(what).removeprefix(PREFIX)).expanduser()
    return folder if folder.is_dir() else kept_by_hub()


def kept_by_hub() -> Path:
    """The folder in which the hub's client keeps what it fetched."""
    from datasets import config

    return Path(config.HF_CACHE_HOME)


def hub_splits(what: str | Path) -> tuple[str, ...]:
    """The splits of a folder written by `save_to_disk`, or of ``hf:NAME`` (asks the hub)."""
    require_datasets()
    folder = Path(str(what).removeprefix(PREFIX)).expanduser()
    if folder.is_dir():
        return tuple(_load_folder(folder)) if (folder / "dataset_dict.json").is_file() else ()
    return tuple(_ask_splits(*_name(str(what))))


def _is_hub(what: str) -> bool:
    folder = Path(what).expanduser()
    return what.startswith(PREFIX) or (folder.is_dir() and is_saved_dataset(folder))


HUB = Format(f"{PREFIX}NAME", _is_hub, open_hub, lambda what: Splits.named(hub_splits(what)))


def stream(what: str, split: str | None) -> tuple[Iterator[tuple[bytes, int | None]], list[str] | None]:
    """Every encoded image of ``hf:NAME`` with its label, as they come, and the classes' names; nothing is kept."""
    require_datasets()
    from datasets import Image, load_dataset

    name, subset = _name(what)
    split = split or _first(_ask_splits(name, subset))
    try:
        dataset = load_dataset(name, subset, split=split, streaming=True)
    except Exception as error:  # the hub's client raises some dozen kinds
        raise UserError(f"{what}: cannot be opened ({_first_line(error)})") from error
    column, label = image_column(dataset.features or {}, what), label_column(dataset.features or {})
    names = getattr(dataset.features[label], "names", None) if label else None
    return _cells(dataset.cast_column(column, Image(decode=False)), column, label), names and list(names)


def _cells(dataset: Any, column: str, label: str | None) -> Iterator[tuple[bytes, int | None]]:
    for row in dataset:
        cell = row[column] or {}
        data = cell.get("bytes") or b""
        if not data and cell.get("path"):
            file = inside(kept_by_hub(), kept_by_hub(), str(cell["path"]), DataConfig(), "a cell of the stream")
            data = read_bytes(file, available_memory() // 8)
        yield data, int(row[label]) if label else None


def image_column(features: Any, name: str) -> str:
    """The column of images; UserError if there is none, or several that could be meant."""
    result = [key for key, kind in features.items() if type(kind).__name__ == "Image"]
    usual = [key for key in _IMAGES if key in result]
    if len(result) == 1 or usual:
        return usual[0] if usual else result[0]
    kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items()) or "unknown"
    what = (
        f"several columns of images ({', '.join(result)})" if result else f"no column of the type Image; it has {kinds}"
    )
    raise UserError(f"{name}: {what}; name one of them image (datasets: rename_column, cast_column)")


def label_column(features: Any) -> str | None:
    """The column of class indices, if there is one."""
    whole = [
        key for key, kind in features.items()
        if type(kind).__name__ == "ClassLabel" or str(getattr(kind, "dtype", "")).startswith(("int", "uint"))
    ]  # fmt: skip
    named = [key for key in _LABELS if key in whole]
    classes = [key for key in whole if type(features[key]).__name__ == "ClassLabel"]
    return (named or classes or [None])[0]


def _load(what: Any, split: str | None) -> tuple[Any, str]:
    from datasets import load_dataset

    if not isinstance(what, str | Path):
        if isinstance(what, dict):
            return _choose(what, split, type(what).__name__), type(what).__name__
        if split is not None:
            raise UserError(f"--data.split {split}: data given as {type(what).__name__} have no splits")
        return what, type(what).__name__
    folder = Path(str(what).removeprefix(PREFIX)).expanduser()
    if folder.is_dir():
        loaded = _load_folder(folder)
        if isinstance(loaded, dict):
            return _choose(loaded, split, str(folder)), str(folder)
        if split is not None:
            raise UserError(f"--data.split {split}: {folder} was saved as one whole")
        return loaded, str(folder)
    name, subset = _name(str(what))
    splits = _ask_splits(name, subset)
    split = split or _first(splits)
    if split not in splits:
        raise UserError(f"--data.split {split}: {what} has {', '.join(splits)}")
    try:
        return load_dataset(name, subset, split=split), f"{what}/{split}"
    except Exception as error:  # the hub's client raises some dozen kinds
        raise UserError(f"{what}: cannot be opened ({_first_line(error)})") from error


def _load_folder(folder: Path) -> Any:
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except Exception as error:  # Arrow, JSON and file errors of many kinds
        raise UserError(
            f"{folder}: not a data set written by save_to_disk, or a damaged one ({_first_line(error)})"
        ) from error


def _choose(parts: dict[str, Any], split: str | None, name: str) -> Any:
    if split is not None and split not in parts:
        raise UserError(f"--data.split {split}: {name} has {', '.join(parts)}")
    return parts[split or _first(list(parts))]


def _first(splits: list[str]) -> str:
    return "train" if "train" in splits else splits[0]


def _name(what: str) -> tuple[str, str | None]:
    name, _, subset = what.removeprefix(PREFIX).partition(":")
    return name, subset or None


def _ask_splits(name: str, subset: str | None) -> list[str]:
    from datasets import get_dataset_split_names

    try:
        return list(get_dataset_split_names(name, subset))
    except Exception as error:  # the hub's client raises some dozen kinds
        raise UserError(
            f"{PREFIX}{name}: neither a folder written by save_to_disk nor a data set that the hub gives "
            f"({_first_line(error)}); data sets with several configurations are named {PREFIX}NAME:CONFIG"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
