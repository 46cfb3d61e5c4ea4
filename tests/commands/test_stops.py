"""A signal at any moment leaves a run that goes on, and says so: to the process, to its group, by its terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import OPTIONS, as_arguments

import twofold
from twofold.errors import UserError
from twofold.options import merge
from twofold.training.rundir import RunDirectory


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(32):
        Image.fromarray(rng.integers(0, 256, (20 + i % 3, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def command(photos: Path, out: Path, **changes: object) -> list[str]:
    more = {"epochs": 4000, "training.checkpoint_every": 100_000, "data.cache": "off", "data.workers": 2}
    options = merge(OPTIONS, more | changes)
    words = [sys.executable, "-m", "twofold", "pretrain", str(photos), "--out", str(out), *as_arguments(options)]
    return [*words, "--resume"]


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(run: RunDirectory) -> int:
    return len(run.metrics_file.read_text().splitlines()) if run.metrics_file.exists() else 0


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_whole_group(photos: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As `timeout`, systemd and Slurm send it: decoding processes have it too."""
    run = RunDirectory(tmp_path / "run")
    words = command(photos, run.path, **{"training.log_every": 5})
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: rows(run) > 2, process)
    with pytest.raises(UserError, match=rf"is being written by another process \(process {process.pid} on "):
        twofold.pretrain(photos, run.path, resume=True)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    first, *rest = err.splitlines()  # which command it is, before PyTorch is loaded
    assert first.endswith(": pretrain")
    assert len(rest) == 1
    assert rest[0].startswith("twofold: stopped at step ")
    assert run.latest() is not None
    assert run.encoder_file.exists()


def test_a_terminal_that_closes(photos: Path, tmp_path: Path) -> None:
    """SIGHUP, and from then on each write to the terminal fails."""
    run = RunDirectory(tmp_path / "run")
    words = command(photos, run.path, **{"training.log_every": 5})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, text=True, start_new_session=True,
        preexec_fn=lambda: (signal.signal(signal.SIGHUP, signal.SIG_DFL), fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)),
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)

    def drained() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 65536)
        return rows(run) > 2

    wait_for(drained, process)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert run.latest() is not None
    assert run.encoder_file.exists()


def test_before_the_first_step(photos: Path, tmp_path: Path) -> None:
    """While libraries load: a word, and nothing begun."""
    process = subprocess.Popen(
        command(photos, tmp_path / "run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    loading = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtorch" in loading.read_text(), process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "twofold: stopped by SIGTERM; what was saved before is whole" in err
    assert "Traceback" not in err


def test_while_the_report_is_made(photos: Path, tmp_path: Path) -> None:
    """The run is done; the same command makes the report."""
    script = tmp_path / "slow_report.py"
    script.write_text(
        "import sys, time\n"
        "import twofold.commands.pretrain as command\n"
        "def slow(*_, **__):\n    print('reporting', flush=True)\n    time.sleep(100)\n"
        "command.write_run_report = slow\n"
        "from twofold.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = command(photos, tmp_path / "run", epochs=1)
    words = [sys.executable, str(script), *words[3:]]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "reporting" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "stopped by SIGTERM" in err
    assert (tmp_path / "run" / "encoder.safetensors").exists()
