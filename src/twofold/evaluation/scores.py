"""Accuracy as the papers report it: top-1, top-5 and the mean over classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twofold.kinds import EXAMPLE, Kind
from twofold.text import counted

UNEVEN = 1.5
"""How many times as many test images a class has as another where the recalls of all are told to people."""
_MORE = 0.1
"""Of what chance leaves, the right answers that have to be possible for nothing to be said of chance."""
MOST_RECALLS = 10
"""Classes of which the recall is told in a line; files have all."""


@dataclass(frozen=True)
class Scores:
    """Accuracies of one test set, all in [0, 1].

    Attributes:
        top1: share of images whose highest-scored class is the right one.
        top5: share of images whose class is among the five highest; None with five classes or fewer.
        mean_per_class: top-1 within each class, averaged over the classes that the test set holds (speech calls it
            unweighted accuracy, UA; scikit-learn balanced accuracy).
        count: number of test images.
        macro_f1: F1 of each class that the test set holds, averaged; None in files of before it was told.
        recall: top-1 within each class by its name or number, where the test set has more of one class than of another;
            None where it has not, and in files of before it was told.
        support: number of test images of each of these classes.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    count: int
    macro_f1: float | None = None
    recall: Mapping[str, float] | None = field(default=None, compare=False)
    support: Mapping[str, int] | None = field(default=None, compare=False)

    def metrics(self) -> dict[str, float]:
        """The accuracies by name, but for those that are None."""
        values = {name: getattr(self, name) for name in ("top1", "top5", "mean_per_class", "macro_f1")}
        return {name: value for name, value in values.items() if value is not None}

    def words(self) -> str:
        """For people."""
        top5 = f", top-5 {self.top5:.2%}" if self.top5 is not None else ""
        f1 = f", macro F1 {self.macro_f1:.2%}" if self.macro_f1 is not None else ""
        mean = "balanced accuracy (mean per class)" if self.uneven else "mean per class"
        return f"top-1 {self.top1:.2%}{top5}, {mean} {self.mean_per_class:.2%}{f1}"

    @property
    def uneven(self) -> bool:
        """Whether a class has half as many test images again as another: top-1 speaks of some more than of others."""
        counts = self.support.values() if self.support else (1,)
        return max(counts) >= UNEVEN * min(counts)

    def recalls(self) -> list[str]:
        """A line with the recall of each class, lowest first, for people; none where the classes are about even."""
        if not self.uneven or self.recall is None or self.support is None:
            return []
        names = sorted(self.recall, key=lambda name: (self.recall or {})[name])
        shown = ", ".join(f"{name} {self.recall[name]:.2%} of {self.support[name]:,}" for name in names[:MOST_RECALLS])
        which = (
            "each class"
            if len(names) <= MOST_RECALLS
            else f"the {MOST_RECALLS} worst of {counted(len(names), 'class')}"
        )
        return [f"recall of {which}: {shown}"]

    def named(self, classes: Sequence[str] | None) -> Scores:
        """The same with names in place of the classes' numbers, where there are names."""
        if classes is None or self.recall is None or self.support is None:
            return self
        recall = {classes[int(number)]: value for number, value in self.recall.items()}
        support = {classes[int(number)]: value for number, value in self.support.items()}
        return dataclasses.replace(self, recall=recall, support=support)


def score(scores: NDArray[np.floating], classes: NDArray[np.int64], labels: NDArray[np.int64]) -> Scores:
    """Compare class scores with labels.

    Args:
        scores: [N, K], the higher the likelier; of equal scores the earlier column wins. A class at -inf is none of
            the answers.
        classes: [K] label of each column.
        labels: [N] right labels.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = (classes[order] == labels[:, None]) & (np.take_along_axis(scores, order, axis=1) > -np.inf)
    right = hits[:, 0]
    present, counts = np.unique(labels, return_counts=True)
    per_class = [right[labels == label].mean() for label in present]
    message = classes[order[:, 0]]
    f1 = [2 * right[labels == label].sum() / ((message == label).sum() + (labels == label).sum()) for label in present]
    uneven = bool((counts != counts[0]).any())
    return Scores(
        top1=float(right.mean()),
        top5=float(hits.any(axis=1).mean()) if len(classes) > 5 else None,
        mean_per_class=float(np.mean(per_class)),
        count=len(labels),
        macro_f1=float(np.mean(f1)),
        recall={str(label): float(value) for label, value in zip(present, per_class, strict=True)} if uneven else None,
        support={str(label): int(count) for label, count in zip(present, counts, strict=True)} if uneven else None,
    )


def no_better_than_chance(scores: Scores, largest: float, classes: int, trained: float | None, kind: Kind) -> str:
    """What to say where a classifier is no better on examples that it has not seen than one that names one class.

    It has to be beyond doubt, by two standard errors, that top-1 is above the share of the largest class by less than a
    tenth of what that leaves; and as little by the mean over the classes, which uneven classes are better told by.

    Args:
        scores: on the test examples.
        largest: share of their largest class.
        classes: that there are.
        trained: share of right answers on training examples at last; None where nobody knows.
        kind: of the examples.
    """
    p = max(scores.top1, 1 / max(scores.count, 1))
    error = math.sqrt(p * max(1 - p, 0.0) / scores.count)
    if scores.top1 + 2 * error >= largest + _MORE * (1 - largest):
        return ""
    if scores.mean_per_class >= 1 / classes + _MORE * (1 - 1 / classes):
        return ""
    examples = f"{EXAMPLE[kind]}s"
    words = (
        f"{scores.top1:.1%} of the test {examples} are told right, and naming their largest class alone would be in "
        f"{largest:.1%}: what was learned does not hold for {examples} that were not seen"
    )
    if trained is not None and trained > largest + 0.3:
        return (
            f"{words}, though {trained:.1%} of the training {examples} were told right at last: they were learned by "
            f"heart. See that labels belong to their {examples}, that test {examples} are like those of training, and "
            "give more labels"
        )
    return f"{words}. See that labels belong to their {examples} and that test {examples} are like those of training"


@dataclass(frozen=True)
class ManyScores:
    """Accuracy where an image can have many labels, all in [0, 1].

    Attributes:
        map11: mean over the classes of the 11-point average precision, as Pascal VOC 2007 counts it.
        per_class: the average precision of each class.
        count: number of test images.
    """

    map11: float
    per_class: tuple[float, ...]
    count: int


def average_precision_11(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Mean over the recalls 0, 0.1, ..., 1 of the best precision at that recall or a higher one (Pascal VOC 2007).

    Args:
        scores: [N], the higher the likelier; of equal scores the earlier image comes first.
        positive: [N], at least one of them true.
    """
    hits = positive[np.argsort(-scores, kind="stable")]
    result = np.cumsum(hits)
    precision, recall = result / np.arange(1, len(hits) + 1), result / result[-1]
    # Recalls are fractions of whole numbers: a hair of tolerance keeps 3 of 10 from missing 0.3.
    return float(np.mean([precision[recall >= level / 10 - 1e-12].max() for level in range(11)]))


def score_many(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> ManyScores:
    """Compare class scores [N, K] with labels [N, K] of 0 and 1, each class with a positive image."""
    each = tuple(average_precision_11(scores[:, k], labels[:, k] > 0) for k in range(labels.shape[1]))
    return ManyScores(float(np.mean(each)), each, len(labels))
