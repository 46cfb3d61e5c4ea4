"""What accuracies against numbers of labels say, in plain words: no more than the spread of the draws allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from twofold.evaluation.labels import Cell

LITTLE = 0.01
"""A gain below this, one point, is called little."""


def read_out(cells: Sequence[Cell], control: str) -> str:
    """What the cells say. `control` names the way that uses no pretrained net."""
    counts = sorted({cell.labels for cell in cells})
    rows = {count: [cell for cell in cells if cell.labels == count] for count in counts}
    best = {count: max(row, key=lambda cell: cell.mean) for count, row in rows.items()}
    few, most = counts[0], counts[-1]
    lines = [_first(few, rows[few])]
    if most > few:
        gain = best[most].mean - best[few].mean
        alike = _names(_alike(best[most], rows[most]))
        also = f"; alike within the spread: {alike}" if alike else ""
        lines.append(
            f"{most:,} labels give {_words(best[most])} ({best[most].features}{also}), {gain * 100:+.1f} points."
        )
    lines += _against_control(counts, rows, control)
    # Little is bought where every later number stays within a point, not where one step happens to be small.
    enough = next((a for a in counts[:-1] if all(best[b].mean - best[a].mean < LITTLE for b in counts if b > a)), None)
    if enough:
        lines.append(f"From about {enough:,} labels on, more of them buy less than a point.")
    return " ".join(lines)


def beyond_spread(a: Cell, b: Cell) -> bool:
    """Whether a's mean lies above b's by more than the differences of the draws scatter (one standard deviation).

    All ways get the same labelled images in a draw, so that their differences are compared draw by draw. Of a single
    draw the spread is not known, and any lead counts.
    """
    lead = a.mean - b.mean
    if len(a.top1) == len(b.top1) > 1:
        return lead > float(np.std(np.subtract(a.top1, b.top1), ddof=1))
    return lead > math.hypot(a.std or 0.0, b.std or 0.0)


def _first(count: int, row: Sequence[Cell]) -> str:
    """Which way is best with so few labels."""
    best = max(row, key=lambda cell: cell.mean)
    if len(row) == 1:
        return f"With {count:,} labels: {best.features}, {_words(best)}."
    alike = [best, *_alike(best, row)]
    if len(alike) == 1:
        once = " (of one draw of labels: its spread is not known)" if best.std is None else ""
        return f"With {count:,} labels the best is: {best.features}, {_words(best)}{once}."
    listed = [f"{cell.features}, {_words(cell)}" for cell in alike]
    return f"With {count:,} labels the best are alike within the spread of the draws: {'; '.join(listed)}."


def _against_control(counts: Sequence[int], rows: dict[int, list[Cell]], control: str) -> list[str]:
    """What pretraining is worth in labels; nothing where one side was not measured, or the control wins."""
    few = counts[0]
    scratch = {count: cell for count in counts for cell in rows[count] if cell.features == control}
    others = [cell for cell in rows[few] if cell.features != control]
    if not scratch or not others:
        return []
    pretrained = max(others, key=lambda cell: cell.mean)
    told = f"Trained from scratch, {few:,} labels give {scratch[few].mean * 100:.1f} %"
    if beyond_spread(scratch[few], pretrained):
        return []
    if not beyond_spread(pretrained, scratch[few]):
        return [f"{told}, which differs from the pretrained net's by no more than the spread of the draws."]
    place = next((i for i, count in enumerate(counts) if scratch[count].mean >= pretrained.mean), None)
    if place is None:
        return [f"{told}; even {counts[-1]:,} stay below what the pretrained net reaches with {few:,}."]
    enough, short = counts[place], counts[place - 1]
    told += f"; it takes {enough:,} of them ({short:,} are too few) to reach what"
    return [f"{told} the pretrained net reaches with {few:,}."]


def _alike(best: Cell, row: Sequence[Cell]) -> list[Cell]:
    """The other ways that `best` does not lead by more than the spread, better ones first."""
    near = [cell for cell in row if cell is not best and not beyond_spread(best, cell)]
    return sorted(near, key=lambda cell: -cell.mean)


def _names(cells: Sequence[Cell]) -> str:
    return " and ".join(cell.features for cell in cells)


def _words(cell: Cell) -> str:
    spread = f" ± {cell.std * 100:.1f}" if cell.std is not None else ""
    return f"{cell.mean * 100:.1f}{spread} %"
