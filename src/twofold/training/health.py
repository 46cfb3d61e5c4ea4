"""Is it learning? Plain words, early, when a contrastive run goes wrong in one of the ways that are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twofold.kinds import EXAMPLE, Kind
from twofold.text import counted
from twofold.verdicts import quantile, unpaired

_MILDER = {
    "image": "larger or milder views (larger --views.crop_area, smaller --views.color_strength)",
    "audio": "milder views (a smaller --waves.chain), or a larger --batch",
}
_HARDER = {
    "image": "stronger views (smaller lower bound of --views.crop_area, larger --views.color_strength)",
    "audio": "a larger --batch, whose recordings are more to choose from",
}


@dataclass(frozen=True)
class Contrast:
    """What the warnings have to know of a run.

    Attributes:
        kind: of its examples.
        batch: examples per step.
        temperature: of the contrast.
        normalize: whether it compares by cosine.
        weighs: whether the loss has a contrast at all (`--method.contrastive_weight` above 0).
        own: of the batch, the examples of one process, of which the effective rank is; None for all of them.
        queries: labelled examples whose neighbours are looked at; 0 where none are.
    """

    kind: Kind
    batch: int
    temperature: float
    normalize: bool = True
    weighs: bool = True
    own: int | None = None
    queries: int = 0


class Health:
    """Watches the rows of metrics and gives each advice once; a resumed run shows it its earlier rows with `replay`.

    What tells a run that learns from one that does not is neither its loss, which begins above the chance level and
    may stay there for epochs while neighbours of a class gather, nor first places among N, which one batch counts too
    few of. It is `retrieval_auc` over all steps since the row before: 0.5 by chance, with a standard error of at most
    sqrt((N + 1) / (N - 1) / (12 n)) for n anchors with N candidates each (that of the mean of n ranks that are even;
    anchors of a batch share candidates).

    Args:
        total: steps of the run; nothing is judged in the first tenth (nor in the first 20 steps).
        contrast: what is compared; None for a run without a contrast, of which nothing is said.
        norm: L2 norm of the encoder's parameters before the first step; that of the first row where nobody knows it.
    """

    def __init__(self, total: int, contrast: Contrast | None, norm: float | None = None) -> None:
        self.total, self.contrast, self.norm = total, contrast, norm
        self.patience = max(total // 10, 20)
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
        if self.contrast is None or "contrastive_top1" not in metrics:
            return []
        self._rows.append(dict(metrics) | {"step": step})
        if step < self.patience:
            return []
        found = self._troubles(step, metrics, self.contrast)
        fresh = [text for name, text in found.items() if name not in self._told]
        self._told.update(found)
        return fresh

    def _troubles(self, step: int, row: Mapping[str, float], contrast: Contrast) -> dict[str, str]:
        """Everything that is wrong now: the cause where it is known, else the symptom."""
        found = {
            "still": self._still(step),
            "temperature": self._temperature(row, contrast),
            "collapse": self._collapsed(contrast),
            "rate": self._far_from_start(step, contrast) or self._forgets(contrast),
            "chance": self._at_chance(step, row, contrast),
            "easy": self._easy(row, contrast),
        }
        return dict([(name, text) for name, text in found.items() if text][:1])

    def _still(self, step: int) -> str:
        """A warning where the encoder's weights stay as they were since the first row."""
        norms = [row["encoder_norm"] for row in self._rows if "encoder_norm" in row]
        if len(norms) < 2 or max(norms) - min(norms) > 1e-6 * max(norms):
            return ""
        return (
            f"the encoder's weights have not moved in {counted(step, 'step')}: nothing is being learned. Try a higher "
            "--optim.lr, and see that the encoder's parameters require gradients"
        )

    def _collapsed(self, contrast: Contrast) -> str:
        """A warning where all examples come out of the encoder in one direction, or of the head at one point.

        Few examples have a low rank by their number alone, of 2 it is at most 2 and of 4 in healthy runs 3; and two of
        them may well be alike: the last rows are averaged, three or as many as hold 16 examples.
        """
        examples = contrast.own or contrast.batch
        last = self._rows[-max(3, math.ceil(16 / examples)) :]
        rank, uniformity = (float(np.mean([row[name] for row in last])) for name in ("effective_rank", "uniformity"))
        if rank >= min(2.0, 1 + examples / 16) and not (contrast.weighs and uniformity > -0.02):
            return ""
        words = f"{EXAMPLE[contrast.kind]}s"
        more = ", a larger --batch, or a lower --method.temperature" if contrast.weighs else ""
        return (
            f"the embedding has collapsed (effective rank {rank:.1f}, uniformity {uniformity:.3f}): {words} look alike "
            f"to the encoder. Try a lower --optim.lr or --optim.weight_decay{more}, and see that the {words} differ"
        )

    def _far_from_start(self, step: int, contrast: Contrast) -> str:
        """A warning where the weights had left all that they began as behind by the first row that is judged.

        Steps of noise add up as a random walk does. On ResNets the square of the norm grew by 0.002 of what it was a
        step at the rates chosen here, and by 20 at a hundred times as much. Where neighbours are looked at, it is told
        if two further looks are no better than the first.
        """
        norm = self.norm or self._rows[0].get("encoder_norm", 0.0)
        row = next(row for row in self._rows if row["step"] >= self.patience)
        grown = (row.get("encoder_norm", 0.0) / norm) ** 2 - 1 if norm else 0.0
        looks = [each["knn_top1"] for each in self._rows if "knn_top1" in each]
        lost = len(looks) > 2 and float(np.mean(looks[-2:])) <= looks[0] if contrast.queries else row["step"] == step
        if not lost or grown < max(_GROWN, 0.1 * row["step"]):
            return ""
        return (
            f"the encoder's weights were {math.sqrt(grown + 1):.0f} times as large after {row['step']:,.0f} steps as "
            "they began: each step undoes what was there before. Try a tenth or a hundredth of --optim.lr"
        )

    def _forgets(self, contrast: Contrast) -> str:
        """A warning where neighbours are of the same class less often than at the first look, three standard errors
        of two shares included."""
        looks = [row["knn_top1"] for row in self._rows if "knn_top1" in row]
        if len(looks) < 3 or not contrast.queries:
            return ""
        before, now = looks[0], float(np.mean(looks[-2:]))
        error = math.sqrt((before * (1 - before) + now * (1 - now)) / contrast.queries)
        if before - now < max(0.1, 3 * error):
            return ""
        return (
            f"kNN accuracy has fallen from {before:.1%} at the first look to {now:.1%}: the encoder loses what told "
            "classes apart. Try a tenth or a hundredth of --optim.lr, or other views"
        )

    def _easy(self, row: Mapping[str, float], contrast: Contrast) -> str:
        """A warning where there is nothing left to learn from the contrast."""
        loss, chance = row.get("contrastive", row["loss"]), row.get("contrastive_chance", row["chance"])
        if not contrast.weighs or row["contrastive_top1"] <= 0.999 or loss >= 0.01 * chance:
            return ""
        return (
            "the two views are told apart from all others without effort: the task teaches little. Try "
            f"{_HARDER[contrast.kind]}"
        )

    def _temperature(self, row: Mapping[str, float], contrast: Contrast) -> str:
        """A warning where the temperature leaves the loss nothing to tell partners from others by."""
        if not (contrast.normalize and contrast.weighs):
            return ""
        others = max(row.get("negatives", 2 * contrast.batch - 2), 1)
        # cosines lie within 2 of each other: the most that a partner's weight can be, in units of a guess's
        most = (others + 1) / (1 + others * math.exp(-2 / contrast.temperature))
        if most < min(2.0, (others + 2) / 2):
            return (
                f"at --method.temperature {contrast.temperature:g} even a perfect embedding gives a partner only "
                f"{most:.2f} times the weight of a guess, so the loss hardly tells views apart: give a lower one, "
                "0.1 to 0.5 is usual"
            )
        loss, chance = row.get("contrastive", row["loss"]), row.get("contrastive_chance", row["chance"])
        peaked = row["contrastive_entropy"] < 0.2 * math.log(max(contrast.batch, 2))
        if contrast.temperature < _LOWEST_USUAL and peaked and loss > 5 * chance:
            return (
                f"the contrastive loss ({loss:.3g}) is far above what a guess gets ({chance:.3g}): at "
                f"--method.temperature {contrast.temperature:g} the nearest view takes all the weight, and mostly it "
                "is the wrong one. Give a higher temperature, 0.1 to 0.5 is usual"
            )
        return ""

    def _at_chance(self, step: int, row: Mapping[str, float], contrast: Contrast) -> str:
        """A warning where views are found no better than by a guess, beyond doubt, and nothing else says otherwise."""
        judged = [row for row in self._rows if row["step"] >= self.patience and "retrieval_auc" in row]
        if not judged or not contrast.weighs:
            return ""
        own, places = max(contrast.own or contrast.batch, 2), [row["step"] for row in self._rows]
        for first in range(max(len(judged) - 3, 0), -1, -1):  # the last three rows, or as many more as it takes
            before = [place for place in places if place < judged[first]["step"]]
            anchors = contrast.batch * (judged[-1]["step"] - (before[-1] if before else 0))
            doubt = 2 * math.sqrt((own + 1) / (own - 1) / (12 * anchors))
            if doubt <= _MOST_DOUBT:
                break
        else:
            return ""
        found = np.array([row["retrieval_auc"] for row in judged[first:]])
        auc = float(found.mean())
        if len(found) > 2:  # rows that scatter more than anchors of their own would: of few examples, again and again
            doubt = max(doubt, 2 * float(found.std(ddof=1)) / math.sqrt(len(found)))
        looks = [row["knn_top1"] for row in self._rows if "knn_top1" in row]
        # (as few as 38 examples are looked at: less is noise)
        gathers = len(looks) > 2 and float(np.mean(looks[-2:])) > looks[0] + 0.15
        if gathers or auc + doubt >= _LEAST_AUC or auc - 0.5 >= max(doubt, 0.01):
            return ""
        loss, chance = row.get("contrastive", row["loss"]), row.get("contrastive_chance", row["chance"])
        examples = f"{EXAMPLE[contrast.kind]}s"
        return (
            f"after {counted(step, 'step')} a view is nearer to its partner than to another of the {examples} in "
            f"{auc:.1%} of cases, and a guess gets 50 % (contrastive loss {loss:.3f}, its chance level {chance:.3f}): "
            f"nothing is being learned. Try a lower --optim.lr, or {_MILDER[contrast.kind]}; and see that the "
            f"{examples} differ"
        )

    def outlook(self) -> str:
        """Where the run is heading, once, as soon as four rows and a tenth of the steps tell it within a range of half
        of all that there is; else empty.

        The line is of least squares, of log odds (a share near 1 cannot go on as it did) in the logarithm of the step,
        through what has been measured: kNN accuracy where it was looked at four times, else `retrieval_auc`. Its range
        holds 95 % of predictions by Student's t, and knows nothing of what the schedule will do.
        """
        if "outlook" in self._told or not self._rows or self._rows[-1]["step"] < self.patience:
            return ""
        for name, words in self._measures():
            points = [(math.log(row["step"]), log_odds(row[name])) for row in self._rows if name in row]
            if len(points) >= 4:
                if self._told & _BROKEN:
                    return ""
                value, error = extrapolate(points, math.log(self.total))
                reach = quantile(len(points) - 2) * error
                low, high = (1 / (1 + math.exp(-value - side * reach)) for side in (-1, 1))
                if high - low > _WIDEST:
                    return ""  # so wide a range says nothing; further rows will narrow it
                if name == "retrieval_auc" and low > _FOUND:
                    return ""  # views are found as well as can be; four looks at neighbours will tell more
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
        found = [("retrieval_auc", "partners nearer than other views")]
        if self.contrast is not None and not self.contrast.weighs:
            found = []  # nothing teaches the head, and its outputs tell nothing
        return [("knn_top1", "kNN accuracy"), *found]

    def _last_quarters(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What was measured of it in the third and in the last quarter of the run."""
        found = [(row["step"] / self.total, row[name]) for row in self._rows if name in row]
        third = np.array([value for part, value in found if 0.5 < part <= 0.75])
        return third, np.array([value for part, value in found if part > 0.75])

    def closing(self) -> str:
        """What to say at the end of a run that would gain from more epochs, or was too short to be judged; else empty.

        Views are found better to the last where the rate falls to 0. Where labels tell whether the neighbours gain by
        it, and they do not, nothing is said.
        """
        if self.contrast is None:
            return ""
        if self.total < self.patience:
            return (
                f"{self.total:,} step{' in all is' if self.total == 1 else 's in all are'} too few to tell whether the "
                "run learns, and to learn much: go on with --extend, or begin again with a smaller --batch"
            )
        middle, late = self._last_quarters("retrieval_auc")
        if len(late) < 4 or len(middle) < 4 or self._told & _BROKEN or not self.contrast.weighs:
            return ""
        before, now = self._last_quarters("knn_top1")
        if len(before) > 1 and len(now) > 1 and now.mean() - before.mean() < _GAIN:
            return ""
        gain = unpaired(late, middle, level=0.01)
        if not gain.clear or gain.mean < 0.05 * (1 - middle.mean()):
            return ""
        return (
            f"views are still found better and better (a partner nearer than others in {middle.mean():.1%}, then "
            f"{late.mean():.1%} of cases, over the last two quarters): the run would gain from more epochs, go on with "
            "--extend"
        )


_BROKEN = frozenset({"still", "temperature", "collapse", "rate", "chance"})
"""Warnings after which nothing is foretold and no further epochs are advised."""

_GROWN = 8.0
"""Growth of the square of the encoder's norm from which a rate is far too high: three times the norm."""

_LOWEST_USUAL = 0.1
"""Temperatures from here on are not called too low."""

_GAIN = 0.005
"""kNN accuracy that a quarter of a run has to bring for more of it to be advised."""

_FOUND = 0.98
"""Partners nearer than other views, beyond which an outlook says no more than that."""

_WIDEST = 0.5
"""Range of an outlook that is worth a line."""

_MOST_DOUBT = 0.065
"""Two standard errors of a share of partners that are nearer, above which nobody can tell it from a guess."""

_LEAST_AUC = 0.53
"""Where a guess, which gets 0.5, is told from a run that learns slowly; tests/training/test_know_early.py has both."""


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
