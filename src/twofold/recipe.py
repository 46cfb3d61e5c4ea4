"""Recipes: YAML files of published settings, with what each should reach, from where, and whether we ran it.

A file with `axes` is a family: one recipe for each combination of their values, such as the 48 cells of a table, named
`FAMILY:axis=value,axis=value`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from twofold.errors import UserError, suggest
from twofold.options import as_written, merge, upgraded
from twofold.options.documents import read_yaml, require_parts
from twofold.published import reached


@dataclass(frozen=True)
class Recipe:
    """A named set of options.

    Attributes:
        name: what `--recipe` takes.
        data: the data set that it is for, as PATH of the command.
        result: what it should reach.
        source: where that is published.
        run: whether we ran it: machine, time and command, or that we did not.
        options: nested options of the command: of `RunConfig` for pretrain, of `FinetuneConfig` for finetune, of
            `DistillConfig` for distill, of `EvaluationConfig` for evaluate.
        command: the command that takes it.
        axes: of a family of which no cell was named: axis -> its values; the options are then those that all cells
            share.
    """

    name: str
    data: str
    result: str
    source: str
    run: str
    options: dict[str, Any]
    command: str = "pretrain"
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def line(self, run: str, out: str) -> str:
        """The command that runs it.

        Args:
            run: the pretrained run that is measured or trained on, where the command takes one.
            out: the new run's folder, where the command makes one.
        """
        data = self.data if " " not in self.data else "recordings"
        before = "" if self.command == "pretrain" else f"{run} "
        after = "" if self.command == "evaluate" else f" --out {out}"
        return f"twofold {self.command} {before}{data} --recipe {self.name}{after}"


def _files() -> Traversable:
    """The folder of the recipes."""
    return resources.files("twofold") / "recipes"


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in _files().iterdir() if path.name.endswith(".yaml"))


def load(name: str) -> Recipe:
    """Read a recipe; its `base`, if it has one, lies under its own options.

    Args:
        name: of a recipe, of a family, or of a cell, `FAMILY:axis=value,axis=value` in any order.

    Raises:
        UserError: if there is none of that name.
    """
    family, _, cell = name.partition(":")
    if family not in names():
        raise UserError(f"--recipe {name}: there is no such recipe{suggest(family, names())}")
    document = yaml.safe_load((_files() / f"{family}.yaml").read_text())
    options = document.get("options", {})
    if "base" in document:
        options = merge(load(document["base"]).options, options)
    about, axes = document["about"], _axes(document)
    result = about["result"]
    if cell or not axes:
        chosen = _chosen(name, cell, axes)
        _check_left_out(name, chosen, document.get("without", []))
        options = merge(options, *(axes[axis][value] for axis, value in chosen.items()))
        name = _cell_name(family, chosen) if chosen else name
        axes = {}
        result = reached(name) or result
    return Recipe(
        name, about["data"], result, about["source"], about["run"], options, about.get("command", "pretrain"),
        {axis: tuple(values) for axis, values in axes.items()},
    )  # fmt: skip


def cells(family: str) -> list[str]:
    """The names of all cells of a family, in the order of its axes; the name itself of a recipe that is none."""
    document = yaml.safe_load((_files() / f"{family}.yaml").read_text())
    axes, without = _axes(document), document.get("without", [])
    if not axes:
        return [family]
    every = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return [_cell_name(family, chosen) for chosen in every if not any(_holds(each, chosen) for each in without)]


def matching(family: str, cell: str) -> list[str]:
    """The names of the cells that have these values of some axes, `axis=value,axis=value`; UserError if none has."""
    axes = load(family).axes
    wanted = dict(part.partition("=")[::2] for part in cell.split(","))
    for axis, value in wanted.items():
        if value not in axes.get(axis, ()):
            has = "; ".join(f"{name}: {', '.join(values)}" for name, values in axes.items()) or "no axes"
            raise UserError(f"--cell {cell}: {family} has no {axis}={value}; it has {has}")
    pairs = [f"{axis}={value}" for axis, value in wanted.items()]
    found = [name for name in cells(family) if set(pairs) <= set(name.partition(":")[2].split(","))]
    if not found:
        raise UserError(f"--cell {cell}: this combination is none of {family}")
    return found


def _axes(document: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Axis -> value -> the options that it sets. In a file a value's options may be one dotted option for all values:
    `batch: {option: batch, values: [256, 512]}`."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, given in document.get("axes", {}).items():
        if "values" in given:
            found[axis] = {as_written(value): merge({given["option"]: value}) for value in given["values"]}
        else:
            found[axis] = {str(value): options for value, options in given.items()}
    return found


def _chosen(name: str, cell: str, axes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The value of each axis that a cell's name gives, in the axes' order; UserError for one that is not there."""
    if cell and not axes:
        raise UserError(f"--recipe {name}: {name.partition(':')[0]} is a single recipe: leave out :{cell}")
    given = dict(part.partition("=")[::2] for part in cell.split(",")) if cell else {}
    for axis, value in given.items():
        if axis not in axes:
            raise UserError(f"--recipe {name}: there is no '{axis}'; it has {', '.join(axes)}")
        if value not in axes[axis]:
            raise UserError(f"--recipe {name}: {axis} is one of {', '.join(axes[axis])}; got '{value}'")
    if missing := [f"{axis} ({', '.join(axes[axis])})" for axis in axes if axis not in given]:
        raise UserError(f"--recipe {name}: say {' and '.join(missing)}, too")
    return {axis: given[axis] for axis in axes}


def _check_left_out(name: str, chosen: Mapping[str, str], without: Sequence[Mapping[str, Any]]) -> None:
    if any(_holds(each, chosen) for each in without):
        raise UserError(f"--recipe {name}: this combination is none: see `twofold recipes {name.partition(':')[0]}`")


def _holds(pattern: Mapping[str, Any], chosen: Mapping[str, str]) -> bool:
    return all(chosen[axis] == str(value) for axis, value in pattern.items())


def _cell_name(family: str, chosen: Mapping[str, str]) -> str:
    return f"{family}:" + ",".join(f"{axis}={value}" for axis, value in chosen.items())


def read_layers(
    recipe: str | None, config: str | Path | None, options: Mapping[str, Any], command: str = "pretrain"
) -> dict[str, Any]:
    """Merge recipe < file < options into nested options; UserError for a recipe of another command.

    What a recipe says of the encoder falls away where that is a module of the user's own, or comes with weights.
    """
    layers: list[Mapping[str, Any]] = []
    if recipe is not None:
        result = load(recipe)
        if result.command != command:
            raise UserError(f"--recipe {recipe} is for `twofold {result.command}`, not for `twofold {command}`")
        if result.axes:
            raise UserError(
                f"--recipe {recipe} is a family: name a cell of it, such as {cells(recipe)[0]}; `twofold recipes "
                f"{recipe}` lists its axes"
            )
        own = isinstance(options.get("encoder"), Mapping) and options["encoder"].get("name") == "custom"
        own = own or options.get("start_from") is not None
        layers.append({name: value for name, value in result.options.items() if not (own and name == "encoder")})
    if config is not None:
        name = f"--config {config}"
        document = read_yaml(config, name)
        if "options" in document:  # a run's own config.yaml works as it is
            document = require_parts(document, name, ["options"])["options"]
        layers.append(upgraded(document))
    return merge(*layers, options)
