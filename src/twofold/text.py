"""Text that comes with the data, such as names of files, as it can be shown and written."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with what would steer a terminal, or cannot be encoded, written as an escape: ``\\x1b``, ``\\udcff``.

    New lines and tabs stay. Bytes of a name that are no UTF-8 are lone surrogates in Python, which no stream takes.
    """
    return "".join(_escape(c) if _unfit(c) else c for c in text)


def _unfit(c: str) -> bool:
    return c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode()


def counted(count: float, noun: str, plural: str | None = None) -> str:
    """A number and what it counts: ``1 image``, ``1,200 images``; `plural` of nouns that take more than an s."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural or f'{noun}s'}"
