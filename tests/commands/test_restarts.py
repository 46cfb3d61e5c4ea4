"""What docs/clusters.md promises of torchrun and SLURM: a lost process costs a restart, a stop costs nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny import OPTIONS, as_arguments, images

from twofold.options import merge
from twofold.training.rundir import RunDirectory

TRAINING = {"log_every": 1, "checkpoint_every": 4, "patience": 10}
SHORT = merge(OPTIONS, {"epochs": 12, "training": TRAINING, "monitor": {"every": 0}, "data": {"workers": 0}})
ENDLESS = merge(SHORT, {"epochs": 10_000, "training": {"checkpoint_every": 100_000}})
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = images()
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=x, labels=y)
    return path


def words(data: Path, run: RunDirectory, options: dict[str, object]) -> list[str]:
    return ["pretrain", str(data), "--out", str(run.path), "--resume", *as_arguments(options)]


def ranks(run: RunDirectory) -> dict[int, int]:
    """Processes that train into the run's folder, or one below it, now, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0")
            place = dict(line.split("=", 1) for line in (folder / "environ").read_text().split("\0") if "=" in line)
        except (OSError, UnicodeDecodeError):
            continue  # it ended meanwhile, or is not ours
        if any(word.startswith(str(run.path)) for word in command) and "pretrain" in command and "RANK" in place:
            found[int(place["RANK"])] = int(folder.name)
    return found


def wait_for(what: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows(run: RunDirectory) -> int:
    return len(run.metrics_file.read_text().splitlines()) if run.metrics_file.exists() else 0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Launchers, which are ended with all that they started."""
    processes: list[subprocess.Popen[str]] = []

    def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, start_new_session=True)
        )  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
    for rank in ranks(RunDirectory(tmp_path)).values():  # torchrun puts each into a group of its own
        os.kill(rank, signal.SIGKILL)
    for process in processes:
        process.communicate()


@pytest.mark.slow
def test_torchrun_starts_again_when_a_rank_is_killed(data: Path, tmp_path: Path, started: Start) -> None:
    """Twice, each of the two ranks; the result is that of a run that nobody touched, bit for bit."""
    whole, killed = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    _, err = (undisturbed := started([*TORCHRUN, "-m", "twofold", *words(data, whole, SHORT)])).communicate(timeout=300)
    assert undisturbed.returncode == 0, err
    process = started([*TORCHRUN, "--max-restarts", "3", "-m", "twofold", *words(data, killed, SHORT)])
    for rank, steps in ((1, 6), (0, 20)):
        wait_for(lambda steps=steps: rows(killed) >= steps and len(ranks(killed)) == 2)
        os.kill(ranks(killed)[rank], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(re.findall(r"resumed \S+ at step", out)) == 2
    assert re.search(r"twofold: error: rank [01] on \S+, last seen after step", err)
    rest = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.rows()]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in killed.rows()] == rest
    a, b = load_file(whole.encoder_file), load_file(killed.encoder_file)
    assert all(a[key].equal(b[key]) for key in a)


@pytest.mark.slow
def test_a_torchrun_that_dies_leaves_a_checkpoint(data: Path, tmp_path: Path, started: Start) -> None:
    """SIGUSR1 ends torchrun itself, unless it is told to hand it on."""
    run = RunDirectory(tmp_path / "run")
    process = started([*TORCHRUN, "-m", "twofold", *words(data, run, ENDLESS)])
    wait_for(lambda: rows(run) > 5)
    assert len(ranks(run)) == 2
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGUSR1
    wait_for(lambda: not ranks(run), 30)
    assert err.count("twofold: stopped at step") == 2, err
    assert run.latest_step() == run.rows()[-1]["step"]


@pytest.mark.slow
def test_a_torchrun_that_is_terminated_gives_time_for_long_steps(data: Path, tmp_path: Path, started: Start) -> None:
    """Steps of 5 s, of the 30 s that torchrun gives."""
    run, script = RunDirectory(tmp_path / "run"), tmp_path / "slow.py"
    script.write_text(
        "import time\nimport twofold.training.loop as loop\nupdate = loop.Training.update\n"
        "def slow(*given):\n    time.sleep(5)\n    return update(*given)\n"
        "loop.Training.update = slow\nfrom twofold.cli import run\nrun()\n"
    )
    process = started([*TORCHRUN, str(script), *words(data, run, ENDLESS)])
    wait_for(lambda: rows(run) > 1)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 25
    assert err.count("twofold: stopped at step") == 2, err
    assert run.latest_step() == run.rows()[-1]["step"]


SRUN = """#!/bin/bash
[ "$1 $2" = "--kill-on-bad-exit=0 --wait=600" ] || exit 99
shift 2
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
status=0
for task in $(jobs -p); do
  wait "$task"
  code=$?
  [ "$code" -gt "$status" ] && status=$code
done
exit "$status"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo 127.0.0.1 && exit
echo "$*" >> "$LOG/requeued"
"""


def slurm(folder: Path, twofold: str) -> tuple[list[str], dict[str, str]]:
    """The page's script as it stands, with stand-ins for what a SLURM machine has; the highest status counts there."""
    found = re.search(r"```sh\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    (folder / "job.sh").write_text(found[1])
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "twofold": twofold}.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    place = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOG": str(folder), "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_CPUS_PER_TASK": "0",
    }  # fmt: skip
    return ["bash", str(folder / "job.sh")], place


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(75, 0, True), (138, 0, True), (143, 3, True), (137, 0, True), (0, 0, False), (1, 0, False), (2, 0, False),
     (137, 100, False)],
)  # fmt: skip
def test_slurm_starts_again_what_that_mends(tmp_path: Path, status: int, restarts: int, again: bool) -> None:
    told = (
        f'#!/bin/bash\necho "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT" >> "$LOG/called"\nexit {status}'
    )
    command, place = slurm(tmp_path, told)
    place["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert sorted((tmp_path / "called").read_text().splitlines()) == ["0 0 2 127.0.0.1 29500", "1 1 2 127.0.0.1 29500"]
    assert (tmp_path / "requeued").exists() == again
    assert not again or (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.slow
def test_slurm_with_a_rank_that_is_killed(data: Path, tmp_path: Path, started: Start) -> None:
    """Started, one rank killed, requeued, started again, done; the options are the page's but for size and place."""
    run = RunDirectory(tmp_path / "slurm")
    options = " ".join(as_arguments(SHORT))
    twofold = (
        '#!/bin/bash\nwords=("${@//\\/data\\/shards/' + str(data).replace("/", "\\/") + '}")\n'
        'words=("${words[@]//\\/shared\\/runs\\/slurm/' + str(run.path).replace("/", "\\/") + '}")\n'
        f'exec {sys.executable} -m twofold "${{words[@]}}" {options}\n'
    )
    command, place = slurm(tmp_path, twofold)
    process = started(command, **place)
    wait_for(lambda: rows(run) >= 10 and len(ranks(run)) == 2)
    os.kill(ranks(run)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 137, err
    assert "rank 0 on" in err
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    out, err = (again := started(command, **place)).communicate(timeout=300)
    assert again.returncode == 0, err
    assert "resumed" in out
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
