"""The demos: real data, minutes, an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.report.tables import Table, terminal


@dataclass(frozen=True)
class DemoResult:
    """What a demo came to.

    Attributes:
        path, file, page: its folder, its JSON, and its page, None where none is made.
        table: what it shows.
        note: how long it took, in words.
        document: what the JSON holds.
        metrics: mean accuracies in [0, 1], by name.
    """

    path: Path
    file: Path
    page: Path | None
    table: Table
    note: str
    document: Mapping[str, Any]
    metrics: Mapping[str, float]

    def text(self) -> str:
        """For people."""
        places = [str(self.file), *([str(self.page)] if self.page else [])]
        return "\n".join([self.table.title, terminal(self.table), self.note, *places])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return dict(self.document)
