"""Folds of data that are scored in turn: the data's own, or made of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from twofold.console import print_rank0
from twofold.data import Source
from twofold.data.groups import group_numbers, groups_of
from twofold.errors import UserError
from twofold.evaluation.grouped import made_folds
from twofold.evaluation.splits import single_labels
from twofold.text import counted


def folds_of(source: Source, wanted: bool | int = True, seed: int = 0) -> Sequence[str | None]:
    """The fold of each example, None for those of none: the data's own, or `wanted` that are made of whole groups.

    Raises:
        UserError: the data have no two, or cannot be divided into so many (see `made_folds`).
    """
    if wanted is not True:
        y, groups = single_labels(source.labels, source.name), group_numbers(source)
        known = np.flatnonzero(y >= 0)
        made = made_folds(y[known], None if groups is None else groups[known], int(wanted), seed, source.name)
        result: list[str | None] = [None] * len(y)
        for place, fold in zip(known.tolist(), made, strict=True):
            result[place] = fold
        return result
    folds = getattr(source, "folds", None)
    if folds is None or len(set(folds) - {None}) < 2:
        raise UserError(
            f"--folds: {source.name} has no two folds; give a number (--folds 5) to have so many made, or a manifest "
            "with a column 'fold', or name another one with --data.audio.fold (IEMOCAP's sessions are folds by "
            "themselves)"
        )
    return cast(Sequence[str | None], folds)


def fold_names(
    source: Source, folds: Sequence[str | None], read: NDArray[np.int64] | None = None
) -> tuple[list[str], NDArray[np.bool_]]:
    """The folds, and which examples take part [n]: all that have a fold and a label, or those of them at `read`.

    Raises:
        UserError: no labels, a class of one fold that no other fold has.
    """
    y = single_labels(source.labels, source.name)
    part = np.array([fold is not None for fold in folds]) & (y >= 0)
    part &= True if read is None else np.isin(np.arange(len(part)), read)
    names = sorted({str(fold) for fold, present in zip(folds, part, strict=True) if present})
    own = np.array([str(fold) for fold in folds])
    for name in names:
        unseen = sorted(set(y[part & (own == name)]) - set(y[part & (own != name)]))
        if unseen:
            word = source.classes[unseen[0]] if source.classes else unseen[0]
            raise UserError(f"--folds: the class {word} of the fold {name} is in no other fold: leave it out")
    return names, part


def folds_in_words(source: Source, folds: Sequence[str | None], by: str | None) -> str:
    """How many groups the folds have, and how many of these are in several; warns of such."""
    groups = groups_of(source)
    if groups is None:
        return ""
    held: dict[str, set[str]] = {}
    for group, fold in zip(groups, folds, strict=True):
        if group and fold is not None:
            held.setdefault(group, set()).add(fold)
    several = sorted(group for group, inside in held.items() if len(inside) > 1)
    if several:
        print_rank0(
            f"warning: {len(several):,} of {counted(len(held), 'group')} lie in several folds, such as {several[0]}: "
            "the scores count what was learned by heart; give --folds a number to have folds made that keep groups "
            "together"
        )
    return f"groups{'' if by is None else f' by {by}'}: {len(held):,}, {len(several) or 'none'} in two folds"
