"""Settings that every test shares."""

import os
import sys
from pathlib import Path

# Tests run beside each other on few cores (pytest-xdist): one thread each is faster than a fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "commands"))  # tiny.py
sys.path.insert(0, str(Path(__file__).parent / "interop"))  # simclr_files.py

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in every run, alone or among others."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that libraries draw from when given none
