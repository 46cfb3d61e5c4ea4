"""Rewrite docs/options.md and docs/recipes.md from the code: `python docs/make_options.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twofold import recipe as recipes
from twofold.commands.embed import EmbedConfig
from twofold.evaluation.protocols.base import EvaluationConfig
from twofold.options import Leaf, as_written, explanation, fields_of, is_group, leaves
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig
from twofold.studies.labels import LabelsConfig
from twofold.studies.transfer.study import TransferConfig

HERE = Path(__file__).resolve().parent


def rows(cls: Any, prefix: str = "", groups: bool = True) -> list[str]:
    """A table row for each option of a dataclass, with those of the groups in it or without."""
    lines = []
    for leaf in leaves(cls, prefix) if groups else own_options(cls, prefix):
        default = "" if leaf.default is None else f"`{as_written(leaf.default)}`"
        lines.append(f"| `--{leaf.path}` | {default} | {explanation(leaf).replace('|', chr(92) + '|')} |")
    return lines


def own_options(cls: Any, prefix: str = "") -> list[Leaf]:
    """The options of a dataclass itself."""
    return [leaf for leaf in leaves(cls, prefix) if "." not in leaf.path.removeprefix(prefix)]


def options() -> str:
    """The page of options."""
    head = ["| option | default | what it does |", "|---|---|---|"]
    parts = ["# Options", "", "Of `twofold pretrain`; an option without a default is chosen from the data.", ""]
    parts += [*head, *rows(RunConfig, groups=False), ""]
    for name, group in fields_of(RunConfig).items():
        if is_group(group.type):
            parts += [f"## {name}", "", *head, *rows(group.type, f"{name}."), ""]
    for command, cls in (
        ("evaluate", EvaluationConfig), ("finetune", FinetuneConfig), ("labels", LabelsConfig),
        ("embed", EmbedConfig), ("distill", DistillConfig), ("transfer", TransferConfig),
    ):  # fmt: skip
        parts += [f"## twofold {command}", "", *head, *rows(cls, groups=command == "transfer"), ""]
    shared = (
        "The options of `data` above apply to all of these but `transfer`; those of `views`, `optim` and `training` to "
    )
    return "\n".join([*parts, shared + "`finetune` and `distill`, those of `encoder` to `distill`, too.", ""])


def recipe_page() -> str:
    """The page of recipes."""
    lines = ["# Recipes", "", "`twofold recipes NAME` shows one; `--recipe NAME` starts from it.", ""]
    lines += [
        "A family is one file for many recipes, one a cell of a published table or grid, named",
        "`FAMILY:axis=value,axis=value`: `twofold recipes FAMILY` shows its axes, and `--cell axis=value` its cells",
        "with their published values.",
        "",
    ]
    lines += ["| recipe | data | should reach | source | run by us |", "|---|---|---|---|---|"]
    for name in recipes.names():
        recipe = recipes.load(name)
        axes = ", ".join(f"{axis} ({len(values)})" for axis, values in recipe.axes.items())
        shown = f"`{name}`" + (f", a family: {axes}" if axes else "")
        lines.append(f"| {shown} | {recipe.data} | {recipe.result} | {recipe.source} | {recipe.run} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    (HERE / "options.md").write_text(options())
    (HERE / "recipes.md").write_text(recipe_page())
