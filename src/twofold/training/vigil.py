"""Whether the other processes of a run live: each tells of itself, all watch, and the one that is lost is named.

The places where processes wait for each other do not tell a slow partner from a dead one, and wait for long. Here each
rank posts a beat, every few seconds and from a thread of its own, to the store by which the processes found each other,
and reads the others'. A rank whose beats stop has died or was suspended. A rank whose beats go on while its main thread
stands still, and which is behind those that wait for it, hangs.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch.distributed as dist

from twofold.distributed import rank, speaks_of_partners, world_size
from twofold.errors import RankLost, UserError
from twofold.text import printable
from twofold.training.clock import STATIONS

LONG = 10
"""How many times the patience a phase may take that is long by nature, or that computes all the while."""
AT_WORK = 0.05
"""Share of the time that a process which does something spends on a processor; one that waits spends next to none."""
MISSED = 3
"""Looks in a row that must find the same: a beat is old when it is read, and its rank may have been set free since. And
beats that a process has missed when it is taken to be the one whose connection just broke."""

_opened = itertools.count()
"""Vigils of this process so far: those of one run have the same number on all ranks."""


@dataclass(frozen=True)
class Pulse:
    """Where a rank's main thread is.

    Attributes:
        marks: parts of steps done since the beginning.
        step: steps done.
        doing: one of the clock's stations.
        long: this may take longer than the patience, as first steps, monitors and saving may.
    """

    marks: int
    step: int
    doing: str
    long: bool

    @property
    def progress(self) -> tuple[int, int]:
        """How far the rank has come, in what all ranks go through in the same order."""
        return self.step, STATIONS.index(self.doing)


@dataclass(frozen=True)
class Beat:
    """What a rank tells of itself.

    Attributes:
        pulse: where it is.
        host: its machine.
        place: file, line and function.
        waiting: it is in a collective.
        unmarked: seconds since its last mark.
        still: seconds for which it has neither set a mark nor computed.
        status: once it has ended, the exit status that its error asks for, 0 without one.
        error: what ended it.
    """

    pulse: Pulse
    host: str = ""
    place: str = ""
    waiting: bool = False
    unmarked: float = 0.0
    still: float = 0.0
    status: int | None = None
    error: str = ""

    def hangs(self, limit: float) -> bool:
        """Whether its main thread has stood still for `limit` seconds, or has been at one part beyond any measure."""
        if self.pulse.long:
            return self.still >= LONG * limit
        return self.still >= limit or self.unmarked >= LONG * limit

    def where(self) -> str:
        """The step and what it was doing there."""
        place = f" ({self.place})" if self.place else ""
        return f"after step {self.pulse.step:,}, in {self.pulse.doing}{place}"


@dataclass
class Heard:
    """What is known of another rank: its last beat, which of its beats that was, and seconds without a new one."""

    beat: Beat
    number: int
    silent: float = 0.0

    def silent_for(self, limit: float) -> bool:
        """Whether it has been silent for so long; one that has not begun may still be opening its data."""
        return self.beat.status is None and self.silent >= limit * (1 if self.number else LONG)


@dataclass(frozen=True)
class Verdict:
    """Why the run cannot go on.

    Attributes:
        text: which rank, where and what.
        status: to exit with: 75 where --resume mends it.
        suspects: of ranks that seem to hang, each with its marks.
    """

    text: str
    status: int = RankLost.status
    suspects: frozenset[tuple[int, int]] = frozenset()

    def error(self) -> Exception:
        """To be raised."""
        return UserError(self.text) if self.status == 2 else RankLost(self.text, self.status)


def judge(mine: Beat, others: Mapping[int, Heard], me: int, limit: float, grace: float) -> Verdict | None:
    """Which rank keeps the run from going on, if any does.

    Args:
        mine: this rank's beat.
        others: by rank.
        me: this rank.
        limit: seconds of silence, or of standing still, that are taken for an end.
        grace: seconds for which an error of another rank is left to be raised by our own main thread.
    """
    if mine.pulse.doing != "saving" or mine.hangs(limit):  # a checkpoint in hand is finished first
        for other, heard in others.items():
            if heard.beat.status and heard.silent >= grace:
                return ended(other, heard.beat)
        silent = {other: heard for other, heard in others.items() if heard.silent_for(limit)}
        if silent:
            return gone(silent)
    beats = {me: mine} | {other: heard.beat for other, heard in others.items() if heard.beat.status is None}
    least = min(beat.pulse.progress for beat in beats.values())
    behind = {r: beat for r, beat in beats.items() if beat.pulse.progress == least}
    at_fault = {r: beat for r, beat in behind.items() if not beat.waiting} or behind
    if not all(beat.hangs(limit) for beat in at_fault.values()):
        return None
    names = " and ".join(f"rank {r} on {beat.host}, {beat.where()}" for r, beat in sorted(at_fault.items()))
    longest = max(min(beat.unmarked for beat in at_fault.values()), limit)
    what = "wait for each other without end" if len(at_fault) > 1 and at_fault == behind else "hangs"
    marks = frozenset((r, beat.pulse.marks) for r, beat in at_fault.items())
    return Verdict(f"{names}: {what}, nothing has moved there for {longest:.0f} s", suspects=marks)


def gone(silent: Mapping[int, Heard]) -> Verdict:
    """Of ranks whose beats have stopped."""
    names = " and ".join(f"rank {r} on {h.beat.host}, last seen {h.beat.where()}" for r, h in sorted(silent.items()))
    longest = max(heard.silent for heard in silent.values())
    return Verdict(f"{names}: it has died or was suspended, there is no sign of life for {longest:.0f} s")


def ended(other: int, beat: Beat) -> Verdict:
    """Of a rank that ended by an error, which may itself tell of yet another rank."""
    if beat.status in (2, RankLost.status):
        return Verdict(beat.error, beat.status)
    return Verdict(f"rank {other} on {beat.host} ended {beat.where()}: {beat.error}", beat.status or 1)


class Vigil:
    """While open, watches the other processes of the run, and ends this one where one of them is lost.

    Where the main thread waits for a lost rank for ever, the process ends by a line on stderr and `os._exit`, with
    status 75; where a collective raised because of it, RankLost is raised in that error's place. In a run of one
    process it does nothing.

    Args:
        patience: seconds within which a lost rank is noticed.
        pulse: tells where the main thread is.
    """

    def __init__(self, patience: float, pulse: Callable[[], Pulse]) -> None:
        self._pulse, self._patience, self._active = pulse, patience, world_size() > 1
        self._interval = min(max(2.0, world_size() / 100), patience / 12)
        # A beat is posted, and read, once in an interval; and looked at several times.
        self._limit = patience - (2 + MISSED) * self._interval
        self._main, self._host = threading.get_ident(), socket.gethostname()
        self._over, self._asking = threading.Event(), threading.Event()
        self._mine = Beat(pulse(), self._host)
        self._worked = time.process_time()
        self._posted = self._rounds = 0
        self._unheard = 0.0
        self._suspects: frozenset[tuple[int, int]] = frozenset()
        self._seen = 0

    def __enter__(self) -> Vigil:
        if not self._active:
            return self
        default: Any = dist.distributed_c10d._get_default_store()
        # Connections of their own: one that waits for an answer would hold up the other, and the main thread's.
        self._outbox, self._inbox, self._key = default.clone(), default.clone(), f"twofold/vigil/{next(_opened)}"
        self._me, self._world = rank(), world_size()
        absent = Beat(Pulse(0, self._mine.pulse.step, "starting", True), "a machine not known yet")
        self._others = {r: Heard(absent, 0) for r in range(self._world) if r != self._me}
        self._post()
        for work in (self._read, self._watch):
            threading.Thread(target=work, name="vigil", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._active:
            return
        verdict = self._cause() if error is not None and speaks_of_partners(error) else None
        self._over.set()
        if verdict is not None:
            self._leave(verdict.status, verdict.text)
            raise verdict.error() from error
        if error is None:
            self._leave(0, "")
        elif isinstance(error, RankLost | KeyboardInterrupt):
            self._leave(RankLost.status, f"rank {self._me} on {self._host} was ended: {error}")
        else:
            own = isinstance(error, UserError)
            self._leave(2 if own else 1, str(error) if own else f"{type(error).__name__}: {error}")

    def _cause(self) -> Verdict | None:
        """Which rank broke the connection that an error speaks of; None if all are still there after a while."""
        self._asking.set()
        until = time.monotonic() + max(2 * MISSED * self._interval, 5.0)
        while time.monotonic() < until:
            time.sleep(self._interval / 2)
            others = dict(self._others)
            for other, heard in others.items():
                if heard.beat.status:
                    return ended(other, heard.beat)
            if self._unheard >= MISSED * self._interval:
                return self._without_store()
            missed = MISSED * self._interval
            silent = {r: h for r, h in others.items() if h.beat.status is None and h.silent >= missed}
            if silent:
                return gone(silent)
        return None

    def _without_store(self) -> Verdict:
        """Nothing can be heard of anybody: what is lost is the process that keeps the store."""
        if not hosted_by_launcher() and 0 in self._others:
            return gone({0: replace(self._others[0], silent=self._unheard)})
        return Verdict(
            f"the launcher on {os.environ.get('MASTER_ADDR')} has ended or cannot be reached: nothing was heard of the "
            f"other processes for {self._unheard:.0f} s"
        )

    def _watch(self) -> None:
        """Tell of ourselves and look at the others, once in an interval."""
        last = time.monotonic()
        rounds = 0
        while not self._over.wait(self._interval):
            # After a suspension of this process itself the clock says nothing of the others.
            passed, last = min(time.monotonic() - last, 2 * self._interval), time.monotonic()
            self._sample(passed)
            self._post()
            for heard in list(self._others.values()):
                heard.silent += passed
            self._unheard, rounds = (self._unheard + passed if rounds == self._rounds else 0.0), self._rounds
            verdict = None if self._asking.is_set() else self._verdict()
            if verdict is not None and not self._over.is_set():
                self._end(verdict)

    def _verdict(self) -> Verdict | None:
        grace = MISSED * self._interval
        if self._unheard < grace:
            found = judge(self._mine, dict(self._others), self._me, self._limit, grace)
            suspects = found.suspects if found is not None else frozenset()
            self._seen = self._seen + 1 if suspects == self._suspects else 1
            self._suspects = suspects
            return None if suspects and self._seen < MISSED else found
        # A launcher that is gone is no loss to ranks that go on: they stop by themselves, with a checkpoint.
        needed = not hosted_by_launcher() or self._mine.hangs(self._limit)
        return self._without_store() if needed and self._unheard >= self._limit else None

    def _sample(self, passed: float) -> None:
        """Look at our own main thread."""
        before, pulse, worked = self._mine, self._pulse(), time.process_time()
        unmarked = before.unmarked + passed if pulse.marks == before.pulse.marks else 0.0
        idle = worked - self._worked < AT_WORK * passed
        self._worked = worked
        place, waiting = _described(sys._current_frames().get(self._main))
        self._mine = Beat(
            pulse, self._host, place, waiting, unmarked, before.still + passed if idle and unmarked else 0.0
        )

    def _post(self) -> None:
        self._posted += 1
        try:
            self._outbox.set(f"{self._key}/{self._me}", json.dumps([self._posted, asdict(self._mine)]))
        except RuntimeError:
            return  # without a store nothing is heard either, of which `_watch` keeps account

    def _leave(self, status: int, error: str) -> None:
        """The last word, which nobody takes for silence."""
        self._mine = replace(self._mine, pulse=self._pulse(), place="", status=status, error=error)
        self._post()

    def _read(self) -> None:
        """Hear the others; a store that does not answer holds up this thread alone."""
        keys = {other: f"{self._key}/{other}" for other in self._others}
        present: set[int] = set()
        while not self._over.wait(self._interval):
            try:
                present |= {other for other in keys.keys() - present if self._inbox.check([keys[other]])}
                texts = self._inbox.multi_get([keys[other] for other in present]) if present else []
                for other, text in zip(present, texts, strict=True):
                    number, beat = json.loads(text)
                    if number != self._others[other].number:
                        self._others[other] = Heard(Beat(**(beat | {"pulse": Pulse(**beat["pulse"])})), number)
                self._rounds += 1
            except RuntimeError:
                continue  # as above

    def _end(self, verdict: Verdict) -> NoReturn:
        self._leave(verdict.status, verdict.text)
        print(f"twofold: error: {printable(str(verdict.error()))}", file=sys.stderr, flush=True)
        os._exit(verdict.status)  # the main thread may never come back from where it waits


def hosted_by_launcher() -> bool:
    """Whether the store by which the processes meet is kept by torchrun, and not by the first of them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _described(frame: FrameType | None) -> tuple[str, bool]:
    """Where a thread is, with where this package called that, and whether it is in a collective."""
    places: list[str] = []
    waiting, depth = False, 0
    while frame is not None:
        file = frame.f_code.co_filename.replace(os.sep, "/")
        collective = "/torch/distributed/" in file or file.endswith("/twofold/distributed.py")
        waiting |= collective and depth < 3
        waiting |= file.endswith("/torch/nn/parallel/distributed.py") and depth == 0
        ours = "/twofold/" in file
        if ours or not places:
            places.append(f"{'/'.join(file.split('/')[-3:])}:{frame.f_lineno}, {frame.f_code.co_name}")
        if ours:
            break
        frame, depth = frame.f_back, depth + 1
    return "; called by ".join(places), waiting
