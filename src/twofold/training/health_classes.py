"""Are classes learned? What goes wrong where a net learns from labels, or from what a teacher says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from twofold.kinds import EXAMPLE, Kind
from twofold.text import counted
from twofold.training.health import Health


@dataclass(frozen=True)
class Lessons:
    """What the warnings have to know of a run that learns classes.

    Attributes:
        kind: of its examples.
        batch: examples per step.
        measure: column of the share of answers that are right, `train_accuracy` or a student's `agreement`.
        deep: whether more is trained than a linear classifier, whose weights may grow as far as they have to.
        fresh: whether the net begins at random.
        largest: share of the largest class among the labels as they are drawn; None where it is not known.
    """

    kind: Kind
    batch: int
    measure: str = "train_accuracy"
    deep: bool = True
    fresh: bool = False
    largest: float | None = None

    @property
    def taught(self) -> bool:
        """Whether a teacher says what is right."""
        return self.measure == "agreement"


class ClassHealth(Health):
    """Judges runs that learn classes: fine-tuning, linear evaluation, training from labels alone, distillation.

    A classifier that knows nothing of its examples is right as often as if its answers were dealt out among them at
    random (`by_chance`), whatever the shares of the classes are, and its loss is no lower than that of the best
    constant prediction (`chance`). The mean of n answers that are right with probability p by chance has a standard
    error of sqrt(p (1 - p) / n). Where most examples are of one class, it takes longer to see anything: beyond p = 1/2
    the patience is divided by 2 (1 - p). A net that begins at random stays at chance for some 70 steps in healthy runs,
    a third of a run that is short: it is given 200, or half of the run.

    Args:
        total, norm: see `Health`; the weights are those that are trained.
        lessons: what is learned.
    """

    column = "by_chance"
    norm_column = "trained_norm"
    weights = "the weights that are trained"
    easily: ClassVar[frozenset[str]] = frozenset({"train_accuracy", "agreement"})

    def __init__(self, total: int, lessons: Lessons, norm: float | None = None) -> None:
        super().__init__(total, norm)
        self.lessons = lessons

    def _troubles(self, step: int, row: Mapping[str, float]) -> dict[str, str]:  # noqa: ARG002 (all rows are kept)
        """See `Health`; while the rate still rises, weights that stay are the only trouble that can be told."""
        found = {"still": self._still(step), "one": self._one_class(step)}
        if self._warming():
            return found
        rate = self._far_from_start() if self.lessons.deep else ""
        return found | {"rate": rate, "chance": self._at_chance(step), "flat": self._flat(step), "sure": self._sure()}

    def _warming(self) -> bool:
        """Whether the rate still rises."""
        return len(self._rows) > 1 and self._rows[-1]["lr"] > self._rows[-2]["lr"]

    def outlook(self) -> str:
        """See `Health`; nothing while the rate still rises or the net is at chance: no line knows what comes then."""
        return "" if not self._rows or self._warming() or self._unlearned(True) else super().outlook()

    def _unlearned(self, now: bool) -> bool:  # noqa: ARG002 (every row tells what is learned)
        """Whether less than a tenth of what chance leaves is right in the last rows."""
        right, chance = self._answers()
        return right - chance < 0.1 * (1 - chance)

    def _answers(self, rows: int = 3) -> tuple[float, float]:
        """What share of the last rows' answers is right, and what would be by chance."""
        last = self._rows[-rows:]
        right, chance = (np.mean([row[name] for row in last]) for name in (self.lessons.measure, "by_chance"))
        return float(right), float(chance)

    def _mean(self, name: str, rows: int = 3) -> float | None:
        """Of the last rows; None where one of them lacks it."""
        last = [row.get(name) for row in self._rows[-rows:]]
        known = [value for value in last if value is not None]
        return float(np.mean(known)) if known and len(known) == len(last) else None

    def _one_class(self, step: int) -> str:
        """A warning where a teacher and its student name but one class."""
        judged = [row for row in self._rows if row["step"] >= self.patience]
        if not self.lessons.taught or len(judged) < 3 or min(row["by_chance"] for row in judged[-3:]) < 1:
            return ""
        examples = f"{EXAMPLE[self.lessons.kind]}s"
        return (
            f"after {counted(step, 'step')} the teacher names one class for all {examples}: it has nothing to teach. "
            f"See that it knows {examples} like these, and that the {examples} differ"
        )

    def _at_chance(self, step: int) -> str:
        """A warning where answers are right no more often than by chance, beyond doubt, and the loss tells the same."""
        first = max(len(self._rows) - 3, 0)
        while True:  # the last three rows, or as many more as it takes
            right, chance = self._answers(len(self._rows) - first)
            spread = math.sqrt(chance * (1 - chance) / self.lessons.batch)
            doubt = 2 * spread / math.sqrt(self._since(first, self._rows))
            if doubt <= _MOST_DOUBT * (1 - chance):
                break
            if first == 0:
                return ""
            first -= 1
        least = max(self.patience, min(self.total // 2, _PLATEAU)) if self.lessons.fresh else self.patience
        if step * min(1.0, 2 * (1 - chance)) < least:
            return ""
        gains = np.array([row[self.lessons.measure] - row["by_chance"] for row in self._rows[first:]])
        if len(gains) > 2:  # rows that scatter more than answers of their own would
            doubt = max(doubt, 2 * float(gains.std(ddof=1)) / math.sqrt(len(gains)))
        own = 2 * spread / math.sqrt(self._since(len(self._rows) - 1, self._rows))
        gain = right - chance
        if gain > doubt or gains[-1] > own or gain + doubt >= _LEAST * (1 - chance):
            return ""
        loss, constant = self._mean("loss"), self._mean("chance")
        if not self.lessons.taught and loss is not None and constant is not None and loss < 0.99 * constant:
            return ""
        return self._chance_in_words(step, right, chance)

    def _chance_in_words(self, step: int, right: float, chance: float) -> str:
        """Neither more answers are right than by chance, nor is the loss lower than it would be."""
        examples, loss, constant = f"{EXAMPLE[self.lessons.kind]}s", self._mean("loss"), self._mean("chance")
        if self.lessons.taught:
            return (
                f"after {counted(step, 'step')} student and teacher name the same class in {right:.1%} of cases, and "
                f"their answers dealt out at random would agree in {chance:.1%}: nothing is being learned. Try a tenth "
                f"or ten times of --optim.lr, and see that the {examples} differ"
            )
        known = [] if self.lessons.largest is None else [f"the largest class has {self.lessons.largest:.1%}"]
        if loss is not None and constant is not None:
            known.append(f"loss {loss:.3f}, of a constant prediction {constant:.3f}")
        return (
            f"after {counted(step, 'step')} {right:.1%} of the training {examples} are told right, and {chance:.1%} "
            f"would be if the answers were dealt out at random ({'; '.join(known)}): nothing is being learned. See "
            f"that labels belong to their {examples} and that the {examples} differ, and try a tenth or ten times of "
            f"--optim.lr{', or --sampling balanced' if (self.lessons.largest or 0.0) > 0.5 else ''}"
        )

    def _flat(self, step: int) -> str:
        """A warning where answers are right and the loss is nearly that of a constant prediction: logits stay near 0.

        So many right answers allow a loss lower by the relative entropy of their share to that of chance.
        """
        (right, chance), loss, constant = self._answers(), self._mean("loss"), self._mean("chance")
        if loss is None or constant is None or not 0 < chance < right < 1 or right - chance < _CLEAR * (1 - chance):
            return ""
        possible = right * math.log(right / chance) + (1 - right) * math.log((1 - right) / (1 - chance))
        possible = min(possible, constant - (self._mean("teacher_entropy") or 0.0))
        if not abs(constant - loss) < _HARDLY * possible:
            return ""
        return (
            f"after {counted(step, 'step')} the loss has hardly fallen ({loss:.4f}, {constant:.4f} before anything is "
            f"learned), though {right:.1%} of the answers are right: the weights hardly move. Try ten or a hundred "
            "times the --optim.lr"
        )

    def _sure(self) -> str:
        """A warning where answers are so sure of what is wrong that a constant prediction would have a lower loss."""
        judged = [row for row in self._rows if row["step"] >= self.patience]
        loss, constant = self._mean("loss"), self._mean("chance")
        if len(judged) < 3 or loss is None or constant is None or loss < _FAR * constant:
            return ""
        return (
            f"the loss ({loss:.3g}) is far above that of a constant prediction ({constant:.3g}): answers are sure of "
            "what is wrong, as too large steps make them. Try a tenth or a hundredth of --optim.lr"
        )

    def _measures(self) -> list[tuple[str, str]]:
        """Right answers in training."""
        return [(self.lessons.measure, "agreement with the teacher" if self.lessons.taught else "training accuracy")]


_MOST_DOUBT = 0.02
"""Of what chance leaves, two standard errors of right answers above which nobody can tell them from chance."""

_PLATEAU = 200
"""Steps that a net which begins at random is given to leave chance, where the run is long enough."""

_LEAST = 0.1
"""Of what chance leaves, the right answers below which it is said that there is nothing."""

_CLEAR = 0.15
"""Of what chance leaves, the right answers from which a loss that has not fallen is told."""

_HARDLY = 0.05
"""Of what the loss could be lower by, judged by right answers: less is a loss that has hardly fallen."""

_FAR = 1.5
"""Times the loss of a constant prediction from which a loss is far above it."""
