"""The notebooks run from top to bottom, and hold nothing that a run has left in them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def run(path: Path) -> dict[str, Any]:
    """Execute the code cells one after the other; what a cell ends in is kept under `_`, as notebooks show it."""
    scope: dict[str, Any] = {}
    for number, source in enumerate(cells(path, "code")):
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), f"{path.name}[{number}]", "exec"), scope)
        if isinstance(last, ast.Expr):
            scope["_"] = eval(compile(ast.Expression(last.value), f"{path.name}[{number}]", "eval"), scope)
    return scope


def test_there_are_notebooks_without_outputs() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["images", "loop"]
    for path in NOTEBOOKS:
        document = json.loads(path.read_text())
        assert document["nbformat"] == 4
        assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
        for cell in document["cells"]:
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert "/home" not in path.read_text()
        assert document["metadata"].keys() == {"kernelspec", "language_info"}


def test_from_a_folder_to_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = run(NOTEBOOKS[0])
    assert scope["table"].keys() == {"majority", "pixels", "untrained", "pretrained"}
    assert scope["table"]["pretrained"] > max(0.8, scope["table"]["untrained"])
    assert scope["features"].shape[0] == len(scope["files"]) == 720
    assert len(scope["like"].neighbours[0]["found"]) == 5
    assert [row.problem for row in scope["said"].rows] == [None] * 4
    assert len(scope["_"]) == 4


def test_the_loop_learns_more_than_pixels_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    scope = run(NOTEBOOKS[1])
    torch.set_rng_state(state)
    assert scope["scores"]["learned"] > scope["scores"]["pixels"] + 0.02
