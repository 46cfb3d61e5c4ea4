"""Options as frozen dataclasses: merged from layers, checked by name and type, refused where they have no effect.

An option lives beside the class that it configures. Where it applies is declared once, at its field:

- `option(default, when={"name": ("lars", "sgd")})`: only with these values of another field of its group;
- `option(default, when={"kind": ("audio",)})`: only for this kind of data (any word that `refuse_unused` is told);
- a group of options whose class one of them chooses is a `Variant`: each class has its own fields.

One function, `refuse_unused`, reads the declarations and raises.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from twofold.errors import UserError, suggest
from twofold.kinds import EXAMPLE

Options = TypeVar("Options")
_WHEN = "when"


def option(default: Any = dataclasses.MISSING, *, when: Mapping[str, Sequence[Any]], factory: Any = None) -> Any:
    """A dataclass field that applies only where each field or word in `when` has one of the values."""
    given = {"default_factory": factory} if factory is not None else {"default": default}
    return dataclasses.field(**given, metadata={_WHEN: {name: tuple(values) for name, values in when.items()}})


class Variant:
    """Base of a group of options whose class is chosen by the value of one of them.

    ``class MethodConfig(Variant)`` is such a group; ``class Config(MethodConfig, variant="moco")`` one of its classes,
    with the group's fields and its own. Every class is a frozen dataclass, all of whose fields have defaults. Where
    two classes have a field of the same name, it has the same type and default in both.
    """

    chooser: ClassVar[str] = "name"
    """The field that chooses."""
    variants: ClassVar[dict[str, Any]]
    """The classes by what chooses them."""
    unnamed: ClassVar[tuple[str, ...]] = ()
    """The variants that can be meant while the chooser is open (None); options of others are refused then."""

    def __init_subclass__(cls, variant: str | None = None, **kwargs: Any) -> None:
        """Register a class of a group, or begin a group."""
        super().__init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls.variants = {}
        elif variant is not None:
            cls.variants[variant] = cls

    @classmethod
    def variant_of(cls, value: Any) -> Any:
        """The class that a value of the chooser names; UserError if there is none."""
        if value not in cls.variants:
            raise UserError(f"there is no {cls.chooser} {value!r}{suggest(str(value), cls.variants)}")
        return cls.variants[value]

    def as_variant(self, value: Any, prefix: str = "") -> Any:
        """The same options as an instance of the class that `value` chooses; what that lacks is refused."""
        group = _group_of(type(self))
        return _build_variant(group, {**_set_fields(self), group.chooser: value}, prefix)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings, later ones over earlier ones; dotted keys are paths, dataclasses mappings."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
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


@dataclass(frozen=True)
class Leaf:
    """One option: its dotted path, type, default, explanation, and where it applies."""

    path: str
    type: Any
    default: Any
    help: str
    when: Mapping[str, tuple[Any, ...]]


def fields_of(cls: Any) -> dict[str, Leaf]:
    """The options and groups at one level of a dataclass, by name; of a `Variant` group those of all its classes."""
    group = _group_of(cls)
    if group is not cls:
        return _own_fields(cls)
    found = dict(_own_fields(group))
    if "variant_of" not in vars(group):  # the names are all that there are
        names: Any = Literal[tuple(group.variants)]
        found[group.chooser] = dataclasses.replace(found[group.chooser], type=names | None)
    owners: dict[str, list[str]] = {}
    for name, variant in group.variants.items():
        for field, leaf in _own_fields(variant).items():
            if field not in _own_fields(group):
                found.setdefault(field, leaf)
                owners.setdefault(field, []).append(name)
    for field, names_of in owners.items():
        found[field] = dataclasses.replace(
            found[field], when={**found[field].when, group.chooser: tuple(dict.fromkeys(names_of))}
        )
    return found


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Every option of a dataclass and of the groups in it."""
    for name, leaf in fields_of(cls).items():
        if is_group(leaf.type):
            yield from leaves(leaf.type, f"{prefix}{name}.")
        else:
            yield dataclasses.replace(leaf, path=f"{prefix}{name}")


