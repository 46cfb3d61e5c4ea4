"""Verdicts on differences against scipy, and how often they call a difference clear that is none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from twofold.verdicts import LEVEL, Difference, paired, quantile, unpaired

VALUES = st.lists(st.floats(0, 1).map(lambda v: round(v, 3)), min_size=2, max_size=9)


@pytest.mark.parametrize("freedom", [1, 2, 3.7, 30, 1e6])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_quantile_is_scipys(freedom, level):
    assert quantile(freedom, level) == pytest.approx(stats.t.ppf(1 - level / 2, freedom), rel=1e-9)


def test_three_draws_need_more_than_four_standard_errors():
    assert quantile(2) == pytest.approx(4.3027, abs=1e-4)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(first=VALUES, second=VALUES)
def test_verdicts_are_those_of_scipys_tests(first, second):
    n = min(len(first), len(second))
    tests = [(paired, stats.ttest_rel, first[:n], second[:n])]
    tests.append((unpaired, lambda a, b: stats.ttest_ind(a, b, equal_var=False), first, second))
    for ours, theirs, a, b in tests:
        found = ours(a, b)
        assert found.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
        if found.error is None or found.error < 1e-9:
            continue
        p = theirs(a, b).pvalue
        if abs(p - LEVEL) > 1e-6:
            assert found.clear == (p < LEVEL), (p, found)
        interval = theirs(a, b).confidence_interval(1 - LEVEL)
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx(
            (interval.low, interval.high), abs=1e-9
        )


@pytest.mark.parametrize(("n", "judge"), [(2, paired), (3, paired), (5, paired), (3, unpaired), (5, unpaired)])
def test_false_alarms_are_as_rare_as_said(n, judge):
    """Of 4,000 comparisons without a difference 5 % are called clear; two standard errors call 18 % so with n = 3."""
    rng = np.random.default_rng(n)
    sides = rng.normal(0.9, 0.01, (4000, 2, n))
    found = [judge(a, b) for a, b in sides]
    alarms = np.mean([each.clear for each in found])
    # Welch's test is careful with few: it may call fewer. 0.05 +- 3.5 standard errors of a share of 4,000.
    assert (0.038 if judge is paired else 0.015) < alarms < 0.062
    if (n, judge) == (3, paired):
        old = np.mean([abs(each.mean) > 2 * each.error for each in found])
        assert 0.16 < old < 0.21, "what was done before"


def test_false_alarms_of_sides_that_scatter_unequally():
    rng = np.random.default_rng(0)
    found = [unpaired(a, b) for a, b in zip(rng.normal(0, 1, (3000, 3)), rng.normal(0, 9, (3000, 6)), strict=True)]
    assert np.mean([each.clear for each in found]) < 0.065


def test_a_real_difference_is_found():
    assert paired([0.91, 0.92, 0.915], [0.81, 0.821, 0.816]).clear
    assert unpaired([0.91, 0.92, 0.915], [0.81, 0.821, 0.816]).clear


def test_one_measurement_tells_nothing():
    for judge in (paired, unpaired):
        found = judge([0.9], [0.1])
        assert (found.clear, found.error, found.half) == (False, None, math.inf)
        assert found.times(100).words() == "+80.0"
    assert not unpaired([0.9, 0.91], [0.1]).clear


@pytest.mark.parametrize(("n", "clear"), [(3, False), (5, False), (6, True)])
def test_without_a_spread_the_signs_decide(n, clear):
    """0.5 ** n twice: the sign test's own level is first below 5 % with six."""
    found = paired([0.75] * n, [0.5] * n)
    assert found.clear is clear
    assert (found.half, found.error) == (math.inf, 0.0)
    assert found.times(100).words() == "+25.0 each time"
    assert paired([0.5] * n, [0.5] * n).clear is False
    assert paired([0.93, 0.83, 0.71], [0.92, 0.82, 0.70]).clear is False, (
        "these differ by one image, apart from rounding"
    )
    assert stats.binomtest(n, n).pvalue == pytest.approx(2 * 0.5**n)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("judge", [paired, unpaired])
def test_without_a_spread_there_is_no_interval(n, judge):
    """Two equal gaps of counts are no interval of width 0, beside which `no clear difference` cannot be right."""
    found = judge([0.75] * n, [0.5] * n).times(100)
    assert (found.half, found.error, found.words()) == (math.inf, 0, "+25.0 each time")
    assert judge([0.5] * n, [0.5] * n).words() == "+0.0 each time"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("judge", [paired, unpaired])
def test_what_is_no_number_is_never_clear(judge, bad):
    for n in (2, 3, 6, 9):
        found = judge([*[0.9] * (n - 1), bad], [0.1] * n).times(100)
        assert (found.clear, found.error, found.half) == (False, None, math.inf)
        assert found.words() == "not known"


@pytest.mark.parametrize(("n", "wrong"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_equal_differences_of_counts_come_by_chance(n, wrong):
    """Two nets that differ by one image of 100, either way by chance: of n draws as many are equal as the sign test
    says, so that a difference of no spread is called clear in no more than 5 % of cases."""
    rng = np.random.default_rng(n)
    base = rng.integers(40, 60, (4000, n))
    first, second = base / 100, (base + rng.choice([-1, 1], (4000, n))) / 100
    found = [paired(a, b) for a, b in zip(first, second, strict=True)]
    assert np.mean([each.error == 0 for each in found]) == pytest.approx(wrong, abs=0.025)
    assert np.mean([each.clear for each in found if each.error == 0]) == (1 if wrong < LEVEL else 0)
    assert np.mean([each.clear for each in found]) < 0.065


@pytest.mark.parametrize(("n", "clear"), [(3, False), (4, True)])
def test_without_a_spread_the_order_decides(n, clear):
    assert unpaired([0.75] * n, [0.5] * n).clear is clear
    exact = stats.mannwhitneyu(np.arange(n) + n, np.arange(n), method="exact").pvalue
    assert clear == (exact <= LEVEL)


def test_in_words():
    assert Difference(0.0123, 0.002, 0.0044, True).times(100).words() == "+1.2 ± 0.4"


@pytest.mark.parametrize(("judge", "a", "b"), [(paired, [1], [1, 2]), (paired, [], []), (unpaired, [], [1])])
def test_what_cannot_be_compared(judge, a, b):
    with pytest.raises(ValueError, match=r"got|at least one"):
        judge(a, b)
