"""Repeated results: their mean and spread, as a table's cell, a curve and a terminal's lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from twofold.report import Series, Table


def spread(values: Sequence[float]) -> str:
    """Shares as percent: the mean, with the sample standard deviation where there are two or more."""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def curve(name: str, at: Sequence[int], found: Mapping[int, Sequence[float]], dashed: bool = False) -> Series:
    """The mean at each position, with bars of one standard deviation; nothing where there are no values."""
    means = [float(np.mean(found[x])) if found.get(x) else None for x in at]
    bars = [float(np.std(found[x], ddof=1)) if len(found.get(x, ())) > 1 else None for x in at]
    return Series(name, means, bars, dashed)


def terminal(table: Table) -> str:
    """A table for a terminal."""
    rows = [list(table.columns)]
    rows += [[table.text(r, c) for c in range(len(table.columns))] for r in range(len(table.rows))]
    widths = [max(len(row[c]) for row in rows) for c in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", table.note])
