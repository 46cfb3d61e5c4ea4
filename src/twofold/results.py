"""What every command gives back: one contract, so that whoever knows one result can read them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Result(Protocol):
    """What a command came to: a frozen dataclass that is kept in memory and was written, where it writes, to disk.

    Beside these, a result has `path`, the folder that holds it, or `file`, the file, where there is one.
    """

    @property
    def metrics(self) -> Mapping[str, float]:
        """What was measured, by name: `top1`, `mean_per_class`, `eer`, `cer`, ...; shares lie in [0, 1]."""

    def text(self) -> str:
        """For people, in a few lines."""

    def to_dict(self) -> dict[str, Any]:
        """All of it in the types of JSON."""


def in_json(value: Any) -> Any:
    """A dataclass, or whatever it holds, in JSON's types: tuples become lists, paths words."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: in_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): in_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [in_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def unread(skipped: Sequence[tuple[str, str]], most: int = 10) -> list[str]:
    """What to say of (path, reason) of files that could not be read, the first `most` by name; nothing without any."""
    if not skipped:
        return []
    shown = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:most])
    rest = f"\n  and {len(skipped) - most:,} more" if len(skipped) > most else ""
    return [f"{len(skipped):,} file(s) could not be read:{shown}{rest}"]


def measured(value: Any) -> dict[str, float]:
    """What a dataclass of scores holds that was measured, by name: its floats; whole numbers are counts."""
    if value is None:
        return {}
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: number for name, number in fields.items() if isinstance(number, float)}
