"""What is said in recordings, read from the files of texts that lie beside them."""

from __future__ import annotations

from pathlib import Path

from twofold.data.sources.manifests import most_text
from twofold.errors import UserError
from twofold.reading import read_text

_LONGEST_TRANSCRIPT = 2**24
"""Bytes of a transcript beside a recording: hours of speech are some hundred thousand."""


def text_beside(path: Path, encoding: str, suffix: str = ".txt") -> str | None:
    """What the file of the same name as a recording holds, with this extension in small letters or capitals.

    Raises:
        UserError: it is far too long, or written otherwise.
    """
    file = next((f for f in (path.with_suffix(suffix), path.with_suffix(suffix.upper())) if f.is_file()), None)
    if file is None:
        return None
    if file.stat().st_size > _LONGEST_TRANSCRIPT:
        raise UserError(f"{file} has {file.stat().st_size:,} bytes, and would be what {path.name} says: take it away")
    return read_texts(file, encoding).strip() or None


def read_texts(file: Path, encoding: str) -> str:
    """A file of texts; UserError where it cannot be read or is written otherwise."""
    try:
        return read_text(file, most_text(), encoding)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except (UnicodeDecodeError, LookupError) as error:
        raise UserError(
            f"{file} is not written in {encoding} ({error}): save it as UTF-8, or say what it is with --data.encoding"
        ) from error
