"""Class-balanced sampling: counts, order, and that any step's batch can be had without those before it."""

from __future__ import annotations

import numpy as np
import pytest

from twofold.data import ArraySource, LengthOrder, Loader, Order
from twofold.data.batches.balanced import BalancedDraws
from twofold.randomness import permutation
from twofold.views import ImageViews, ViewsConfig

LABELS = np.repeat([0, 2, 5], [90, 9, 1])[permutation(7, "shuffled", 0, 100)]


def sequence(labels, seed, length):
    """The same by its words: rounds of one of each class; of a class every example once before any again."""
    classes = np.unique(labels[labels >= 0]).tolist()
    decks = {c: [] for c in classes}
    laps = dict.fromkeys(classes, 0)
    drawn, number = [], 0
    while len(drawn) < length:
        for place in permutation(seed, "order/classes", number, len(classes)).tolist():
            c = classes[place]
            if not decks[c]:
                members = np.flatnonzero(labels == c)
                decks[c] = members[permutation(seed, f"order/class {c}", laps[c], len(members))].tolist()
                laps[c] += 1
            drawn.append(decks[c].pop(0))
        number += 1
    return drawn[:length]


@pytest.mark.parametrize("seed", [0, 5])
def test_it_is_the_sequence_that_is_described(seed):
    assert BalancedDraws(LABELS, seed).entries(0, 700).tolist() == sequence(LABELS, seed, 700)
    some = np.where(LABELS == 0, -1, LABELS)
    assert BalancedDraws(some, seed).entries(0, 50).tolist() == sequence(some, seed, 50)


def test_each_class_comes_as_often_and_each_example_of_it():
    drawn = BalancedDraws(LABELS, 1).entries(0, 270)
    counts = np.bincount(drawn, minlength=100)
    assert [int(counts[c == LABELS].sum()) for c in (0, 2, 5)] == [90, 90, 90]
    assert (counts[LABELS == 0] == 1).all()
    assert (counts[LABELS == 2] == 10).all()


@pytest.mark.parametrize("rule", ["straddle", "drop"])
def test_a_step_needs_no_step_before_it(rule):
    whole = BalancedDraws(LABELS, 3).entries(0, 16 * 40)
    order = Order(100, 16, 3, rule, BalancedDraws(LABELS, 3))
    for step in (39, 0, 17):
        np.testing.assert_array_equal(order.indices(step), whole[16 * step : 16 * step + 16])
    plain = Order(100, 16, 3, rule)
    assert (order.steps(2.5), order.steps_per_epoch) == (plain.steps(2.5), plain.steps_per_epoch)


def test_any_number_of_processes_sees_the_same():
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    views = ImageViews(ViewsConfig(size=8))

    def batches(rank, world):
        order = Order(100, 12, 0, drawn=BalancedDraws(LABELS, 0))
        with Loader(ArraySource(images, LABELS), views, order, 0, rank, world, workers=0) as loader:
            return [(b.index.tolist(), b.labels.tolist()) for b in loader.iterate(3, 6)]

    parts = zip(*(batches(rank, 3) for rank in range(3)), strict=True)
    joined = [tuple([value for part in step for value in part[i]] for i in (0, 1)) for step in parts]
    assert joined == [tuple(map(list, step)) for step in batches(0, 1)]


def test_recordings_are_drawn_the_same_way_and_put_with_their_like():
    lengths = np.random.default_rng(0).integers(100, 10_000, 100)
    order = LengthOrder(lengths, 10, 0, drawn=BalancedDraws(LABELS, 0))
    epoch = np.concatenate([order.indices(step) for step in range(10)])
    assert sorted(epoch) == sorted(BalancedDraws(LABELS, 0).entries(0, 100).tolist())
    assert np.mean([np.ptp(lengths[order.indices(step)]) for step in range(10)]) < np.ptp(lengths) / 5
    later = LengthOrder(lengths, 10, 0, drawn=BalancedDraws(LABELS, 0)).indices(13)
    np.testing.assert_array_equal(later, order.indices(13))
    assert set(later) <= set(BalancedDraws(LABELS, 0).entries(100, 200).tolist())
