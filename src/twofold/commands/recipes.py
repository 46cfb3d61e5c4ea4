"""`twofold recipes`: which published results there are options for, and what each should reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from twofold.commands.arguments import new_parser
from twofold.errors import UserError
from twofold.recipe import Recipe, cells, load, matching, names
from twofold.results import in_json


@dataclass(frozen=True)
class RecipesResult:
    """Recipes that were asked for: one in full, or all in a line each."""

    recipes: tuple[Recipe, ...]
    in_full: bool

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        if self.in_full:
            return "\n\n".join(_in_full(recipe) for recipe in self.recipes)
        width = max(len(recipe.name) for recipe in self.recipes)
        lines = [f"{recipe.name:<{width}}  {recipe.result}" for recipe in self.recipes]
        return "\n".join([*lines, "", *_ABOUT])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types: each recipe by its name."""
        return {recipe.name: in_json(recipe) for recipe in self.recipes}


_ABOUT = (
    "A recipe is a file of options with the published result that they should reach, and its source.",
    "  twofold recipes NAME                          all of it, and the command that runs it",
    "  twofold pretrain DATA --recipe NAME --lr 0.3  start from it; options that are given win over it",
    "  twofold pretrain DATA --config mine.yaml      a file of your own: options as `--print-config` writes them",
)


def recipes(name: str | None = None, *, cell: str | None = None) -> RecipesResult:
    """The recipes, or the one of a name with its source and options.

    Args:
        name: of a recipe, a family, or a cell of one (FAMILY:axis=value,axis=value).
        cell: values of a family's axes; all cells that have them are shown, in a line each where they are several.

    Raises:
        UserError: if there is no recipe of that name, or no such cell.
    """
    if cell is not None:
        if name is None:
            raise UserError(f"--cell {cell} is of a family: name it first")
        wanted = matching(name, cell)
        return RecipesResult(tuple(load(each) for each in wanted), in_full=len(wanted) == 1)
    wanted = names() if name is None else [name]
    return RecipesResult(tuple(load(each) for each in wanted), in_full=name is not None)


def _in_full(recipe: Recipe) -> str:
    options = yaml.safe_dump(recipe.options, sort_keys=False)
    if recipe.axes:
        lines = [f"  {axis}: {', '.join(values)}" for axis, values in recipe.axes.items()]
        every = cells(recipe.name)
        return "\n".join([
            recipe.name, f"  data:   {recipe.data}", f"  result: {recipe.result}", f"  source: {recipe.source}",
            f"  run:    {recipe.run}", "", f"a family of {len(every)} recipes:", *lines, "",
            f"--recipe {every[0]} names one; `twofold recipes {recipe.name} --cell ...` shows those with some values",
            "", "shared options:", "", options,
        ])  # fmt: skip
    line = recipe.line("runs/mine", f"runs/{recipe.name}")
    return (
        f"{recipe.name}\n  data:   {recipe.data}\n  result: {recipe.result}\n  source: {recipe.source}\n"
        f"  run:    {recipe.run}\n\n"
        f"{line}\n\n{options}"
    )


def parser() -> ArgumentParser:
    """Of `twofold recipes`."""
    parser = new_parser("List the recipes, or show one.")
    parser.add_argument("name", nargs="?", default=None, help="show this one's options, too")
    parser.add_argument("--cell", type=str, help="of a family: the cells with these values, axis=value,axis=value")
    return parser


def run(options: dict[str, Any]) -> RecipesResult:
    """`twofold recipes`."""
    return recipes(options.get("name"), cell=options.get("cell"))
