"""metrics.jsonl: a row a line, and what a checkpoint notes of it, so that a change since is noticed and told."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.reading import read_bytes

_LARGEST = 2**30
"""Bytes of the file that are read: some millions of rows."""


class MetricsFile:
    """The rows that a run has logged.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length, self._sum = 0, 0

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; a UserError where the disk refuses."""
        line = (json.dumps(row) + "\n").encode()
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error}. No checkpoint is lost; free some space, then go on with --resume"
            ) from error
        self._length, self._sum = self._length + len(line), zlib.crc32(line, self._sum)

    def mark(self) -> dict[str, int]:
        """Length and CRC-32 of the rows until now, which are on the disk when this returns."""
        if self._length:
            try:
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error}; no checkpoint is lost") from error
        return {"bytes": self._length, "crc32": self._sum}

    def restore(self, mark: dict[str, int] | None, step: int) -> str | None:
        """Drop the rows after a checkpoint, which a resumed run writes again.

        Args:
            mark: what the checkpoint holds of the file; None for one of an earlier version, and before the first.
            step: of the checkpoint.

        Returns:
            What is wrong with the file, in words, where it is not what it was; its readable rows are kept, and the file
            as it was lies beside it.
        """
        data = self._read()
        whole = mark is not None and len(data) >= mark["bytes"] and zlib.crc32(data[: mark["bytes"]]) == mark["crc32"]
        problem = None
        if mark is not None and whole:
            kept = data[: mark["bytes"]]
        else:
            rows, bad = parsed(data)
            kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step).encode()
            if mark is not None:
                last = max((row["step"] for row in rows), default=0)
                problem = (
                    f"{self.path} is not what it was when step {step} was saved: {len(data):,} bytes instead of at "
                    f"least {mark['bytes']:,}, {bad} unreadable line(s), rows until step {last}. What can be read is "
                    f"kept; the file as it was found lies beside it as {self.path.name}.damaged"
                )
                write_atomically(self.path.with_name(f"{self.path.name}.damaged"), lambda file: file.write(data))
        if kept != data:
            write_atomically(self.path, lambda file: file.write(kept))
        self._length, self._sum = len(kept), zlib.crc32(kept)
        return problem

    def rows(self) -> list[dict[str, Any]]:
        """The rows that can be read."""
        return parsed(self._read())[0]

    def _read(self) -> bytes:
        """All that the file holds, nothing where there is none; UserError where it is no file or cannot be read."""
        if not self.path.exists():
            return b""
        try:
            return read_bytes(self.path, _LARGEST)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read: {error}; take it away, and its rows are written anew"
            ) from error


def parsed(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The rows in what a file holds, and how many lines are none: damaged ones, or the last, cut short by a kill."""
    rows, bad = [], 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row["step"]) is not int:
                raise ValueError("no row of metrics")
            rows.append(row)
        except (ValueError, KeyError, RecursionError):
            bad += 1
    return rows, bad
