"""One option: a field of a dataclass, its explanation, and where it applies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import docstring_parser

from twofold.kinds import EXAMPLE

_WHEN, _INSTEAD = "when", "instead"


class _Given:
    def __repr__(self) -> str:
        return "a value"


GIVEN = _Given()
"""In `option(when={"memory": (GIVEN,)})`: applies only where the option beside it has any value but None."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    when: Mapping[str, Sequence[Any]],
    factory: Any = None,
    instead: str = "leave it out",
) -> Any:
    """A dataclass field that applies only where each field or word in `when` has one of the values.

    Args:
        default, factory: as a dataclass's field has them.
        when: the values by the name of a field beside it, or of a word that `refuse_unused` is told; of a field of
            several values one of them has to be among these.
        instead: what an error tells to do where it does not apply.
    """
    given = {"default_factory": factory} if factory is not None else {"default": default}
    conditions = {name: tuple(values) for name, values in when.items()}
    return dataclasses.field(**given, metadata={_WHEN: conditions, _INSTEAD: instead})


@dataclass(frozen=True)
class Leaf:
    """One option: its dotted path, type, default, explanation, where it applies, and the remedy elsewhere."""

    path: str
    type: Any
    default: Any
    help: str
    when: Mapping[str, tuple[Any, ...]]
    instead: str = "leave it out"


def is_group(kind: Any) -> bool:
    """Whether a field's type is a group of options."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def own_fields(cls: type) -> dict[str, Leaf]:
    """A dataclass's own fields, each with its explanation."""
    return _described(cls)


@functools.cache
def _described(cls: type) -> dict[str, Leaf]:
    hints, words = get_type_hints(cls), _explanations(cls)
    return {
        field.name: Leaf(
            field.name,
            hints[field.name],
            field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default,
            words.get(field.name, ""),
            field.metadata.get(_WHEN, {}),
            field.metadata.get(_INSTEAD, "leave it out"),
        )
        for field in dataclasses.fields(cls)
    }


def _explanations(cls: type) -> dict[str, str]:
    """What the string after each field of a dataclass, or of one that it extends, says."""
    words: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and not base.__name__.startswith("Open"):
            try:
                parsed = docstring_parser.parse_from_object(base).params
            except (OSError, TypeError):  # typed in an interpreter, where no source can be read: the names must do
                continue
            words |= {each.arg_name: " ".join((each.description or "").split()) for each in parsed}
    return words


def explanation(leaf: Leaf) -> str:
    """What an option does, after the words that say where it applies."""
    where = []
    for key, values in leaf.when.items():
        if key == "kind" and set(values) <= set(EXAMPLE):
            where.append(" or ".join(f"{EXAMPLE[kind]}s" for kind in values))
        elif GIVEN in values:
            where.append(f"with {key}")
        else:
            words = " or ".join(map(as_written, values))
            where.append(words if key == "name" else f"{key} {words}")
    return f"{', '.join(where)}: {leaf.help}" if where else leaf.help


def as_written(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_written, value))}]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
