"""Decoding in worker processes, which are watched: where one dies or hangs they start again, and batches are the same.

What a process makes is a pure function of its task, so tasks that are out when one dies are given out once more.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from twofold.console import console
from twofold.data.base import Source
from twofold.data.batches.cache import START_METHOD
from twofold.data.batches.workers import Decoder, Part, Task
from twofold.errors import UserError
from twofold.interrupts import leave_to_parent
from twofold.views.images import ImageViews

CHUNK = 32
"""Most images of one task: few, so that all processes work on the same batch."""
LOOK = 5.0
"""Seconds between two looks at processes that give nothing."""
RESTARTS = 3
"""How often in a row processes are started again without a task done in between."""


class Pipe:
    """A decoder and the processes that run it; with 0 workers it runs in this one.

    Args:
        source, views, seed, shape, draft: of the decoder.
        rows: images of a step.
        workers: processes.
        patience: seconds that one image may take; then the process is ended, and the image counts as unreadable.
    """

    def __init__(
        self,
        source: Source,
        views: ImageViews,
        seed: int,
        shape: tuple[int, int] | None,
        draft: bool,
        rows: int,
        workers: int,
        patience: float = 60.0,
    ) -> None:
        self.chunk = min(CHUNK, -(-rows // max(workers, 1)))
        # Enough for a whole batch while the caller trains on the one before, and one chunk more for each process.
        self._prefetch = max(2, -(-rows // (self.chunk * max(workers, 1))) + 1)
        self._slots = self._prefetch * workers + 1
        self._workers, self._patience = workers, patience
        self._decoder = Decoder(source, views, seed, shape, draft, self.chunk, self._slots, workers)
        self._tasks = _Tasks()
        self._loader: DataLoader[Part] | None = None

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Part, torch.Tensor]]:
        """(part, pixels) of each task in turn; copy the pixels before asking for the next.

        Raises:
            UserError: as `Decoder` and the source raise, or processes died again and again.
        """
        waiting: deque[Task] = deque()
        rest = iter(tasks)
        restarts = 0
        while True:
            # PyTorch has handed out at most slots - 1 tasks beyond the one that it gives us: no slot is still in use.
            given = _given(tuple(waiting), rest, waiting)
            self._tasks.pending = (replace(t, slot=slot) for t, slot in zip(given, itertools.cycle(range(self._slots))))
            parts = self._started() if self._workers else map(self._decoder.__getitem__, self._tasks)
            try:
                while (part := self._next(parts)) is not None:
                    if part.error is not None:
                        raise part.error
                    restarts = 0
                    waiting.popleft()
                    yield part, self._decoder.pixels(part.task)
                return
            except _Ended as ended:
                restarts += 1
                if restarts > RESTARTS:
                    raise UserError(
                        f"decoding processes end again and again ({ended}); if memory ran out, give fewer "
                        "--data.workers or less --batch"
                    ) from ended
                console.print(f"warning: {ended}; started again ({restarts} of {RESTARTS} in a row)")
                self._end()
            finally:
                del parts  # a traceback that someone keeps would keep the processes too

    def close(self) -> None:
        """Stop the processes."""
        self._loader = None

    def _started(self) -> Iterator[Part]:
        if self._loader is None:
            self._loader = _Quiet(
                self._decoder,
                batch_size=None,
                sampler=self._tasks,
                num_workers=self._workers,
                prefetch_factor=self._prefetch,
                persistent_workers=True,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                multiprocessing_context=START_METHOD,
                generator=torch.Generator(),  # its own: starting an iteration must not move the global one
                timeout=LOOK,
            )
        if threading.current_thread() is not threading.main_thread():
            return iter(self._loader)
        # PyTorch would raise amid whatever the main thread does when a process dies: `_next` sees to that in its turn.
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        parts = iter(self._loader)
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        return parts

    def _next(self, parts: Iterator[Part]) -> Part | None:
        """The next part; `_Ended` where a process died or was ended for its silence."""
        while True:
            try:
                return next(parts, None)
            except RuntimeError as error:
                if "exited unexpectedly" in str(error):
                    raise _Ended(f"a decoding process was killed ({_fate(parts)})") from error
                if "timed out" not in str(error):
                    raise
            for index, seconds in self._decoder.reading():
                if seconds > self._patience:
                    reason = f"reading it took more than {self._patience:g} s (--data.patience)"
                    self._decoder.pass_over(index, reason)
                    raise _Ended(f"a decoding process hung: {self._decoder.name(index)}: {reason}")

    def _end(self) -> None:
        """Kill all processes: those that live may still write where tasks go that are given out again."""
        for process in _processes(getattr(self._loader, "_iterator", None)):
            process.kill()
            process.join()
        self._loader = None
        self._decoder.forget()


class _Quiet(DataLoader[Part]):
    """A loader of PyTorch's that does not warn of more processes than cores: so many were asked for, or the machine has
    less since; by itself `Loader` takes no more than there are."""

    def check_worker_number_rationality(self) -> None:
        """Say nothing."""


class _Ended(Exception):
    """Decoding processes have to be started again."""


class _Tasks(Sampler[Task]):
    """The tasks of the iteration that runs."""

    def __init__(self) -> None:
        self.pending: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.pending


def _given(again: Iterable[Task], rest: Iterator[Task], waiting: deque[Task]) -> Iterator[Task]:
    """Tasks to hand out: first those that were out before; the others are noted in `waiting`."""
    yield from again
    for task in rest:
        waiting.append(task)
        yield task


def _processes(parts: Any) -> list[Any]:
    return list(getattr(parts, "_workers", ()))


def _fate(parts: Any) -> str:
    """How those ended that have: a signal's name, or a status."""
    result = []
    for process in _processes(parts):
        code = process.exitcode
        if code is not None:
            result.append(f"process {process.pid}: {signal.Signals(-code).name if code < 0 else f'status {code}'}")
    return ", ".join(result) or "it has gone"


def _unchanged(part: Any) -> Any:
    return part


def _start_worker(worker: int) -> None:  # noqa: ARG001  # PyTorch's signature
    torch.set_num_threads(1)  # the processes are the parallelism
    leave_to_parent()
