"""What the papers report, as data: each published number with the recipe or command that is to reach it.

A paper is a YAML file here. Only what was read in a paper's text or in the authors' own repository is in it; what could
not be confirmed is named as left out, with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from twofold.errors import UserError, suggest

METRICS = {
    "top1": "% top-1", "top5": "% top-5", "contrastive_entropy": "nats", "contrastive_accuracy": "%",
    "result": "%", "wer": "% WER", "chance": "% chance", "h": "% from h", "g(h)": "% from g(h)",
}  # fmt: skip
"""Columns that hold results, and how one is written; the others say of what."""
MEASURED = {
    "linear": "by linear evaluation", "finetune": "fine-tuned", "supervised": "trained with labels",
    "distill": "distilled", "knn": "by kNN on the head's outputs", "transfer": "by transfer", "probe": "of a probe",
    "recogniser": "of a recogniser", "view": "by looking",
}  # fmt: skip
NOT_RUN = "not run by us"
SAME = {
    "simclr-imagenet-100": "simclr-imagenet-grid:batch=4096,epochs=100,rule=linear",
    "simclr-imagenet-100-sqrt": "simclr-imagenet-grid:batch=4096,epochs=100,rule=sqrt",
    "simclr-imagenet-800": "simclr-imagenet-grid:batch=4096,epochs=800,rule=linear",
    "simclr-imagenet-800-sqrt": "simclr-imagenet-grid:batch=4096,epochs=800,rule=sqrt",
    "simclr-finetune-1pct": "simclr-finetune:width=1x,labels=1pct",
    "simclr-finetune-10pct": "simclr-finetune:width=1x,labels=10pct",
    "simclr2-imagenet-800-memory": "simclr2-imagenet:net=r50-1x",
    "simclr2-imagenet-800-sk": "simclr2-imagenet:net=r50-1x-sk",
    "simclr2-imagenet-800-r152-3x-sk": "simclr2-imagenet:net=r152-3x-sk",
    "simclr2-finetune-1pct": "simclr2-finetune:net=r50-1x,labels=1pct",
    "simclr2-finetune-10pct": "simclr2-finetune:net=r50-1x,labels=10pct",
    "simclr2-finetune-100pct": "simclr2-finetune:net=r50-1x,labels=100pct",
}
"""Recipes with names of their own, and the cell of a family that each is."""


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        keys: of what it is, column -> value.
        values: metric -> published value, in the units of `METRICS`; without those that were not reported, and none
            where the item's `left_out` says so: the row is then a setting of the paper's.
        recipe: the recipe that is to reach it, or of pretraining what is then measured; None where there is none.
    """

    keys: Mapping[str, str]
    values: Mapping[str, float]
    recipe: str | None

    def words(self) -> str:
        """The values for people."""
        return ", ".join(f"{value:g} {METRICS[metric]}" for metric, value in self.values.items())


@dataclass(frozen=True)
class Item:
    """A table, figure or statement of a paper.

    Attributes:
        paper: its paper's name here.
        name: as `twofold papers PAPER/NAME` takes it.
        title: what it is of.
        measured: how, a key of `MEASURED`.
        rows: of it.
        command_lines: what makes all of it, one command after the other, where its rows' recipes alone do not.
        families: further families of recipes that belong to it.
        note, left_out: what a reader should know; empty where there is nothing.
        run: whether we ran it, and how.
    """

    paper: str
    name: str
    title: str
    measured: str
    rows: tuple[Row, ...]
    command_lines: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    note: str = ""
    left_out: str = ""
    run: str = NOT_RUN

    @property
    def full_name(self) -> str:
        """With its paper's."""
        return f"{self.paper}/{self.name}"

    def recipes(self) -> list[str]:
        """Of all rows and families, each once."""
        return list(dict.fromkeys([*(row.recipe for row in self.rows if row.recipe), *self.families]))


@dataclass(frozen=True)
class Paper:
    """A paper: its items, what is left out of them, and where its sections are in the code.

    Attributes:
        name, title, source: as listed.
        items: by name.
        left_out: (where, why).
        sections: (where, what, code under src/twofold, command).
    """

    name: str
    title: str
    source: str
    items: Mapping[str, Item]
    left_out: tuple[tuple[str, str], ...] = ()
    sections: tuple[tuple[str, str, str, str], ...] = field(default=())


