"""The same command under torchrun: two processes train what one trains."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny import OPTIONS, as_arguments, images

from twofold.training.rundir import RunDirectory


def on_processes(folder: Path, words: list[str]) -> list[RunDirectory]:
    """One epoch of the tiny run, with more options, on one process and on two."""
    x, y = images()
    np.savez(folder / "data.npz", images=x, labels=y)
    # SGD: Adam would blow up the last bits of gradients that are nearly zero, where sums are taken in another order.
    # Branches start at 0, for the same reason (tests/test_distributed.py has them switched on, in float64).
    given = ["--optim.name", "sgd", "--optim.lr", "0.01", "--epochs", "1", "--encoder.zero_init_residual", "true"]
    options = [*as_arguments(OPTIONS), *given, *words]
    runs = []
    for processes in (1, 2):
        run = RunDirectory(folder / f"run{processes}")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = ["-m", "twofold", "pretrain", str(folder / "data.npz"), "--out", str(run.path), *options]
        done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report.html") == 1
        runs.append(run)
    return runs


def test_two_processes_train_what_one_trains(tmp_path):
    one, two = on_processes(tmp_path, [])
    for mine, theirs in zip(one.rows(), two.rows(), strict=True):
        # float32 sums in another order: 1e-6 at first, which a net so small and so young multiplies at each update.
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert mine.get("probe_top1") == pytest.approx(theirs.get("probe_top1"), abs=0.2)
    a, b = load_file(one.encoder_file), load_file(two.encoder_file)
    assert max(float((a[key].float() - b[key].float()).abs().max()) for key in a) < 1e-3
