"""Labels that people wrote into tables: whose they are, and what looks like a slip."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twofold.data.sources.tables import GivenLabel, given_labels
from twofold.errors import UserError, suggest
from twofold.text import printable

_ALIKE = 0.8
"""Share of common letters from which two names of classes may be one."""
_RARE = 5
"""A name that stands for at most one fifth of the labels that its like has may be a slip."""
_SUGGESTED_FROM = 10_000
"""Names up to which the nearest to an unknown one is looked for."""


@dataclass(frozen=True)
class Filled:
    """What tables say.

    Attributes:
        labels: the label of each example that has one, by its place.
        left_empty: examples, by place, for whose label `twofold label` asked and got none.
        notes: what may be slips, in words.
    """

    labels: dict[int, str]
    left_empty: frozenset[int]
    notes: tuple[str, ...]


def read_tables(paths: Sequence[Path], encoding: str = "utf-8") -> dict[Path, list[GivenLabel]]:
    """The rows of tables that were filled in; raises UserError as `given_labels` does, and without any label."""
    tables = {path: given_labels(path, encoding) for path in paths}
    if tables and not any(row.label for rows in tables.values() for row in rows):
        raise UserError(f"--labels {', '.join(map(str, paths))}: no row has a label: fill in the column label")
    return tables


def read_labels(
    tables: Mapping[Path, Sequence[GivenLabel]], names: Sequence[str], place: Callable[[int], Path | None]
) -> Filled:
    """The labels of examples in some tables, each row of which names one by its name, or by a path from the table.

    Args:
        tables: see `read_tables`.
        names: [n] of the examples.
        place: the file of one, where it has one.

    Raises:
        UserError: a row of no example; two rows of one that disagree.
    """
    rows = {each: row for row, name in enumerate(names) for each in (printable(name), name)}
    files: dict[str, int] | None = None
    labels: dict[int, str] = {}
    said: dict[int, str] = {}
    asked, empty = set[int](), set[int]()
    for table, given in tables.items():
        for each in given:
            path, label = each.path, each.label
            row = rows.get(path)
            if row is None:
                if files is None:
                    files = _by_file(len(names), place)
                row = files.get(str((table.parent / path).absolute().resolve()))
            where = f"{table}, row {each.number}"
            if row is None:
                near = suggest(path, names) if len(names) <= _SUGGESTED_FROM else ""
                raise UserError(f"{where}: {printable(path) or 'an empty path'} is none of the examples{near[:300]}")
            if not label:
                (asked if each.asked else empty).add(row)
                continue
            if labels.get(row, label) != label:
                raise UserError(
                    f"{where}: {printable(path)} is labelled {label}, and {labels[row]} in {said[row]}: mend one"
                )
            labels[row], said[row] = label, where
    asked, empty = asked - labels.keys(), empty - labels.keys() - asked
    notes = [f"{len(empty):,} row(s) have no label yet"] if empty else []
    if asked:
        notes.append(
            f"{len(asked):,} row(s) were left empty and are not proposed again; they stand at the end of the new table"
        )
    return Filled(labels, frozenset(asked), (*notes, *likely_slips(Counter(labels.values()))))


def _by_file(count: int, place: Callable[[int], Path | None]) -> dict[str, int]:
    """The example of each file that holds one alone."""
    found: dict[str, list[int]] = {}
    for row in range(count):
        path = place(row)
        if path is not None:
            found.setdefault(str(path.absolute().resolve()), []).append(row)
    return {path: rows[0] for path, rows in found.items() if len(rows) == 1}


def likely_slips(counts: Mapping[str, int]) -> Iterable[str]:
    """Pairs of names of classes that may be one, in words: equal but for case and spaces, or nearly equal and rare."""
    ordered = sorted(counts, key=lambda name: (counts[name], name))
    for place, rare in enumerate(ordered):
        for usual in reversed(ordered[place + 1 :]):
            if not _may_be(rare, usual, counts):
                continue
            yield (
                f"{printable(rare)} ({counts[rare]:,}) and {printable(usual)} ({counts[usual]:,}) are two classes: "
                "mend the table if one is meant"
            )
            break


def _may_be(rare: str, usual: str, counts: Mapping[str, int]) -> bool:
    folded = ["".join(name.casefold().replace("_", " ").replace("-", " ").split()) for name in (rare, usual)]
    if folded[0] == folded[1]:
        return True
    if any(character.isdigit() for character in rare + usual) or min(map(len, folded)) < 4:
        return False
    few = counts[rare] == 1 or _RARE * counts[rare] <= counts[usual]
    return few and difflib.SequenceMatcher(None, folded[0], folded[1]).ratio() >= _ALIKE
