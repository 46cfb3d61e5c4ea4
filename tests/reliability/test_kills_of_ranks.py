"""kill -9 of one of two ranks at any moment: the other ends by itself, and the same commands go on, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_kills import OPTIONS, learned, photos  # noqa: F401 (a fixture)

PATIENCE = 5
Ranks = list[subprocess.Popen[str]]


STOP = """
import sys
from twofold.training.loop import Training
real = Training.agree
Training.agree = lambda self, number: 15 if self.step == 5 else real(self, number)
from twofold.cli import main
sys.exit(main())
"""


def start(photos: Path, out: Path, program: tuple[str, ...] = ("-m", "twofold")) -> Ranks:  # noqa: F811
    """Two processes as srun starts them, by variables alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, *program, "pretrain", str(photos), "--out", str(out), "--resume", *OPTIONS]
    words += ["--training.patience", str(PATIENCE), "--training.join_patience", "60"]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(words, env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        for rank in range(2)
    ]  # fmt: skip


def ended(ranks: Ranks) -> list[int]:
    """Exit statuses, once both have ended by themselves; what they said is shown where they do not."""
    try:
        # (beside other work a start takes half a minute, and PyTorch another to tell what it could not reach)
        return [process.wait(300) for process in ranks]
    except subprocess.TimeoutExpired:
        pytest.fail("a rank waits for the one that was killed")
    finally:
        for process in ranks:
            process.kill()
            print(process.communicate()[0][-2000:])


@pytest.mark.slow
def test_a_stop_between_two_rows_changes_neither(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    """Each rank goes on with the sums that it had: their mean would give the next row other last bits."""
    assert ended(start(photos, tmp_path / "whole")) == [0, 0]
    stopped = ended(start(photos, tmp_path / "run", ("-c", STOP)))
    assert 0 not in stopped
    assert ended(start(photos, tmp_path / "run")) == [0, 0]
    assert learned(tmp_path / "run") == learned(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(7200)  # the one that is left waits a minute for a partner that died before they had met
@pytest.mark.parametrize("kills", [3, 20])
def test_kills_of_one_of_two_ranks_change_nothing(photos: Path, tmp_path: Path, kills: int) -> None:  # noqa: F811
    """Either rank; some fall before the two have met, some in saves, some after the end of training."""
    begun = time.monotonic()
    assert ended(start(photos, tmp_path / "whole")) == [0, 0]
    seconds, wanted = time.monotonic() - begun, learned(tmp_path / "whole")
    moments, finished = random.Random(kills), 0
    out = tmp_path / "run0"
    for kill in range(kills):
        ranks, victim = start(photos, out), moments.randrange(2)
        try:
            ranks[victim].wait(moments.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            ranks[victim].send_signal(signal.SIGKILL)
        statuses = ended(ranks)
        assert statuses[1 - victim] in (0, 75), f"kill {kill + 1} of rank {victim}: {statuses}"
        if statuses == [0, 0]:
            assert learned(out) == wanted, f"after {kill + 1} kills"
            finished += 1
            out = tmp_path / f"run{finished}"
    assert ended(start(photos, out)) == [0, 0]
    assert learned(out) == wanted
