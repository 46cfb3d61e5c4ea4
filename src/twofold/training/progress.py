"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from twofold.console import console, duration


class ProgressReport:
    """Reports steps done out of `total`, examples per second and the time left.

    Args:
        total: steps of the whole run.
        done: steps done before (a resumed run).
        per_step: examples that a step advances by.
        unit: what an example is called.
        quiet: report nothing (every rank but the first).
        seconds_between_lines: how often a log gets a line.
    """

    def __init__(
        self,
        total: int,
        done: int,
        per_step: int,
        unit: str = "images",
        quiet: bool = False,
        seconds_between_lines: float = 15.0,
    ) -> None:
        self.total, self.done, self.per_step, self.unit, self.quiet = total, done, per_step, unit, quiet
        self.seconds_between_lines = seconds_between_lines
        self._begun = self._last_line = time.monotonic()
        self._first = done
        self.status = ""
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("pretraining", total=total, completed=done, rate="")

    def __enter__(self) -> ProgressReport:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the report began."""
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float:
        """Examples per second since the report began."""
        return (self.done - self._first) * self.per_step / max(self.seconds, 1e-9)

    def advance(self) -> None:
        """Count one step; `self.status` says where the run stands, e.g. ``loss 3.10``."""
        self.done += 1
        if self.quiet:
            return
        rate = f"{self.rate:,.0f} {self.unit}/s"
        if self._bar:
            self._bar.update(self._task, completed=self.done, rate=rate, description=self.status or "pretraining")
            return
        now = time.monotonic()
        if now - self._last_line >= self.seconds_between_lines or self.done == self.total:
            self._last_line = now
            left = (self.total - self.done) * self.seconds / max(self.done - self._first, 1)
            console.print(f"step {self.done}/{self.total}  {self.status}  {rate}  {duration(left)} left")
