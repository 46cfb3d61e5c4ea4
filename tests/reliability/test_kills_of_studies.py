"""kill -9 of a study, or of whatever started others: nothing that it started outlives it, and the study goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from twofold.errors import UserError
from twofold.files import CELL_LOCK
from twofold.studies.base import StudyFolder
from twofold.studies.cells import Cell, run_cells
from twofold.studies.viewing import ViewingStudy
from twofold.training.ownership import owned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")

SHARED = """
encoder: {name: resnet10, width: 0.125, stem: cifar}
training: {device: cpu, precision: fp32, threads: 1, checkpoint_every: 4}
data: {workers: 1, cache: "off"}
monitor: {every: 0}
"""
BUSY = 40  # epochs for which a cell is at work until it is killed


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Files of their own, which processes decode."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for i in range(count):
            place = tmp_path / "photos" / part / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{i}.png")
    (tmp_path / "shared.yaml").write_text(SHARED)
    return tmp_path / "photos"


def begin(photos: Path, out: Path, jobs: int, *more: str) -> subprocess.Popen[str]:
    words = ["study", "batch", str(photos), "--out", str(out), "--batches", "[8, 12]", "--lengths", f"[{BUSY}]"]
    words += ["--seeds", "1", "--k", "3", "--jobs", str(jobs), "--config", str(photos.parent / "shared.yaml"), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "twofold", *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def at_work(words: str) -> list[int]:
    """Processes, zombies aside, with these words in their command lines: forked ones have those of their parents."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            told = (place / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            living = (place / "stat").read_text().rpartition(") ")[2][0] not in "ZX"
        except OSError:  # it ended meanwhile
            continue
        if living and words in told and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found


def until(wanted: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if wanted():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def tidy(tmp_path: Path) -> Iterator[None]:
    """Nothing that a failing test leaves goes on beside the others."""
    yield
    for process in at_work(str(tmp_path)):
        os.kill(process, signal.SIGKILL)


def results(out: Path) -> list[dict[str, float]]:
    cells = json.loads((out / "study.json").read_text())["results"]
    return [{name: value for name, value in cell.items() if name != "seconds"} for cell in cells]


@pytest.mark.usefixtures("tidy")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), 2])  # each cell starts a process
def test_no_process_outlives_a_study_that_was_killed_and_it_goes_on(photos: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "killed"
    study = begin(photos, out, jobs)
    # a cell, which trains, and the process that decodes for it, of each job; and the study
    assert until(lambda: len([*out.glob("*/metrics.jsonl")]) == jobs and len(at_work(str(out))) == 1 + 2 * jobs, 300)
    study.kill()
    study.wait(60)
    assert until(lambda: not at_work(str(out)), 30), at_work(str(out))
    assert not [*out.glob("*/cell.json")], "it was killed amidst its work"
    assert len([*out.glob("*/checkpoints/*")]) >= jobs, "what was trained is kept"
    again = begin(photos, out, jobs, "--resume")
    assert again.wait(600) == 0, again.communicate()[0]
    assert "resumed" in again.communicate()[0]
    whole = begin(photos, tmp_path / "whole", jobs)
    assert whole.wait(600) == 0, whole.communicate()[0]
    assert results(out) == results(tmp_path / "whole")


HOLD = """
import sys, time
from pathlib import Path
from twofold.training.ownership import owned
with owned(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def holder(folder: Path, lock: str, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), lock, str(seconds)],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_a_cell_waits_for_the_process_that_is_still_at_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """That of a study that was killed ends after the step in hand."""
    held = holder(tmp_path / "cell", CELL_LOCK, 20)
    begun = time.monotonic()
    with pytest.raises(UserError, match="the cell cell failed"):  # the work is none: it fails once it has begun
        run_cells([Cell(tmp_path / "cell", {"kind": "target", "data": str(tmp_path / "none"), "test": None,
                                            "reading": {}})])  # fmt: skip
    assert held.poll() == 0, f"it began {time.monotonic() - begun:.0f} s after the other"
    told = capfd.readouterr()
    words = " ".join((told.out + told.err).split())
    assert f"waits for the end of process {held.pid}" in words
    assert not (tmp_path / "cell" / CELL_LOCK).exists()


def test_an_owner_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    held = holder(tmp_path / "cell", CELL_LOCK, 60)
    try:
        begun = time.monotonic()
        with pytest.raises(UserError, match=f"written by another process .process {held.pid}"):
            owned(tmp_path / "cell", CELL_LOCK, patience=1.0).__enter__()
        assert time.monotonic() - begun >= 1.0
        with owned(tmp_path / "cell"):  # the run in it has a lock of its own
            pass
    finally:
        held.kill()
        held.wait(30)


def test_two_calls_do_not_do_one_study(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 16, 16, 3), np.uint8))
    held = holder(tmp_path / "study", ".lock", 60)
    folder = StudyFolder(tmp_path / "study", "views", {"data": "d"}, resume=True)
    try:
        with pytest.raises(UserError, match=f"being written by another process .process {held.pid}"):
            ViewingStudy(str(tmp_path / "images.npy"), ViewingStudy.Config(images=1), folder).perform()
        assert not folder.file.exists()
    finally:
        held.kill()
        held.wait(30)


HELPED = """
import multiprocessing, time
from twofold.interrupts import leave_to_parent

def help():
    leave_to_parent()
    print("ready", flush=True)
    time.sleep(600)  # in an image that hangs its decoder

if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=help)
    process.start()
    process.join()
"""
LAUNCHED = """
import os, subprocess, sys, time
child = "import os, sys, time; from twofold.cli import end_with_launcher, interruptible\\n"
child += "with interruptible():\\n    end_with_launcher()\\n    print('ready', flush=True)\\n    time.sleep(600)"
process = subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], env=os.environ | {"TORCHELASTIC_RUN_ID": "x"})
process.wait()
"""


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("program", [HELPED, LAUNCHED], ids=["a process that decodes", "a rank outside a run"])
def test_who_works_for_a_process_that_was_killed_ends_with_it(tmp_path: Path, program: str) -> None:
    """Whatever it is at: an image that does not come to an end, an evaluation."""
    starter = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert starter.stdout.readline().strip() == "ready"
    assert len(at_work(str(tmp_path))) == 2
    starter.kill()
    starter.wait(30)
    assert until(lambda: not at_work(str(tmp_path)), 20)
