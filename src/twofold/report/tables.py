"""Tables of results for the page and the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.evaluation.few_labels import LabelEfficiency
from twofold.report.plots import Series
from twofold.text import counted


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: heading.
        columns: headings of the columns; the first column names the rows.
        rows: cells as text or numbers, one for each column; None for an empty cell.
        note: what the numbers are, in a sentence or two.
        best: (row, column) positions of cells to set in bold.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    best: Collection[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"every row of table '{self.title}' must have {len(self.columns)} cells")

    def text(self, row: int, column: int) -> str:
        """One cell as text."""
        cell = self.rows[row][column]
        if cell is None:
            return ""
        return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def label_table(cells: Sequence[LabelEfficiency], title: str = "How many labels do I need?", note: str = "") -> Table:
    """Test accuracy against the number of labels: a row for each feature set, a column for each count, best in bold.

    Args:
        cells: from `twofold.evaluation.few_labels.label_efficiency`.
        title, note: see `Table`; the default note says what the numbers are.
    """
    counts = sorted({cell.labels for cell in cells})
    names = list(dict.fromkeys(cell.features for cell in cells))
    by = {(cell.features, cell.labels): cell for cell in cells}
    draws = max(len(cell.top1) for cell in cells)
    rows = [[name, *(_accuracy(by.get((name, count))) for count in counts)] for name in names]
    best = set()
    for column, count in enumerate(counts, 1):
        known = {row: by[name, count].mean for row, name in enumerate(names) if (name, count) in by}
        best |= {(row, column) for row, mean in known.items() if mean == max(known.values())}
    note = note or (
        f"Test accuracy of a logistic regression in %; {averaged(draws, 'draw', ' of the labelled images')} (a single "
        "fit where every image is labelled)."
    )
    return Table(title, ["", *(f"{counted(count, 'label')}" for count in counts)], rows, note, frozenset(best))


def _accuracy(cell: LabelEfficiency | None) -> str | None:
    if cell is None:
        return None
    return f"{cell.mean * 100:.1f}" + ("" if cell.std is None else f" ± {cell.std * 100:.1f}")


def averaged(count: int, what: str, of: str = "") -> str:
    """What the numbers of a table are averaged over, in words: so many draws or seeds, `of` behind them."""
    if count == 1:
        return f"one {what}{of}: no spread is known"
    return f"mean ± standard deviation over {counted(count, what)}{of}"


def spread(values: Sequence[float]) -> str:
    """Shares as percent: the mean, with the sample standard deviation where there are two or more; empty of none."""
    if len(values) == 0:
        return ""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def curve(name: str, at: Sequence[int], values: Mapping[int, Sequence[float]], dashed: bool = False) -> Series:
    """The mean at each position, with bars of one standard deviation; nothing where there are no values."""
    means = [float(np.mean(values[x])) if values.get(x) else None for x in at]
    bars = [float(np.std(values[x], ddof=1)) if len(values.get(x, ())) > 1 else None for x in at]
    return Series(name, means, bars, dashed)


def terminal(table: Table) -> str:
    """A table for a terminal: names on the left, numbers under one another's ends, the note below."""
    rows = [list(table.columns)]
    rows += [[table.text(r, c) for c in range(len(table.columns))] for r in range(len(table.rows))]
    widths = [max(len(row[c]) for row in rows) for c in range(len(table.columns))]
    lines = []
    for name, *cells in rows:
        padded = [name.ljust(widths[0]), *map(_padded, cells, widths[1:])]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def _padded(cell: str, width: int) -> str:
    """Numbers, and headings that begin with one, end where those below them end."""
    return cell.rjust(width) if cell[:1].isdigit() or cell[:1] == "-" else cell.ljust(width)
