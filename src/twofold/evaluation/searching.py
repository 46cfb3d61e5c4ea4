"""What neighbours tell of some data: what is like a query, what is there twice, what is like nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from twofold.evaluation.neighbours import Index

LINKED = 50
"""Neighbours of each example that near-duplicates are looked for among; groups grow beyond through each other."""
ALONE = 10
"""Which neighbour's distance says how far an example lies from all others."""


@dataclass(frozen=True)
class Hit:
    """One example that was found.

    Attributes:
        row: its place among the examples that are searched.
        similarity: cosine around the mean of these, in [-1, 1].
    """

    row: int
    similarity: float


@dataclass(frozen=True)
class Group:
    """Examples that are nearly the same.

    Attributes:
        rows: their places, ascending; in comparing two sets, of the first.
        others: places in the second set.
        similarity: the lowest of the links that hold the group together, in [-1, 1].
    """

    rows: tuple[int, ...]
    similarity: float
    others: tuple[int, ...] = ()


def neighbours(
    index: Index, queries: NDArray[np.float32], k: int, own: NDArray[np.int64] | None = None
) -> list[list[Hit]]:
    """The k most similar examples of each query [m, d] of length 1, the most similar first.

    Args:
        own: [m] the place of each query among what is searched, which is not its own neighbour; None for new ones.
    """
    similarity, rows = index.search(queries, k + (own is not None))
    result = []
    for query, (values, found) in enumerate(zip(similarity.tolist(), rows.tolist(), strict=True)):
        mine = -1 if own is None else int(own[query])
        hits = [Hit(row, value) for value, row in zip(values, found, strict=True) if row >= 0 and row != mine]
        result.append(hits[:k])
    return result


def duplicates(index: Index, bank: NDArray[np.float32], least: float) -> list[Group]:
    """Groups of examples [n, d] of which each is at least so similar to another of its group; the largest first."""
    similarity, rows = index.search(bank, LINKED + 1)
    own = np.arange(len(bank))[:, None]
    linked = (similarity >= least) & (rows >= 0) & (rows != own)
    first, second = np.broadcast_to(own, rows.shape)[linked], rows[linked]
    return _groups(first, second, similarity[linked], len(bank))


def leaks(index: Index, queries: NDArray[np.float32], least: float, count: int) -> list[Group]:
    """Groups of searched examples (of `count`) and queries [m, d] that are at least so similar to one of them."""
    similarity, rows = index.search(queries, LINKED)
    linked = (similarity >= least) & (rows >= 0)
    place = np.broadcast_to(np.arange(len(queries))[:, None], rows.shape)[linked]
    found = _groups(rows[linked], place + count, similarity[linked], count + len(queries))
    return [
        Group(tuple(r for r in g.rows if r < count), g.similarity, tuple(r - count for r in g.rows if r >= count))
        for g in found
    ]


def outliers(index: Index, bank: NDArray[np.float32], most: int) -> list[Hit]:
    """The examples [n, d] that lie farthest from their 10th nearest, or of fewer from the last, farthest first.

    Ranked as in "Efficient Algorithms for Mining Outliers from Large Data Sets" (SIGMOD 2000); `similarity` is that to
    this neighbour.
    """
    similarity, rows = index.search(bank, ALONE + 1)
    counted = (rows >= 0) & (rows != np.arange(len(bank))[:, None])
    counted &= np.cumsum(counted, axis=1) <= ALONE
    values = np.where(counted, similarity, np.inf).min(axis=1)
    values[~counted.any(axis=1)] = -1.0  # of a single example
    order = np.argsort(values, kind="stable")[:most]
    return [Hit(int(row), float(values[row])) for row in order]


def _groups(
    first: NDArray[np.int64], second: NDArray[np.int64], similarity: NDArray[np.floating], count: int
) -> list[Group]:
    """What hangs together by links, with the weakest link of each."""
    links = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    part = connected_components(links, directed=False)[1]
    weakest: dict[int, float] = {}
    for place, value in zip(part[first].tolist(), similarity.tolist(), strict=True):
        weakest[place] = min(value, weakest.get(place, 1.0))
    members: dict[int, list[int]] = {place: [] for place in weakest}
    for row in np.flatnonzero(np.isin(part, list(weakest))).tolist():
        members[int(part[row])].append(row)
    result = [Group(tuple(rows), weakest[place]) for place, rows in members.items()]
    return sorted(result, key=lambda group: (-len(group.rows), -group.similarity, group.rows))
