"""Hugging Face data sets: by name, saved in a folder, or opened by the user."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twofold.data.base import Format, Source, Splits, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.images import find_images
from twofold.data.decoding.opening import BadImage
from twofold.data.groups import group_names
from twofold.data.labels import Labels, class_labels
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.hub_audio import audio_column, open_hub_audio
from twofold.data.sources.outside import inside
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.files import at_home
from twofold.reading import hub_or_cache, read_bytes

PREFIX = "hf:"
_ARRAYS = ("Array2D", "Array3D")
"""Types of columns that hold an array a row."""
_IMAGES, _LABELS = ("image", "img", "jpg", "png"), ("label", "labels", "cls", "fine_label")


class HubSource(EncodedSource):
    """A map-style Hugging Face data set with a column of images; these stay encoded until they are read.

    Args:
        dataset: `datasets.Dataset`. Its image column is the only one of the type Image, or of arrays (Array2D or
            Array3D) where there is none, or is called image, img, jpg or png; labels are a column of the type
            ClassLabel, or of whole numbers or names called label, labels, cls, fine_label. An empty cell or -1 is
            unlabelled.
        config: `channels` and how to decode.
        name: for messages.
        home: the folder that files named by cells must lie in; None for an object of the user's own.

    Raises:
        UserError: no such column, several that could be meant, or a cell that names a file elsewhere.
    """

    def __init__(self, dataset: Any, config: DataConfig, name: str, home: Path | None = None) -> None:
        self._column = image_column(dataset.features, name)
        label = label_column(dataset.features)
        labels, classes = (None, None) if label is None else _labels(dataset, label, name)
        self._home = home
        super().__init__(len(dataset), config, labels=labels, classes=classes, name=name)
        self.groups = _groups(dataset, config.group, name)
        self._table, self._dtype = _undecoded(dataset.with_format(None).select_columns([self._column]), self._column)
        self.examine()

    def __len__(self) -> int:
        return len(self._table)

    def locate(self, index: int) -> tuple[str, bytes | None]:
        """``name[index]`` and the encoded image, or the file that the cell names."""
        cell = self._table[int(index)][self._column]
        where = f"{self.name}[{index}]"
        if self._dtype is not None and cell is not None:
            return where, _as_npy(cell, self._dtype)
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
        self.groups = None if self.groups is None else [self.groups[index] for index in good]

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


def _undecoded(table: Any, column: str) -> tuple[Any, str | None]:
    """A data set whose cells are encoded images or plain arrays, and the type of the arrays' numbers."""
    from datasets import Image

    kind = table.features[column]
    if type(kind).__name__ in _ARRAYS:
        return table, str(kind.dtype)
    return table.cast_column(column, Image(decode=False)), None


def _as_npy(cell: Any, dtype: str) -> bytes:
    """A cell's array as an .npy file holds it."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(cell, dtype=dtype), allow_pickle=False)
    return buffer.getvalue()


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


def open_hub(what: Any, split: str | None, config: DataConfig) -> Source:
    """Open ``hf:NAME``, ``hf:NAME:CONFIG``, what `save_to_disk` or `to_parquet` wrote, or a data set's object.

    Where it has no column of images and one of recordings, these are the data (see `hub_audio`).

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
    try:
        column = None if _has_images(dataset.features) else audio_column(dataset.features, config.audio)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    home = _home_of(what)
    if column is not None:
        return open_hub_audio(dataset, column, config, name, home)  # type: ignore[return-value]  # it reads recordings
    return HubSource(dataset, config, name, home)


def _home_of(what: Any) -> Path | None:
    """Where the files of a data set lie: in its folder, or in what the hub's client keeps."""
    if not isinstance(what, str | Path):
        return None
    path = at_home(str(what).removeprefix(PREFIX))
    return path if path.is_dir() else path.parent if path.is_file() else kept_by_hub()


def kept_by_hub() -> Path:
    """The folder in which the hub's client keeps what it fetched."""
    from datasets import config

    return Path(config.HF_CACHE_HOME)


def hub_splits(what: str | Path) -> tuple[str, ...]:
    """The splits of a folder written by `save_to_disk`, of one of parquet files, or of ``hf:NAME`` (asks the hub)."""
    require_datasets()
    folder = at_home(str(what).removeprefix(PREFIX))
    if folder.is_file():
        return ()
    if folder.is_dir() and is_saved_dataset(folder):
        return tuple(_load_folder(folder)) if (folder / "dataset_dict.json").is_file() else ()
    if folder.is_dir():
        return tuple(_ask_splits(str(folder), None))
    return tuple(_ask_splits(*_name(str(what))))


def _is_hub(what: str) -> bool:
    path = at_home(what)
    if path.is_dir():
        return is_saved_dataset(path) or _holds_cells(_first_parquet(path))
    return what.startswith(PREFIX) or (path.suffix.lower() == ".parquet" and path.is_file() and _holds_cells(path))


def _first_parquet(folder: Path) -> Path | None:
    """The first parquet file of a folder that holds nothing else to learn from, itself or in a folder below."""
    files = [path for pattern in ("*.parquet", "*/*.parquet") for path in sorted(folder.glob(pattern))]
    return files[0] if files and not find_images(folder) else None


def _holds_cells(file: Path | None) -> bool:
    """Whether a parquet file has a column of encoded examples: of bytes and paths, as `datasets` writes them."""
    if file is None or importlib.util.find_spec("pyarrow") is None:
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (OSError, ValueError):  # told by whoever opens it
        return False
    structs = [field.type for field in schema if pa.types.is_struct(field.type)]
    return any({"bytes", "path"} <= {each.name for each in kind} for kind in structs)


HUB = Format(f"{PREFIX}NAME", _is_hub, open_hub, lambda what: Splits.named(hub_splits(what)))


