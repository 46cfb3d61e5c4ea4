"""`twofold recipes`: which published results there are options for, and what each should reach."""

from __future__ import annotations

import yaml

from twofold.recipes import load, names


def recipes(name: str | None = None) -> str:
    """The list of recipes, or one recipe's result, source and options, as text.

    Raises:
        UserError: if there is no recipe of that name.
    """
    if name is None:
        results = [load(each) for each in names()]
        width = max(len(recipe.name) for recipe in results)
        return "\n".join(f"{recipe.name:<{width}}  {recipe.result}" for recipe in results)
    recipe = load(name)
    options = yaml.safe_dump(recipe.options, sort_keys=False)
    given = recipe.data if recipe.command == "pretrain" else f"runs/mine {recipe.data}"
    return (
        f"{recipe.name}\n  data:   {recipe.data}\n  result: {recipe.result}\n  source: {recipe.source}\n"
        f"  run:    {recipe.run}\n\n"
        f"twofold {recipe.command} {given} --recipe {recipe.name} --out runs/{recipe.name}\n\n{options}"
    )
