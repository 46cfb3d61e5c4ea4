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
        mean_per_class: top-1 within each class, averaged over the classes that the test set holds.
        count: number of test images.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    count: int


def score(scores: NDArray[np.floating], classes: NDArray[np.int64], labels: NDArray[np.int64]) -> Scores:
    """Compare class scores with labels.

    Args:
        scores: [N, K], the higher the likelier; of equal scores the earlier column wins.
        classes: [K] label of each column.
        labels: [N] right labels.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = classes[order] == labels[:, None]
    right = hits[:, 0]
    per_class = [right[labels == label].mean() for label in np.unique(labels)]
    return Scores(
        top1=float(right.mean()),
        top5=float(hits.any(axis=1).mean()) if len(classes) > 5 else None,
        mean_per_class=float(np.mean(per_class)),
        count=len(labels),
    )
