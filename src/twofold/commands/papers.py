"""`twofold papers`: the papers' tables, what makes each, and the published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

from twofold.commands.arguments import new_parser
from twofold.published import MEASURED, METRICS, Item, Row, find, published
from twofold.published import papers as every_paper
from twofold.recipe import load
from twofold.report.tables import Table, terminal
from twofold.results import in_json

_MOST = 6
"""Commands that are shown of an item."""
_OF_FILES = "of the released files, where they lie in checkpoints/"


@dataclass(frozen=True)
class PapersResult:
    """Items that were asked for: one in full, or those of a paper or of all in a line each.

    Attributes:
        items: of the papers.
        in_full: whether the rows are told.
    """

    items: tuple[Item, ...]
    in_full: bool

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        if self.in_full:
            return "\n\n".join(_in_full(item) for item in self.items)
        width = max((len(item.full_name) for item in self.items), default=0)
        lines = [f"{item.full_name:<{width}}  {item.title} ({_values(item)}; {item.run})" for item in self.items]
        papers = {item.paper for item in self.items}
        lines += [
            f"{paper.name}, {where}: left out, {why}"
            for paper in every_paper().values()
            if paper.name in papers or not paper.items
            for where, why in paper.left_out
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types: each item by its full name, with its commands."""
        return {
            item.full_name: in_json(item) | {"commands": commands_of(item), "released": released_of(item)}
            for item in self.items
        }


def papers(name: str | None = None) -> PapersResult:
    """The tables of the papers, those of one paper, or one table with its published numbers.

    Args:
        name: PAPER, or PAPER/TABLE.

    Raises:
        UserError: if there is none of that name.
    """
    items = [item for paper in every_paper() for item in find(paper)] if name is None else find(name)
    return PapersResult(tuple(items), in_full=name is not None and "/" in name)


def commands_of(item: Item) -> list[str]:
    """What reproduces an item, command by command: pretraining, what is done from it, and what is then measured.

    Each run that one takes was made by one before it.
    """
    if item.command_lines:
        return list(item.command_lines)
    lines = [line for row in item.rows for line in _from_the_start(item, row)]
    lines += [f"twofold recipes {family}" for family in item.families]
    return list(dict.fromkeys(lines)) or released_of(item)


def released_of(item: Item) -> list[str]:
    """What measures the authors' files, command by command: each is converted, and then scored as it is, or where the
    file holds no classifier, with one that is trained."""
    lines = []
    for row in item.rows:
        if row.released is not None:
            name = _plain(row.released.file.removesuffix(".pth.tar").replace("/", "-"))
            lines.append(f"twofold convert checkpoints/{row.released.file} --out encoders/{name}")
            scored = f"twofold evaluate encoders/{name} imagenet --protocol imagenet"
            trained = load(item.evaluation).line(f"encoders/{name}", f"runs/{name}-linear") if item.evaluation else ""
            lines.append(scored if row.released.classifier else trained)
    return lines


def _from_the_start(item: Item, row: Row) -> list[str]:
    """All commands of a row, each run's folder being that which the next one takes."""
    if row.recipe is None:
        return []
    recipe, folder, start, lines = load(row.recipe), _folder(item, row), "runs/pretrained", list[str]()
    if row.start is not None:
        before = load(row.start)
        if item.measured == "supervised":
            start = f"runs/fresh-{_plain(row.start)}"
            lines = [f"twofold fresh --recipe {row.start} --out {start}"]
        elif before.command == "pretrain":
            start = f"runs/{_plain(row.start)}"
            lines = [before.line("", start)]
        else:
            alike = [each for each in published(row.start) if each[1].keys.get("labels") == row.keys.get("labels")]
            start = _folder(*alike[0])
            lines = _from_the_start(*alike[0])
    lines = [*lines, recipe.line(start, folder)]
    return [*lines, load(item.evaluation).line(folder, f"{folder}-linear")] if item.evaluation else lines


def _folder(item: Item, row: Row) -> str:
    """Of a row's run: named for its recipe, and for the row where several share one."""
    shared = sum(other.recipe == row.recipe for other in item.rows) > 1
    return f"runs/{'-'.join([_plain(str(row.recipe)), *(row.keys.values() if shared else ())])}"


def _plain(recipe: str) -> str:
    """A recipe's name as a folder's."""
    return recipe.replace(":", "-").replace(",", "-").replace("=", "")


def _values(item: Item) -> str:
    count = sum(len(row.values) for row in item.rows)
    if not count:
        return "settings alone"
    return f"{count} published value{'s' if count != 1 else ''}"


def _in_full(item: Item) -> str:
    """An item's rows with recipes, its commands and its notes."""
    keys = list(item.rows[0].keys) if item.rows else []
    metrics = list(dict.fromkeys(m for row in item.rows for m in row.values))
    rows = [
        [*row.keys.values(), *(f"{row.values[m]:g}" if m in row.values else "" for m in metrics), row.recipe or ""]
        for row in item.rows
    ]
    heads = [f"{m} ({METRICS[m].partition(' ')[0]})" for m in metrics]
    commands, released = commands_of(item), released_of(item)
    words = [
        f"{item.full_name}: {item.title}",
        f"{every_paper()[item.paper].source}; {MEASURED[item.measured]}; {item.run}",
        *(["commands:", *_first(commands, "recipe")] if commands else ["no command makes this"]),
        *([f"{_OF_FILES}, not run by us:", *_first(released, "row")] if released not in ([], commands) else []),
        *([_OF_FILES] if released and released == commands else []),
        *(["", terminal(Table(item.title, [*keys, *heads, "recipe"], rows))] if rows else []),
        *([f"settings: twofold recipes NAME, such as {item.recipes()[0]}"] if item.recipes() else []),
        *([f"not as published: {item.apart}"] if item.apart else []),
        *([item.note] if item.note else []),
        *([f"left out: {item.left_out}"] if item.left_out else []),
    ]
    return "\n".join(words)


def _first(commands: Sequence[str], of: str) -> list[str]:
    """The first commands, one a line, and how many more there are."""
    more = [f"  ... {len(commands) - _MOST} more, likewise for each {of} below"] if len(commands) > _MOST else []
    return [*(f"  {command}" for command in commands[:_MOST]), *more]


def parser() -> ArgumentParser:
    """Of `twofold papers`."""
    parser = new_parser("List the papers' tables, or show one with its published numbers and what makes it.")
    parser.add_argument("name", nargs="?", default=None, help="a paper, or PAPER/TABLE such as simclr/table-5")
    return parser


def run(options: dict[str, Any]) -> PapersResult:
    """`twofold papers`."""
    return papers(options.get("name"))
