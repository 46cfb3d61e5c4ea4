"""Benchmarks whose measurements are processes of their own: these end with them, however they end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
OUTER = """
import subprocess, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from children import begin, started

def worker():
    # its own helper, as processes that decode are
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with tempfile.TemporaryDirectory(dir=sys.argv[2]):
        print(helper.pid, flush=True)
        time.sleep(600)

def main():
    words = [sys.executable, __file__, *sys.argv[1:3], "worker"]
    with started(words, stdout=subprocess.PIPE) as process:
        print(process.pid, process.stdout.readline().strip(), flush=True)
        if sys.argv[3] == "fails":
            raise SystemExit("no number")
        process.communicate()

begin(worker if sys.argv[3] == "worker" else main)
"""


def alive(pid):
    """Whether a process is there and no zombie (whose parent, which has ended, was to collect it)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_for(what, seconds=30.0):
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return what()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, "fails"])
def test_what_a_benchmark_started_ends_with_it(tmp_path, how):
    script, scratch = tmp_path / "outer.py", tmp_path / "scratch"
    script.write_text(OUTER)
    scratch.mkdir()
    words = [
        sys.executable,
        str(script),
        str(ROOT / "benchmarks"),
        str(scratch),
        "fails" if how == "fails" else "waits",
    ]
    outer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    worker, helper = map(int, outer.stdout.readline().split())
    try:
        if how == "fails":
            assert outer.wait(30) == 1
        else:
            os.kill(outer.pid, how)
            assert outer.wait(30) == (-how if how == signal.SIGKILL else 128 + how)
        assert wait_for(lambda: not alive(worker))
        assert not list(scratch.iterdir()), "it could tidy up"
        if how != signal.SIGKILL:  # nobody is left to end what a process that was asked to end had started
            assert wait_for(lambda: not alive(helper))
    finally:
        for pid in (worker, helper):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_what_is_printed_and_what_fails():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from children import output
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    assert output([sys.executable, "-c", "import os; print(os.environ['ASKED'])"], {"ASKED": "3"}) == "3\n"
    with pytest.raises(SystemExit, match=r"(?s)ended with 1\n.*ValueError: no number"):
        output([sys.executable, "-c", "raise ValueError('no number')"])


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.name)
def test_a_benchmark_that_starts_processes_ends_them(file):
    """Only `children` starts processes, but for runs that `soak` stops and kills itself; and whoever uses it begins by
    it."""
    text = file.read_text()
    starts = re.findall(r"subprocess\.(?:run|Popen\(|check_\w+|call)", text)
    if file.name not in ("children.py", "soak.py"):
        assert not starts
    if "from children import" in text:
        assert text.endswith('if __name__ == "__main__":\n    begin(main)\n')
    elif file.name != "children.py":
        assert not starts
