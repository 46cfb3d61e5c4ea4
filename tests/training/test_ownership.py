"""One run has one owner, whose lock ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.training.ownership import owned, remove_leftovers

HOLD = """
import os, sys, time
from pathlib import Path
from twofold.training.ownership import owned
with owned(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:  # as the decoding processes are
        time.sleep(100)
        os._exit(0)
    print("held", flush=True)
    time.sleep(100)
"""


def holder(folder: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *more], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    """Killed alone, as by the kernel: a process that it forked lives on and holds nothing."""
    first = holder(tmp_path / "run", "fork")
    try:
        with pytest.raises(UserError, match=rf"written by another process \(process {first.pid} on .*, since 20"):
            owned(tmp_path / "run").__enter__()
        first.kill()
        first.wait(10)
        with owned(tmp_path / "run"):
            assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def test_two_runs_of_one_process_are_told_apart(tmp_path: Path) -> None:
    """The system would let them."""
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        owned(tmp_path / "run"),
        pytest.raises(UserError, match="another run of this process"),
        owned(tmp_path / "link"),
    ):
        pass
    with owned(tmp_path / "run"):
        pass


def test_a_folder_that_a_refused_run_made_is_gone_and_another_stays(tmp_path: Path) -> None:
    """And no lock lies about after the end."""
    with owned(tmp_path / "run"):
        assert (tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()
    with owned(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_many_who_come_at_once_own_it_one_at_a_time(tmp_path: Path) -> None:
    """Though each removes the lock's file at its end."""
    script = (
        "import sys, time, os\nfrom pathlib import Path\nfrom twofold.training.ownership import owned\n"
        "from twofold.errors import UserError\n"
        "folder, mark = Path(sys.argv[1]), Path(sys.argv[2])\ndone = 0\n"
        "while done < 30:\n"
        "    try:\n"
        "        with owned(folder):\n"
        "            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))\n"
        "            time.sleep(0.0005)\n"
        "            mark.unlink()\n"
        "            done += 1\n"
        "    except UserError:\n"
        "        time.sleep(0.0001)\n"
    )
    (tmp_path / "run").mkdir()
    together = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path / "mark")])
        for _ in range(3)
    ]
    assert [process.wait(120) for process in together] == [0, 0, 0]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), owned(tmp_path / "file" / "run"):
        pass


def test_what_killed_saves_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [".config.yaml.123", ".encoder.safetensors.77.tmp", "checkpoints/.step-000000002.pt.9"]
    others = [".lock", ".hidden", "config.yaml", "checkpoints/step-000000001.pt", ".note.txt"]
    (tmp_path / "checkpoints").mkdir()
    for name in [*names, *others]:
        (tmp_path / name).write_text("x")
    assert sorted(str(path.relative_to(tmp_path)) for path in remove_leftovers(tmp_path)) == sorted(names)
    assert all((tmp_path / name).exists() for name in others)


def test_the_temporary_of_a_killed_save_has_such_a_name(tmp_path: Path) -> None:
    """What the name looks like is known in two places."""
    seen = []
    write_atomically(tmp_path / "a.json", lambda file: seen.append(Path(file.name)))
    seen[0].write_text("")
    assert remove_leftovers(tmp_path) == seen
