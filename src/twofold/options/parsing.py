"""From nested values, or words of the shell, to a frozen dataclass of options."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from jsonargparse import ArgumentParser

from twofold.errors import UserError, suggest
from twofold.options.declared import Leaf, as_written, explanation, is_group
from twofold.options.nested import merge
from twofold.options.synonyms import meant
from twofold.options.variants import build, fields_of, leaves, refuse_unused

Options = TypeVar("Options")


def add_options(parser: ArgumentParser, cls: type, prefix: str = "", title: str = "") -> None:
    """Add every option of a dataclass to a parser as `--group.option`, a help section a group."""
    section = parser.add_argument_group(title or (cls.__doc__ or "").split("\n")[0].rstrip("."))
    groups = []
    for name, leaf in fields_of(cls).items():
        if is_group(leaf.type):
            groups.append((name, leaf))
            continue
        section.add_argument(f"--{prefix}{name}", type=leaf.type, default=leaf.default, help=explanation(leaf))
    for name, leaf in groups:
        add_options(parser, leaf.type, f"{prefix}{name}.", leaf.help)


class OptionsParser(Generic[Options]):
    """Builds a frozen dataclass of options from nested values; a mistake is a UserError that names the option."""

    def __init__(self, cls: type[Options]) -> None:
        self.cls = cls

    def build(self, options: Mapping[str, Any], origin: str = "options") -> Options:
        """Check names, types and where options apply, and fill in defaults.

        Args:
            options: nested or dotted names; lists may stand for tuples.
            origin: where they come from, for messages.
        """
        nested = merge(options)
        check_names(nested, origin, self.cls)
        parser = ArgumentParser(exit_on_error=False)
        known = {leaf.path: leaf for leaf in leaves(self.cls)}
        given = {path: _as_texts(known[path], value) for path, value in _leaf_values(nested, known).items()}
        for path in given:
            leaf = known[path]
            parser.add_argument(f"--{path}", type=leaf.type, default=leaf.default)
            if type(given[path]) is int and leaf.type in (str, str | None):
                given[path] = str(given[path])  # a number for what is written as text, as on the command line
        try:
            parsed = parser.parse_object(merge(given)).as_flat()
        except Exception as error:  # jsonargparse raises several kinds; each says which key and why
            raise UserError(f"{origin}: {explain(str(error))}") from error
        for path in given:
            _check_value(known[path], getattr(parsed, path), origin)
        built = build(self.cls, merge({path: getattr(parsed, path) for path in given}))
        refuse_unused(built)
        return built


def texts_alone(kind: Any) -> bool:
    """Whether a type is a tuple of texts, of any or of some, or none: a number among its values is meant as written."""
    tuples = (kind,) if get_origin(kind) is tuple else [each for each in get_args(kind) if each is not type(None)]
    return bool(tuples) and all(
        get_origin(each) is tuple
        and all(
            item in (str, Ellipsis) or (get_origin(item) is Literal and all(isinstance(v, str) for v in get_args(item)))
            for item in get_args(each)
        )
        for each in tuples
    )


def _as_texts(leaf: Leaf, value: Any) -> Any:
    """The values of an option that takes texts, its numbers as they are written; of any other option as they are."""
    if not isinstance(value, list | tuple) or not texts_alone(leaf.type):
        return value
    return [as_written(each) if isinstance(each, int | float) and type(each) is not bool else each for each in value]


def _check_value(leaf: Leaf, value: Any, origin: str) -> None:
    """Raise a UserError for what no option means: a number that is infinite, none, or beyond 64 bits; null for most."""
    path = leaf.path
    if value is None and leaf.default is not None and type(None) not in get_args(leaf.type):
        raise UserError(f"{origin}: --{path} null: give a value, or leave it out")
    for each in value if isinstance(value, tuple | list) else [value]:
        if isinstance(each, float) and not math.isfinite(each):
            raise UserError(f"{origin}: --{path} {value}: give a finite number")
        if isinstance(each, int) and not -(2**63) <= each < 2**63:
            raise UserError(f"{origin}: --{path} is a number of {each.bit_length()} bits: give a smaller one")


def _leaf_values(nested: Mapping[str, Any], known: Mapping[str, Leaf], prefix: str = "") -> dict[str, Any]:
    """Values by the path of their option; an option's own value may be a mapping."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        path = f"{prefix}{name}"
        if path in known or not isinstance(value, Mapping):
            flat[path] = value
        else:
            flat |= _leaf_values(value, known, f"{path}.")
    return flat


def check_names(nested: Mapping[str, Any], origin: str, cls: type) -> None:
    """Refuse option names that do not exist, with the ones that may be meant."""
    _check_group(nested, origin, cls, cls, "")


def _check_group(nested: Mapping[str, Any], origin: str, whole: type, cls: type, prefix: str) -> None:
    known = fields_of(cls)
    for name, value in nested.items():
        if name not in known:
            close = meant(name, [leaf.path for leaf in leaves(whole)], prefix)
            answer = f"; did you mean {' or '.join(map(repr, close))}?" if close else suggest(name, known)
            raise UserError(f"{origin}: there is no option '{prefix}{name}'{answer}")
        kind = known[name].type
        if is_group(kind):
            if not isinstance(value, Mapping):
                named = isinstance(value, str) and "name" in fields_of(kind)
                remedy = (
                    f"'{prefix}{name}.name' is the one that has a name" if named else f"set '{prefix}{name}.<option>'"
                )
                raise UserError(f"{origin}: '{prefix}{name}' is a group of options, got {value!r}; {remedy}")
            _check_group(value, origin, whole, kind, f"{prefix}{name}.")


def explain(message: str) -> str:
    """Shorten jsonargparse's message to the option, what was expected and what was given."""
    key = re.search(r'key "([^"]+)"', message)
    expected = re.findall(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[([^\]]+)\])", message)
    given = re.findall(r"(?:Given value: |Got value: )(.*)", message)
    if not (key and expected):
        return " ".join(message.split())
    kinds = " or ".join(dict.fromkeys(plain or f"one of {literal}" for plain, literal in expected))
    got = given[-1] if given else "another kind of value"
    return f"--{key.group(1)} expects {kinds.replace('NoneType', 'null')}, got {got}"
