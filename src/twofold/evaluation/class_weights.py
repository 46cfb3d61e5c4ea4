"""How much the examples of each class count in a loss, where some classes have few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twofold.errors import UserError
from twofold.text import counted

ClassWeights = Literal["balanced"] | tuple[float, ...] | None
"""balanced, as scikit-learn has it: inversely proportional to a class's number of examples; or a weight a class."""


def weights_by_class(wanted: ClassWeights, labels: NDArray[np.int64], classes: int) -> NDArray[np.float64] | None:
    """[classes] weights whose mean over the examples is 1: rate and penalty keep their meaning.

    Args:
        wanted: what was asked for.
        labels: [N] of the training examples, from 0.
        classes: K; one without an example weighs 0.

    Raises:
        UserError: see `check_class_weights`.
    """
    if wanted is None:
        return None
    check_class_weights(wanted, classes)
    counts = np.bincount(labels, minlength=classes)
    weights = np.asarray(wanted, dtype=np.float64) if wanted != "balanced" else 1 / np.maximum(counts, 1)
    return np.where(counts > 0, weights * len(labels) / (weights * counts).sum(), 0.0)


def weights_by_example(wanted: ClassWeights, labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """[N] weights of examples, of mean 1, by their classes [N] from 0 (see `weights_by_class`)."""
    if wanted is None:
        return None
    count = int(labels.max()) + 1 if wanted == "balanced" else len(wanted)
    weights = weights_by_class(wanted, labels, count)
    assert weights is not None
    each: NDArray[np.float64] = weights[labels]
    return each


def check_class_weights(wanted: ClassWeights, classes: int | None = None, names: Sequence[str] | None = None) -> None:
    """Raise a UserError for weights that are not above 0, or another number of them than classes."""
    if wanted is None or wanted == "balanced":
        return
    if not wanted or not all(0 < weight < np.inf for weight in wanted):
        raise UserError(f"--class_weights {list(wanted)}: give balanced, or a number above 0 for each class")
    if classes is not None and len(wanted) != classes:
        order = f", in the order {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}" if names else ""
        raise UserError(
            f"--class_weights {list(wanted)} has {counted(len(wanted), 'weight')}, and the data have "
            f"{counted(classes, 'class')}: give one for each{order}, or balanced"
        )


def class_weights_in_words(wanted: ClassWeights) -> str:
    """For a protocol; empty without weights."""
    if wanted is None:
        return ""
    if wanted == "balanced":
        return "classes weighted inversely to their numbers"
    return f"classes weighted {', '.join(f'{weight:g}' for weight in wanted)}"
