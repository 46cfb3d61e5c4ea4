"""Which examples are proposed for labels: typical ones of each group first; then what is in doubt, spread out."""

from __future__ import annotations

import numpy as np
import pytest

from twofold.evaluation.choosing import Guess, choose, guess, typical_rows, uncertain_rows
from twofold.evaluation.neighbours import centred


def groups(sizes=(40, 30, 20, 10), spread=0.25, seed=0):
    """Groups around far centres, whose first member lies in the middle of its group."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    x = np.eye(len(sizes), 8)[kinds] * 4 + rng.normal(size=(len(kinds), 8)) * spread
    for kind in range(len(sizes)):
        x[np.flatnonzero(kinds == kind)[0]] = x[kinds == kind].mean(axis=0)
    return x.astype(np.float32), kinds


def test_each_group_gives_its_middle_the_largest_first():
    x, kinds = groups()
    around = centred(x)[0]
    found = choose(around, np.full(len(x), -1), 4, None)
    assert [each.row for each in found] == [0, 40, 70, 90]
    assert [each.why for each in found] == [f"typical of {n} alike that has no label yet" for n in (40, 30, 20, 10)]
    assert kinds[[each.row for each in found]].tolist() == [0, 1, 2, 3]


def test_groups_without_a_label_come_before_those_with_one():
    x, kinds = groups()
    known = np.isin(np.arange(len(x)), [3, 45])  # of the two largest groups
    found = typical_rows(centred(x)[0], known, 2)
    assert kinds[[each.row for each in found]].tolist() == [2, 3]
    assert not known[[each.row for each in found]].any()


def test_more_are_wanted_than_there_are_groups(monkeypatch):
    monkeypatch.setattr("twofold.evaluation.choosing.MOST_GROUPS", 4)
    x, kinds = groups()
    found = typical_rows(centred(x)[0], np.zeros(len(x), bool), 9)
    rows = [each.row for each in found]
    assert len(set(rows)) == 9
    assert np.bincount(kinds[rows]).tolist() == [3, 2, 2, 2]
    assert found[8].why == "typical of 40 alike that has 2 labels"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_examples_are_all_proposed_once(count):
    x = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    found = choose(centred(x)[0], np.full(count, -1), 50, None)
    assert sorted(each.row for each in found) == list(range(count))
    assert choose(centred(x)[0], np.zeros(count, np.int64), 50, None) == []


def test_equal_examples_are_no_trouble():
    x = np.tile(np.array([[1.0, 2, 3]], np.float32), (30, 1))
    around, known = centred(x)[0], np.zeros(30, bool)
    assert len({each.row for each in typical_rows(around, known, 7)}) == 7
    even = Guess(np.full((30, 2), 0.5), np.arange(2))
    assert len({each.row for each in uncertain_rows(around, known, 7, even)}) == 7


def test_doubt_is_the_margin_of_the_two_likeliest_and_is_spread_out():
    rng = np.random.default_rng(0)
    sure = np.tile([[0.98, 0.01, 0.01]], (60, 1))
    doubtful = np.tile([[0.40, 0.38, 0.22]], (40, 1))
    chances = np.concatenate([sure, doubtful])
    places = np.concatenate([np.zeros(60), np.repeat([0, 1], 20)]).astype(int)  # the doubtful lie at two ends
    x = (np.eye(2, 4)[places] + rng.normal(size=(100, 4)) * 0.02).astype(np.float32)
    known = np.zeros(100, bool)
    known[60] = True
    found = uncertain_rows(x, known, 2, Guess(chances, np.array([4, 7, 9])))
    rows = [each.row for each in found]
    assert min(rows) > 60
    assert sorted(places[rows]) == [0, 1]
    assert found[0].why == "uncertain: the two likeliest classes are 0.02 apart"
    assert Guess(chances, np.array([4, 7, 9])).best(70) == (4, pytest.approx(0.40))


def test_auto_takes_doubt_when_the_classes_have_labels(monkeypatch):
    x, kinds = groups()
    labels = np.where(np.arange(len(x)) % 2, kinds, -1)
    guessed = guess(x, labels)
    assert guessed is not None
    assert (guessed.classes[guessed.probabilities.argmax(1)] == kinds).mean() > 0.95
    assert choose(centred(x)[0], labels, 3, guessed)[0].why.startswith("typical")
    monkeypatch.setattr("twofold.evaluation.choosing.TYPICAL_BELOW", 5)
    assert choose(centred(x)[0], labels, 3, guessed)[0].why.startswith("uncertain")
    assert guess(x, np.where(kinds == 1, 1, -1)) is None
