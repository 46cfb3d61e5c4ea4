"""Average precision at 11 recalls against its definition, and the checks of labels in two parts."""

from __future__ import annotations

import numpy as np
import pytest

from twofold.data import ArraySource
from twofold.errors import UserError
from twofold.evaluation.scores import average_precision_11, score_many
from twofold.evaluation.splits import check_test_labels


def by_definition(scores, positive):
    """For each recall 0, 0.1, ..., 1: the best precision of any cut that recalls as much (as VOC 2007)."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    total = 0.0
    for level in range(11):
        best = 0.0
        for cut in range(1, len(order) + 1):
            hits = sum(bool(positive[i]) for i in order[:cut])
            if 10 * hits >= level * positive.sum():
                best = max(best, hits / cut)
        total += best / 11
    return total


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    positive = rng.random(n) < rng.uniform(0.1, 0.9)
    positive[rng.integers(n)] = True
    scores = rng.integers(0, 10, n).astype(float) if seed % 2 else rng.standard_normal(n)  # with ties and without
    assert average_precision_11(scores, positive) == pytest.approx(by_definition(scores, positive), abs=1e-12)


def test_known_values():
    assert average_precision_11(np.array([3.0, 2, 1]), np.array([True, True, False])) == 1
    assert average_precision_11(np.array([3.0, 2, 1]), np.array([False, False, True])) == pytest.approx(1 / 3)
    # Ten positives, three found at once: recall 0.3 counts in spite of rounding.
    positive = np.array([True] * 3 + [False] * 7 + [True] * 7)
    assert average_precision_11(-np.arange(17.0), positive) == pytest.approx((4 * 1 + 7 * 10 / 17) / 11)


def test_the_mean_is_over_classes():
    labels = np.array([[1, 0], [0, 1], [1, 0]])
    found = score_many(np.array([[3.0, 3], [2, 2], [1, 1]]), labels)
    assert found.per_class == pytest.approx((by_definition([3, 2, 1], labels[:, 0]), 0.5))
    assert found.map11 == pytest.approx(np.mean(found.per_class))
    assert found.count == 3


def source(labels, classes=None):
    return ArraySource(np.zeros((len(labels), 2, 2, 1), np.uint8), np.asarray(labels), classes=classes, name="set")


def test_labels_of_two_parts_are_brought_to_one_numbering():
    train, test = source([0, 1, 1], ["cat", "dog"]), source([0, 1, 0], ["dog", "cat"])
    assert check_test_labels(train, test).tolist() == [1, 0, 1]
    many = source([[1, 0], [1, 1]])
    assert check_test_labels(many, many).tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (source([0, 1]), source([[1, 0], [0, 1]]), "both need one column a class, or one class an image"),
        (source([[1, 0], [0, 1]]), source([[1, 0, 1], [0, 1, 1]]), "both need one column a class"),
        (source([[1, 0], [0, 1]]), source([[1, 0], [1, 0]]), "set has no image of 1"),
        (source([[1, 0], [0, 1]], ["a", "b"]), source([[1, 0], [0, 1]], ["b", "a"]), "name their classes differently"),
        (source([0, 1]), source([0, 2]), "classes without a training image: 2"),
        (source([0, 0]), source([0, 0]), "needs at least 2"),
    ],
)
def test_labels_that_do_not_fit(train, test, told):
    with pytest.raises(UserError, match=told):
        check_test_labels(train, test)
