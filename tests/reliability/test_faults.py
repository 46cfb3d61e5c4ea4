"""Each write, sync, rename and unlink of a short run fails once; the run then goes on to the same end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
FULL, VANISHED, KILLED = 0, 1, 2


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler: faults are put between Python and the C library")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(HERE / "faults.c"), "-ldl"], check=True)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(24) % 2)
    return path


def outcomes(library: Path, data: Path, folder: Path, mode: int, every: int) -> list[dict[str, Any]]:
    """What came of a fault at each n-th change, and of the same call after it."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(HERE / "fault_runs.py"), str(folder), str(data), str(mode), str(every)],
        env=os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert lines[0]["changes"] > 50, "the library counts nothing"
    assert len(lines) == 1 + len(range(0, lines[0]["changes"], every))
    return lines[1:]


@pytest.mark.timeout(3600)  # each n-th change is two runs
@pytest.mark.parametrize("mode", [FULL, VANISHED, KILLED])
@pytest.mark.parametrize("every", [pytest.param(3, marks=pytest.mark.slow), 97])
def test_a_fault_ends_in_the_old_state_or_the_new(
    library: Path, data: Path, tmp_path: Path, mode: int, every: int
) -> None:
    found = outcomes(library, data, tmp_path / "runs", mode, every)
    assert [each for each in found if each["problem"]] == []
    if mode == KILLED:
        assert {each["status"] for each in found} == {137}
        return
    assert [each for each in found if each["status"] not in (0, 2)] == [], "an error in words, no traceback"
    words = [each["words"] for each in found if each["status"] == 2]
    assert words
    assert all("cannot" in each and str(tmp_path) in each for each in words)
