"""Images as an encoder is given them, kept in memory: what is looked at again is not decoded again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from twofold.data import AudioSource, BadImage, Source
from twofold.devices import available_memory
from twofold.evaluation.framing import Framing

MOST = 2**30
"""Bytes that are kept, unless a quarter of the free memory is less."""


@dataclass
class Kept:
    """What is known of one source under one rule of preprocessing.

    Attributes:
        source: the images, or recordings.
        framing: the rule, which remembers what it did.
        examples: by index, as `Framing` gives them, or why one cannot be read.
    """

    source: Source
    framing: Framing
    examples: dict[int, Tensor | BadImage] = field(default_factory=dict)


class Prepared:
    """A memory of prepared examples, filled as they are read until it is full; the others are read anew each time.

    What it holds is exactly what is read, so that it changes no feature. The files must not change while it lasts.

    Args:
        limit: bytes; a GiB or a quarter of the free memory, whichever is less, when not given.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = min(MOST, available_memory() // 4) if limit is None else limit
        self.held = 0
        self._lock = threading.Lock()
        self._kept: dict[Any, Kept] = {}

    def of(self, source: Source, framing: Framing) -> Kept:
        """What is kept of a source under this rule: of this very object; of recordings, whose source is made anew for
        each encoder, of those with the same fingerprint."""
        which = source.fingerprint() if isinstance(source, AudioSource) else id(source)
        key = which, getattr(source, "rate", None), framing.rule, framing.size, framing.resample
        return self._kept.setdefault(key, Kept(source, framing))  # (a source that is kept leaves its id to no other)

    def keep(self, kept: Kept, index: int, example: Tensor | BadImage) -> None:
        """Keep one example where there is room; called by several threads."""
        size = example.numel() * example.element_size() if isinstance(example, Tensor) else 0
        with self._lock:
            if index in kept.examples or self.held + size > self.limit:
                return
            self.held += size
            kept.examples[index] = example
