"""Comparisons that a study makes, pair by pair, as a sentence where they are few and as a table where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from twofold.report import Table
from twofold.studies.base import INTERVAL
from twofold.verdicts import paired

FEW = 3
"""Comparisons that a sentence holds."""


class Comparison(NamedTuple):
    """What is compared, the difference in points with its interval, and whether it is clear, all in words."""

    words: str
    difference: str
    verdict: str


def compare(
    words: str, pairs: Sequence[tuple[float, float]], said: tuple[str, str] = ("better", "worse")
) -> Comparison:
    """The difference of shares that belong together pair by pair, as those of one seed do.

    Args:
        words: what is compared.
        pairs: of shares, or of differences of shares.
        said: of a clear difference, where the first is the higher and where it is the lower.
    """
    first, second = zip(*pairs, strict=True)
    gap = paired(first, second).times(100)
    verdict = said[0 if gap.mean > 0 else 1] if gap.clear else "no clear difference"
    return Comparison(words, f"{gap.words()}{' (one seed)' if gap.error is None else ''}", verdict)


def in_words(what: str, comparisons: Sequence[Comparison]) -> str:
    """All of them, one a line where they are many; empty where there is none."""
    if not comparisons:
        return ""
    parts = [f"{each.words}: {each.difference}, {each.verdict}" for each in comparisons]
    between, end = ("; ", " ") if len(parts) <= FEW else (";\n  ", "\n  ")
    return f"{what} in points, {INTERVAL}.{end}{between.join(parts)}."


def on_page(what: str, comparisons: Sequence[Comparison]) -> tuple[str, list[Table]]:
    """What the page begins with, and the table of comparisons where they are many."""
    if len(comparisons) <= FEW:
        return in_words(what, comparisons), []
    note = f"{what} in points; {INTERVAL}."
    return "", [Table("Comparisons", ["compared", "difference", ""], [list(each) for each in comparisons], note)]
