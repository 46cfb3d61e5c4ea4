"""Is it learning? Plain words, early, when a run goes wrong in one of the ways that are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from twofold.text import counted
from twofold.verdicts import quantile


class Health:
    """Watches the rows of metrics and gives each advice once; a resumed run shows it its earlier rows with `replay`.

    By itself it says nothing: what is judged depends on what is learned, see `ContrastHealth` and `ClassHealth`.

    Args:
        total: steps of the run; nothing is judged in the first tenth (nor in the first 20 steps).
        norm: L2 norm of the weights before the first step; that of the first row where nobody knows it.

    Attributes:
        column: a row of metrics without it is not judged.
        norm_column: has the L2 norm of the weights.
        weights: what these are called.
        try_: what moves weights that stay where they are.
        longer: what to do where a run is too short.
        begun_at: kNN accuracy before the first step; None where nobody looked.
        easily: what an outlook would tell nothing of once nearly all of it is right.
    """

    column: ClassVar[str] = ""
    norm_column: ClassVar[str] = ""
    weights: ClassVar[str] = "the weights"
    try_: ClassVar[str] = "a higher --optim.lr"
    longer: ClassVar[str] = "begin again with more --epochs or a smaller --batch"
    easily: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, total: int, norm: float | None = None) -> None:
        self.total, self.norm = total, norm
        self.patience = max(total // 10, 20)
        self.begun_at: float | None = None
        self._told: set[str] = set()
        self._rows: list[dict[str, float]] = []

    def replay(self, rows: Sequence[Mapping[str, float]], since: int = 0) -> None:
        """Take note of the rows before a resume; what they led to has been said.

        Args:
            rows: of the run until then.
            since: step after which the run had the end that it has now: later than 0 where it was extended.
        """
        for row in rows:
            self.advice(int(row["step"]), row)
            if row["step"] > since:
                self.outlook()

    def advice(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """New warnings, in words, given the metrics logged at `step`."""
        if self.column not in metrics:
            return []
        self._rows.append(dict(metrics) | {"step": step})
        if step < self.patience:
            return []
        # the cause where it is known, else the symptom
        found = dict([(name, text) for name, text in self._troubles(step, metrics).items() if text][:1])
        fresh = [text for name, text in found.items() if name not in self._told]
        self._told.update(found)
        return fresh

    def _troubles(self, step: int, row: Mapping[str, float]) -> dict[str, str]:  # noqa: ARG002 (of those that judge)
        """Everything that is wrong now by its name, causes before symptoms; empty texts where it is not so."""
        return {}

    def _unlearned(self, now: bool) -> bool:  # noqa: ARG002 (of those that judge)
        """Whether what tells how far the run is has not risen; `now`: the row that is judged is the last one."""
        return False

    def _still(self, step: int) -> str:
        """A warning where the weights stay as they were since the first row."""
        norms = [row[self.norm_column] for row in self._rows if self.norm_column in row]
        if len(norms) < 2 or max(norms) - min(norms) > 1e-6 * max(norms):
            return ""
        return f"{self.weights} have not moved in {counted(step, 'step')}: nothing is being learned. Try {self.try_}"

    def _far_from_start(self) -> str:
        """A warning where the weights had left all that they began as behind by the first row that is judged.

        Steps of noise add up as a random walk does. On ResNets the square of the norm grew by 0.002 of what it was a
        step at the rates chosen here, and by 20 at a hundred times as much. Where something tells what is learned, it
        is told if that has not risen.
        """
        norm = self.norm or self._rows[0].get(self.norm_column, 0.0)
        row = next(row for row in self._rows if row["step"] >= self.patience)
        grown = (row.get(self.norm_column, 0.0) / norm) ** 2 - 1 if norm else 0.0
        if grown < max(_GROWN, 0.1 * row["step"]) or not self._unlearned(row is self._rows[-1]):
            return ""
        return (
            f"{self.weights} were {math.sqrt(grown + 1):.0f} times as large after {row['step']:,.0f} steps as "
            "they began: each step undoes what was there before. Try a tenth or a hundredth of --optim.lr"
        )

    def _since(self, first: int, rows: Sequence[Mapping[str, float]]) -> float:
        """Steps that the rows from number `first` on tell of."""
        before = [row["step"] for row in self._rows if row["step"] < rows[first]["step"]]
        return rows[-1]["step"] - (before[-1] if before else 0)

    def outlook(self) -> str:
        """Where the run is heading, once, as soon as four rows and a tenth of the steps tell it within a range of half
        of all that there is; else empty.

        The line is of least squares, of log odds (a share near 1 cannot go on as it did) in the logarithm of the step,
        through what has been measured four times of `_measures`. Its range
        holds 95 % of predictions by Student's t, and knows nothing of what the schedule will do.
        """
        if "outlook" in self._told or not self._rows or self._rows[-1]["step"] < self.patience:
            return ""
        for name, words in self._measures():
            points = [(math.log(row["step"]), log_odds(row[name])) for row in self._rows if name in row]
            if len(points) >= 4:
                if self._told & BROKEN:
                    return ""
                value, error = extrapolate(points, math.log(self.total))
                reach = quantile(len(points) - 2) * error
                low, high = (1 / (1 + math.exp(-value - side * reach)) for side in (-1, 1))
                if high - low > _WIDEST:
                    return ""  # so wide a range says nothing; further rows will narrow it
                if name in self.easily and low > _FOUND:
                    return ""  # as well as can be, which tells nothing
                self._told.add("outlook")
                now = next(row[name] for row in reversed(self._rows) if name in row)
                step = int(self._rows[-1]["step"])
                return (
                    f"{words} {now:.1%} after {counted(step, 'step')}; if it goes on in the logarithm of the step, "
                    f"between {low:.1%} and {high:.1%} after {self.total:,}"
                )
        return ""

    def _measures(self) -> list[tuple[str, str]]:
        """What tells how far the run is, the best first, with words for it."""
        return []

    def _last_quarters(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What was measured of it in the third and in the last quarter of the run."""
        found = [(row["step"] / self.total, row[name]) for row in self._rows if name in row]
        third = np.array([value for part, value in found if 0.5 < part <= 0.75])
        return third, np.array([value for part, value in found if part > 0.75])

    def closing(self) -> str:
        """What to say at the end of a run that was too short to be judged, or would gain from more; else empty."""
        if not self.column or self.total >= self.patience:
            return ""
        return (
            f"{self.total:,} step{' in all is' if self.total == 1 else 's in all are'} too few to tell whether the "
            f"run learns, and to learn much: {self.longer}"
        )


