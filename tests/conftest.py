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
from hypothesis import HealthCheck, settings

# Examples that are the same each time, so that what passes on one machine passes on another; `--hypothesis-profile
# long` tries more, and others each time. How long one takes the fuzzers measure themselves, by the processor's time.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("default", derandomize=True, database=None, max_examples=150, **_COMMON)
settings.register_profile("long", max_examples=2000, print_blob=True, **_COMMON)
settings.load_profile("default")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in every run, alone or among others."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that libraries draw from when given none
