"""Error rates of verification against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from twofold.evaluation.verification import all_pairs, detection_cost, equal_error_rate


def by_hand(scores, same):
    """The mean of misses and false alarms at the threshold where they differ least."""
    found = []
    for threshold in [*scores, np.inf]:
        miss = np.mean(scores[same] < threshold)
        alarm = np.mean(scores[~same] >= threshold)
        found.append((abs(miss - alarm), (miss + alarm) / 2))
    return min(found)[1]


def test_equal_error_rate():
    same = np.array([True] * 4 + [False] * 4)
    assert equal_error_rate(np.array([9, 8, 7, 6, 4, 3, 2, 1.0]), same) == 0
    assert equal_error_rate(np.array([1, 2, 3, 4, 6, 7, 8, 9.0]), same) == 1
    assert equal_error_rate(np.array([9, 8, 7, 1, 6, 3, 2, 0.0]), same) == pytest.approx(0.25)
    assert equal_error_rate(np.ones(8), same) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    same = rng.random(2000) < 0.3
    scores = rng.normal(0, 1, 2000) + same
    assert equal_error_rate(scores, same) == pytest.approx(by_hand(scores, same), abs=0.003)


def test_detection_cost():
    same = np.array([True] * 4 + [False] * 4)
    assert detection_cost(np.array([9, 8, 7, 6, 4, 3, 2, 1.0]), same) == 0
    assert detection_cost(np.ones(8), same) == pytest.approx(1)
    # One impostor on top: accepting half of the right ones costs a quarter of all impostors, too dear at 1 %.
    assert detection_cost(np.array([8, 7, 3, 2, 9, 1, 1, 0.0]), same) == pytest.approx(1)
    assert detection_cost(np.array([8, 7, 3, 2, 5, 1, 1, 0.0]), same) == pytest.approx(0.5)


def test_pairs():
    h = np.array([[1, 0], [0.9, 0.1], [-1, 0], [-0.9, -0.1]], np.float32)
    scores, same = all_pairs(h, np.array([0, 0, 1, 1]))
    assert len(scores) == 6
    assert same.tolist() == [True, False, False, False, False, True]
    assert scores[same].min() > 0.9
    assert scores[~same].max() < -0.9
