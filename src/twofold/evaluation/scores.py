"""Accuracy as the papers report it: top-1, top-5 and the mean over classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Accuracies of one test set, all in [0, 1].

    Attributes:
        top1: share of images whose highest-scored class is the right one.
        top5: share of images whose class is among the five highest; None with five classes or fewer.
        mean_per_class: top-1 within each class, averaged over the classes that the test set holds (speech calls it
            unweighted accuracy, UA).
        count: number of test images.
        macro_f1: F1 of each class that the test set holds, averaged; None in files of before it was told.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    count: int
    macro_f1: float | None = None

    def metrics(self) -> dict[str, float]:
        """The accuracies by name, but for those that are None."""
        values = {name: getattr(self, name) for name in ("top1", "top5", "mean_per_class", "macro_f1")}
        return {name: value for name, value in values.items() if value is not None}

    def words(self) -> str:
        """For people."""
        top5 = f", top-5 {self.top5:.2%}" if self.top5 is not None else ""
        f1 = f", macro F1 {self.macro_f1:.2%}" if self.macro_f1 is not None else ""
        return f"top-1 {self.top1:.2%}{top5}, mean per class {self.mean_per_class:.2%}{f1}"


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
    present = np.unique(labels)
    per_class = [right[labels == label].mean() for label in present]
    message = classes[order[:, 0]]
    f1 = [2 * right[labels == label].sum() / ((message == label).sum() + (labels == label).sum()) for label in present]
    return Scores(
        top1=float(right.mean()),
        top5=float(hits.any(axis=1).mean()) if len(classes) > 5 else None,
        mean_per_class=float(np.mean(per_class)),
        count=len(labels),
        macro_f1=float(np.mean(f1)),
    )


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
