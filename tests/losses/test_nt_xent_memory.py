"""What the blocks are for: memory. Measured by benchmarks/loss.py, each form in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loss.py"


def extra_memory(form: str, rows: int) -> float:
    command = [sys.executable, str(SCRIPT), "--measure", form, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout)["mb"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak counter")
def test_blocks_need_a_tenth_of_the_dense_memory() -> None:
    """At 2N = 8192 and d = 128; the share falls further with 2N, as the matrix grows with its square."""
    dense, blocks = extra_memory("dense", 8192), extra_memory("blocks", 8192)
    assert dense > 500  # two matrices of 256 MiB at least: the measure measures
    assert blocks < dense / 10
