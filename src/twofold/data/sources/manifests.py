"""Manifests of recordings: tables with a row a recording, as people and toolkits write them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.data.config import AudioConfig, DataConfig
from twofold.data.decoding.recordings import Held
from twofold.data.groups import named_by
from twofold.data.sources.audio import Recording
from twofold.data.sources.outside import inside
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.reading import read_text, regular
from twofold.text import counted

MANIFESTS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
PATHS = ("path", "file", "file_name", "audio", "audio_filepath", "wav", "filename", "deb_path")
"""Usual names of the column of paths."""
_TEXT = ("text", "transcript_norm", "transcript", "sentence", "transcription")
_SPEAKER = ("speaker", "client_id", "speaker_id")
_SECONDS = {
    "start": ("start", "offset", "start_time", "begin", "begin_time", "start_sec", "start_seconds", "start_ms"),
    "end": ("end", "end_time", "stop", "stop_time", "end_sec", "end_seconds", "end_ms"),
    "duration": ("duration", "duration_sec", "duration_seconds", "duration_ms"),
}
"""Usual names of the columns of a segment; those that end in _ms count milliseconds."""
_CERTAIN = ("start", "offset", "end", "duration")
"""Of these the columns that can be about nothing else: a value that is no number is an error, not another meaning."""
_ROWS_AT_ONCE, _BYTES_A_CELL = 1024, 100
"""Of a parquet file: rows that are decoded at once, and what a value and its place in a row take in Python."""


def most_text() -> int:
    """Bytes of the largest file of texts that is read: decoded and divided into rows it takes some eight times that."""
    return available_memory() // 8


def read_manifest(path: Path, split: str | None, data: DataConfig) -> list[Recording]:
    """Recordings of a manifest, of which each row names a file or, with a start, a segment of one.

    Paths are relative to the manifest, or to a folder `clips` beside it (Common Voice), and lead to what lies there
    unless `data.outside` allows more. Columns are those that `data.audio` names, or have one of the usual names: path,
    file_name, audio_filepath, ...; text, sentence, ...; speaker, client_id; label; fold; split; start, offset, begin,
    start_time, ... with end, end_time, ... or duration, in seconds (in milliseconds where the name ends in _ms).
    `data.group` is a column, or "speaker", or a pattern that is searched for in the paths.

    Without a split those of the split train, where a column says so.

    Raises:
        UserError: no column of paths, a column that was named and is not there, a start or an end that is no number.
    """
    config, rows = data.audio, manifest_rows(path, data.encoding)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    chosen = choose_columns(columns, config, str(path))
    where, spans = chosen.path, _span_columns(rows, columns)
    if where is None:
        raise UserError(
            f"{path}: no column of paths ({', '.join(PATHS)}); it has {', '.join(columns)}: name one with "
            "--data.audio.path"
        )
    if split is None and any(row.get("split") == "train" for row in rows):
        split = "train"
    wanted = list(range(1, len(rows) + 1))
    if split is not None:
        wanted = [number for number in wanted if str(rows[number - 1].get("split")) == split]
        rows = [rows[number - 1] for number in wanted]
    folder, recordings = _folder_of(path, rows, where), []
    together = _groups(rows, where, path, data.group, columns, chosen.speaker)
    for number, row, group in zip(wanted, rows, together, strict=True):
        if row.get(where):
            place = f"{path}, row {number}"
            start, duration = _segment(row, spans, place)
            file = inside(path.parent, folder, _place(row[where]), data, place)
            recording = chosen.recording(file, row)
            recordings.append(
                dataclasses.replace(recording, start=start, duration=duration, group=group, row=number - 1)
            )
    return recordings


@dataclass(frozen=True)
class Columns:
    """Which columns of a table of recordings say what; None where none does."""

    path: str | None
    text: str | None
    speaker: str | None
    label: str | None
    fold: str | None

    def recording(self, path: str, row: Mapping[str, Any], held: Held | None = None) -> Recording:
        """The recording that a row is about, whole; `path` is where it lies, `held` where its bytes lie."""
        label, text, fold, speaker = (_value(row, name) for name in (self.label, self.text, self.fold, self.speaker))
        return Recording(path, label, text, fold, speaker, held=held)


def choose_columns(columns: Sequence[str], config: AudioConfig, name: str) -> Columns:
    """The columns that `config` names, or that have one of the usual names.

    Raises:
        UserError: one that was named and is not there; `name` is the table's.
    """
    for option in ("path", "text", "speaker", "label", "fold"):
        value = getattr(config, option)
        if value is not None and value not in columns and not (option == "fold" and value == "fold"):
            raise UserError(f"--data.audio.{option} {value}: {name} has no such column; it has {', '.join(columns)}")
    usual = {"path": PATHS, "text": _TEXT, "speaker": _SPEAKER, "label": ("label",), "fold": ("fold",)}
    return Columns(**{each: getattr(config, each) or _column(columns, names) for each, names in usual.items()})


def with_groups(
    recordings: Sequence[Recording], said: Sequence[Mapping[str, Any]], wanted: str | None, columns: Sequence[str],
    speaker: str | None, name: str,
) -> list[Recording]:  # fmt: skip
    """Recordings that are no files of their own, with the groups that `data.group` asks for.

    Args:
        recordings: [n].
        said: [n] what is said of each, by column.
        wanted: a column, "speaker", or a pattern that is searched for in the recordings' names; None for no groups.
        columns: that there are.
        speaker: the column of speakers, if there is one.
        name: of the data, for messages.
    """
    if wanted is None:
        return list(recordings)
    column = wanted if wanted in columns else speaker if wanted == "speaker" else None
    names = [Path(each.path).name if each.held is None else each.path for each in recordings]
    groups = [_value(row, column) for row in said] if column else named_by(wanted, names, name, columns)
    return [dataclasses.replace(each, group=group or None) for each, group in zip(recordings, groups, strict=True)]


def _groups(
    rows: Sequence[Mapping[str, Any]], where: str, path: Path, wanted: str | None, columns: Sequence[str],
    speaker: str | None,
) -> list[str | None]:  # fmt: skip
    """The group of each row: a column's values, who speaks, or what a pattern finds in the paths."""
    column = wanted if wanted in columns else speaker if wanted == "speaker" else None
    if wanted is None or column is not None:
        return [_value(row, column) for row in rows]
    names = [str(row[where]) for row in rows if row.get(where)]
    found = iter(named_by(wanted, names, str(path), columns))
    return [next(found) if row.get(where) else None for row in rows]


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
    except OSError as error:
        raise UserError(f"{path} is no readable manifest: {error}") from error
    text = _text(path, "utf-8-sig" if encoding == "utf-8" else encoding)  # (spreadsheets put a mark)
    kind = path.suffix.lower()
    if kind in (".jsonl", ".json"):
        return _json(text, path)
    if kind == ".tsv" and _is_fairseq(text):
        return _fairseq(text, path, encoding)
    return _table(text, path, "\t" if kind == ".tsv" else ",")


