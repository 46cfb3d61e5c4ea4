"""The papers' trends that appear on 4,000 digits in minutes, by the studies' own verdicts over three seeds.

The table of docs/ablations.md has the numbers, and the trends that do not appear at this size. Only comparisons whose
intervals lie well away from 0 there are asked for, so that another machine's rounding does not turn them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from twofold.commands.study import study
from twofold.options import OptionsParser
from twofold.studies import STUDIES

TRENDS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (
        "heads",
        {"recipe": "demo-mnist", "epochs": 4.0, "outputs": [32], "tsne": 0},
        {"h less z, nonlinear, 32 outputs": "better"},
    ),
]
"""A study, its options, and the verdicts of its comparisons."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "expected"), TRENDS, ids=[each[0] for each in TRENDS])
def test_the_papers_trend_appears(name: str, options: dict[str, Any], expected: dict[str, str], tmp_path: Path) -> None:
    result = study(name, "mnist5k", tmp_path / "study", seeds=3, **options)
    module, _, kind = STUDIES[name].place.partition(":")
    made = getattr(import_module(module), kind)
    config = OptionsParser(made.Config).build(options)
    comparisons = made("mnist5k", config, None).comparisons(result.cells)
    verdicts = {each.words: each.verdict for each in comparisons}
    assert {words: verdicts.get(words) for words in expected} == expected, result.text()
