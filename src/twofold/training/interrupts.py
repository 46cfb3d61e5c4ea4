"""Ctrl-C, SIGTERM and SIGUSR1 end a run after the step in hand, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))
"""What SLURM is asked to send before time runs out (sbatch --signal); Windows has no such signal."""


class StopRequest:
    """While open, SIGINT, SIGTERM and SIGUSR1 set `signal` instead of ending the process.

    Signals can only be caught in the main thread; elsewhere the context does nothing and says so in `active`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.active = threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if self.active:
            for number in (signal.SIGINT, signal.SIGTERM, *_WARNINGS):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None
