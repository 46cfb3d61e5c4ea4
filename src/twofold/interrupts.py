"""Signals that end work: a run stops after the step in hand, with a checkpoint; other work ends at once, with a word.

SIGINT (Ctrl-C), SIGTERM, SIGHUP (a terminal that closes) and SIGUSR1 (what SLURM is asked to send before time runs out)
are taken alike. A second one ends a run at once.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


def leave_to_parent() -> None:
    """In a helping process: pass over signals that a terminal or a scheduler sends to all; the parent decides.

    SIGTERM ends it where the parent sent it. From anybody else it came to the whole group, and the parent, who has it
    too, still needs what this process makes until its last step is done.
    """
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in (parent, os.getpid()):
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
