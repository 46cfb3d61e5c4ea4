"""Which images get a label when only some do, and what accuracy that buys: "how many labels do I need?"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twofold.errors import UserError
from twofold.evaluation.label_subsets import balanced_subset
from twofold.evaluation.logistic import Array, LinearModel, choose_l2, fit_linear
from twofold.evaluation.scores import score
from twofold.evaluation.splits import Labels, stratified_split

ONE_LABEL_L2 = 1.0  # with one image a class nothing is left to validate on; near the optimum on small real sets
SUBSET_GRID = tuple(float(v) for v in np.logspace(-3, 1, 5))
VALIDATION_IMAGES = 250  # enough held-out predictions to tell neighbouring penalties apart


@dataclass(frozen=True)
class LabelEfficiency:
    """Test accuracy of one feature set with one number of labels.

    Attributes:
        features: name of the feature set.
        labels: number of labelled images.
        top1: test accuracy of each draw of labels, in [0, 1]. One draw only where every image is labelled, since all
            draws would be the same.
        l2: penalty chosen in each draw.
    """

    features: str
    labels: int
    top1: tuple[float, ...]
    l2: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.top1))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the draws (n - 1 in the denominator); None for a single draw."""
        return float(np.std(self.top1, ddof=1)) if len(self.top1) > 1 else None


def label_efficiency(
    feature_sets: Mapping[str, tuple[Array, Array]],
    y_train: Labels,
    y_test: Labels,
    counts: Sequence[int] = (50, 500, 4000),
    draws: int = 3,
    seed: int = 0,
    grid: Sequence[float] = SUBSET_GRID,
    groups: Labels | None = None,
) -> list[LabelEfficiency]:
    """Test accuracy of a logistic regression against the number of labels, for several kinds of features.

    In each draw every feature set gets the same labelled images. The l2 penalty is chosen among these images alone, on
    random held-out fifths (repeated until they hold 250 images, five times at most), and the classifier is then fitted
    on all of them. So neither test images nor further labels take part.

    Args:
        feature_sets: name -> (features of the training images [N, d], of the test images [M, d]).
        y_train, y_test: [N] and [M] labels.
        counts: numbers of labels in all classes together.
        draws: repetitions with other labelled images.
        seed: fixes which images get labels in which draw.
        grid: penalties to choose from.
        groups: [N] of the training images. Labels are drawn image by image; what is held out to choose a penalty are
            whole groups of the drawn images.

    Returns:
        A cell for each count and feature set, in that order.

    Raises:
        UserError: see `balanced_subset`; also for fewer than one draw.
    """
    if draws < 1:
        raise UserError(f"at least 1 draw of labels is needed, got {draws}")
    cells, labelled = [], int((y_train >= 0).sum())
    for count in counts:
        outcomes: dict[str, list[tuple[float, float]]] = {name: [] for name in feature_sets}
        for draw in range(draws if count < labelled else 1):
            selection = balanced_subset(y_train, total=count, seed=seed, draw=draw)
            for name, (train, test) in feature_sets.items():
                together = None if groups is None else groups[selection]
                outcomes[name].append(
                    _fit_subset(train[selection], y_train[selection], test, y_test, seed, draw, grid, together)
                )
        for name, pairs in outcomes.items():
            cells.append(LabelEfficiency(name, count, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)))
    return cells


def _fit_subset(
    x: Array,
    y: Labels,
    test: Array,
    y_test: Labels,
    seed: int,
    draw: int,
    grid: Sequence[float],
    groups: Labels | None,
) -> tuple[float, float]:
    """(test accuracy, chosen l2) of a classifier fitted on x [n, d] and y [n] alone."""
    model, l2 = fit_few(x, y, seed, draw, grid, groups)
    return score(model.logits(test), model.classes, y_test).top1, l2


def fit_few(
    x: Array,
    y: Labels,
    seed: int = 0,
    draw: int = 0,
    grid: Sequence[float] = SUBSET_GRID,
    groups: Labels | None = None,
) -> tuple[LinearModel, float]:
    """A logistic regression on few labels, and its l2, chosen among these images alone (see `label_efficiency`).

    Args:
        x: [n, d] features.
        y: [n] labels.
        seed, draw: the address of the random held-out fifths.
        grid: penalties to choose from.
        groups: [n], kept together where images are held out; where no class has two of them nothing is validated.
    """
    l2 = ONE_LABEL_L2
    if groups is None and np.unique(y, return_counts=True)[1].min() > 1:
        repeats = min(5, math.ceil(VALIDATION_IMAGES / (0.2 * len(y))))
        splits = [stratified_split(y, 0.2, seed, f"label validation/{draw}", repeat) for repeat in range(repeats)]
        l2, _ = choose_l2(x, y, splits, grid)
    if groups is not None:
        splits = _grouped_fifths(y, groups, seed, draw)
        l2 = choose_l2(x, y, splits, grid)[0] if splits else l2
    return fit_linear(x, y, l2), l2


def _grouped_fifths(y: Labels, groups: Labels, seed: int, draw: int) -> list[tuple[Labels, Labels]]:
    """Held-out fifths of whole groups, without classes of one group; none where the groups allow no division."""
    splits: list[tuple[Labels, Labels]] = []
    for repeat in range(min(5, math.ceil(VALIDATION_IMAGES / (0.2 * len(y))))):
        try:
            stream = f"label validation/{draw}"
            splits.append(stratified_split(y, 0.2, seed, stream, repeat, groups=groups, lone=True))
        except UserError:  # the draw's groups do not allow it, which is no mistake of the user's
            break
    return splits
