"""Dividing labelled examples so that what belongs together stays on one side, and each class on both.

Which groups to hold out is a search: the share of each class that the held-out groups have is to be near the one asked
for. With images that stand alone that is solved class by class (`splits.stratified_split`); a group brings images of
several classes at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from twofold.console import print_rank0
from twofold.data import AudioSource, Source
from twofold.data.content import example_digests, labelled_digests
from twofold.data.groups import groups_of
from twofold.errors import UserError
from twofold.kinds import EXAMPLE
from twofold.randomness import derive_seed, permutation
from twofold.text import counted

Labels = NDArray[np.int64]

_TRIES, _MOST_TRIES = 16, 64
"""Random starts of the search of which the best counts, and those until each class is on both sides."""
_SWEEPS = 20
_LARGE = 10_000
"""Pairs of group and class above which one start is enough: chance evens out."""
_MISSING = 1e3
"""Cost of a class that one side lacks, beside squared differences of shares below 1."""


def held_out_groups(
    labels: Labels, groups: Labels, share: float, seed: int, stream: str, draw: int = 0,
    first: NDArray[np.int64] | None = None, lone: bool = False, where: str = "the data",
    names: Sequence[str] | None = None,
) -> NDArray[np.int64]:  # fmt: skip
    """Positions of whole groups that hold about a share of each class, ascending.

    Args:
        labels, groups: [N] class and group of each example.
        share: in (0, 1), of each class; as near as whole groups come to it (the sum of squared differences of the
            classes' shares is made small, and every class is on both sides).
        seed, stream, draw: the address of the random order in which groups are tried.
        first: positions whose groups are not held out.
        lone: a class that lies in a single group is not held out; else it is an error.
        where, names: the data and the classes by label, for messages.

    Raises:
        UserError: a single group, or a class that cannot be on both sides.
    """
    counts = _Counts.of(labels, groups)
    called = [names[label] if names else str(label) for label in counts.names.tolist()]
    fixed = np.zeros(counts.size, dtype=bool)
    if first is not None:
        fixed[counts.group[first]] = True
    spread = np.bincount(counts.classes, minlength=counts.kinds)
    single = spread == 1
    if single.any() and not lone:
        raise UserError(
            f"{where}: class {called[int(np.argmax(single))]} lies in a single group, and groups are kept "
            "together: two parts need at least 2 groups of each class: add some, leave the class out, or give test "
            "data of its own"
        )
    of_pair = np.repeat(np.arange(counts.size), np.diff(counts.ends))
    fixed[of_pair[single[counts.classes]]] = True
    free = np.flatnonzero(~fixed)
    movable = np.bincount(counts.classes[~fixed[of_pair]], minlength=counts.kinds) > 0
    if not movable.all() and not lone:
        raise UserError(
            f"every group of class {called[int(np.argmin(movable))]} holds an image that is to be trained on, "
            "which leaves none to hold out for the score: give --test with images of their own"
        )
    divisible = (movable & (spread > 1)).tolist()
    best: tuple[float, NDArray[np.bool_]] | None = None
    for attempt in range(_MOST_TRIES):
        order = free[permutation(seed, f"{stream}/groups/{attempt}", draw, len(free))]
        cost, chosen = _search(counts, order, share, divisible)
        if best is None or cost < best[0]:
            best = cost, chosen
        enough = attempt + 1 >= _TRIES or len(counts.classes) > _LARGE
        if enough and best[0] < _MISSING:
            break
    if best is None or best[0] >= _MISSING:
        raise UserError(
            f"{where}: its {counts.size} group(s) cannot be divided so that each class is on both sides: give --test "
            "(or --validation) with data of its own, or finer groups"
        )
    return np.flatnonzero(best[1][counts.group])


@dataclass(frozen=True)
class _Counts:
    """How many examples of which class each group holds: of group g the pairs `ends[g]` to `ends[g + 1]`."""

    group: NDArray[np.int64]
    """[N] of each example, from 0."""
    names: NDArray[np.int64]
    """The classes' labels."""
    size: int
    kinds: int
    ends: NDArray[np.int64]
    classes: NDArray[np.int64]
    amounts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Labels, groups: Labels) -> _Counts:
        different, group = np.unique(groups, return_inverse=True)
        names, kind = np.unique(labels, return_inverse=True)
        pairs, amounts = np.unique(group * len(names) + kind, return_counts=True)
        ends = np.searchsorted(pairs // len(names), np.arange(len(different) + 1))
        return cls(group, names, len(different), len(names), ends, pairs % len(names), amounts)


def _search(
    counts: _Counts, order: NDArray[np.int64], share: float, divisible: Sequence[bool]
) -> tuple[float, NDArray[np.bool_]]:
    """Groups are taken while that brings the shares nearer; then each is moved while that lowers the cost."""
    totals = np.bincount(counts.classes, weights=counts.amounts, minlength=counts.kinds).tolist()
    pairs = [
        list(zip(counts.classes[a:b].tolist(), counts.amounts[a:b].tolist(), strict=True))
        for a, b in zip(counts.ends[:-1].tolist(), counts.ends[1:].tolist(), strict=True)
    ]
    held, chosen = [0.0] * counts.kinds, np.zeros(counts.size, dtype=bool)

    def cost(kind: int, amount: float, missing: float) -> float:
        empty = missing if divisible[kind] and amount in (0, totals[kind]) else 0.0
        return float((amount / totals[kind] - share) ** 2 + empty)

    def gain(group: int, sign: int, missing: float) -> float:
        return sum(cost(k, held[k], missing) - cost(k, held[k] + sign * n, missing) for k, n in pairs[group])

    for missing, sweeps in ((0.0, 1), (_MISSING, _SWEEPS)):
        for _ in range(sweeps):
            moved = False
            for group in order.tolist():
                sign = -1 if chosen[group] else 1
                if gain(group, sign, missing) > 1e-12:
                    chosen[group] = not chosen[group]
                    moved = True
                    for kind, amount in pairs[group]:
                        held[kind] += sign * amount
            if not moved:
                break
    empty = not chosen.any() or chosen.all()
    return sum(cost(k, held[k], _MISSING) for k in range(counts.kinds)) + _MISSING * empty, chosen


def made_folds(labels: Labels, groups: Labels | None, count: int, seed: int, where: str = "the data") -> list[str]:
    """[N] names "1" to `count` of folds of like size and shares of classes, by scikit-learn; groups stay whole.

    Raises:
        UserError: fewer groups or examples than folds, or a fold without any.
    """
    units = len(labels) if groups is None else len(np.unique(groups))
    what = "labelled examples" if groups is None else "groups"
    if units < count:
        raise UserError(f"--folds {count}: {where} has {units} {what}, fewer than folds: give --folds {units} at most")
    most = int(np.unique(labels, return_counts=True)[1].max())
    if most < count:
        raise UserError(f"--folds {count}: no class of {where} has so many examples: give --folds {most} at most")
    kind: Any = StratifiedKFold if groups is None else StratifiedGroupKFold
    divided = kind(count, shuffle=True, random_state=derive_seed(seed, "folds") % 2**32)
    names = np.empty(len(labels), dtype=object)
    for number, (_, held) in enumerate(divided.split(np.zeros(len(labels)), labels, groups), 1):
        if not len(held):
            raise UserError(f"--folds {count}: the groups of {where} leave a fold empty: give fewer folds")
        names[held] = str(number)
    return [str(name) for name in names]


def shared_groups(parts: Mapping[str, Any]) -> list[tuple[str, str, list[str], tuple[int, int]]]:
    """What two parts share: their names, the groups that are in both, and how many examples these have in each.

    Args:
        parts: sources by what they are called; those without groups are passed over.
    """
    known = {name: groups for name, source in parts.items() if (groups := groups_of(source)) is not None}
    names, result = list(known), []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            both = sorted((set(known[first]) & set(known[second])) - {""})
            if both:
                inside = set(both)
                sizes = sum(g in inside for g in known[first]), sum(g in inside for g in known[second])
                result.append((first, second, both, sizes))
    return result


def warn_of_shared_groups(parts: Mapping[str, Any], example: str = "image") -> None:
    """Print a warning for each pair of given parts that have a group in common: their score would be too good."""
    for first, second, both, (ours, theirs) in shared_groups(parts):
        print_rank0(
            f"warning: {len(both):,} group{'s are' if len(both) > 1 else ' is'} in both the {first} and the {second} "
            f"part, such as {both[0]}, with {ours:,} and {counted(theirs, example)}: the {second} score counts what "
            "was learned by heart; divide the data by groups, or leave these out of one part"
        )


def warn_of_shared_examples(train: Source, test: Source) -> None:
    """Print a warning where labelled training examples are test examples, byte for byte: the score would be too good.

    Data of more than 2 GiB are not looked at (see `example_digests`).
    """
    learned = labelled_digests(train)
    scored = None if learned is None else example_digests(test, np.arange(len(test)))
    shared = 0 if learned is None or scored is None else int(np.isin(scored, learned).sum())
    if shared:
        example = EXAMPLE["audio" if isinstance(train, AudioSource) else "image"]
        print_rank0(
            f"warning: {shared:,} of {counted(len(test), f'test {example}')} {'is' if shared == 1 else 'are'} among "
            f"the training {example}s, byte for byte: the score counts what was learned by heart; give --test others, "
            "or leave it out to have a share held out"
        )


def groups_in_words(by: str | None, parts: Mapping[str, Iterable[str] | None]) -> str:
    """How many groups each part has and how many are in two of them, for a protocol; empty without groups.

    Args:
        by: what `--data.group` says; None for groups that were given as such.
        parts: the group of each example that takes part, by the part's name.
    """
    sets = {name: set(groups) - {""} for name, groups in parts.items() if groups is not None}
    if not sets or not any(sets.values()):
        return ""
    names = list(sets)
    both = {
        group
        for place, first in enumerate(names)
        for second in names[place + 1 :]
        for group in sets[first] & sets[second]
    }
    counted = ", ".join(f"{len(groups):,} in {name}" for name, groups in sets.items())
    return f"groups{'' if by is None else f' by {by}'}: {counted}, {len(both) if both else 'none'} in two parts"
