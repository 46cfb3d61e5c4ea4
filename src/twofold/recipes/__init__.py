"""Recipes: one YAML file a published result, with what it should reach, from where, and whether we ran it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from twofold.errors import UserError, suggest
from twofold.training.config import merge


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


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(
        path.name.removesuffix(".yaml") for path in resources.files(__name__).iterdir() if path.name.endswith(".yaml")
    )


def load(name: str) -> Recipe:
    """Read a recipe; its `base`, if it has one, lies under its own options.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in names():
        raise UserError(f"--recipe {name}: there is no such recipe{suggest(name, names())}")
    text = (resources.files(__name__) / f"{name}.yaml").read_text()
    document = yaml.safe_load(text)
    options = document.get("options", {})
    if "base" in document:
        options = merge(load(document["base"]).options, options)
    about = document["about"]
    return Recipe(
        name, about["data"], about["result"], about["source"], about["run"], options, about.get("command", "pretrain")
    )
