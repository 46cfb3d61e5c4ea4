"""Recipes: one YAML file a published result, with what it should reach, from where, and whether we ran it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from twofold.errors import UserError, suggest
from twofold.options import merge, upgraded
from twofold.options.documents import read_yaml, require_parts


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
            `DistillConfig` for distill.
        command: the command that takes it.
    """

    name: str
    data: str
    result: str
    source: str
    run: str
    options: dict[str, Any]
    command: str = "pretrain"


def _files() -> Traversable:
    """The folder of the recipes."""
    return resources.files("twofold") / "recipes"


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in _files().iterdir() if path.name.endswith(".yaml"))


def load(name: str) -> Recipe:
    """Read a recipe; its `base`, if it has one, lies under its own options.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in names():
        raise UserError(f"--recipe {name}: there is no such recipe{suggest(name, names())}")
    text = (_files() / f"{name}.yaml").read_text()
    document = yaml.safe_load(text)
    options = document.get("options", {})
    if "base" in document:
        options = merge(load(document["base"]).options, options)
    about = document["about"]
    return Recipe(
        name, about["data"], about["result"], about["source"], about["run"], options, about.get("command", "pretrain")
    )


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
