"""What the papers report, as data: each published number with the recipe or command that is to reach it.

A paper is a YAML file here. Only what was read in a paper's text or in the authors' own repository is in it; what could
not be confirmed is named as left out, with the reason.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
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
_ITEM = frozenset({
    "title", "columns", "measured", "rows", "command", "families", "evaluation", "apart", "note", "left_out", "run",
    "recipe", "recipes", "recipe_of", "without_recipe", "start", "starts", "released",
})  # fmt: skip
"""What an item's entry in a file can hold."""
SAME = {
    "moco-cifar10-asymmetric": "moco-cifar10:loss=asymmetric,epochs=200",
    "moco-cifar10-symmetric": "moco-cifar10:loss=symmetric,epochs=200",
    "moco-v2-imagenet-200": "moco-imagenet-200:row=d",
    "simclr-imagenet-without:what=blur": "simclr-imagenet-color:strength=1",
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
class Released:
    """The authors' file of a row's net, which `twofold convert` reads.

    Attributes:
        file: what it is called where the user has put it.
        found: what the conversion finds in it, by name: the network, and the step or epoch that it was saved at.
        classifier: whether the row's value is that of a classifier in the file.
    """

    file: str
    found: Mapping[str, Any]
    classifier: bool = True

    def is_in(self, found: Mapping[str, Any]) -> bool:
        """Whether a conversion found the file's network, saved at the same step or epoch; never where that of the file
        is not known, since then nothing tells it from others."""
        return self.saved() != "" and all(found.get(name) == value for name, value in self.found.items())

    def saved(self) -> str:
        """When it was saved, in words; empty where that is not known."""
        return next((f"{name} {self.found[name]:,}" for name in ("step", "epoch") if name in self.found), "")


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        keys: of what it is, column -> value.
        values: metric -> published value, in the units of `METRICS`; without those that were not reported, and none
            where the item's `left_out` says so: the row is then a setting of the paper's.
        recipe: the recipe that is to reach it, or of pretraining what is then measured; None where there is none.
        start: the recipe of the run that it starts from or learns from: the pretraining of what is fine-tuned, the
            encoder of what is trained with labels, the teacher of what is distilled; None where there is none.
        released: the authors' file of it; None where there is none.
    """

    keys: Mapping[str, str]
    values: Mapping[str, float]
    recipe: str | None
    start: str | None = None
    released: Released | None = None

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
        evaluation: the recipe by which its pretrained encoders are measured; empty where that has none.
        apart: in what every run of ours differs from what was published; empty where that is nothing.
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
    evaluation: str = ""
    apart: str = ""
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


def converted(found: Mapping[str, Any]) -> list[tuple[Item, Row]]:
    """The rows of the released file that a conversion was of, as far as what it found in the file tells."""
    return [
        (item, row)
        for paper in papers().values()
        for item in paper.items.values()
        for row in item.rows
        if row.released is not None and row.released.is_in(found)
    ]


def reached(recipe: str) -> str:
    """What a recipe should reach, in words; empty where nothing is published for it."""
    found = [
        f"{row.words()} {MEASURED[item.measured]}{f' ({item.apart})' if item.apart else ''}"
        for item, row in published(recipe)
    ]
    return "; ".join(dict.fromkeys(found))


def _paper(name: str, text: str) -> Paper:
    """A paper's file, read strictly: YAML cuts off what an unquoted comma or number sign follows."""
    document = yaml.safe_load(text)
    _only(document, {"title", "source", "items", "left_out", "sections"}, name)
    for each in document.get("left_out", []):
        _only(each, {"where", "why"}, f"{name}, left_out")
    items = {key: _item(name, key, value) for key, value in document["items"].items()}
    left_out = tuple((each["where"], each["why"]) for each in document.get("left_out", []))
    sections = tuple((where, what, code, command) for where, what, code, command in document.get("sections", []))
    return Paper(name, document["title"], document["source"], items, left_out, sections)


def _only(document: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Raise a ValueError for a name that the files do not have."""
    unknown = sorted(str(name) for name in document if name not in names)
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}, which nothing reads: is a text not in quotes?")


def _item(paper: str, name: str, document: Mapping[str, Any]) -> Item:
    _only(document, _ITEM, f"{paper}/{name}")
    columns = document["columns"]
    rows = tuple(_row(document, dict(zip(columns, cells, strict=True))) for cells in document["rows"])
    given = document.get("command", ())
    lines = (given,) if isinstance(given, str) else tuple(given)
    return Item(
        paper, name, document["title"], document["measured"], rows, lines,
        tuple(document.get("families", ())), document.get("evaluation", ""), document.get("apart", ""),
        document.get("note", ""), document.get("left_out", ""), document.get("run", NOT_RUN),
    )  # fmt: skip


def _row(document: Mapping[str, Any], cells: Mapping[str, Any]) -> Row:
    keys = {column: str(value) for column, value in cells.items() if column not in METRICS}
    values = {column: float(value) for column, value in cells.items() if column in METRICS and value is not None}
    recipe = _recipe(document, keys)
    return Row(keys, values, recipe, _start(document, keys) if recipe else None, _released(document, keys))


def _released(document: Mapping[str, Any], keys: Mapping[str, str]) -> Released | None:
    """The authors' file of a row: names are made of its keys, of them with _ for -, and of the parts of a net."""
    if "released" not in document:
        return None
    parts = dict(keys) | {f"{name}_": value.replace("-", "_") for name, value in keys.items()}
    if net := re.fullmatch(r"r(\d+)-(\dx)(-sk)?", keys.get("net", "")):
        kernels = ", selective kernels 0.0625" if net[3] else ""
        parts |= {"depth": net[1], "width": net[2], "selective": str(int(bool(net[3]))), "kernels": kernels}
    found = dict(document["released"])
    file, classifier = str(found.pop("file")).format(**parts), bool(found.pop("classifier", True))
    chosen = {
        name: next(of for key, of in value.items() if key in keys.values()) if isinstance(value, dict) else value
        for name, value in found.items()
    }
    return Released(file, chosen | {"network": chosen["network"].format(**parts)}, classifier)


def _start(document: Mapping[str, Any], keys: Mapping[str, str]) -> str | None:
    """What a row starts from: made of its keys, or named for one of them."""
    if "start" in document:
        return str(document["start"]).format(**keys)
    named = document.get("starts", {})
    return next((str(named[value]).format(**keys) for value in keys.values() if value in named), None)


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
