"""When a difference between repeated measurements counts: by Student's t, since two or three repetitions tell little.

Of three pairs the mean difference lies beyond two standard errors in 18 % of cases where there is none: the standard
error of so few is itself a guess, which Student's distribution takes into account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Values = Sequence[float] | NDArray[np.float64]
LEVEL = 0.05
"""How often a difference may be called clear where there is none."""


@dataclass(frozen=True)
class Difference:
    """A difference of means.

    Attributes:
        mean: the first less the second.
        error: its standard error; None where it cannot be known.
        half: what the mean is given or taken of it, an interval that holds the true difference in 95 % of cases;
            infinite where it cannot be known: of one measurement, of such as have no spread, and of such as are no
            numbers.
        clear: whether the interval leaves out 0; without a spread, whether chance orders the measurements so rarely
            enough; never of what is no number.
    """

    mean: float
    error: float | None
    half: float
    clear: bool

    def times(self, factor: float) -> Difference:
        """The same in another unit, such as 100 for points."""
        error = None if self.error is None else factor * self.error
        return Difference(factor * self.mean, error, factor * self.half, self.clear)

    def words(self) -> str:
        """The mean with its sign, and the interval's half width; without a spread, that it was the same each time."""
        if not math.isfinite(self.mean):
            return "not known"
        if self.half < math.inf:
            return f"{self.mean:+z.1f} ± {self.half:.1f}"
        return f"{self.mean:+z.1f}" + (" each time" if self.error == 0 else "")


def quantile(freedom: float, level: float = LEVEL) -> float:
    """Standard errors on either side of a mean that an interval needs to miss the truth in `level` of cases.

    Args:
        freedom: degrees of freedom, above 0.
    """
    return float(stdtrit(freedom, 1 - level / 2))


def paired(first: Values, second: Values, level: float = LEVEL) -> Difference:
    """Compare measurements that belong together one by one, as those of one draw of labels do.

    Args:
        first, second: equally many.
        level: how often a difference may be called clear where there is none.

    Raises:
        ValueError: they are not equally many, or none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"pairs are compared one by one: got {len(first)} and {len(second)} measurements")
    gaps = np.subtract(np.asarray(first, float), np.asarray(second, float))
    n, mean = len(gaps), float(np.mean(gaps))
    if n < 2 or not math.isfinite(mean):
        return Difference(mean, None, math.inf, False)
    # Equal gaps of counts, such as one image of 100 in each of three draws, leave no spread to judge by: Student's t
    # would be certain. That all have one sign is the sign test's to judge, which six can tell and fewer cannot.
    error = _apart_from_rounding(float(gaps.std(ddof=1)) / math.sqrt(n), first, second)
    return _judge(mean, error, n - 1, 2 * 0.5**n, level)


def unpaired(first: Values, second: Values, level: float = LEVEL) -> Difference:
    """Compare measurements that do not belong together, whose spreads may differ: Welch's test.

    Raises:
        ValueError: one side has none.
    """
    if not len(first) or not len(second):
        raise ValueError("both sides need at least one measurement")
    a, b = np.asarray(first, float), np.asarray(second, float)
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2 or not math.isfinite(mean):
        return Difference(mean, None, math.inf, False)
    shares = [_apart_from_rounding(float(side.std(ddof=1)) / math.sqrt(len(side)), a, b) ** 2 for side in (a, b)]
    weight = sum(share**2 / (len(side) - 1) for share, side in zip(shares, (a, b), strict=True))
    freedom = sum(shares) ** 2 / weight if weight > 0 else 1.0
    apart = 2 / math.comb(len(a) + len(b), len(a))  # of two sets that do not overlap, by chance alone
    return _judge(mean, math.sqrt(sum(shares)), freedom, apart, level)


def _apart_from_rounding(error: float, *sides: Values) -> float:
    """The error, or 0 where it is no more than the rounding of equal differences."""
    return error if error > 1e-12 * max(float(np.abs(side).max()) for side in sides) else 0.0


def _judge(mean: float, error: float, freedom: float, chance: float, level: float) -> Difference:
    """`chance`: how likely the order of the measurements is where there is no difference; used without a spread."""
    if error == 0:
        return Difference(mean, error, math.inf, mean != 0 and chance <= level)
    half = quantile(freedom, level) * error
    return Difference(mean, error, half, abs(mean) > half)
