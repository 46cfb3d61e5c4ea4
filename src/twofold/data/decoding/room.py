"""Room for decoded images: many small ones at once, huge ones one after the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from twofold.devices import return_freed_memory

AT_ONCE = 2**26
"""Pixels that the threads of a process decode at the same time: 67 million, for each of which Pillow and NumPy hold up
to 24 bytes while they convert it. One larger image is decoded alone."""


class Room:
    """A number of units that threads take and give back; who asks for more than there are gets all of them.

    Args:
        units: how many there are.
    """

    def __init__(self, units: int) -> None:
        self._units, self._free, self._changed = units, units, threading.Condition()
        # A process that is forked while a thread waits would find the lock taken for ever.
        os.register_at_fork(after_in_child=self._anew)

    @contextmanager
    def taken(self, units: int) -> Iterator[None]:
        """Wait until so many units are free, and hold them inside the block."""
        units = min(units, self._units)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= units)
            self._free -= units
            if units == self._units:  # else each thread would keep what its last huge image took
                return_freed_memory()
        try:
            yield
        finally:
            with self._changed:
                self._free += units
                self._changed.notify_all()

    def _anew(self) -> None:
        self._free, self._changed = self._units, threading.Condition()


PIXELS = Room(AT_ONCE)
