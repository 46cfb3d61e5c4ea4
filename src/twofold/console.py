"""What is printed for people, on the first rank alone where several run."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from twofold.distributed import rank
from twofold.text import printable


class _PlainConsole(Console):
    """Prints text as it is: square brackets in a file's name are no markup, and nothing in it steers the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, of printable text."""
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)


console = _PlainConsole(stderr=False, highlight=False, soft_wrap=True, markup=False, emoji=False)


def duration(seconds: float) -> str:
    """Seconds as a person would say them: 42 s, 3 min 05 s, 2 h 07 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def print_rank0(text: str, markup: bool = True) -> None:
    """Print on the first rank alone; without `markup` what stands in brackets is text, as in names of files."""
    if rank() == 0:
        console.print(text, markup=markup)
