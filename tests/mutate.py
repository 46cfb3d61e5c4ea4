"""`make mutate`: make each error of tests/seams.py in a copy of the package; do the tests nearest to it notice?

    python tests/mutate.py [FILE_OR_FOLDER ...] [--only TEXT] [--list] [--again] [--kept .mutate.jsonl]

Files and folders are relative to src/twofold. What was found is kept as it is found, one line for each error with the
test that noticed it, and a later call goes on from there: errors that were noticed are not made again while their file
stays as it is, survivors are. Exits with 1 if one survives that `EQUIVALENT` does not explain.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mutations import ROOT, mutated_package
from seams import PACKAGE, SEAMS, Seam, files, key, nearest, sites

EQUIVALENT: dict[str, str] = {
    "methods/memory.py: SimCLRMemory.__init__: forgotten: normalize -> True": "a memory refuses false",
    "runs/build.py: build_training: forgotten: pin -> False": "page-locked memory is used by GPUs alone",
    "methods/moco.py: MoCo.follow: late: self.steps -> (self.steps + 1)": (
        "torch's average with a fixed share does not look at how many were averaged"
    ),
}
"""Errors that change nothing that can be seen, by `Seam.name`, and why."""

NOTICED, SURVIVED, TOO_LONG = "noticed", "survived", "too long"


class Told:
    """A plugin of pytest: runs tests in the order of `rank`, those alone; tells each that begins, ends and fails."""

    def __init__(self, out: int, rank: dict[str, tuple[float, ...]]) -> None:
        self.out, self.rank = out, rank

    def tell(self, word: str, test: str) -> None:
        os.write(self.out, f"{word} {test}\n".encode())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.rank:
            items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell("begins", nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.tell("ends", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell("fails", report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.tell("done", "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell("fails", report.nodeid)


class Tests:
    """The tests nearest to a file: run on the package as it is once, which tells how long each takes, then on errors.

    Args:
        paths: files and folders below the checkout.
        seconds: most that one test may take beyond five times what it took without an error.
        quick: leaves out tests that take longer than this; 0 leaves none out.
    """

    def __init__(self, paths: Sequence[str], seconds: float, quick: float = 0) -> None:
        self.paths, self.seconds, self.quick = list(paths), seconds, quick
        self.took: dict[str, float] = {}

    def check_whole(self) -> None:
        """They pass without an error: what they say of one would mean nothing otherwise."""
        took, fail = dict[str, float](), list[str]()
        more = ["--timeout", str(self.quick)] if self.quick else ["-x"]
        with mutated_package("__init__.py", lambda text: text) as environment:
            status = self.run(environment, more, {}, took, fail)
        if status != 0 and not self.quick:
            sys.exit(f"{' '.join(fail or self.paths)} does not pass without an error (status {status})")
        self.took = {test: seconds for test, seconds in took.items() if test not in fail}
        if not self.took:
            sys.exit(f"{' '.join(self.paths)} has no test to run")

    def judge(self, seam: Seam, noticed: Counter[str]) -> tuple[str, str]:
        """Make one error: what came of it, and the test that said so; tests that noticed others go first."""
        files: dict[str, list[float]] = {}
        for test, seconds in self.took.items():
            files.setdefault(test.split("::")[0], []).append(seconds)
        # of the rest the files of quick tests, each file whole: its tests may share what takes long to make
        quick = {file: sum(took) / len(took) for file, took in files.items()}
        rank = {
            test: (-noticed[test] / (seconds + 0.05), quick[test.split("::")[0]]) for test, seconds in self.took.items()
        }
        with mutated_package(seam.file, seam.mutated) as environment:
            fail = list[str]()
            status = self.run(environment, ["-x"], rank, {}, fail)
        outcome = TOO_LONG if status is None else NOTICED if status else SURVIVED
        return outcome, fail[0] if fail else ""

    def run(
        self,
        environment: dict[str, str],
        options: list[str],
        rank: dict[str, tuple[float, ...]],
        took: dict[str, float],
        fail: list[str],
    ) -> int | None:
        """In a process forked from this one, which has the libraries: starting torch anew would take longer.

        Returns pytest's status, None for a test that never ends; fills in what each took and which failed.
        """
        told, out = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            self.become(environment, options, Told(out, rank))
        os.close(out)
        running, text, since = "", "", time.monotonic()
        try:
            while True:
                # (what is imported and collected before the first test has two minutes)
                room = self.seconds + (5 * self.took.get(running, 0.0) if running else 120)
                wait = max(since + room - time.monotonic(), 0) if self.took else None
                if not select.select([told], [], [], wait)[0]:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    fail.append(running)
                    return None
                new = os.read(told, 2**16)
                *lines, text = (text + new.decode()).split("\n")
                for word, _, test in (line.partition(" ") for line in lines):
                    running = test if word == "begins" else ""
                    if word == "fails":
                        fail.append(test)
                    elif word == "ends":
                        took[test] = time.monotonic() - since
                    since = time.monotonic()
                if not new or "done " in lines:  # processes that a test left behind may hold the pipe open
                    break
        finally:
            os.close(told)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return status

    def become(self, environment: dict[str, str], options: list[str], told: Told) -> None:
        """Be pytest on the package of `environment`; does not return."""
        status = 70
        try:
            os.setsid()
            os.environ.clear()
            os.environ.update(environment)
            sys.path.insert(0, environment["PYTHONPATH"])
            os.chdir(ROOT)
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
            options += ["-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow"]
            status = int(pytest.main([*options, *self.paths], plugins=[told]))
        finally:
            os._exit(status)


def known(kept: Path) -> dict[str, dict[str, str]]:
    """What was found before, by key."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("paths", nargs="*", help="files or folders of the package; default all seams")
    parser.add_argument("--only", default="", metavar="TEXT", help="errors whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the errors, make none")
    parser.add_argument("--again", action="store_true", help="make noticed ones again, too")
    parser.add_argument("--kept", type=Path, default=ROOT / ".mutate.jsonl", help="where what is found is kept")
    parser.add_argument("--seconds", type=float, default=60, help="most that a test may take beyond 5 times its time")
    parser.add_argument("--quick", type=float, default=0, help="leave out tests that take longer than so many seconds")
    parser.add_argument("--tests", nargs="+", help="run these instead of the tests nearest to each file")
    return parser


