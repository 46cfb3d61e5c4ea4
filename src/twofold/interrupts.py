"""What ends work: a run stops after the step in hand, with a checkpoint; other work ends at once, with a word.

That is a signal, or that the process has gone which started this one to work for it. SIGINT (Ctrl-C), SIGTERM, SIGHUP
(a terminal that closes) and SIGUSR1 (what SLURM is asked to send before time runs out) are taken alike. A second one
ends a run at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


_LOOK = 1.0
"""Seconds between two looks at whether another process is still there."""
_asked: list[StopRequest] = []
"""The requests that are open: a run is under way, which looks for its launcher itself."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends what is being done; like Ctrl-C no `except Exception` takes it for a failure.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, each of the signals raises `Interrupted` in the main thread, where it would end the process mutely.

    SIGHUP stays ignored where the process was started to ignore it (nohup).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _install(_raise)
    try:
        yield
    finally:
        _restore(before)


class StopRequest:
    """While open, the signals set `signal` instead of ending the process, and so does the end of what launched it.

    Signals can only be caught in the main thread; elsewhere the context does nothing and says so in `active`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.active = threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        # A launcher's agent that dies, as torchrun's does of SIGUSR1, leaves its processes to train on unseen.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> StopRequest:
        if self.active:
            self._before = _install(self._note)
        _asked.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _asked.remove(self)
        _restore(self._before)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise Interrupted(number)
        self.signal = number
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()

    def number(self) -> int:
        """The signal that has come, SIGTERM where the launcher has gone; 0 if there is none."""
        if self.signal is None and self._launcher is not None and os.getppid() != self._launcher:
            self.signal = signal.SIGTERM
        return self.signal or 0


def leave_terminal() -> None:
    """Write to nowhere what would go to a terminal: one that has closed answers each write with an error."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # no stream, or none with a descriptor: nothing to leave
            descriptor = stream.fileno()
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # (isatty says no of one that has closed)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _raise(number: int, _frame: FrameType | None) -> None:
    if number == getattr(signal, "SIGHUP", None):
        leave_terminal()
    raise Interrupted(number)


def _install(handler: Any) -> dict[int, Any]:
    deaf = {getattr(signal, "SIGHUP", None)} if _ignores_hangup() else set()
    return {number: signal.signal(number, handler) for number in STOPPING if number not in deaf}


def _ignores_hangup() -> bool:
    """Whether nohup started this process. (A shell that starts one with & makes it deaf to SIGINT alike, which says
    nothing of what its user wants.)"""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None:  # one that no Python had set cannot be put back by Python
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Where torchrun started this process: end as by SIGTERM when it has gone, which the end of it does not see to.

    While a run is under way (`StopRequest`) that looks for its launcher at each step, and ends with a checkpoint.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()

    def wait() -> None:
        while os.getppid() == launcher or _asked:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def end_with_writer(descriptor: int) -> None:
    """In a process that another started to work for it: end as by SIGTERM when the other has gone, even by SIGKILL.

    Args:
        descriptor: the reading end of a pipe whose writing end the other alone has. The system closes that when the
            other ends, however it ends.
    """

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def leave_to_parent() -> None:
    """In a helping process: pass over signals that a terminal or a scheduler sends to all; the parent decides.

    SIGTERM ends it where the parent sent it. From anybody else it came to the whole group, and the parent, who has it
    too, still needs what this process makes until its last step is done. With the parent it ends, whatever it is at.
    """
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    starter = multiprocessing.parent_process()  # (by now the system may name another, where it ended meanwhile)
    parent = os.getppid() if starter is None else starter.pid
    told = hasattr(signal, "sigtimedwait")  # macOS does not tell who sent a signal
    if told:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while os.getppid() == parent:
            if not told:
                time.sleep(_LOOK)
            elif (found := signal.sigtimedwait({signal.SIGTERM}, _LOOK)) and found.si_pid in (parent, os.getpid()):
                break
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
