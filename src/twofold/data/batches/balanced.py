"""Class-balanced sampling: as many examples of each class, however many there are of it."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from twofold.randomness import permutation


class BalancedDraws:
    """An endless sequence of examples, any part of which can be asked for: a pure function of labels and seed.

    It goes by rounds of one example of each class, the classes in another random order in each. Of a class every
    example is drawn once, in random order, before any is drawn again. So the counts of two classes never differ by more
    than one, where drawing a class at random each time (class-balanced sampling of Kang et al., "Decoupling
    representation and classifier for long-tailed recognition", arXiv 1910.09217) is even on average.

    Args:
        labels: [N] class numbers from 0; examples below 0 are never drawn.
        seed: of the run.
    """

    def __init__(self, labels: NDArray[np.int64], seed: int) -> None:
        classes = np.unique(labels[labels >= 0])
        members = [np.flatnonzero(labels == label) for label in classes]
        self._sizes = np.array([len(each) for each in members])
        self._turns = functools.lru_cache(maxsize=256)(
            lambda number: permutation(seed, "order/classes", number, len(classes))
        )
        self._members = functools.lru_cache(maxsize=2 * len(classes))(
            lambda place, lap: members[place][
                permutation(seed, f"order/class {classes[place]}", lap, len(members[place]))
            ]
        )

    def entries(self, start: int, stop: int) -> NDArray[np.int64]:
        """[stop - start] examples: those from place `start` of the sequence on."""
        places = np.arange(start, stop)
        rounds, slots = np.divmod(places, len(self._sizes))
        kinds = np.empty(len(places), dtype=np.int64)
        for number in np.unique(rounds).tolist():
            inside = rounds == number
            kinds[inside] = self._turns(number)[slots[inside]]
        laps, turns = np.divmod(rounds, self._sizes[kinds])
        drawn = zip(kinds.tolist(), laps.tolist(), turns.tolist(), strict=True)
        return np.array([self._members(kind, lap)[turn] for kind, lap, turn in drawn], dtype=np.int64)
