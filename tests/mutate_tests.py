"""Tests for `make mutate`: which test runs which line is noted once; then each error is put before those tests alone.

The tests are collected once, in a process of their own that forks for each error and there puts the changed function
in the place of the old one, which costs less than to import and collect anew. Processes that tests start import a
copy of the package that has the error.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import multiprocessing.process
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mutations import ROOT, mutated_package
from seams import PACKAGE, Seam, files

NOTICED, SURVIVED, TOO_LONG = "noticed", "survived", "too long"
_STARTERS = (subprocess.__file__, multiprocessing.process.__file__)
_STARTS = "starts a process"
"""Among the lines of a test: of what its processes run nothing is noted."""
_GENERAL = "/test_seams"
"""What the names of the tests that were written for seams have in common."""


class Lines:
    """A plugin of pytest: which lines of the seams, by file, each test runs, and how long it takes.

    A fixture that tests share is made in the first of them; its lines count for all that ask for it.
    """

    def __init__(self) -> None:
        self.watched = {str(PACKAGE / file): file for file in files()}
        self.now: set[tuple[str, int]] = set()
        self.shared: dict[str, set[tuple[str, int]]] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()
        self.since = 0.0

    def called(self, frame: types.FrameType, _event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if name in self.watched:
            self.now.add((self.watched[name], frame.f_lineno))
            return self.stepped
        if name in _STARTERS and frame.f_code.co_name in ("__init__", "start"):
            self.now.add((_STARTS, 0))
        return None

    def stepped(self, frame: types.FrameType, event: str, _: object) -> Any:
        if event == "line":
            self.now.add((self.watched[frame.f_code.co_filename], frame.f_lineno))
        return self.stepped

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.now, self.since = set(), time.monotonic()
        sys.settrace(self.called)
        threading.settrace(self.called)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            lines: dict[str, list[int]] = {}
            shared = [self.shared.get(name, set()) for name in getattr(item, "fixturenames", ())]
            for file, line in sorted(self.now.union(*shared)):
                lines.setdefault(file, []).append(line)
            took = round(time.monotonic() - self.since, 3)
            self.found[item.nodeid] = {"took": took, "lines": lines, "passes": item.nodeid not in self.failed}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if request.scope == "function":
            return (yield)
        outer, self.now = self.now, set()
        try:
            return (yield)
        finally:
            self.shared.setdefault(fixturedef.argname, set()).update(self.now)
            self.now |= outer

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


class Told:
    """A plugin of pytest: tells each test that begins, ends and fails."""

    def __init__(self, out: int) -> None:
        self.out = out

    def tell(self, word: str, test: str) -> None:
        os.write(self.out, f"{word} {test}\n".encode())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell("begins", nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.tell("ends", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell("fails", report.nodeid)


class Waiting:
    """A plugin of pytest that, when all is collected, forks for each request and runs the tests that it names there."""

    def __init__(self, requests: int, out: int) -> None:
        self.requests, self.out = requests, out

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        os.write(self.out, f"ready {len(session.items)} {session.testsfailed}\n".encode())
        with os.fdopen(self.requests) as requests:
            for line in requests:
                child = os.fork()
                if child == 0:
                    self.answer(session, json.loads(line))
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                os.write(self.out, f"gone {status} {child}\n".encode())
        os._exit(0)

    def answer(self, session: pytest.Session, request: dict[str, Any]) -> None:
        """In the process that was forked, to end in it: 0 where all tests pass, 1 where one fails, 3 for no error."""
        status = 70
        try:
            os.setsid()
            os.write(self.out, f"child {os.getpid()}\n".encode())
            os.environ.clear()
            os.environ.update(request["environment"])
            items = {item.nodeid: item for item in session.items if request["under"] in ("", str(item.path))}
            tests = [items[name] for name in request["tests"] or items]
            lines = Lines()
            session.config.pluginmanager.register(lines if request["lines"] else Told(self.out))
            if request["file"] and not put_in(request["file"], request["text"]):
                status = 3
                return
            for item, following in zip(tests, [*tests[1:], None], strict=True):
                item.add_marker(pytest.mark.timeout(request["seconds"]), append=False)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed and not request["lines"]:
                    break
            if request["lines"]:
                Path(request["lines"]).write_text(json.dumps(lines.found))
            status = 1 if session.testsfailed else 0
        finally:
            os._exit(status)


def put_in(file: str, text: str) -> bool:
    """Give each function of the file that `text` changes its new code; False where something else is changed."""
    path = PACKAGE / file
    importlib.import_module(f"twofold.{file.removesuffix('.py').replace('/', '.')}")
    old, new = ({c.co_qualname: c for c in functions(compile(t, str(path), "exec"))} for t in (path.read_text(), text))
    changed = {name for name in old if old[name] != new.get(name)}
    if old.keys() != new.keys() or not changed:
        return False
    put = set[str]()
    for thing in gc.get_objects():
        code = thing.__code__ if isinstance(thing, types.FunctionType) else None
        if code is not None and code.co_filename == str(path) and code.co_qualname in changed:
            if code.co_freevars != new[code.co_qualname].co_freevars:
                return False
            thing.__code__ = new[code.co_qualname]
            put.add(code.co_qualname)
    return put == changed


def functions(code: types.CodeType) -> Iterator[types.CodeType]:
    """Those of a module, methods among them; not those that a function makes."""
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            if part.co_flags & 0x2:  # CO_NEWLOCALS: a function; a class's body has no such locals
                yield part
            else:
                yield from functions(part)


class Nearest:
    """The tests nearest to some files, collected.

    Args:
        paths: files and folders below the checkout.
        seconds: most that one test may take beyond five times what it took without an error.
        quick: leaves out tests that take longer than this; 0 leaves none out.
        budget: seconds of tests put before an error at most; 0 for all that run its line.
        kept: where the lines that each test runs are kept, by the content of its file and of the package.
    """

    def __init__(self, paths: Sequence[str], seconds: float, quick: float, budget: float, kept: Path) -> None:
        self.paths, self.seconds, self.quick, self.budget, self.kept = list(paths), seconds, quick, budget, kept
        self.copy = ExitStack()
        self.environment = self.copy.enter_context(mutated_package("__init__.py", lambda text: text))
        # (a changed file is not compiled into the copy: its time stamp could be that of the error before)
        self.environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
        told, out = os.pipe()
        requests, self.requests = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(told)
            os.close(self.requests)
            become(self.paths, Waiting(requests, out))
        os.close(out)
        os.close(requests)
        self.told, self.text = told, ""
        ready = self.next(None)
        if ready is None or ready[0] != "ready" or ready[1] == "0 0":
            sys.exit(f"{' '.join(self.paths)} has no test to run, or cannot be collected")
        self.tests = self.lines()

    def close(self) -> None:
        """End the process that has the tests."""
        os.close(self.requests)
        os.close(self.told)
        os.waitpid(self.process, 0)
        self.copy.close()

    @contextmanager
    def error(self, file: str, text: str) -> Iterator[dict[str, str]]:
        """The environment of tests while the copy of the package has an error; what they write is removed after."""
        path = Path(self.environment["PYTHONPATH"]) / "twofold" / file
        with tempfile.TemporaryDirectory() as room:
            path.write_text(text)
            yield self.environment | {"PYTEST_DEBUG_TEMPROOT": room}
        shutil.copy2(PACKAGE / file, path)

    def lines(self) -> dict[str, dict[str, Any]]:
        """Of each test that passes: how long it takes, and the lines that it runs by file."""
        package = b"".join((PACKAGE / file).read_bytes() for file in files())
        state = hashlib.sha256(package + str(self.quick).encode())

        def stamp(file: str) -> str:
            mixed = state.copy()
            mixed.update((ROOT / file).read_bytes())
            return mixed.hexdigest()

        before = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        found: dict[str, dict[str, Any]] = {}
        test_files = [p for path in self.paths for p in (sorted((ROOT / path).rglob("test_*.py")) or [ROOT / path])]
        for path in test_files:
            file = os.path.relpath(path, ROOT)
            key = f"{file} {stamp(file)}"
            if key not in before:
                before[key] = self.trace(path)
                self.kept.write_text(json.dumps(before))
            found |= before[key]
        return {test: one for test, one in found.items() if one["passes"]}

    def trace(self, path: Path) -> dict[str, dict[str, Any]]:
        """Run a file of tests without an error, and note its lines."""
        with self.error("__init__.py", (PACKAGE / "__init__.py").read_text()) as environment:
            notes = Path(environment["PYTEST_DEBUG_TEMPROOT"]) / "lines.json"
            self.ask(environment, lines=str(notes), under=str(path), seconds=self.quick or 600)
            return dict[str, dict[str, Any]](json.loads(notes.read_text()))

    def chosen(self, seam: Seam, noticed: Counter[tuple[str, str]]) -> list[str]:
        """Tests that run the error's lines, within the budget; where none does, what the whole file or a process runs.

        Those that were written for seams go first, whatever the budget; then those that noticed others of the file;
        then the files of quick tests, each file whole: its tests may share what takes long to make.
        """
        text = (PACKAGE / seam.file).read_text()
        first, last = (text.count("\n", 0, at) + 1 for at in (seam.start, seam.end))
        run = {
            test for test, one in self.tests.items() if any(first <= n <= last for n in one["lines"].get(seam.file, ()))
        }
        wide = {test for test, one in self.tests.items() if seam.file in one["lines"] or _STARTS in one["lines"]}
        took: dict[str, list[float]] = {}
        for test in run or wide:
            took.setdefault(test.split("::")[0], []).append(self.tests[test]["took"])
        mean = {file: sum(seconds) / len(seconds) for file, seconds in took.items()}
        rank = {
            t: (_GENERAL not in t, -noticed[seam.file, t] / (self.tests[t]["took"] + 0.05), mean[t.split("::")[0]])
            for t in run or wide
        }
        chosen, spent = list[str](), 0.0
        for test in sorted(self.tests.keys() & rank.keys(), key=lambda test: (rank[test], test)):
            spent += 0 if _GENERAL in test else self.tests[test]["took"]
            if not self.budget or spent <= self.budget or not chosen:
                chosen.append(test)
        return chosen

    def judge(self, seam: Seam, noticed: Counter[tuple[str, str]]) -> tuple[str, str]:
        """Make one error: what came of it, and the test that said so."""
        tests = self.chosen(seam, noticed)
        if not tests:
            return SURVIVED, ""
        fail = list[str]()
        text = seam.mutated((PACKAGE / seam.file).read_text())
        with self.error(seam.file, text) as environment:
            status = self.ask(environment, fail, file=seam.file, text=text, tests=tests)
        if status == 0:
            return SURVIVED, ""
        if not fail:
            sys.exit(f"no test of {', '.join(self.paths)} could be put before {seam.name} (status {status})")
        return NOTICED if status else TOO_LONG, fail[0]

    def ask(self, environment: dict[str, str], fail: list[str] | None = None, **request: Any) -> int | None:
        """What the process that has the tests says to a request: None for a test that never ends."""
        nothing = {"file": "", "text": "", "tests": [], "under": "", "lines": "", "seconds": 0}
        os.write(self.requests, (json.dumps(nothing | request | {"environment": environment}) + "\n").encode())
        child = int(self.next(None)[1])  # type: ignore[index]
        ended = self.follow([] if fail is None else fail, not request.get("lines"))
        if not ended:
            os.killpg(child, signal.SIGKILL)
            self.next(None)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return self.status if ended else None

    def follow(self, fail: list[str], bounded: bool = True) -> bool:
        """Read what is told until the child has gone, and fill in what failed; False for a test that never ends."""
        running = ""
        while True:
            took = self.tests[running]["took"] if running in getattr(self, "tests", {}) else 0
            told = self.next(self.seconds + 5 * took if bounded else None)
            if told is None:
                fail.append(running)
                return False
            word, test = told
            if word == "gone":
                fail += [running] if running else []  # it ended the whole process
                self.status = int(test.split()[0])
                return True
            running = test if word == "begins" else ""
            if word == "fails":
                fail.append(test)

    def next(self, seconds: float | None) -> tuple[str, str] | None:
        """The next line that is told, as its first word and the rest; None where there is none in time."""
        while "\n" not in self.text:
            if not select.select([self.told], [], [], seconds)[0]:
                return None
            new = os.read(self.told, 2**16)
            if not new:
                return "gone", "70 0"
            self.text += new.decode()
        line, self.text = self.text.split("\n", 1)
        word, _, rest = line.partition(" ")
        return word, rest


def become(paths: Sequence[str], plugin: Waiting) -> None:
    """Be pytest on the package as it is, in a process that was forked; does not return."""
    try:
        os.setsid()
        sys.path.insert(0, str(PACKAGE.parent))
        os.environ["PYTHONPATH"] = str(PACKAGE.parent)
        os.chdir(ROOT)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow", *paths], plugins=[plugin])
    finally:
        os._exit(70)
