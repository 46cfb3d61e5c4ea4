"""Whose neighbours are whose: how much of a representation is who speaks, and how much what is said, by speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twofold.report.tables import Table

_MOST = 12
"""Speakers that get a row of their own."""


def retrieval_table(
    h: NDArray[np.float32],
    speakers: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    word: str = "speaker",
    example: str = "recording",
) -> Table | None:
    """How often the nearest neighbour is of the same speaker, and, among all others' examples, of the same class.

    Cosine of features less their mean, as in verification. Chance is the share of such examples among those that could
    have been the neighbour.

    Args:
        h: [N, d] features.
        speakers: [N] names, "" where nobody knows; these take no part.
        labels: [N] classes, below 0 where unknown; None for none.
        word: what the names are: "speaker", "group".
        example: what one is called.

    Returns:
        A row for all, and one for each of the twelve speakers with most examples; None unless two speakers are known
        and one of them has two examples.
    """
    names = np.array(speakers)
    known = np.flatnonzero(names != "")
    counts = Counter(names[known].tolist())
    if len(counts) < 2 or max(counts.values()) < 2:
        return None
    x, names = h[known] - h[known].mean(axis=0), names[known]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosine, same = x @ x.T, names[:, None] == names
    itself = np.eye(len(x), dtype=bool)
    columns = [_found(cosine, ~itself, same)]
    heads = [f"same {word} next", "chance"]
    if labels is not None and labels.ndim == 1 and (labels >= 0).any():
        own = labels[known]
        alike = (own[:, None] == own) & (own >= 0)
        columns.append(_found(cosine, ~same & (own >= 0), alike, own >= 0))
        heads += [f"same class next, other {word}s'", "chance"]
    rows = [["all", len(x), *_shares(columns, np.ones(len(x), bool))]]
    shown = sorted(counts, key=lambda name: (-counts[name], name))[:_MOST]
    rows += [[name, counts[name], *_shares(columns, names == name)] for name in shown]
    left = f" The {_MOST} with most {example}s of {len(counts):,} are shown." if len(counts) > _MOST else ""
    note = (
        f"In %: how often the most similar other {example} is of the same {word}"
        + (f", and how often the most similar {example} of another {word} has the same class" * (len(columns) > 1))
        + f". A representation of what is said is near chance in the first and far above it in the second.{left}"
    )
    return Table(f"Neighbours by {word}", [word, f"{example}s", *heads], rows, note)


_Column = tuple[NDArray[np.float64], NDArray[np.float64]]


def _found(
    cosine: NDArray[np.float32],
    could: NDArray[np.bool_],
    right: NDArray[np.bool_],
    asked: NDArray[np.bool_] | None = None,
) -> _Column:
    """For each row, whether its nearest of the columns that `could` be it is `right`, and the share of these that are;
    nan where there is none, or the row is not `asked`."""
    place = np.where(could, cosine, -np.inf).argmax(axis=1)
    rows, count = np.arange(len(cosine)), could.sum(axis=1)
    valid = (count > 0) & (True if asked is None else asked)
    hit = np.where(valid, right[rows, place], np.nan)
    chance = np.where(valid, (right & could).sum(axis=1) / np.maximum(count, 1), np.nan)
    return hit.astype(np.float64), chance.astype(np.float64)


def _shares(columns: Sequence[_Column], rows: NDArray[np.bool_]) -> list[str | None]:
    """Means over some rows in per cent, None where no row counts."""
    cells: list[str | None] = []
    for values in (each for column in columns for each in column):
        counted = values[rows][~np.isnan(values[rows])]
        cells.append(f"{100 * counted.mean():.1f}" if len(counted) else None)
    return cells