BROKEN = frozenset({"still", "one", "temperature", "collapse", "rate", "chance", "flat", "sure"})
"""Warnings after which nothing is foretold and no further epochs are advised."""

_GROWN = 8.0
"""Growth of the square of the norm of weights from which a rate is far too high: three times the norm."""

_FOUND = 0.98
"""Share beyond which an outlook of what is `easily` right says no more than that."""

_WIDEST = 0.5
"""Range of an outlook that is worth a line."""


def log_odds(share: float) -> float:
    """Of a share in [0, 1]; of those within 0.002 of an end as of 0.002 or 0.998, as they are counted and not known."""
    share = min(max(share, 0.002), 0.998)
    return math.log(share / (1 - share))


def extrapolate(points: Sequence[tuple[float, float]], at: float) -> tuple[float, float]:
    """The value of the least-squares line through `points` (x, y) at another x, and a prediction's standard error.

    Raises:
        ValueError: there are less than three points or they have one x.
    """
    x, y = np.array(points, float).T
    spread = ((x - x.mean()) ** 2).sum() if len(x) > 2 else 0.0
    if not spread > 0:
        raise ValueError(f"a line with an error needs three points of different x, got {len(x)}")
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    value = y.mean() + slope * (at - x.mean())
    left = y - y.mean() - slope * (x - x.mean())
    variance = (left**2).sum() / (len(x) - 2)
    return float(value), float(np.sqrt(variance * (1 + 1 / len(x) + (at - x.mean()) ** 2 / spread)))
