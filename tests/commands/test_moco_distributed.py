"""MoCo under torchrun: two processes train what one process with split batch norm trains, queue included."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import OPTIONS, as_arguments, images

from twofold.options import merge
from twofold.training.rundir import RunDirectory

OPTIMISER = {"name": "sgd", "lr": 0.01, "lr_rule": "none"}
METHOD = {"name": "moco", "queue": 40, "momentum": 0.9, "symmetric": False}


def test_two_processes_train_what_one_with_two_splits_trains(tmp_path):
    """A queue of 40 at 16 keys a step is gone round in no whole number of batches."""
    x, y = images()
    np.savez(tmp_path / "data.npz", images=x, labels=y)
    runs = []
    for processes in (1, 2):
        run = RunDirectory(tmp_path / f"run{processes}")
        more = {"epochs": 1, "method": METHOD | {"bn_splits": 3 - processes}, "optim": OPTIMISER, "monitor.every": 0}
        # with branches switched on, or batch norm in the head, rounding grows faster
        more |= {"encoder.zero_init_residual": True, "head.norm": False}
        words = ["-m", "twofold", "pretrain", str(tmp_path / "data.npz"), "--out", str(run.path)]
        words += as_arguments(merge(OPTIONS, more))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        runs.append(run)
    one, two = runs
    for mine, theirs in zip(one.rows(), two.rows(), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    a, b = (torch.load(run.latest(), weights_only=True)["method"] for run in runs)
    assert a.keys() == b.keys()
    assert a["queue.pointer"] == b["queue.pointer"] == 5 * 16 % 40
    for name in a.keys() - {"_extra_state"}:
        # float32 sums in another order: 1e-6 at first, which a net so small and so young multiplies at each update.
        # Running averages are those of rank 0's own half there, of both halves here.
        if "running" not in name:
            torch.testing.assert_close(a[name].float(), b[name].float(), rtol=0, atol=1e-3, msg=name)
