"""Rewrite docs/papers.md from the registry of published results: `python docs/make_papers.py`."""

from __future__ import annotations

from pathlib import Path

from twofold.commands.papers import commands_of, released_of
from twofold.published import METRICS, Item, Paper, papers

HERE = Path(__file__).resolve().parent
INTRODUCTION = """# The papers, table by table

`twofold papers` lists these tables, `twofold papers simclr/table-5` shows one with its published values, its recipes
and its commands (`--json FILE` for programs). Only numbers that were read in a paper's text or in the authors' own
repository are here; what could not be confirmed is named as left out. No table has been run by us at its published
size, unless its row says so. `twofold evaluate`, `twofold finetune` and `twofold distill` of a run from a recipe print
the published value beside theirs, and in what the two are not alike: data, net, options of the run and of its
evaluation.
"""


def page() -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *(_paper(paper) for paper in papers().values())])


def _paper(paper: Paper) -> str:
    lines = [f"## {paper.title}", "", f"{paper.source}.", ""]
    if paper.items:
        lines += ["| table | of | values | recipes or command | run |", "|---|---|---|---|---|"]
        lines += [
            f"| `{item.full_name}` | {item.title} | {_range(item)} | {_made_by(item)} | {item.run} |"
            for item in paper.items.values()
        ]
        lines.append("")
    if paper.sections:
        lines += ["| where | what | code under `src/twofold` | command |", "|---|---|---|---|"]
        lines += [
            f"| {where} | {what} | {', '.join(f'`{file}`' for file in code.split(', '))} | `{command}` |"
            for where, what, code, command in paper.sections
        ]
        lines.append("")
    notes = [f"{item.full_name}: {item.left_out}" for item in paper.items.values() if item.left_out]
    notes += [f"{where}: {why}." for where, why in paper.left_out]
    return "\n".join([*lines, *(["Left out:", "", *(f"- {note}" for note in notes), ""] if notes else [])])


def _range(item: Item) -> str:
    """How many values of each metric, from which to which."""
    parts = []
    for metric in METRICS:
        found = [row.values[metric] for row in item.rows if metric in row.values]
        if found:
            ends = f"{min(found):g}" if min(found) == max(found) else f"{min(found):g} to {max(found):g}"
            parts.append(f"{len(found)}: {ends} {METRICS[metric]}")
    return "; ".join(parts)


def _made_by(item: Item) -> str:
    if item.command_lines:
        return "; ".join(f"`{line}`" for line in item.command_lines)
    families = list(dict.fromkeys(recipe.partition(":")[0] for recipe in item.recipes()))
    made = [f"`{family}`" for family in families]
    made += ["`twofold convert` of the released files"] if released_of(item) else []
    return ", ".join(made) if commands_of(item) else "none"


if __name__ == "__main__":
    (HERE / "papers.md").write_text(page())
