"""The learning rate of a run to which epochs were added: its curve, point by point."""

import math

import pytest

from twofold.errors import UserError
from twofold.optim import Constant, EpochCosine, InverseSqrt, StepDecay, WarmupCosine, extended, in_words


def test_a_cosine_begins_anew_in_each_extension():
    planned = WarmupCosine(peak=2.0, warmup=30, total=100)
    curve = extended(planned, [100, 150, 190], [50.0, 40.0])
    assert [curve(step) for step in range(100)] == [planned(step) for step in range(100)]  # the run stays as it was
    assert curve(99) < 0.002
    assert [curve(step) for step in range(100, 106)] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2])  # a tenth of 50 steps
    half = 105 + 45 / 2
    assert (curve(math.floor(half)) + curve(math.ceil(half))) / 2 == pytest.approx(1, abs=1e-3)  # half way down
    assert curve(149) == pytest.approx(1 + math.cos(math.pi * 44 / 45))
    assert [curve(step) for step in (150, 152, 154)] == [0, 1, 2]  # a tenth of 40
    assert curve(189) == pytest.approx(1 + math.cos(math.pi * 35 / 36))
    assert curve(190) == 0
    assert in_words(curve, 150, 190) == "rises from 0 to 2 over 4 steps and falls to 0 on a cosine over the added steps"


@pytest.mark.parametrize(
    ("warmup", "steps", "rise"), [(0, 50, 0), (3, 50, 3), (30, 50, 5), (30, 5, 1), (30, 1, 0)], ids=str
)
def test_the_rise_is_a_tenth_and_no_longer_than_the_runs_own(warmup, steps, rise):
    curve = extended(WarmupCosine(1.0, warmup, 100), [100, 100 + steps], [1.0])
    assert curve(100) == (0 if rise else 1)
    assert curve(100 + rise) == 1
    assert all(curve(100 + i) == i / rise for i in range(rise))


def test_mocos_cosine_begins_anew_over_the_added_epochs():
    curve = extended(EpochCosine(1.0, epochs=4, steps_per_epoch=10), [40, 60], [2.0])
    assert [curve(step) for step in (0, 39, 40, 49, 50, 59)] == pytest.approx(
        [1, 0.5 * (1 + math.cos(math.pi * 3 / 4)), 1, 1, 0.5, 0.5]
    )
    assert in_words(curve, 40, 60) == "begins anew at 1 and falls on a cosine over the added epochs"


@pytest.mark.parametrize(
    "schedule", [StepDecay(1.0, (2, 5), 10), Constant(0.5, 10), InverseSqrt(1.0, 10)], ids=lambda s: type(s).__name__
)
def test_what_has_no_end_goes_on(schedule):
    curve = extended(schedule, [40, 70], [3.0])
    assert [curve(step) for step in range(70)] == [schedule(step) for step in range(70)]
    assert in_words(curve, 40, 70) == f"goes on as in a longer run, from {schedule(40):g} to {schedule(69):g}"


def test_an_extension_that_would_learn_nothing_is_refused():
    with pytest.raises(UserError, match=r"0\.01 more epochs are not one step"):
        extended(Constant(1.0), [40, 40], [0.01])
    with pytest.raises(UserError, match=r"learning rate 0 throughout.*first_epoch 1: give --extend more"):
        extended(EpochCosine(1.0, 4, 10, first_epoch=1), [40, 50], [1.0])
    assert extended(EpochCosine(1.0, 4, 10, first_epoch=1), [40, 60], [2.0])(40) == 0.5
