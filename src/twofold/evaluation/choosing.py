"""Which examples to label next: typical ones of groups without a label, or those that a classifier is in doubt of."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from twofold.evaluation.few_labels import fit_few
from twofold.evaluation.logistic import LinearModel
from twofold.evaluation.neighbours import ExactIndex
from twofold.evaluation.splits import Labels
from twofold.randomness import derive_seed

Way = Literal["auto", "typical", "uncertain"]
Array = NDArray[np.float32]
MOST_GROUPS = 500
"""Groups at most, as in TypiClust: with more labels, several are taken of a group."""
_BESIDE = 20
"""Nearest neighbours within a group that say how typical one is."""
_SMALLEST = 5
"""Examples of a group that is taken for one; smaller ones come last."""
_FACTOR = 10
"""So many times more uncertain examples than are wanted are considered, and different ones among them taken."""
TYPICAL_BELOW = 20
"""Labels a known class up to which `auto` looks for typical examples."""


@dataclass(frozen=True)
class Choice:
    """One example that should get a label.

    Attributes:
        row: its place.
        why: in words.
    """

    row: int
    why: str


@dataclass(frozen=True)
class Guess:
    """What a classifier that was fitted on the labels there are says of every example.

    Attributes:
        probabilities: [n, K].
        classes: [K] label of each column.
    """

    probabilities: NDArray[np.float64]
    classes: Labels

    def best(self, row: int) -> tuple[int, float]:
        """The likeliest label of one example and its probability."""
        column = int(self.probabilities[row].argmax())
        return int(self.classes[column]), float(self.probabilities[row, column])


def guess(features: Array, labels: Labels, seed: int = 0) -> Guess | None:
    """A logistic regression on the known labels; None for fewer than two classes.

    Args:
        features: [n, d].
        labels: [n], below 0 where unknown.
        seed: of what is held out to choose its penalty.
    """
    known = np.flatnonzero(labels >= 0)
    if len(np.unique(labels[known])) < 2:
        return None
    model: LinearModel = fit_few(features[known], labels[known], seed)[0]
    logits = model.logits(features).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Guess(shares / shares.sum(axis=1, keepdims=True), model.classes)


def choose(
    around: Array, labels: Labels, count: int, guessed: Guess | None, way: Way = "auto", seed: int = 0,
    passed: NDArray[np.bool_] | None = None,
) -> list[Choice]:  # fmt: skip
    """The examples without a label that are worth one most, the most worth first.

    Args:
        around: [n, d] features of length 1 around their mean.
        labels: [n], below 0 where unknown.
        count: how many are wanted; fewer where fewer are without a label.
        guessed: what is known of them, for `uncertain`.
        way: typical ones of groups that have no label (`typical_rows`), uncertain ones (`uncertain_rows`), or auto:
            typical ones until the known classes have 20 labels each on average, then uncertain ones.
        seed: of the clusterings.
        passed: [n] which are not to be chosen, although nobody knows their label.
    """
    known = labels >= 0
    taken = known if passed is None else known | passed
    count = min(count, int((~taken).sum()))
    if count < 1:
        return []
    if way == "auto":
        enough = guessed is not None and known.sum() >= TYPICAL_BELOW * len(guessed.classes)
        way = "uncertain" if enough else "typical"
    if way == "uncertain" and guessed is not None:
        return uncertain_rows(around, taken, count, guessed, seed)
    return typical_rows(around, known, count, seed, taken)


def typical_rows(
    around: Array, known: NDArray[np.bool_], count: int, seed: int = 0, taken: NDArray[np.bool_] | None = None
) -> list[Choice]:
    """TypiClust ("Active Learning on a Budget", arXiv 2202.02794, algorithm 1).

    k-means into as many groups as there will be labels, at most 500. In turn the group with the fewest labels, of these
    the largest, gives its most typical example: the one whose mean distance to its 20 nearest in the group is least.
    What is `taken`, by default what is known, is not chosen.
    """
    taken = known if taken is None else taken
    groups = min(int(known.sum()) + count, MOST_GROUPS, len(around))
    group = _clusters(around, groups, derive_seed(seed, "label/typical") % 2**32)
    sizes = np.bincount(group, minlength=groups)
    labelled = np.bincount(group[known], minlength=groups)
    free = np.bincount(group[~taken], minlength=groups)
    order: dict[int, list[int]] = {}
    chosen: list[Choice] = []
    while len(chosen) < count:
        open_ones = np.flatnonzero(free > 0)
        keys = (-sizes[open_ones], labelled[open_ones], sizes[open_ones] < _SMALLEST)
        place = int(open_ones[np.lexsort(keys)[0]])
        if place not in order:
            order[place] = _by_typicality(around, np.flatnonzero(group == place), taken)
        row = order[place].pop(0)
        before = int(labelled[place])
        have = "that has no label yet" if not before else f"that has {before} label{'s' if before > 1 else ''}"
        chosen.append(Choice(row, f"typical of {sizes[place]:,} alike {have}" if sizes[place] > 1 else "like no other"))
        labelled[place] += 1
        free[place] -= 1
    return chosen


def uncertain_rows(around: Array, taken: NDArray[np.bool_], count: int, guessed: Guess, seed: int = 0) -> list[Choice]:
    """The smallest margins between the two likeliest classes, spread out ("Diverse mini-batch Active Learning", arXiv
    1901.05954): of ten times as many as are wanted, weighted k-means into `count` groups, and of each the example
    nearest to its centre.
    """
    top = np.sort(guessed.probabilities, axis=1)[:, -2:]
    doubt = 1 - (top[:, 1] - top[:, 0])
    free = np.flatnonzero(~taken)
    near = free[np.argsort(-doubt[free], kind="stable")[: _FACTOR * count]]
    if len(near) > count:
        state = derive_seed(seed, "label/uncertain") % 2**32
        with _quietly():
            means = KMeans(count, n_init=1, random_state=state).fit(around[near], sample_weight=doubt[near] + 1e-6)
        far = means.transform(around[near])
        far[means.labels_[:, None] != np.arange(count)] = np.inf
        found = {int(near[far[:, each].argmin()]) for each in range(count) if np.isfinite(far[:, each]).any()}
        rest = (int(row) for row in near if int(row) not in found)
        while len(found) < count:  # equal examples can leave groups empty
            found.add(next(rest))
    else:
        found = set(near.tolist())
    rows = sorted(found, key=lambda row: (-doubt[row], row))
    return [Choice(row, f"uncertain: the two likeliest classes are {1 - doubt[row]:.2f} apart") for row in rows]


def _clusters(around: Array, groups: int, state: int) -> Labels:
    """[n] group of each."""
    if groups >= len(around):
        return np.arange(len(around))
    many = len(around) > 20_000
    means = MiniBatchKMeans(groups, n_init=3, random_state=state, batch_size=4096) if many else KMeans(
        groups, n_init=1, random_state=state
    )  # fmt: skip
    with _quietly():
        found: Labels = means.fit_predict(around).astype(np.int64)
    return found


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """k-means on one thread, so that sums come out alike on every machine; equal examples leave groups empty, which is
    no news."""
    with threadpool_limits(limits=1, user_api="openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _by_typicality(around: Array, members: NDArray[np.int64], taken: NDArray[np.bool_]) -> list[int]:
    """Those of a group that can be chosen, the most typical first."""
    if len(members) < 3:
        return [int(row) for row in members[~taken[members]]]
    k = min(_BESIDE, len(members) - 1)
    similarity, _ = ExactIndex(around[members]).search(around[members], k + 1)
    distance = np.sqrt(np.maximum(2 - 2 * similarity[:, 1:], 0)).mean(axis=1)
    order: Sequence[int] = members[np.argsort(distance, kind="stable")].tolist()
    return [row for row in order if not taken[row]]