def is_group(kind: Any) -> bool:
    """Whether a field's type is a group of options."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def add_options(parser: ArgumentParser, cls: type, prefix: str = "", title: str = "") -> None:
    """Add every option of a dataclass to a parser as `--group.option`, a help section a group."""
    section = parser.add_argument_group(title or (cls.__doc__ or "").split("\n")[0].rstrip("."))
    groups = []
    for name, leaf in fields_of(cls).items():
        if is_group(leaf.type):
            groups.append((name, leaf))
            continue
        owners = [", ".join(map(str, values)) for key, values in leaf.when.items() if key == "name"]
        text = f"{owners[0]}: {leaf.help}" if owners and not leaf.help.startswith(owners[0]) else leaf.help
        section.add_argument(f"--{prefix}{name}", type=leaf.type, default=leaf.default, help=text.replace("%", "%%"))
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
        given = _leaf_values(nested, known)
        for path in given:
            leaf = known[path]
            parser.add_argument(f"--{path}", type=leaf.type, default=leaf.default)
        try:
            parsed = parser.parse_object(merge(given)).as_flat()
        except Exception as error:  # jsonargparse raises several kinds; each says which key and why
            raise UserError(f"{origin}: {explain(str(error))}") from error
        values = merge({path: getattr(parsed, path) for path in given})
        return _build(self.cls, values)


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


def _build(cls: type[Options], values: Mapping[str, Any], prefix: str = "") -> Options:
    """An instance of a dataclass from values of the right types."""
    built: dict[str, Any] = {}
    for name, value in values.items():
        kind = fields_of(cls)[name].type
        built[name] = _build(kind, value, f"{prefix}{name}.") if is_group(kind) else value
    group = _group_of(cls)
    if group is not None and cls is group:
        variant: Options = _build_variant(group, built, prefix)
        return variant
    return cls(**built)


def _build_variant(group: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """An instance of the class that the values choose, or an open one; what it lacks is refused where it is set."""
    choice = values.get(group.chooser)
    surface = fields_of(group)
    cls = open_variant(group) if choice is None else group.variant_of(choice)
    allowed = {field.name for field in dataclasses.fields(cls)}
    if choice is None:
        named = {name for name in group.unnamed for name in _own_fields(group.variants[name])}
        allowed = named | set(_own_fields(group)) if group.unnamed else allowed
    for name, value in values.items():
        if name not in allowed and value != surface[name].default:
            owners = surface[name].when.get(group.chooser, ())
            raise UserError(no_effect(f"{prefix}{name}", value, f"{prefix}{group.chooser}", choice, owners))
    return cls(**{name: value for name, value in values.items() if name in allowed})


def open_variant(group: Any) -> type[Any]:
    """A class with the fields of all classes of a group, for options whose chooser is still open."""
    return _open_variant(group, tuple(group.variants))


@functools.cache
def _open_variant(group: Any, _names: tuple[str, ...]) -> type[Any]:
    own = set(_own_fields(group))
    more = [(n, leaf.type, _default_field(leaf)) for n, leaf in fields_of(group).items() if n not in own]
    return dataclasses.make_dataclass(f"Open{group.__name__}", more, bases=(group,), frozen=True)


def _default_field(leaf: Leaf) -> Any:
    return (
        dataclasses.field(default_factory=leaf.type) if is_group(leaf.type) else dataclasses.field(default=leaf.default)
    )


def _group_of(cls: type) -> Any:
    """The base of the `Variant` group that a class belongs to, or None."""
    return next((base for base in cls.__mro__ if Variant in base.__bases__), None)


def _set_fields(config: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    defaults = {name: leaf.default for name, leaf in _own_fields(type(config)).items()}
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _own_fields(cls: type) -> dict[str, Leaf]:
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
        )
        for field in dataclasses.fields(cls)
    }


def _explanations(cls: type) -> dict[str, str]:
    """What the string after each field of a dataclass, or of one that it extends, says."""
    words: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and not base.__name__.startswith("Open"):
            parsed = docstring_parser.parse_from_object(base).params
            words |= {each.arg_name: " ".join((each.description or "").split()) for each in parsed}
    return words


def check_names(nested: Mapping[str, Any], origin: str, cls: type, prefix: str = "") -> None:
    """Refuse option names that do not exist, with the nearest that do."""
    known = fields_of(cls)
    for name, value in nested.items():
        if name not in known:
            raise UserError(f"{origin}: there is no option '{prefix}{name}'{suggest(name, known)}")
        kind = known[name].type
        if is_group(kind):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{origin}: '{prefix}{name}' is a group of options, got {value!r}; set '{name}.<option>'"
                )
            check_names(value, origin, kind, f"{prefix}{name}.")


def refuse_unused(config: Any, prefix: str = "", **context: Any) -> None:
    """Raise a UserError for the first option that is set and has no effect.

    Args:
        config: a dataclass of options, with groups in it.
        prefix: of its options' names, such as "optim.".
        context: what else options may depend on: `kind`, the kind of data; or any word that a field's `when` names.
            Conditions on words that are not given, or None, are passed over.
    """
    for name, leaf in _own_fields(type(config)).items():
        value = getattr(config, name)
        if is_group(type(value)):
            _refuse(f"{prefix}{name}.*", value, leaf.default, leaf.when, config, prefix, context)
            refuse_unused(value, f"{prefix}{name}.", **context)
        else:
            _refuse(f"{prefix}{name}", value, leaf.default, leaf.when, config, prefix, context)


def _refuse(
    name: str, value: Any, default: Any, when: Mapping[str, tuple[Any, ...]], config: Any, prefix: str,
    context: Mapping[str, Any],
) -> None:  # fmt: skip
    if value == default:
        return
    for key, values in when.items():
        beside = hasattr(config, key)
        there = getattr(config, key) if beside else context.get(key)
        if there is not None and there not in values:
            raise UserError(no_effect(name, value, f"{prefix}{key}" if beside else key, there, values))


def no_effect(name: str, value: Any, chooser: str, choice: Any, owners: Sequence[Any]) -> str:
    """Says that an option has no effect here, and what to do instead."""
    shown = name if name.endswith(".*") else f"{name} {_shown(value)}"
    if chooser == "kind":
        ours, theirs = (EXAMPLE.get(each, str(each)) for each in (owners[0], choice))
        return f"--{shown} is for {ours}s, and the data are {theirs}s: leave it out"
    options = " or ".join(map(str, owners))
    where = f"without --{chooser}" if choice is None else f"with --{chooser} {_shown(choice)}"
    return f"--{shown} has no effect {where}: leave it out, or choose {options}"


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


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


_RENAMED = {"data.sound": "data.audio"}
"""Options and groups of them that were written to disk under another name once."""


def upgraded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options read from a file, with the names that options have today."""
    flat = {}
    for name, value in flatten(options).items():
        old = next((old for old in _RENAMED if name == old or name.startswith(f"{old}.")), None)
        flat[name if old is None else _RENAMED[old] + name[len(old) :]] = value
    return merge(flat)
