"""Tables of images: a row an image, with its path, label, split, group and whatever else people note."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import Format, Source, Splits
from twofold.data.config import DataConfig, TableConfig
from twofold.data.decoding.bands import NPY
from twofold.data.decoding.images import image_extensions
from twofold.data.groups import group_names, named_by
from twofold.data.labels import UNLABELLED, class_labels
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.files import FileSource
from twofold.data.sources.manifests import MANIFESTS, PATHS, manifest_rows, most_text
from twofold.data.sources.outside import inside
from twofold.data.sources.pieces import PiecesSource
from twofold.errors import UserError
from twofold.files import at_home
from twofold.reading import read_text
from twofold.text import counted

LISTS = (".txt", ".lst")
"""Files with a path a line."""
_PATH = ("path", "image", "file", "file_name", "filename", "image_path", "filepath", "img")
_LABEL, _SPLIT = ("label", "class", "target", "category"), ("split", "part", "subset")
_LOOKED_AT = 20
"""Rows whose paths tell whether a table is one of images."""


def open_table(path: Path, split: str | None, config: DataConfig) -> FileSource:
    """The images of a table (.csv, .tsv, .jsonl, .json, .parquet) or of a list of files (.txt).

    Paths are relative to the table, and lead to what lies in its folder unless `config.outside` allows more. Columns
    are those that `config.table` names, or have one of the usual names: path, image, file_name, ...; label, class, ...;
    split. Labels are names or numbers; an empty one is unlabelled. Groups are a column, or what a pattern finds in the
    paths. Without a split those of the split train, where a column says so.

    Raises:
        UserError: no such column or split, no rows, too many unreadable images.
    """
    rows, columns = _rows(path, config), config.table
    where, label, part = (_chosen(rows, path, columns, name) for name in ("path", "label", "split"))
    if where is None:
        raise UserError(
            f"{path}: no column of paths ({', '.join(_PATH)}); it has {', '.join(_columns(rows))}: name one with "
            "--data.table.path"
        )
    present = _splits(rows, part)
    if split is None and "train" in present:
        split = "train"
    if split is not None and split not in present:
        raise UserError(f"--data.split {split}: {path} has {', '.join(present) or 'no column of splits'}")
    values = [row.get(label) for row in rows] if label else None
    numbers, classes = (None, None) if values is None else class_labels(_known(values), len(rows), str(path))
    kept = [
        i for i, row in enumerate(rows) if row.get(where) and (split is None or _text(row.get(part or "")) == split)
    ]
    if not kept:
        raise UserError(f"{path}: no row names an image" + (f" in the split {split}" if split else ""))
    if numbers is not None and (numbers[kept] < 0).all():
        numbers, classes = None, None
    for i in kept:
        inside(path.parent, path.parent, str(rows[i][where]), config, f"{path}, row {i + 1}")
    source = FileSource(
        path.parent, [str(rows[i][where]) for i in kept], config,
        labels=None if numbers is None else numbers[kept], classes=classes,
        name=f"{path}:{split}" if split else str(path),
        groups=_groups([rows[i] for i in kept], where, path, config.group, _columns(rows)), rows=kept,
    )  # fmt: skip
    others = [name for name in present if name != split]
    what = (
        f"{counted(len(classes), 'class')}"
        if classes
        else "no names of classes"
        if numbers is not None
        else "no labels"
    )
    source.layout = (
        f"{path}: {counted(len(source), 'image')}" + (f" of the split {split}" if split else "") + f", {what}"
    )
    source.layout += f"; other parts: {', '.join(others)}" if others else ""
    return source


def _groups(
    rows: Sequence[Mapping[str, Any]], where: str, path: Path, wanted: str | None, columns: Sequence[str]
) -> list[str] | None:
    """The group of each row: a column's values, or what a pattern finds in the paths."""
    if wanted is None:
        return None
    if wanted in columns:
        return group_names([row.get(wanted) for row in rows])
    return named_by(wanted, [str(row[where]) for row in rows], str(path), columns)


def table_splits(path: Path) -> tuple[str, ...]:
    """The names that `--data.split` can have for this table."""
    rows = _rows(path, DataConfig())
    return _splits(rows, _chosen(rows, path, TableConfig(), "split"))


def table_columns(
    source: Source, index: NDArray[np.int64], data: Any, names: Sequence[str], config: DataConfig
) -> dict[str, list[Any]]:
    """What the user's table says of some examples, by column.

    Args:
        source: of the table's images or recordings, or of pieces of them.
        index: [n] places in the source.
        data: the table.
        names: of columns.
        config: how the table is read.

    Raises:
        UserError: the data are no table, or it has no such column.
    """
    rows = rows_of(source, index)
    if rows is None or not isinstance(data, str | Path):
        raise UserError(
            f"--columns {names[0]}: {source.name} is no table or manifest, whose columns could be taken along"
        )
    path = at_home(data)
    table = _rows(path, config)
    known = _columns(table)
    missing = next((name for name in names if name not in known), None)
    if missing is not None:
        raise UserError(f"--columns {missing}: {path} has no such column; it has {', '.join(known)}")
    return {name: [table[row].get(name) for row in rows] for name in names}


