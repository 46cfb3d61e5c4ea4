"""What belongs together: images of one video, patient or slide, recordings of one speaker.

A source may have `groups`, a name for each example, "" for one that stands alone. Whoever divides data keeps a group
on one side: images of one patient are alike, and a test that holds some of them counts what was learned by heart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from twofold.errors import UserError


def groups_of(source: Any) -> list[str] | None:
    """[n] the group of each example, "" for one that stands alone; None where nothing is known of groups."""
    groups = getattr(source, "groups", None)
    return None if groups is None else list(groups)


def group_numbers(source: Any) -> NDArray[np.int64] | None:
    """[n] a number for each group, from 0, and one of its own for each example that stands alone; None without groups.

    Numbers follow the order of the names, so that a seed gives the same division wherever it is asked for.
    """
    groups = groups_of(source)
    if groups is None:
        return None
    names = np.array(groups, dtype=object)
    alone = names == ""
    different, numbers = np.unique(names[~alone].astype(str), return_inverse=True)
    result = np.empty(len(names), dtype=np.int64)
    result[~alone] = numbers
    result[alone] = len(different) + np.arange(int(alone.sum()))
    return result


def group_names(values: Sequence[Any]) -> list[str]:
    """Values of a column as names of groups: None, nan and "" for what stands alone; 3.0 is 3."""
    return [_name(value) for value in values]


def named_by(pattern: str, names: Sequence[str], where: str, columns: Sequence[str] = ()) -> list[str]:
    """The group of each file by its name: what the first group of a regular expression matches, or all of the match.

    Args:
        pattern: searched for anywhere in a name; where its group is optional and absent, the file stands alone.
        names: of the files, below the folder of the data.
        where: the data, for messages.
        columns: what the pattern could have been instead.

    Raises:
        UserError: it is no regular expression, or a name does not match.
    """
    other = f"neither a column ({', '.join(columns)}) nor " if columns else ""
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--data.group {pattern}: {other or 'not '}a regular expression ({error})") from error
    matches = [form.search(name) for name in names]
    strange = [name for name, match in zip(names, matches, strict=True) if match is None]
    if strange:
        raise UserError(
            f"--data.group {pattern}: {other and f'{other}a pattern of all file names; '}{len(strange):,} of "
            f"{len(names):,} file names of {where} do not match it, such as {strange[0]}: give a regular expression "
            "whose first group is the name of the video, patient or speaker"
        )
    return [match.group(1 if form.groups else 0) or "" for match in matches if match is not None]


def take_groups(source: Any, wanted: str | None) -> None:
    """Give a source the groups that `--data.group` asks for, where opening it has not: by the names of its files.

    Raises:
        UserError: its examples have neither columns nor names; see `named_by`.
    """
    if wanted is None or groups_of(source) is not None:
        return
    name_of = cast(Callable[[int], str] | None, getattr(source, "member", None))
    if name_of is None:
        raise UserError(
            f"--data.group {wanted}: {source.name} has no names of files to find groups in, and no such column: leave "
            "it out, or give a folder, a table, archives, an .npz file with an array of that name, or from Python "
            "(images, labels, groups)"
        )
    source.groups = named_by(wanted, [name_of(index) for index in range(len(source))], source.name)


def _name(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return "" if value is None or value != value else str(value).strip()  # (nan is not itself)
