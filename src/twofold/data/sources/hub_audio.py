"""Recordings in Hugging Face data sets: a column of the type Audio, or of bytes and paths as parquet files hold it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.data.config import AudioConfig, DataConfig
from twofold.data.sources.audio import AudioSource, Recording
from twofold.data.sources.audio_layouts import refuse_colours
from twofold.data.sources.manifests import PATHS, choose_columns, with_groups
from twofold.data.sources.outside import inside
from twofold.errors import UserError

_STORED = ("binary", "large_binary", "string", "large_string")
"""Types of a column of bytes or of paths, which Audio can be made of."""


@dataclass(frozen=True)
class Cell:
    """The encoded recording in one row of a table; not decoded by `datasets`, which would need torchcodec."""

    table: Any
    column: str
    row: int

    @property
    def file(self) -> None:
        """Tables may lie in memory."""
        return None

    def open(self) -> io.BytesIO:
        """A file of the bytes."""
        return io.BytesIO(self.read())

    def read(self) -> bytes:
        """The bytes; OSError for a cell without."""
        contents: bytes | None = (self.table[self.row][self.column] or {}).get("bytes")
        if not contents:
            raise OSError("an empty cell")
        return contents


def audio_column(features: Any, config: AudioConfig) -> str | None:
    """The column of recordings: the one that `data.audio.path` names, the one of the type Audio, or one of a usual name
    that holds bytes; None where there is none.

    Raises:
        UserError: several of the type Audio and none that was named.
    """
    if config.path is not None:
        return config.path if config.path in features else None
    typed = [name for name, kind in features.items() if type(kind).__name__ == "Audio"]
    if len(typed) > 1 and not set(PATHS) & set(typed):
        raise UserError(f"several columns of recordings ({', '.join(typed)}): name one with --data.audio.path")
    usual = [name for name in PATHS if name in features]
    chosen = [name for name in usual if name in typed] + typed + [name for name in usual if _is_stored(features[name])]
    return chosen[0] if chosen else None


def open_hub_audio(dataset: Any, column: str, config: DataConfig, name: str, home: Path | None = None) -> AudioSource:
    """The recordings of a map-style data set; they stay encoded until they are read.

    Columns of texts, speakers, labels and folds are those that `config.audio` names, or have the usual names of
    manifests; a column of the type ClassLabel gives the names of its classes. Each cell is a whole recording: columns
    such as start and end are about where it came from. Files that cells name must lie in `home`, if there is one,
    unless `config.outside` allows more.

    Raises:
        UserError: a column that was named and is not there, or holds no encoded recordings; too many unreadable ones; a
            cell that names a file elsewhere.
    """
    from datasets import Audio

    refuse_colours(name, config)
    columns = choose_columns(list(dataset.features), config.audio, name)
    kind = dataset.features[column]
    if type(kind).__name__ != "Audio" and not _is_stored(kind, _STORED):
        raise UserError(
            f"{name}: the column {column} holds {kind}, no encoded recordings: cast it (datasets: "
            "cast_column(..., Audio())), or name another with --data.audio.path"
        )
    table = dataset.with_format(None).select_columns([column]).cast_column(column, Audio(decode=False))
    chosen = (columns.text, columns.speaker, columns.label, columns.fold, config.group)
    wanted = list(dict.fromkeys(each for each in chosen if each is not None and each in dataset.features))
    kinds = {each: dataset.features[each] for each in wanted}
    said = dataset.with_format(None).select_columns(wanted)[:] if wanted else {}
    recordings: list[Recording] = []
    rows: list[dict[str, Any]] = []
    for row, path in enumerate(_paths(table, column)):
        facts = {each: _known(said[each][row], kinds[each]) for each in wanted}
        rows.append(facts)
        if path is not None and not path[1]:
            file = path[0] if home is None else inside(home, home, path[0], config, f"{name}[{row}]")
            recordings.append(columns.recording(file, facts))
        else:
            where = f"{name}[{row}]" + (f":{Path(path[0]).name}" if path is not None else "")
            recordings.append(columns.recording(where, facts, Cell(table, column, row)))
    known = list(dataset.features)
    return AudioSource(with_groups(recordings, rows, config.group, known, columns.speaker, name), config, name)


def _paths(table: Any, column: str) -> Sequence[tuple[str, bool] | None]:
    """Of each row the path that the cell names and whether it holds the bytes too; None where it names none."""
    import pyarrow.compute as pc

    result: list[tuple[str, bool] | None] = []
    for batch in table.with_format("arrow").iter(1000):
        cells = batch[column]
        paths = pc.struct_field(cells, "path").to_pylist()
        sizes = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
        result += [(path, bool(size)) if path else None for path, size in zip(paths, sizes, strict=True)]
    return result


def _known(value: Any, kind: Any) -> Any:
    """A class's name for its number; None for what is withheld (-1)."""
    if type(kind).__name__ != "ClassLabel" or value is None:
        return value
    return kind.int2str(int(value)) if int(value) >= 0 else None


def _is_stored(kind: Any, types: Sequence[str] = _STORED[:2]) -> bool:
    """Whether a column holds bytes and paths, or is of one of the types: bytes."""
    return set(kind) == {"bytes", "path"} if isinstance(kind, dict) else str(getattr(kind, "dtype", "")) in types
