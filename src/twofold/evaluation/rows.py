"""Tables that commands write for other programs: .csv, .jsonl or .parquet, by the name of the file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.text import printable

TABLES = (".csv", ".jsonl", ".parquet")
"""Kinds of files that `write_rows` writes."""


def check_table(out: Path, option: str = "--out") -> None:
    """Raise a UserError for a file that is there already, or of another kind, or that cannot be written here."""
    if out.suffix.lower() not in TABLES:
        raise UserError(f"{option} {out}: give a name that ends in {', '.join(TABLES[:-1])} or {TABLES[-1]}")
    if out.exists():
        raise UserError(f"{option} {out} exists already; choose another name")
    if out.suffix.lower() == ".parquet":
        parquet_module(f"{option} {out}")


def parquet_module(what: str) -> Any:
    """pyarrow with its parquet; UserError without it, which names `what` needs it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{what}: parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow


def write_rows(out: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows whole or not at all; what a row lacks is empty (csv), left out (jsonl) or null (parquet).

    Text is written as `printable` has it: names may hold bytes that no table can.
    """
    shown = [{name: _plain(row.get(name)) for name in columns} for row in rows]
    if out.suffix.lower() == ".parquet":
        arrow = parquet_module(str(out))
        table = arrow.Table.from_pylist(shown) if shown else arrow.table({name: [] for name in columns})
        write_atomically(out, lambda file: arrow.parquet.write_table(table, file))
        return
    if out.suffix.lower() == ".jsonl":
        lines = (json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False) for row in shown)
        text = "".join(f"{line}\n" for line in lines)
    else:
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(shown)
        text = stream.getvalue()
    write_atomically(out, lambda file: file.write(text.encode()))


def _plain(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
