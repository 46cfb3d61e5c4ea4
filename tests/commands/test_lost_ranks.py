"""A process of several that dies, stands still or never comes ends the others within the patience, by name."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import OPTIONS, as_arguments, images

from twofold.options import merge
from twofold.training.rundir import RunDirectory

PATIENCE = 3
TRAINING = {"log_every": 5, "checkpoint_every": 10, "patience": PATIENCE, "join_patience": 120}
LONG_RUN = merge(OPTIONS, {"epochs": 10_000, "training": TRAINING, "monitor": {"every": 0}, "data": {"workers": 0}})
Ranks = list[subprocess.Popen[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = images()
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=x, labels=y)
    return path


@pytest.fixture
def launch(data: Path, tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Starts ranks as srun does, by variables alone; `before` is run in each ahead of the command."""
    started: Ranks = []

    def launch(options: dict[str, object], before: str = "", world: int = 2, missing: int | None = None) -> Ranks:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        script = tmp_path / "script.py"
        script.write_text(
            f"import os, time\nrank = int(os.environ['RANK'])\n{before}\nfrom twofold.cli import run\nrun()"
        )
        words = [sys.executable, str(script), "pretrain", str(data), "--out", str(tmp_path / "run")]
        place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for rank in range(world):
            if rank != missing:
                env = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(
                    subprocess.Popen([*words, *as_arguments(options)], env=env, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, text=True)
                )  # fmt: skip
        return started

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def trained(out: Path, ranks: Ranks, rows: int = 3) -> None:
    """Wait until so many rows of metrics were written."""
    deadline = time.monotonic() + 180
    file = RunDirectory(out).metrics_file
    while not (file.exists() and len(file.read_text().splitlines()) >= rows):
        assert all(process.poll() is None for process in ranks), [
            p.communicate() for p in ranks if p.poll() is not None
        ]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told(process: subprocess.Popen[str], limit: float) -> str:
    """The one line on stderr of a process that ends within the limit, to be started again."""
    begun = time.monotonic()
    _, err = process.communicate(timeout=120)
    took = time.monotonic() - begun
    assert process.returncode == 75, (process.returncode, err)
    lines = [line for line in err.splitlines() if line.startswith("twofold: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert took < limit, err
    return lines[0]


def after_step(text: str, rank: int) -> int:
    found = re.search(rf"rank {rank} on {re.escape(socket.gethostname())}, .*after step ([\d,]+), in \w+", text)
    assert found, text
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_is_suspended(
    launch: Callable[..., Ranks], tmp_path: Path, rank: int, number: signal.Signals
) -> None:
    """Of rank 0 the store of the processes goes too."""
    ranks = launch(LONG_RUN)
    trained(tmp_path / "run", ranks)
    ranks[rank].send_signal(number)
    text = told(ranks[1 - rank], PATIENCE + 2)  # (ends the interpreter, on a busy machine)
    assert after_step(text, rank) >= 5
    assert "it has died or was suspended" in text
    assert "the same command with --resume goes on" in text
    if number == signal.SIGSTOP:  # one that wakes up finds the others gone, and ends too
        ranks[rank].send_signal(signal.SIGCONT)
        assert "rank" in told(ranks[rank], 30)


HANGS = """
from twofold.data.batches.order import Order
indices = Order.indices
def slow(self, step):
    if rank == 1 and step == 40:
        time.sleep(1000)
    return indices(self, step)
Order.indices = slow
"""


@pytest.mark.slow
def test_a_rank_that_sleeps_in_its_data(launch: Callable[..., Ranks], tmp_path: Path) -> None:
    """It ends as well, by its own watch."""
    ranks = launch(LONG_RUN, HANGS)
    trained(tmp_path / "run", ranks, 40 // 5)
    for process in ranks:
        text = told(process, PATIENCE + 3)
        assert after_step(text, 1) == 40
        assert "in data (" in text
        assert ", slow; called by " in text


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_a_partner_that_never_comes(launch: Callable[..., Ranks], missing: int) -> None:
    options = merge(LONG_RUN, {"training": {"join_patience": 3.0}})
    (process,) = launch(options, missing=missing)
    text = told(process, 60)
    if missing:
        assert "1 of 2 processes have come within 3 s (--training.join_patience); missing: rank 1" in text
    else:
        assert "the meeting point of the 2 processes, 127.0.0.1:" in text
        assert "was not there within 3 s (--training.join_patience)" in text


@pytest.mark.slow
def test_an_error_of_one_rank_is_told_by_all(launch: Callable[..., Ranks]) -> None:
    """What --resume does not mend must not be started again for ever."""
    raises = "raise __import__('twofold.errors').errors.UserError('clip 7 is silent')"
    ranks = launch(LONG_RUN, HANGS.replace("time.sleep(1000)", raises))
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err.count("twofold: error: clip 7 is silent\n")) == (2, 1), err
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_rank_that_dies_between_meeting_and_training(launch: Callable[..., Ranks]) -> None:
    """What waits for it first need not be the training."""
    dies = "import twofold.runs.pretrain as runs\nif rank == 1:\n    runs.assemble = lambda *given: os._exit(1)"
    text = told(launch(LONG_RUN, dies)[0], 120)
    assert "rank 1 on" in text or "the connection to another process of the run broke" in text


SLOW = f"""
import twofold.training.loop as loop
from twofold.evaluation.monitors import LabelMonitor
update, measure, save = loop.Training.update, LabelMonitor.measure, loop.save_checkpoint
def slow(self, *given):
    time.sleep(0.3 if rank else 0.2)
    return update(self, *given)
def long(self):
    time.sleep(1.5 * {PATIENCE})
    return measure(self)
def slow_disk(*given):
    time.sleep(1.5 * {PATIENCE})
    return save(*given)
loop.Training.update, LabelMonitor.measure, loop.save_checkpoint = slow, long, slow_disk
"""


@pytest.mark.slow
def test_no_alarm_without_a_fire(launch: Callable[..., Ranks], tmp_path: Path) -> None:
    """A slower rank, a monitor and a disk that take longer than the patience."""
    options = merge(LONG_RUN, {"epochs": 4, "monitor": {"every": 2}, "training": {"checkpoint_every": 8}})
    for process in launch(options, SLOW):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert RunDirectory(tmp_path / "run").encoder_file.exists()