@functools.cache
def papers() -> dict[str, Paper]:
    """All papers by name."""
    files = sorted((file for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml")),
                   key=lambda file: file.name)  # fmt: skip
    return {paper.name: paper for file in files if (paper := _paper(file.name.removesuffix(".yaml"), file.read_text()))}


def find(name: str) -> list[Item]:
    """The items of PAPER, or the one of PAPER/ITEM; UserError if there is none of that name."""
    paper, _, item = name.partition("/")
    if paper not in papers():
        raise UserError(f"there is no paper '{paper}'{suggest(paper, papers())}")
    items = papers()[paper].items
    if not item:
        return list(items.values())
    if item not in items:
        raise UserError(f"there is no '{item}' in {paper}{suggest(item, items)}")
    return [items[item]]


def values_of(item: str, metric: str = "top1") -> dict[tuple[str, ...], float]:
    """The values of a published table by the keys of its rows; UserError if there is no such table."""
    return {tuple(row.keys.values()): row.values[metric] for row in find(item)[0].rows if metric in row.values}


def published(recipe: str, *measured: str) -> list[tuple[Item, Row]]:
    """What is published for a recipe, by the ways of measuring that are named, or by any."""
    names = {recipe, SAME.get(recipe, recipe)} | {own for own, cell in SAME.items() if cell == recipe}
    return [
        (item, row)
        for paper in papers().values()
        for item in paper.items.values()
        for row in item.rows
        if row.recipe in names and (not measured or item.measured in measured)
    ]


def reached(recipe: str) -> str:
    """What a recipe should reach, in words; empty where nothing is published for it."""
    found = [f"{row.words()} {MEASURED[item.measured]}" for item, row in published(recipe)]
    return "; ".join(dict.fromkeys(found))


def beside(recipe: str | None, *measured: str) -> list[str]:
    """Lines that set the published values of a recipe beside a result; none where nothing is published."""
    return [
        f"published: {row.words()} {MEASURED[item.measured]} ({item.full_name}; recipe {recipe})"
        for item, row in (published(recipe, *measured) if recipe else [])
    ]


def _paper(name: str, text: str) -> Paper:
    document = yaml.safe_load(text)
    items = {key: _item(name, key, value) for key, value in document["items"].items()}
    left_out = tuple((each["where"], each["why"]) for each in document.get("left_out", []))
    sections = tuple((where, what, code, command) for where, what, code, command in document.get("sections", []))
    return Paper(name, document["title"], document["source"], items, left_out, sections)


def _item(paper: str, name: str, document: Mapping[str, Any]) -> Item:
    columns = document["columns"]
    rows = tuple(_row(document, dict(zip(columns, cells, strict=True))) for cells in document["rows"])
    given = document.get("command", ())
    lines = (given,) if isinstance(given, str) else tuple(given)
    return Item(
        paper, name, document["title"], document["measured"], rows, lines,
        tuple(document.get("families", ())), document.get("note", ""), document.get("left_out", ""),
        document.get("run", NOT_RUN),
    )  # fmt: skip


def _row(document: Mapping[str, Any], cells: Mapping[str, Any]) -> Row:
    keys = {column: str(value) for column, value in cells.items() if column not in METRICS}
    values = {column: float(value) for column, value in cells.items() if column in METRICS and value is not None}
    return Row(keys, values, _recipe(document, keys))


def _recipe(document: Mapping[str, Any], keys: Mapping[str, str]) -> str | None:
    """The recipe of a row: named for its keys, or made of them where they are those that the template is for."""
    named = document.get("recipes", {})
    for key in ("-".join(keys.values()), keys.get(document.get("recipe_of", ""), "")):
        if key in named:
            return str(named[key])
    template = dict(document.get("recipe", {}))
    name = template.pop("name", None)
    without = document.get("without_recipe", [])
    if name is None or any(keys[column] != value for column, value in template.items()):
        return None
    return None if any(value in without for value in keys.values()) else str(name.format(**keys))