def columns_of(source: Source, data: Any, config: DataConfig) -> tuple[str, ...]:
    """The columns of the user's table beside that of paths, for `table_columns`; none where the data are no table."""
    if rows_of(source, np.arange(min(1, len(source)))) is None or not isinstance(data, str | Path):
        return ()
    rows = _rows(at_home(data), config)
    usual = (config.table.path, *_PATH, *PATHS)
    return tuple(name for name in _columns(rows) if name not in usual)


@dataclass(frozen=True)
class GivenLabel:
    """A row of a table that somebody filled in.

    Attributes:
        number: from 2, as spreadsheets count below a header.
        path: or name.
        label: empty where it is not given.
        asked: `twofold label` had asked for it.
    """

    number: int
    path: str
    label: str
    asked: bool


ASKED = "why"
"""The column in which `twofold label` says why a row is in its table."""


def given_labels(path: Path, encoding: str = "utf-8") -> list[GivenLabel]:
    """The rows of a table that somebody filled in. Columns are those of a usual name.

    Raises:
        UserError: it cannot be read, has no such columns, or no row.
    """
    if path.suffix.lower() not in MANIFESTS:
        raise UserError(f"--labels {path}: give a table, whose name ends in {', '.join(MANIFESTS)}")
    rows = _rows(path, DataConfig(encoding=encoding))
    known = _columns(rows)
    where, label = (
        next((each for each in usual if each in known), None) for usual in ((*_PATH, *PATHS, "name"), _LABEL)
    )
    if where is None or label is None:
        missing = "paths" if where is None else "labels"
        hint = "; columns are separated by commas" if len(known) == 1 and ";" in known[0] else ""
        raise UserError(
            f"--labels {path}: no column of {missing} ({', '.join((*_PATH, 'name') if where is None else _LABEL)}); it "
            f"has {', '.join(known) or 'none'}{hint}"
        )
    if not rows:
        raise UserError(f"--labels {path}: the table has no row")
    return [
        GivenLabel(number, _text(row.get(where)), _text(row.get(label)), bool(_text(row.get(ASKED))))
        for number, row in enumerate(rows, 2)
    ]


def rows_of(source: Any, index: NDArray[np.int64]) -> list[int] | None:
    """The rows of a table that examples of a source are from; None where they are from none."""
    if isinstance(source, PiecesSource):
        return rows_of(source.whole, source.files[index])
    if isinstance(source, AudioSource):
        found = [source.recordings[place].row for place in index.tolist()]
        return None if None in found else [row for row in found if row is not None]
    rows = source.rows if isinstance(source, FileSource) else None
    return None if rows is None else [rows[place] for place in index.tolist()]


def is_table(path: Path) -> bool:
    """Whether this is a table or a list whose first rows name image files."""
    if not path.is_file() or path.suffix.lower() not in (*MANIFESTS, *LISTS):
        return False
    try:
        rows = _rows(path, DataConfig())[:_LOOKED_AT]
    except UserError:  # told by whoever opens it, which of a list is nobody else
        return path.suffix.lower() in LISTS
    known = image_extensions() | {NPY}
    texts = [str(value) for row in rows for value in row.values() if isinstance(value, str)]
    return any(Path(text).suffix.lower() in known for text in texts)


def _rows(path: Path, config: DataConfig) -> list[dict[str, Any]]:
    if path.suffix.lower() not in LISTS:
        return manifest_rows(path, config.encoding)
    try:
        lines = read_text(path, most_text(), config.encoding).split("\n")
    except (OSError, UnicodeDecodeError, LookupError) as error:
        raise UserError(f"{path} is no readable list: {error}") from error
    return [{"path": line.strip()} for line in lines if line.strip()]


def _chosen(rows: Sequence[Mapping[str, Any]], path: Path, columns: TableConfig, option: str) -> str | None:
    """The column for one purpose: the one that was named, or one of a usual name."""
    name: str | None = getattr(columns, option)
    known = _columns(rows)
    if name is not None:
        if name not in known:
            raise UserError(f"--data.table.{option} {name}: {path} has no such column; it has {', '.join(known)}")
        return name
    usual = {"path": _PATH, "label": _LABEL, "split": _SPLIT}.get(option, ())
    return next((each for each in usual if each in known), None)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def _splits(rows: Sequence[Mapping[str, Any]], column: str | None) -> tuple[str, ...]:
    return tuple(sorted({_text(row.get(column)) for row in rows} - {""})) if column else ()


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()


def _known(values: Sequence[Any]) -> Any:
    """Whole numbers where all that are given are such, also written as 3.0 or nan; else names."""
    texts = [_text(value) for value in values]
    numbers = [_whole(text) for text in texts]
    if all(number is not None for number in numbers):
        return numbers
    return [text or None for text in texts]


def _whole(text: str) -> int | None:
    """A whole number, as programs write it that have no whole numbers beside missing ones; -1 for a missing one."""
    if text.lower() in ("", "nan"):
        return UNLABELLED
    return int(text.removesuffix(".0")) if re.fullmatch(r"-?\d{1,40}(\.0)?", text) else None


def _open(what: str, split: str | None, config: DataConfig) -> Source:
    return open_table(at_home(what), split, config)


TABLE = Format(
    "a table (.csv, .tsv, .jsonl, .parquet) or a list (.txt) of images",
    lambda what: is_table(at_home(what)),
    _open,
    lambda what: Splits.named(table_splits(at_home(what))),
)
