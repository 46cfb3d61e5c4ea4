"""`make mutate` finds the errors that it is for, can make each, and tells those that are noticed from survivors."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import types
import warnings
from collections import Counter
from pathlib import Path

import pytest

from mutate import EQUIVALENT, known
from mutate_tests import Nearest, functions
from mutations import ROOT
from seams import PACKAGE, files, key, nearest, sites


@pytest.mark.parametrize("file", files())
def test_every_error_can_be_made(file: str) -> None:
    text = (PACKAGE / file).read_text()
    for seam in sites(file):
        assert seam.mutated(text) != text
        ast.parse(seam.mutated(text))
    assert all((ROOT / path).exists() for path in nearest(file))


@pytest.mark.parametrize("file", files())
def test_every_error_is_in_a_function(file: str) -> None:
    """Whose code can be exchanged where it is loaded."""
    text = (PACKAGE / file).read_text()

    def codes(text: str) -> dict[str, types.CodeType]:
        return {code.co_qualname: code for code in functions(compile(text, file, "exec"))}

    before = codes(text)
    for seam in sites(file):
        with warnings.catch_warnings(action="ignore"):  # `None is None`, written out
            after = codes(seam.mutated(text))
        assert after.keys() == before.keys()
        assert after != before


def test_seams_of_each_kind_are_found() -> None:
    names = {
        seam.name for file in ("optim/build.py", "methods/speech_simclr.py", "training/loop.py") for seam in sites(file)
    }
    assert names >= {
        "optim/build.py: build_optimizer: forgotten: bool(config.nesterov) -> False",
        "optim/build.py: build_optimizer: swapped: lr, momentum -> momentum, lr",
        "methods/speech_simclr.py: SpeechSimCLR.Config.build: forgotten: self.tau() -> 0.1",
        "training/loop.py: Training.update: late: self.step -> (self.step + 1)",
    }


def test_what_is_taken_for_equivalent_can_still_be_made() -> None:
    assert set(EQUIVALENT) <= {seam.name for file in files() for seam in sites(file)}


def test_errors_are_made_and_noticed_and_noticed_ones_not_made_again(tmp_path: Path) -> None:
    test, kept = tmp_path / "test_warm_up.py", tmp_path / "kept.jsonl"
    test.write_text(
        "from twofold.optim import OptimConfig, build_schedule\n"
        "def test_warm_up():\n"
        "    config = OptimConfig('sgd', 1.0, schedule='constant', warmup_steps=7)\n"
        "    assert build_schedule(config, 64, 8, 1.0).warmup == 7\n"
    )
    late = [seam for seam in sites("optim/build.py") if "late: warmup" in seam.name]  # constant; inverse_sqrt; cosine
    row = {"key": key(late[1], (PACKAGE / "optim/build.py").read_text()), "outcome": "noticed"}
    kept.write_text(json.dumps(row) + "\n")
    command = [sys.executable, str(ROOT / "tests" / "mutate.py"), "optim/build.py", "--only", "late: warmup"]
    command += ["--tests", str(test), "--kept", str(kept)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [f"1/2 noticed: {late[0].name}", f"2/2 survived: {late[2].name}"]
    assert result.stdout.splitlines()[:2] == lines, result.stderr
    assert result.returncode == 1
    told = [(row["outcome"], row.get("test", "").split("::")[-1]) for row in known(kept).values()]
    assert told == [("noticed", ""), ("noticed", "test_warm_up"), ("survived", "")]


def test_an_error_that_never_ends_is_told_and_quick_tests_are_run_alone(tmp_path: Path) -> None:
    test, kept = tmp_path / "test_end.py", tmp_path / "kept.jsonl"
    test.write_text(
        "import time\n"
        "from twofold.optim import OptimConfig, build_schedule\n"
        "def test_long():\n"
        "    config = OptimConfig('sgd', 1.0, schedule='constant', warmup_steps=7)\n"
        "    time.sleep(2.5)\n"
        "    assert build_schedule(config, 64, 8, 1.0).warmup == 7\n"
        "def test_end():\n"
        "    config = OptimConfig('sgd', 1.0, schedule='constant', warmup_steps=6)\n"
        "    while build_schedule(config, 64, 8, 1.0).warmup % 2:\n"
        "        time.sleep(0.01)\n"
    )
    command = [sys.executable, str(ROOT / "tests" / "mutate.py"), "optim/build.py", "--only", "late: warmup"]
    command += ["--tests", str(test), "--kept", str(kept), "--quick", "2", "--seconds", "1"]
    subprocess.run(command, capture_output=True, check=False)
    told = [(row["outcome"], row["test"].split("::")[-1]) for row in known(kept).values()]
    assert told == [("too long", "test_end"), ("survived", ""), ("survived", "")]


def test_an_error_is_put_before_the_tests_that_run_its_line() -> None:
    """Those written for seams first, then one that noticed others of the file, then by time, within the budget."""
    seam = sites("optim/build.py")[0]
    line = (PACKAGE / seam.file).read_text().count("\n", 0, seam.start) + 1
    took = {"tests/test_seams.py::a": 9.0, "tests/x.py::slow": 2.5, "tests/y.py::b": 1.0, "tests/z.py::c": 0.5}
    tests = Nearest.__new__(Nearest)
    tests.budget = 2.0
    tests.tests = {name: {"took": seconds, "lines": {seam.file: [line]}} for name, seconds in took.items()}
    tests.tests["tests/y.py::elsewhere"] = {"took": 0.1, "lines": {seam.file: [line + 200], "optim/lars.py": [line]}}
    noticed = Counter({(seam.file, "tests/y.py::b"): 3, ("optim/lars.py", "tests/z.py::c"): 9})
    assert tests.chosen(seam, noticed) == ["tests/test_seams.py::a", "tests/y.py::b", "tests/z.py::c"]
    tests.budget = 0
    assert tests.chosen(seam, noticed)[-1] == "tests/x.py::slow"
    tests.tests = {"tests/y.py::elsewhere": tests.tests["tests/y.py::elsewhere"]}
    assert tests.chosen(seam, noticed) == ["tests/y.py::elsewhere"]  # nothing seen to run the line: what runs the file
