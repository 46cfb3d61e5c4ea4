"""The kernels of NT-Xent: by Triton's interpreter everywhere, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twofold.errors import UserError
from twofold.losses import nt_xent


def test_kernels_equal_the_dense_form_by_the_interpreter() -> None:
    """Also on two ranks. In a process of its own: the interpreter is chosen when Triton is imported."""
    pytest.importorskip("triton", minversion="3.9")  # earlier interpreters fail with newer numpy
    words = [sys.executable, str(Path(__file__).parent / "kernel_checks.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("rows", "dim"), [(2, 3), (70, 20), (1000, 128), (5000, 64)])
def test_kernels_equal_the_dense_form_on_a_gpu(rows: int, dim: int) -> None:
    from kernel_checks import same_loss

    for temperature in (0.05, 1.0):
        same_loss(rows, dim, temperature, "cuda")


def test_kernels_are_refused_where_there_are_none() -> None:
    with pytest.raises(
        UserError, match=r"implementation = kernel needs float32 projections on a GPU, got torch\.float64"
    ):
        nt_xent(*torch.randn(2, 4, 8).double(), implementation="kernel")