def stream(what: str, split: str | None) -> tuple[Iterator[tuple[bytes, int | str | None]], list[str] | None]:
    """Every encoded image of ``hf:NAME`` with its label, as they come, and the classes' names; nothing is kept."""
    require_datasets()
    from datasets import load_dataset

    name, subset = _name(what)
    split = split or _first(_ask_splits(name, subset))
    try:
        with hub_or_cache():
            dataset = load_dataset(name, subset, split=split, streaming=True)
    except Exception as error:  # the hub's client raises some dozen kinds
        raise UserError(f"{what}: cannot be opened ({_first_line(error)})") from error
    column, label = image_column(dataset.features or {}, what), label_column(dataset.features or {})
    names = getattr(dataset.features[label], "names", None) if label else None
    table, dtype = _undecoded(dataset, column)
    return _cells(table, column, label, dtype), names and list(names)


def _labels(dataset: Any, column: str, name: str) -> tuple[Labels | None, list[str] | None]:
    """Class numbers [n] and names; (None, None) where no cell has one, or where a cell has several."""
    values = dataset.with_format(None).select_columns([column])[:][column]
    if any(isinstance(value, list) for value in values):
        return None, None
    names = getattr(dataset.features[column], "names", None)
    labels, classes = class_labels(values, len(values), name, names and list(names))
    return (labels, classes) if (labels >= 0).any() else (None, None)  # a test split may withhold all of them


def _groups(dataset: Any, wanted: str | None, name: str) -> list[str] | None:
    """The group of each row, by a column's values."""
    if wanted is None:
        return None
    if wanted not in dataset.features:
        raise UserError(f"--data.group {wanted}: {name} has no such column; it has {', '.join(dataset.features)}")
    return group_names(dataset.with_format(None).select_columns([wanted])[:][wanted])


def _cells(dataset: Any, column: str, label: str | None, dtype: str | None) -> Iterator[tuple[bytes, int | str | None]]:
    for row in dataset:
        value = row[label] if label else None
        if dtype is not None:
            data = _as_npy(row[column], dtype)
        else:
            cell = row[column] or {}
            data = cell.get("bytes") or b""
            if not data and cell.get("path"):
                file = inside(kept_by_hub(), kept_by_hub(), str(cell["path"]), DataConfig(), "a cell of the stream")
                data = read_bytes(file, available_memory() // 8)
        yield data, value or None if isinstance(value, str) else None if value is None else int(value)


def _has_images(features: Any) -> bool:
    return bool(_image_columns(features))


def _image_columns(features: Any) -> list[str]:
    """Columns of the type Image; without one, those of a usual name that hold bytes and paths."""
    typed = [key for key, kind in features.items() if type(kind).__name__ == "Image"]
    stored = [key for key in _IMAGES if isinstance(features.get(key), dict) and "bytes" in features[key]]
    return typed or stored


def image_column(features: Any, name: str) -> str:
    """The column of images; UserError if there is none, or several that could be meant."""
    result = _image_columns(features)
    result = result or [key for key, kind in features.items() if type(kind).__name__ in _ARRAYS]
    usual = [key for key in _IMAGES if key in result]
    if len(result) == 1 or usual:
        return usual[0] if usual else result[0]
    kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items()) or "unknown"
    what = (
        f"several columns of images ({', '.join(result)})" if result else f"no column of the type Image; it has {kinds}"
    )
    raise UserError(f"{name}: {what}; name one of them image (datasets: rename_column, cast_column)")


def label_column(features: Any) -> str | None:
    """The column of classes by number or by name, if there is one."""
    whole = [
        key for key, kind in features.items()
        if type(kind).__name__ == "ClassLabel" or str(getattr(kind, "dtype", "")).startswith(("int", "uint", "string"))
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
    folder = at_home(str(what).removeprefix(PREFIX))
    if folder.is_file() or (folder.is_dir() and not is_saved_dataset(folder)):
        return _load_parquet(folder, split)
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
        with hub_or_cache():
            return load_dataset(name, subset, split=split), f"{what}/{split}"
    except Exception as error:  # the hub's client raises some dozen kinds
        raise UserError(f"{what}: cannot be opened ({_first_line(error)})") from error


def _load_parquet(path: Path, split: str | None) -> tuple[Any, str]:
    """A parquet file, or a folder of them whose names tell splits (``data/train-00000-of-00002.parquet``)."""
    from datasets import load_dataset

    if path.is_file() and split is not None:
        raise UserError(f"--data.split {split}: {path} is one part; give the folder of all parts")
    splits = ["train"] if path.is_file() else _ask_splits(str(path), None)
    chosen = split or _first(splits)
    if chosen not in splits:
        raise UserError(f"--data.split {split}: {path} has {', '.join(splits)}")
    try:
        if path.is_file():
            return load_dataset("parquet", data_files=str(path), split="train"), str(path)
        return load_dataset(str(path), split=chosen), f"{path}:{chosen}" if split or len(splits) > 1 else str(path)
    except Exception as error:  # Arrow, JSON and file errors of many kinds
        raise UserError(f"{path}: cannot be opened ({_first_line(error)})") from error


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

    reached = True
    try:
        with hub_or_cache() as reached:
            return list(get_dataset_split_names(name, subset))
    except Exception as error:  # the hub's client raises some dozen kinds
        if not reached:
            raise UserError(
                f"{PREFIX}{name}: neither a folder written by save_to_disk nor a data set that is stored here, and the "
                "hub cannot be reached: look at the network, or give a folder of your own"
            ) from error
        raise UserError(
            f"{PREFIX}{name}: neither a folder written by save_to_disk nor a data set that the hub gives "
            f"({_first_line(error)}); data sets with several configurations are named {PREFIX}NAME:CONFIG"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
