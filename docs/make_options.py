"""Rewrite docs/options.md and docs/recipes.md from the code: `python docs/make_options.py`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from twofold import recipes
from twofold.commands.embed import EmbedConfig
from twofold.commands.evaluate import EvaluationConfig
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig
from twofold.studies.labels import LabelsConfig
from twofold.studies.transfer.finetune import Budget
from twofold.studies.transfer.study import TransferConfig

HERE = Path(__file__).resolve().parent


def explanations(cls: type) -> dict[str, str]:
    """What the line after each field of a dataclass says."""
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', inspect.getsource(cls), re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def rows(cls: Any, prefix: str = "") -> list[str]:
    """A table row for each option of a dataclass, groups within it left out."""
    told = explanations(cls)
    lines = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default_factory):
            continue
        default = "" if field.default is None else f"`{field.default}`"
        text = told[field.name].replace("|", "\\|")
        lines.append(f"| `--{prefix}{field.name}` | {default} | {text} |")
    return lines


def options() -> str:
    """The page of options."""
    head = ["| option | default | what it does |", "|---|---|---|"]
    parts = ["# Options", "", "Of `twofold pretrain`; an option without a default is chosen from the data.", ""]
    parts += [*head, *rows(RunConfig), ""]
    for field in dataclasses.fields(RunConfig):
        room: Any = field.default_factory
        if dataclasses.is_dataclass(room):
            parts += [f"## {field.name}", "", *head, *rows(room, f"{field.name}.")]
            for inner in dataclasses.fields(room):
                if dataclasses.is_dataclass(inner.default_factory):
                    parts += rows(inner.default_factory, f"{field.name}.{inner.name}.")
            parts += [""]
    parts += ["## twofold evaluate", "", *head, *rows(EvaluationConfig), ""]
    parts += ["## twofold finetune", "", *head, *rows(FinetuneConfig), ""]
    parts += ["## twofold labels", "", *head, *rows(LabelsConfig), ""]
    parts += ["## twofold embed", "", *head, *rows(EmbedConfig), ""]
    parts += ["## twofold distill", "", *head, *rows(DistillConfig), ""]
    parts += ["## twofold transfer", "", *head, *rows(TransferConfig), *rows(Budget, "budget."), ""]
    shared = (
        "The options of `data` above apply to all of these but `transfer`; those of `views`, `optim` and `training` to "
    )
    return "\n".join([*parts, shared + "`finetune` and `distill`, those of `encoder` to `distill`, too.", ""])


def recipe_page() -> str:
    """The page of recipes."""
    lines = ["# Recipes", "", "`twofold recipes NAME` shows one; `--recipe NAME` starts from it.", ""]
    lines += ["| recipe | data | should reach | source | run by us |", "|---|---|---|---|---|"]
    for name in recipes.names():
        recipe = recipes.load(name)
        lines.append(f"| `{name}` | {recipe.data} | {recipe.result} | {recipe.source} | {recipe.run} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    (HERE / "options.md").write_text(options())
    (HERE / "recipes.md").write_text(recipe_page())
