"""Is a contrast learned? What goes wrong with two views and their partners, in the words of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from twofold.kinds import EXAMPLE, Kind
from twofold.text import counted
from twofold.training.health import BROKEN, Health
from twofold.verdicts import unpaired

_MILDER = {
    "image": "larger or milder views (larger --views.crop_area, smaller --views.color_strength)",
    "audio": "milder views (a smaller --waves.chain), or a larger --batch",
}
_HARDER = {
    "image": "stronger views (smaller lower bound of --views.crop_area, larger --views.color_strength)",
    "audio": "a larger --batch, whose recordings are more to choose from",
}

_KEEPING = {
    "image": "views that keep what tells classes apart (such as a smaller --views.color_strength, or --views.flip 0)",
    "audio": "views that keep what tells classes apart (a smaller --waves.chain)",
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


class ContrastHealth(Health):
    """Judges runs that contrast views.

    What tells a run that learns from one that does not is neither its loss, which begins above the chance level and
    may stay there for epochs while neighbours of a class gather, nor first places among N, which one batch counts too
    few of. It is `retrieval_auc` over all steps since the row before: 0.5 by chance, with a standard error of at most
    sqrt((N + 1) / (N - 1) / (12 n)) for n anchors with N candidates each (that of the mean of n ranks that are even;
    anchors of a batch share candidates).

    Args:
        total, norm: see `Health`; the weights are the encoder's.
        contrast: what is compared.
    """

    column = "contrastive_top1"
    norm_column = "encoder_norm"
    weights = "the encoder's weights"
    try_ = "a higher --optim.lr, and see that the encoder's parameters require gradients"
    longer = "go on with --extend, or begin again with a smaller --batch"
    easily: ClassVar[frozenset[str]] = frozenset({"retrieval_auc"})

    def __init__(self, total: int, contrast: Contrast, norm: float | None = None) -> None:
        super().__init__(total, norm)
        self.contrast = contrast

    def _troubles(self, step: int, row: Mapping[str, float]) -> dict[str, str]:
        """See `Health`."""
        contrast = self.contrast
        return {
            "still": self._still(step),
            "temperature": self._temperature(row, contrast),
            "collapse": self._collapsed(contrast),
            "rate": self._far_from_start() or self._forgets(contrast),
            "chance": self._at_chance(step, row, contrast),
            "below": self._below_start(step, row, contrast),
            "easy": self._easy(row, contrast),
        }

    def _unlearned(self, now: bool) -> bool:
        """Whether two further looks at neighbours are no better than the first; `now`, where nobody looks."""
        looks = [each["knn_top1"] for each in self._rows if "knn_top1" in each]
        if not self.contrast.queries:
            return now
        return len(looks) > 2 and float(np.mean(looks[-2:])) <= looks[0]

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

    def _below_start(self, step: int, row: Mapping[str, float], contrast: Contrast) -> str:
        """A warning where in its second half a run's neighbours tell less of the classes than before the first step,
        two standard errors of two shares included.

        Before, it may be so of a healthy run, whose first steps undo what even random weights show of an image.
        """
        looks = [each["knn_top1"] for each in self._rows if "knn_top1" in each and 2 * each["step"] >= self.total]
        if "knn_top1" not in row or self.begun_at is None or not contrast.queries:
            return ""
        if not looks or (len(looks) < 2 and step < self.total):
            return ""
        before, now = self.begun_at, float(np.mean(looks[-2:]))
        error = math.sqrt((before * (1 - before) + now * (1 - now)) / contrast.queries)
        if before - now < max(0.02, 2 * error):
            return ""
        examples = f"{EXAMPLE[contrast.kind]}s"
        return (
            f"kNN accuracy is {now:.1%} after {counted(step, 'step')}, and was {before:.1%} before the first: what the "
            f"encoder has learned so far tells the classes of these {examples} apart less well than what it began "
            f"with. Try more --epochs, or {_KEEPING[contrast.kind]}"
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
        own = max(contrast.own or contrast.batch, 2)
        for first in range(max(len(judged) - 3, 0), -1, -1):  # the last three rows, or as many more as it takes
            anchors = contrast.batch * self._since(first, judged)
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

    def _measures(self) -> list[tuple[str, str]]:
        """Neighbours, where they are looked at, else partners."""
        found = [("retrieval_auc", "partners nearer than other views")]
        if not self.contrast.weighs:
            found = []  # nothing teaches the head, and its outputs tell nothing
        return [("knn_top1", "kNN accuracy"), *found]

    def closing(self) -> str:
        """What to say at the end of a run that would gain from more epochs, or was too short to be judged; else empty.

        Views are found better to the last where the rate falls to 0. Where labels tell whether the neighbours gain by
        it, and they do not, nothing is said.
        """
        if short := super().closing():
            return short
        middle, late = self._last_quarters("retrieval_auc")
        if len(late) < 4 or len(middle) < 4 or self._told & BROKEN or not self.contrast.weighs:
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


_LOWEST_USUAL = 0.1
"""Temperatures from here on are not called too low."""

_GAIN = 0.005
"""kNN accuracy that a quarter of a run has to bring for more of it to be advised."""

_MOST_DOUBT = 0.065
"""Two standard errors of a share of partners that are nearer, above which nobody can tell it from a guess."""

_LEAST_AUC = 0.53
"""Where a guess, which gets 0.5, is told from a run that learns slowly; tests/training/test_know_early.py has both."""