def _text(path: Path, encoding: str) -> str:
    """All of a file of texts; UserError where it cannot be read, or is written otherwise."""
    try:
        return read_text(path, most_text(), encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not written in {encoding.removesuffix('-sig')} (byte {error.start}): save it as UTF-8, or say "
            "what it is with --data.encoding, such as latin-1"
        ) from error
    except (OSError, LookupError) as error:
        raise UserError(f"{path} is no readable manifest: {error}") from error


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
    if delimiter == "\t" and (plain := _unquoted(text)) is not None:
        return plain
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="", strict=True)
    rows = []
    try:
        for number, row in enumerate(reader, 1):
            surplus = row.get("")
            if isinstance(surplus, list):
                raise UserError(
                    f"{path}, row {number} has {counted(len(row) - 1 + len(surplus), 'field')} and the header "
                    f"{len(row) - 1}: put quotes around a field that holds {'a tab' if delimiter != ',' else 'a comma'}"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(
            f"{path} is no readable manifest: {error} in row {len(rows) + 1} or after it; is a quote opened and not "
            'closed? Inside of a quoted field each is doubled ("")'
        ) from error
    return rows


def _unquoted(text: str) -> list[dict[str, Any]] | None:
    """The rows of a table by tabs of which each line is a row, as Common Voice writes them: a quote is a quote, unless
    two enclose a field. None where a field goes over lines."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    cells = [line.split("\t") for line in lines if line]
    if not cells or "\r" in "".join(lines) or any(len(row) != len(cells[0]) for row in cells):
        return None
    header, *body = [[_enclosed(cell) for cell in row] for row in cells]
    return [dict(zip(header, row, strict=True)) for row in body]


def _enclosed(cell: str) -> str:
    """A field without the quotes around it, and those within once instead of twice; others as they are."""
    inner = cell[1:-1].replace('""', "")
    whole = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner
    return cell[1:-1].replace('""', '"') if whole else cell


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
    texts: list[str] = _text(words, encoding).split("\n") if words.is_file() else []
    return [
        {"path": str(Path(root) / line.split("\t")[0]), "text": texts[place] if place < len(texts) else None}
        for place, line in enumerate(lines)
    ]


def _folder_of(path: Path, rows: Iterable[Mapping[str, Any]], where: str) -> Path:
    first = next((str(row[where]) for row in rows if row.get(where)), "")
    clips = path.parent / "clips"
    return clips if not (path.parent / first).exists() and (clips / first).exists() else path.parent


def _place(value: Any) -> str:
    """The path in a cell: a string, or what holds one under `path` as Hugging Face's audio does."""
    return str(value.get("path")) if isinstance(value, Mapping) else str(value)


def _span_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, str | None]:
    """Which columns say start, end and duration: the first of a usual name that holds numbers."""

    def fits(name: str) -> bool:
        return name in _CERTAIN or all(_as_number(row.get(name)) is not None for row in rows if _value(row, name))

    return {
        what: next((name for name in names if name in columns and fits(name)), None) for what, names in _SECONDS.items()
    }


def _segment(row: Mapping[str, Any], spans: Mapping[str, str | None], place: str) -> tuple[float, float | None]:
    """(start, duration) in seconds; a duration without a start is told of the whole file and changes nothing."""
    start, end, duration = (_seconds(row, spans[what], place) for what in ("start", "end", "duration"))
    if start is None and end is None:
        return 0.0, None
    begin = start or 0.0
    length = end - begin if end is not None else duration
    if begin < 0 or (length is not None and length <= 0):
        raise UserError(f"{place}: the segment from {begin:g} s has a length of {length} s: give one above 0")
    return begin, length


def _seconds(row: Mapping[str, Any], column: str | None, place: str) -> float | None:
    if column is None or _value(row, column) is None:
        return None
    number = _as_number(row[column])
    if number is None:
        raise UserError(f"{place}: {column} is {row[column]!r}, and must be a number of seconds")
    return number / 1000 if column.endswith("_ms") else number


def _as_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    present = set(columns)
    return next((name for name in names if name in present), None)


def _value(row: Mapping[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if value is None or value != value or str(value).strip() == "" else str(value)
