"""Processes that a benchmark starts: they end with it, whether it fails or a signal ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from twofold.interrupts import Interrupted, end_with_writer, interruptible

PATIENCE = 10.0
"""Seconds for which a process that is asked to end may tidy up, before it is killed."""
STARTED = "BENCHMARK_STARTED_BY"
"""Environment variable by which a benchmark knows that another process started it: that one's number."""


@contextmanager
def started(words: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, which is ended, with all that it started, where this is left while it runs.

    Args:
        words: the command.
        options: of `subprocess.Popen`; `env` adds to this process's environment.

    The process reads a pipe of which this one holds the other end: see `begin`.
    """
    environment = os.environ | options.pop("env", {}) | {STARTED: str(os.getpid())}
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            words, stdin=reading, text=True, start_new_session=True, env=environment, **options
        )  # fmt: skip
    finally:
        os.close(reading)
    try:
        yield process
    finally:
        try:
            _end(process)
        finally:
            os.close(writing)


def output(words: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What a process prints; SystemExit with what it says of its failure, if it fails."""
    with started(words, env=env or {}, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said, complaint = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: ended with {process.returncode}\n{complaint}")
    return said


def begin(main: Callable[[], None]) -> None:
    """A benchmark's `main`, so that whatever signal ends it ends what it started, too.

    One that `started` began ends with its starter, even where that was killed by SIGKILL.
    """
    if os.environ.pop(STARTED, None) == str(os.getppid()):
        end_with_writer(sys.stdin.fileno())
    try:
        with interruptible():
            main()
    except Interrupted as stop:
        sys.exit(128 + stop.signal)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a process that still runs to end, and kill what is left of its group."""
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
