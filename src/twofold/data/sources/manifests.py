"""Manifests of recordings: tables with a row a recording, as people and toolkits write them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twofold.data.config import DataConfig
from twofold.data.sources.audio import Recording
from twofold.data.sources.outside import inside
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.reading import read_text, regular

MANIFESTS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_PATH = ("path", "file", "file_name", "audio", "audio_filepath", "wav", "filename", "deb_path")
_TEXT = ("text", "transcript_norm", "transcript", "sentence", "transcription")
_SPEAKER = ("speaker", "client_id", "speaker_id")
_START, _END, _DURATION = ("start", "offset"), ("end",), ("duration",)
_ROWS_AT_ONCE, _BYTES_A_CELL = 1024, 100
"""Of a parquet file: rows that are decoded at once, and what a value and its place in a row take in Python."""


def most_text() -> int:
    """Bytes of the largest file of texts that is read: decoded and divided into rows it takes some eight times that."""
    return available_memory() // 8


def read_manifest(path: Path, split: str | None, data: DataConfig) -> list[Recording]:
    """Recordings of a manifest, of which each row names a file or, with a start, a segment of one.

    Paths are relative to the manifest, or to a folder `clips` beside it (Common Voice), and lead to what lies there
    unless `data.outside` allows more. Columns are those that `data.audio` names, or have one of the usual names: path,
    file_name, audio_filepath, ...; text, sentence, ...; speaker, client_id; label; fold; split; start or offset with
    end or duration, in seconds.

    Without a split those of the split train, where a column says so.

    Raises:
        UserError: no column of paths, a column that was named and is not there, a start or an end that is no number.
    """
    config, rows = data.audio, manifest_rows(path, data.encoding)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for option in ("path", "text", "speaker", "label", "fold"):
        name = getattr(config, option)
        if name is not None and name not in columns and not (option == "fold" and name == "fold"):
            raise UserError(f"--data.audio.{option} {name}: {path} has no such column; it has {', '.join(columns)}")
    where = config.path or _column(columns, _PATH)
    if where is None:
        raise UserError(
            f"{path}: no column of paths ({', '.join(_PATH)}); it has {', '.join(columns)}: name one with "
            "--data.audio.path"
        )
    named = config.label or _column(columns, ("label",))
    text, speaker = config.text or _column(columns, _TEXT), config.speaker or _column(columns, _SPEAKER)
    if split is None and any(row.get("split") == "train" for row in rows):
        split = "train"
    if split is not None:
        rows = [row for row in rows if str(row.get("split")) == split]
    folder, recordings = _folder_of(path, rows, where), []
    for number, row in enumerate(rows, 1):
        if row.get(where):
            start, duration = _segment(row, f"{path}, row {number}")
            recordings.append(
                Recording(
                    inside(path.parent, folder, str(row[where]), data, f"{path}, row {number}"),
                    _value(row, named), _value(row, text), _value(row, config.fold), _value(row, speaker), start,
                    duration,
                )
            )  # fmt: skip
    return recordings


def manifest_rows(path: Path, encoding: str = "utf-8") -> list[dict[str, Any]]:
    """The rows of a .csv, .tsv, .jsonl, .json or .parquet file, each by column.

    A .json file holds an array of mappings, or one a line as NeMo writes them; a .tsv without a header whose first line
    is a folder is fairseq's, with words in a .wrd file beside it.

    Raises:
        UserError: it cannot be read, a row has more fields than the header, or a line is no mapping.
    """
    try:
        if path.suffix.lower() == ".parquet":
            regular(path)
            return _parquet(path)
        # (spreadsheets put a mark)
        text = read_text(path, most_text(), "utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not written in {encoding} (byte {error.start}): save it as UTF-8, or say what it is with "
            "--data.encoding, such as latin-1"
        ) from error
    except (OSError, LookupError) as error:
        raise UserError(f"{path} is no readable manifest: {error}") from error
    kind = path.suffix.lower()
    if kind in (".jsonl", ".json"):
        return _json(text, path)
    if kind == ".tsv" and _is_fairseq(text):
        return _fairseq(text, path, encoding)
    return _table(text, path, "\t" if kind == ".tsv" else ",")


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: parquet needs pyarrow: pip install pyarrow") from error
    try:
        rows: list[dict[str, Any]] = []
        with pyarrow.parquet.ParquetFile(path) as file:
            facts, room = file.metadata, most_text()
            if facts.num_rows * facts.num_columns * _BYTES_A_CELL > available_memory() // 2:
                raise ValueError(f"its {facts.num_rows:,} rows need more memory than there is")
            for batch in file.iter_batches(_ROWS_AT_ONCE):  # a kilobyte can hold a million equal texts of a megabyte
                room -= batch.nbytes
                if room < 0:
                    raise ValueError(f"its texts have more than the {most_text():,} bytes that are read")
                rows += batch.to_pylist()
    except (OSError, ValueError, MemoryError) as error:  # Arrow's errors are of these kinds
        raise UserError(f"{path} is no readable manifest: {error}") from error
    return rows


def _table(text: str, path: Path, delimiter: str) -> list[dict[str, Any]]:
    """Only \\n and \\r end a row: texts may hold other separators, and quoted ones line ends."""
    # (in tables by tabs quotes stand for themselves where they do not enclose a field; csv knows that)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="", strict=False)
    rows = []
    try:
        for number, row in enumerate(reader, 1):
            surplus = row.get("")
            if isinstance(surplus, list):
                raise UserError(
                    f"{path}, row {number} has {len(row) - 1 + len(surplus)} fields and the header {len(row) - 1}: put "
                    f"quotes around a field that holds {'a tab' if delimiter != ',' else 'a comma'}"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path} is no readable manifest: {error}") from error
    return rows


def _json(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable manifest: {error}") from error
    wrong = next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise UserError(
            f"{path}, row {wrong} is a {type(rows[wrong - 1]).__name__}: each row must be a mapping such as "
            '{"path": "a.wav", "text": "..."}'
        )
    return list(rows)


def _is_fairseq(text: str) -> bool:
    lines = [line for line in text.split("\n")[:3] if line.strip()]
    return len(lines) > 1 and "\t" not in lines[0] and all(line.split("\t")[-1].strip().isdigit() for line in lines[1:])


def _fairseq(text: str, path: Path, encoding: str) -> list[dict[str, Any]]:
    root, *lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    words = path.with_suffix(".wrd")
    texts: list[str] = read_text(words, most_text(), encoding).split("\n") if words.is_file() else []
    return [
        {"path": str(Path(root) / line.split("\t")[0]), "text": texts[place] if place < len(texts) else None}
        for place, line in enumerate(lines)
    ]


def _folder_of(path: Path, rows: Iterable[Mapping[str, Any]], where: str) -> Path:
    first = next((str(row[where]) for row in rows if row.get(where)), "")
    clips = path.parent / "clips"
    return clips if not (path.parent / first).exists() and (clips / first).exists() else path.parent


def _segment(row: Mapping[str, Any], place: str) -> tuple[float, float | None]:
    """(start, duration) in seconds; a duration without a start is told of the whole file and changes nothing."""
    start, end, duration = (_number(row, names, place) for names in (_START, _END, _DURATION))
    if start is None and end is None:
        return 0.0, None
    begin = start or 0.0
    length = end - begin if end is not None else duration
    if begin < 0 or (length is not None and length <= 0):
        raise UserError(f"{place}: the segment from {begin:g} s has a length of {length} s: give one above 0")
    return begin, length


def _number(row: Mapping[str, Any], names: tuple[str, ...], place: str) -> float | None:
    column = next((name for name in names if _value(row, name) is not None), None)
    if column is None:
        return None
    try:
        return float(row[column])
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: {column} is {row[column]!r}, and must be a number of seconds") from error


def _column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    present = set(columns)
    return next((name for name in names if name in present), None)


def _value(row: Mapping[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if value is None or str(value).strip() == "" else str(value)
