"""The same command under each launcher, stopped by a scheduler, and resumed on another number of processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny import OPTIONS, as_arguments, images

import twofold
from twofold.training.rundir import RunDirectory

# A rate at which the loss does not rise: where it does, each step multiplies rounding by hundreds. And SGD: Adam would
# blow up the last bits of gradients that are nearly zero, where sums are taken in another order.
CHANGES = {"optim.name": "sgd", "optim.lr": 0.0005, "batch": 12, "epochs": 1, "training.checkpoint_every": 2}
WORDS = [*as_arguments(OPTIONS), *as_arguments(CHANGES), "--training.keep", "9", "--monitor.every", "0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--dynamo_backend", "no"),
    *("--mixed_precision", "no", "--main_process_port", "0", "--num_processes"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    x, y = images()
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=x, labels=y)
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """One process that nobody stops."""
    options = {**OPTIONS, **CHANGES, "training.keep": 9, "monitor.every": 0}
    return twofold.pretrain(data, tmp_path_factory.mktemp("runs") / "whole", **options)


def launch(launcher, data, out, *more):
    words = ["-m", "twofold", "pretrain", str(data), "--out", str(out), *WORDS, *more]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1
    return RunDirectory(out)


def same(run, whole):
    """float32 sums in another order: 1e-6 at first, which a net so small and so young multiplies at each update."""
    for mine, theirs in zip(run.rows(), whole.rows(), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    a, b = load_file(run.encoder_file), load_file(whole.encoder_file)
    assert max(float((a[key].float() - b[key].float()).abs().max()) for key in a) < 1e-3


def test_accelerate_launch(data, whole, tmp_path):
    same(launch([*ACCELERATE, "2"], data, tmp_path / "run"), whole)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(data, whole, tmp_path):
    """Two steps on two processes; then one, and three, go on from there."""
    started = launch([*TORCHRUN, "2"], data, tmp_path / "two")
    same(started, whole)
    for processes in (1, 3):
        run = RunDirectory(tmp_path / f"then{processes}")
        shutil.copytree(started.path, run.path)
        run.encoder_file.unlink()
        for checkpoint in sorted((run.path / "checkpoints").iterdir())[1:]:  # as if killed after two steps
            checkpoint.unlink()
        same(launch([*TORCHRUN, str(processes)], data, run.path, "--resume"), whole)


@pytest.mark.slow
def test_a_scheduler_warns_and_starts_again(data, tmp_path):
    """SIGUSR1 to every process, as srun sends it; exit status 138; then one process goes on with what two left.

    The processes learn their places from variables alone, as under `srun` without a launcher.
    """
    out, more = tmp_path / "run", ["--epochs", "12"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "twofold", "pretrain", str(data), "--out", str(out), *WORDS, *more, "--resume"]
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(words, env=os.environ | places | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not list(out.glob("checkpoints/step-*.pt")):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in ranks), ranks[0].communicate()[1]
            time.sleep(0.05)
        for process in ranks:
            process.send_signal(signal.SIGUSR1)
        told = [process.communicate(timeout=300) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [128 + signal.SIGUSR1] * 2, told
    assert "the same command with --resume goes on" in told[0][1]
    run = RunDirectory(out)
    stopped = int(run.latest().stem.removeprefix("step-"))
    assert stopped - run.rows()[-1]["step"] in (0, 1)  # in the step in hand; there is a row every second step
    options = {**OPTIONS, **CHANGES, "training.keep": 9, "monitor.every": 0, "epochs": 12}
    twofold.pretrain(data, out, resume=True, **options)
    steps = [row["step"] for row in run.rows()]
    assert steps == sorted(set(steps))
    assert steps[-1] > stopped
