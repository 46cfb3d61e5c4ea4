"""What belongs together stays together: held-out parts, folds, monitors, against exhaustive search and by property."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from twofold.data import ArraySource
from twofold.data.groups import group_numbers
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.evaluation.few_labels import ONE_LABEL_L2, fit_few
from twofold.evaluation.grouped import held_out_groups, made_folds
from twofold.evaluation.monitors import hold_out
from twofold.evaluation.parts import labelled_parts
from twofold.evaluation.splits import stratified_split


def patients(seed, groups=9, classes=3, most=6):
    """Labels and groups of examples: patients with examples of one to all classes, of different numbers."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, most, (groups, classes)) * (rng.random((groups, classes)) < 0.7)
    counts[:2] += 1  # each class in two groups at least
    labels = np.concatenate([np.repeat(np.arange(classes), row) for row in counts])
    return labels, np.repeat(np.arange(groups), counts.sum(1)) * 7 + 3


def cost(labels, inside, share):
    parts = [inside[labels == k] for k in np.unique(labels)]
    if any(part.all() or not part.any() for part in parts):
        return np.inf
    return sum((part.mean() - share) ** 2 for part in parts)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_no_choice_of_whole_groups_comes_nearer_to_the_shares(seed, share):
    labels, groups = patients(seed)
    first, second = stratified_split(labels, share, seed, groups=groups)
    assert not set(groups[first]) & set(groups[second])
    assert sorted([*first, *second]) == list(range(len(labels)))
    found = cost(labels, np.isin(np.arange(len(labels)), second), share)
    names = np.unique(groups)
    every = (
        cost(labels, np.isin(groups, chosen), share)
        for size in range(1, len(names))
        for chosen in itertools.combinations(names, size)
    )
    assert found <= min(every) + 0.01


def test_many_groups_come_very_near_and_seeds_differ():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 400, 4000)
    labels = (groups + rng.integers(0, 3, 4000)) % 5
    divisions = [tuple(held_out_groups(labels, groups, 0.2, seed, "test split")) for seed in range(3)]
    for held in divisions:
        inside = np.isin(np.arange(4000), held)
        assert all(abs(inside[labels == k].mean() - 0.2) < 0.01 for k in range(5))
    assert len(set(divisions)) == 3
    assert divisions[0] == tuple(held_out_groups(labels, groups, 0.2, 0, "test split"))


def test_a_class_of_one_group_is_refused_or_stays_in_the_first_part():
    labels, groups = np.array([0, 0, 1, 1, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(UserError, match="class 2 lies in a single group"):
        stratified_split(labels, 0.3, groups=groups)
    _, second = stratified_split(labels, 0.3, groups=groups, lone=True)
    assert set(labels[second]) == {0, 1}
    assert 3 not in groups[second]


def test_what_cannot_be_divided_is_told():
    circle = np.array([0, 1, 1, 2, 2, 0]), np.array([0, 0, 1, 1, 2, 2])  # two of three groups hold each class
    with pytest.raises(UserError, match=r"3 group\(s\) cannot be divided so that each class is on both sides"):
        stratified_split(circle[0], 0.3, groups=circle[1])
    with pytest.raises(UserError, match="single group"):
        stratified_split(np.array([0, 1, 0, 1]), 0.3, groups=np.zeros(4, dtype=np.int64))


def test_groups_of_what_is_to_be_trained_on_are_not_held_out():
    labels, groups = np.tile([0, 1], 20), np.repeat(np.arange(10), 4)
    for seed in range(5):
        _, second = stratified_split(labels, 0.3, seed, groups=groups, first=np.array([0, 9]))
        assert not {groups[0], groups[9]} & set(groups[second])
    with pytest.raises(UserError, match="every group of class 0 holds an image that is to be trained on"):
        stratified_split(labels, 0.3, groups=groups, first=np.arange(0, 40, 4))


def source(labels, groups):
    return ArraySource(np.zeros((len(labels), 2, 2), np.uint8), labels, groups=groups)


def test_examples_that_stand_alone_are_groups_of_their_own():
    data = source([0, 1] * 4, ["a", "", "a", "", "b", "", "b", ""])
    assert group_numbers(data).tolist() == [0, 2, 0, 3, 1, 4, 1, 5]
    train, test = labelled_parts(data, None, held_out=0.5)
    assert sorted(train.groups + test.groups) == sorted(data.groups)
    assert not (set(train.groups) & set(test.groups)) - {""}
    assert group_numbers(subset(data, [4, 0])).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(6))
def test_folds_keep_groups_and_shares_of_classes(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 900)
    labels = (rng.random(900) < 0.3).astype(np.int64)
    folds = np.array(made_folds(labels, groups, 5, seed))
    assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))
    for fold in "12345":
        assert abs((folds == fold).mean() - 0.2) < 0.05
        assert abs(labels[folds == fold].mean() - labels.mean()) < 0.05
    single = np.array(made_folds(labels, None, 5, seed))
    assert [int((single == fold).sum()) for fold in "12345"] == [180] * 5
    assert made_folds(labels, groups, 5, seed) == folds.tolist() != made_folds(labels, groups, 5, seed + 1)


def test_fewer_groups_than_folds():
    with pytest.raises(UserError, match=r"--folds 5: photos has 4 groups, fewer than folds: give --folds 4 at most"):
        made_folds(np.tile([0, 1], 20), np.repeat(np.arange(4), 10), 5, 0, "photos")
    with pytest.raises(UserError, match="--folds 5: photos has 4 labelled examples"):
        made_folds(np.tile([0, 1], 2), None, 5, 0, "photos")


def test_a_monitor_asks_of_other_groups_than_its_bank():
    labels, groups = np.tile([0, 1, -1], 40), np.repeat(np.arange(12), 10)
    for seed in range(5):
        bank, queries = hold_out(labels, seed, 0.1, 1000, groups)
        assert len(queries) >= 0.1 * 80
        assert not set(groups[bank]) & set(groups[queries])
        assert (labels[np.r_[bank, queries]] >= 0).all()
        assert len(bank) + len(queries) == 80
    assert len(hold_out(labels, 0, 0.1, 5, groups)[1]) == 5
    whole = hold_out(labels, 0, 0.1, 1000, np.zeros(120, dtype=np.int64))
    assert (len(whole[0]), len(whole[1])) == (80, 0)


def test_a_penalty_is_chosen_on_other_groups(monkeypatch):
    from twofold.evaluation import few_labels

    rng = np.random.default_rng(0)
    y, groups = np.tile([0, 1], 30), np.repeat(np.arange(10), 6)
    x = rng.normal(size=(60, 4)) + y[:, None]
    seen = []
    real = few_labels.choose_l2
    monkeypatch.setattr(
        few_labels, "choose_l2", lambda x, y, splits, grid: seen.extend(splits) or real(x, y, splits, grid)
    )
    fit_few(x, y, groups=groups)
    assert len(seen) == 5
    assert all(not set(groups[fit]) & set(groups[val]) for fit, val in seen)
    _, l2 = fit_few(x, y, groups=np.zeros(60, dtype=np.int64))
    assert l2 == ONE_LABEL_L2, "with one group nothing is left to validate on"
