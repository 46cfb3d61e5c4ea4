"""`make mutate`: make each error of tests/seams.py in a copy of the package; do the tests nearest to it notice?

    python tests/mutate.py [FILE_OR_FOLDER ...] [--only TEXT] [--list] [--again] [--kept .mutate.jsonl]

Files and folders are relative to src/twofold. What was found is kept as it is found, one line for each error, and a
later call goes on from there: errors that were noticed are not made again while their file stays as it is, survivors
are. Exits with 1 if one survives that `EQUIVALENT` does not explain.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutations import ROOT, mutated_package
from seams import PACKAGE, SEAMS, Seam, files, key, nearest, sites

EQUIVALENT: dict[str, str] = {}
"""Errors that change nothing that can be seen, by `Seam.name`, and why."""

NOTICED, SURVIVED, TOO_LONG = "noticed", "survived", "too long"


def run(tests: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """Run tests in a process forked from this one, which has the libraries; pytest's status, or None: out of time.

    Starting Python and torch anew would take longer than most of these tests.
    """
    child = os.fork()
    if child == 0:
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
            import pytest

            options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow"]
            status = int(pytest.main([*options, *tests]))
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def judge(seam: Seam, tests: list[str], seconds: float) -> str:
    """Make one error and run tests one path after another until one notices; an error that never ends is noticed."""
    with mutated_package(seam.file, seam.mutated) as environment:
        for test in tests:
            status = run([test], environment, seconds)
            if status is None:
                return TOO_LONG
            if status not in (0, 5):  # 5: the path has no test to run
                return NOTICED
    return SURVIVED


def check_whole(file: str, tests: list[str], seconds: float) -> None:
    """The same tests on a copy without an error: what they say of one would mean nothing if this failed."""
    with mutated_package(file, lambda text: text) as environment:
        for test in tests:
            status = run([test], environment, seconds)
            if status not in (0, 5):
                sys.exit(f"{test} does not pass without an error in {file} (status {status})")


def known(kept: Path) -> dict[str, str]:
    """What was found before, by key."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {row["key"]: row["outcome"] for row in map(json.loads, lines)}


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("paths", nargs="*", help="files or folders of the package; default all seams")
    parser.add_argument("--only", default="", metavar="TEXT", help="errors whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the errors, make none")
    parser.add_argument("--again", action="store_true", help="make noticed ones again, too")
    parser.add_argument("--kept", type=Path, default=ROOT / ".mutate.jsonl", help="where what is found is kept")
    parser.add_argument("--seconds", type=float, default=300, help="most that the tests of one path may take")
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
        import sklearn.linear_model  # noqa: F401
        import torch

        torch.set_num_threads(1)
        compileall.compile_dir(PACKAGE, quiet=2)  # each copy has it, then
    before, survivors, count = known(options.kept), list[str](), 0
    for file in files(paths):
        text, tests = (PACKAGE / file).read_text(), options.tests or nearest(file)
        found = [seam for seam in sites(file) if options.only in seam.name]
        todo = [seam for seam in found if options.again or before.get(key(seam, text)) not in (NOTICED, TOO_LONG)]
        count += len(found)
        if options.list:
            print("\n".join(seam.name for seam in found))
            continue
        todo = [seam for seam in todo if seam.name not in EQUIVALENT]
        if todo:
            check_whole(file, tests, options.seconds)
        for number, seam in enumerate(todo, 1):
            outcome = judge(seam, tests, options.seconds)
            row = {"key": key(seam, text), "outcome": outcome, "name": seam.name}
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