def main() -> int:
    """Make the errors that are asked for; print each and a summary."""
    options = parser().parse_args()
    paths = tuple(options.paths) or SEAMS
    if missing := [path for path in paths if not (PACKAGE / path).exists()]:
        sys.exit(f"{missing[0]} is no file or folder of {PACKAGE.relative_to(ROOT)}")
    if not options.list:
        # What the package is built on, and nothing of the package itself, which each process imports from its copy.
        import accelerate  # noqa: F401
        import hypothesis  # noqa: F401
        import jsonargparse  # noqa: F401
        import PIL.Image  # noqa: F401
        import sklearn.linear_model  # noqa: F401
        import soundfile  # noqa: F401
        import torch
        import torch._dynamo
        import torchvision  # noqa: F401

        torch.set_num_threads(1)
        compileall.compile_dir(PACKAGE, quiet=2)  # each copy has it, then
    before, survivors, count = known(options.kept), list[str](), 0
    sets: dict[tuple[str, ...], Tests] = {}
    noticed = Counter(row["test"] for row in before.values() if row.get("test"))
    for file in files(paths):
        text, near = (PACKAGE / file).read_text(), tuple(options.tests or nearest(file))
        found = [seam for seam in sites(file) if options.only in seam.name]
        count += len(found)
        if options.list:
            print("\n".join(seam.name for seam in found))
            continue
        known_ones = {k for k, row in before.items() if row["outcome"] in (NOTICED, TOO_LONG) and not options.again}
        todo = [seam for seam in found if key(seam, text) not in known_ones and seam.name not in EQUIVALENT]
        if todo and near not in sets:
            sets[near] = Tests(near, options.seconds, options.quick)
            sets[near].check_whole()
        for number, seam in enumerate(todo, 1):
            outcome, test = sets[near].judge(seam, noticed)
            noticed[test] += 1
            row = {"key": key(seam, text), "outcome": outcome, "name": seam.name, "test": test}
            with options.kept.open("a") as rows:
                rows.write(json.dumps(row) + "\n")
            print(f"{number}/{len(todo)} {outcome}: {seam.name}", flush=True)
            if outcome == SURVIVED:
                survivors.append(seam.name)
    print(f"{count} errors at the seams" + ("" if options.list else f"; {len(survivors)} survive"))
    print("\n".join(survivors) if survivors else "", end="\n" if survivors else "")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
