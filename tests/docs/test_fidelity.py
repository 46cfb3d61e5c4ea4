"""docs/fidelity.md is complete: every golden file, every row, and for each row an error that it noticed."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch

import pytest

from fidelity import COMMITS, ROWS
from golden_data import SLICES, whole_set
from mutations import MUTATIONS, ROOT
from twofold.evaluation.protocols.base import EvaluationConfig
from twofold.options import leaves
from twofold.runs.config import FinetuneConfig, RunConfig

PAGE = (ROOT / "docs" / "fidelity.md").read_text()
TABLE = PAGE.split("## Does each row notice?")[0]
SHOWN = json.loads((ROOT / "docs" / "mutations.json").read_text())


def golden_files() -> set[str]:
    folders = [folder for folder in (SLICES, whole_set()) if folder is not None]
    arrays = {path.name for folder in folders for path in folder.glob("*.npz")}
    return arrays | {f"checkpoints/{path.name}" for folder in folders for path in folder.glob("checkpoints/*")}


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_the_page_lists_every_golden_file(name: str) -> None:
    assert f"`{name}" in TABLE
    patterns = [pattern.split("/")[0] for row in ROWS.values() for pattern in row.golden]
    assert any(fnmatch(name.split("/")[0], pattern) for pattern in patterns), "no row of tests/fidelity.py has it"


@pytest.mark.parametrize("component", ROWS)
def test_every_row_is_there_with_its_links_and_tests(component: str) -> None:
    lines = [line for line in TABLE.splitlines() if line.startswith(f"| {component} |")]
    assert len(lines) == 1
    found, tolerance = (float(cell.strip().rstrip("°")) for cell in lines[0].split("|")[5:7])
    assert 0 <= found <= tolerance
    row = ROWS[component]
    for file in row.files:
        assert f"https://github.com/{row.repository}/blob/{COMMITS[row.repository]}/{file}" in lines[0]
    for test in lines[0].split("|")[-2].replace("`", "").split("<br>"):
        assert (ROOT / test.strip()).is_file()


@pytest.mark.parametrize("component", ROWS)
def test_every_row_noticed_an_error_that_can_still_be_made(component: str) -> None:
    mutation, shown = MUTATIONS[component], SHOWN[component]
    text = (ROOT / "src" / "twofold" / mutation.file).read_text()
    assert mutation.mutated(text) != text
    assert (shown["file"], shown["what"]) == (mutation.file, mutation.what), "make_fidelity.py --mutations again"
    assert shown["said"], "its test did not notice"
    assert f"| {component} | {mutation.what} |" in PAGE


def test_no_row_is_without_a_mutation() -> None:
    assert set(MUTATIONS) == set(ROWS) == set(SHOWN)


def test_the_page_ends_with_the_differences_as_they_are_written() -> None:
    differences = (ROOT / "docs" / "differences.md.in").read_text()
    for repository, commit in COMMITS.items():
        differences = differences.replace(f"({repository}:", f"(https://github.com/{repository}/blob/{commit}/")
    assert PAGE.endswith(differences), "run docs/make_fidelity.py again"


def test_every_option_that_the_table_of_flags_names_is_one() -> None:
    known = {leaf.path for kind in (RunConfig, FinetuneConfig, EvaluationConfig) for leaf in leaves(kind)}
    known |= {"out", "test", "resume", "recipe", "protocol"}
    rows = PAGE.split("## Flags of the released programs")[1].splitlines()
    named = [re.findall(r"`--([a-z_.]+)", row.split("|")[2]) for row in rows if row.startswith("| `")]
    assert len(named) > 30
    assert {name for names in named for name in names} <= known
