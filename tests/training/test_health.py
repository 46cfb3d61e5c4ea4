"""Warnings come when they should, once, and with advice."""

import pytest

from twofold.training.health import Health

WELL = {"loss": 3.0, "chance": 6.2, "contrastive_top1": 0.6, "effective_rank": 40.0, "uniformity": -2.0}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"loss": 6.19, "contrastive_top1": 0.004}, "chance level"),
        ({"effective_rank": 1.2}, "collapsed"),
        ({"uniformity": -0.001}, "collapsed"),
        ({"contrastive_top1": 1.0, "loss": 0.01}, "without effort"),
    ],
)
def test_each_trouble_is_told_once(change, word):
    health = Health(total=1000, batch=256)
    assert health.advice(50, WELL | change) == []
    told = health.advice(150, WELL | change)
    assert len(told) == 1
    assert word in told[0]
    assert "Try" in told[0]
    assert health.advice(200, WELL | change) == []


def test_a_healthy_run_is_left_in_peace():
    health = Health(total=1000, batch=256)
    assert all(health.advice(step, WELL) == [] for step in range(0, 1000, 50))
    # A high temperature keeps the loss near chance while much is learned (Table 5 of the paper).
    assert health.advice(500, WELL | {"loss": 6.19, "contrastive_top1": 0.59}) == []
