"""The order of examples: every image once an epoch, the same from any starting step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.data.batches import order as order_module
from twofold.data.batches.order import Order
from twofold.errors import UserError

sizes = st.tuples(st.integers(1, 60), st.integers(1, 60)).map(lambda pair: (max(pair), min(pair)))  # n >= batch
seeds = st.integers(0, 2**64 - 1)


@given(sizes, seeds, st.integers(0, 5))
def test_straddle_sees_each_image_once_an_epoch(size, seed, epoch):
    n, batch = size
    order = Order(n, batch, seed, "straddle")
    samples = np.concatenate([order.indices(step) for step in range(-(-n * (epoch + 1) // batch))])
    assert sorted(samples[n * epoch : n * (epoch + 1)]) == list(range(n))


@given(sizes, seeds, st.integers(0, 5))
def test_drop_gives_whole_batches_of_different_images(size, seed, epoch):
    n, batch = size
    order = Order(n, batch, seed, "drop")
    per_epoch = n // batch
    steps = range(per_epoch * epoch, per_epoch * (epoch + 1))
    samples = np.concatenate([order.indices(step) for step in steps])
    assert len(samples) == per_epoch * batch == len(set(samples.tolist()))
    assert {int(order.epoch(step)) for step in steps} == {epoch}


@given(sizes, seeds, st.sampled_from(["straddle", "drop"]), st.lists(st.integers(0, 40), max_size=8))
def test_any_step_in_any_sequence_gives_the_same(size, seed, rule, steps):
    n, batch = size
    order = Order(n, batch, seed, rule)
    for step in steps:
        fresh = Order(n, batch, seed, rule).indices(step)
        np.testing.assert_array_equal(order.indices(step), fresh)
        assert fresh.shape == (batch,)


@given(sizes, st.integers(1, 7))
def test_steps_are_what_the_epochs_hold(size, epochs):
    n, batch = size
    straddle, drop = Order(n, batch, 0, "straddle"), Order(n, batch, 0, "drop")
    assert straddle.steps(epochs) == n * epochs // batch
    assert drop.steps(epochs) == (n // batch) * epochs
    assert straddle.epoch(straddle.steps(epochs)) <= epochs < straddle.epoch(straddle.steps(epochs) + 1)
    assert drop.epoch(drop.steps(epochs)) == epochs


def test_published_numbers_of_steps():
    """ImageNet, 100 epochs at 4096: 31,279 steps = 1281167 * 100 // 4096 + 1."""
    order = Order(1_281_167, 4096, 0)
    assert order.steps(100) + 1 == 31_279


def test_epochs_and_seeds_differ():
    first = Order(100, 100, 0)
    assert not np.array_equal(first.indices(0), first.indices(1))
    assert not np.array_equal(first.indices(0), Order(100, 100, 1).indices(0))


@pytest.mark.parametrize("batch", [0, 11])
def test_batch_beyond_the_data_names_the_option(batch):
    with pytest.raises(UserError, match=rf"--batch {batch}: there are 10 images"):
        Order(10, batch, 0)


@pytest.mark.parametrize("rule", ["straddle", "drop"])
def test_huge_data_follow_the_same_rules(monkeypatch, rule):
    monkeypatch.setattr(order_module, "LONG", 10)
    order = Order(50, 8, 3, rule)
    seen = np.concatenate([order.indices(step) for step in range(7)])
    epoch = 50 if rule == "straddle" else 48
    assert len(set(seen[:epoch].tolist())) == epoch
    assert seen.min() >= 0
    assert seen.max() < 50
    if rule == "straddle":  # the next epoch begins inside the batch, in its own order
        assert seen[50:].tolist() == Order(50, 50, 3).indices(1)[:6].tolist()
    monkeypatch.undo()
    order = Order(10**9, 4096, 3)
    first, later = order.indices(0), order.indices(200_000)
    assert len(set(first.tolist()) & set(later.tolist())) < 5
    assert abs(first.mean() / 5e8 - 1) < 0.1
