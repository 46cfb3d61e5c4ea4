"""Options as nested mappings: what files, commands and calls give, before and after it is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from twofold.errors import UserError


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings, later ones over earlier ones; dotted keys are paths, dataclasses mappings."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if not isinstance(key, str):
                raise UserError(f"the option {key!r} is a {type(key).__name__}: options go by names, which are text")
            head, _, rest = key.partition(".")
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            if rest:
                value = {rest: value}
            if isinstance(value, Mapping):
                before = merged.get(head)
                value = merge(before if isinstance(before, Mapping) else {}, value)
            merged[head] = value
    return merged


def given(namespace: Namespace) -> dict[str, Any]:
    """The options that a parse without defaults was given, nested."""
    return {
        key: given(value) if isinstance(value, Namespace) else value
        for key, value in vars(namespace).items()
        if not (isinstance(value, Namespace) and not vars(value))
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def plain(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values that YAML and JSON hold (tuples become lists)."""
    values: Mapping[str, Any] = dataclasses.asdict(config) if not isinstance(config, Mapping) else config
    return {
        key: plain(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
    }


_RENAMED = {"data.sound": "data.audio", "data.table.group": "data.group"}
"""Options and groups of them that were written to disk under another name once."""


def upgraded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options read from a file, with the names that options have today."""
    flat = {}
    for name, value in flatten(options).items():
        old = next((old for old in _RENAMED if name == old or name.startswith(f"{old}.")), None)
        flat[name if old is None else _RENAMED[old] + name[len(old) :]] = value
    return merge(flat)
