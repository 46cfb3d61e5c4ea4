"""The kernels of colour jitter against the operators, by Triton's interpreter where there is no GPU.

Tolerance 3e-6 (1e-5 on a GPU, whose multiplications are fused): the same formulas, but for the order of sums; hue
divides by the spread. Before Triton 3.9 its interpreter fails with newer numpy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from view_helpers import same_jitter

CHECK = """
import torch
from view_helpers import same_jitter
same_jitter(torch.device("cpu"), 12, 37, 3e-6)
"""


def test_kernels_equal_the_operators_by_the_interpreter() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    pytest.importorskip("triton", minversion="3.9")
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "8 x 24 orders" in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_kernels_equal_the_operators_on_a_gpu() -> None:
    same_jitter(torch.device("cuda"), 96, 61, 1e-5)
