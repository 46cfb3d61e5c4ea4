"""Text that comes with the data, such as names of files, as it can be shown and written."""

from __future__ import annotations

import unicodedata
from numbers import Integral


def printable(text: str) -> str:
    """The text with what would steer a terminal, or cannot be encoded, written as an escape: ``\\x1b``, ``\\udcff``.

    New lines and tabs stay. Bytes of a name that are no UTF-8 are lone surrogates in Python, which no stream takes.
    """
    return "".join(_escape(c) if _unfit(c) else c for c in text)


def _unfit(c: str) -> bool:
    return c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode()


def counted(count: float, noun: str) -> str:
    """A number and what it counts: ``1 image``, ``1,200 images``, ``2 classes``."""
    number = f"{count:,}" if isinstance(count, Integral) else f"{count:g}"
    plural = f"{noun}{'es' if noun.endswith(('s', 'tch')) else 's'}"
    return f"{number} {noun if count == 1 else plural}"


def counted_have(count: int, noun: str) -> str:
    """The same as a subject: ``1 image has``, ``2 images have``."""
    return f"{counted(count, noun)} {'has' if count == 1 else 'have'}"
