"""Groups of options whose class one of them chooses, and what refuses an option without effect.

See the package for how an option says where it applies.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from twofold.errors import UserError, suggest
from twofold.kinds import EXAMPLE, Kind
from twofold.options.declared import GIVEN, Leaf, as_written, is_group, own_fields

Options = TypeVar("Options")


class Variant:
    """Base of a group of options whose class is chosen by the value of one of them.

    ``class MethodConfig(Variant)`` is such a group; ``class Config(MethodConfig, variant="moco")`` one of its classes,
    with the group's fields and its own. Every class is a frozen dataclass, all of whose fields have defaults. Where
    two classes have a field of the same name, it has the same type and default in both. A `__post_init__` of a class
    calls that of its base first.
    """

    chooser: ClassVar[str] = "name"
    """The field that chooses."""
    prefix: ClassVar[str] = ""
    """What stands before the names of the group's options, such as "method."."""
    variants: ClassVar[dict[str, Any]]
    """The classes by what chooses them."""
    unnamed: ClassVar[tuple[str, ...]] = ()
    """The variants that can be meant while the chooser is open (None), all where empty; options of others are refused
    then."""
    kind: ClassVar[Kind | None] = None
    """The kind of data that a class is for; None for any."""
    forms: ClassVar[tuple[str, ...]] = ()
    """What chooses a class, as users are told; the variant's own name unless said."""
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    """Values of options that a class lacks which ask for what it does anyway: they are accepted."""

    def __init_subclass__(cls, variant: str | None = None, **kwargs: Any) -> None:
        """Register a class of a group, or begin a group."""
        super().__init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls.variants = {}
        elif variant is not None:
            cls.variants[variant] = cls
            if "forms" not in vars(cls):
                cls.forms = (variant,)
            if getattr(cls, cls.chooser) is not None:  # a group with a default class: each says its own name
                setattr(cls, cls.chooser, variant)
                cls.__annotations__ = {**vars(cls).get("__annotations__", {}), cls.chooser: "str"}

    def __post_init__(self) -> None:
        """Refuse a chooser that means another class, and options that have no effect beside others."""
        choice = getattr(self, self.chooser)
        if choice is not None and not isinstance(self, self.variant_of(choice)):
            owner = self.variant_of(choice)
            raise TypeError(f"{self.chooser}={choice!r} is for {owner.__qualname__}, not {type(self).__qualname__}")
        refuse_unused(self, self.prefix)

    @classmethod
    def classes(cls) -> dict[str, Any]:
        """The classes by what chooses them, those first that are meant where nothing does."""
        return {name: cls.variants[name] for name in dict.fromkeys([*cls.unnamed, *cls.variants])}

    @classmethod
    def variant_of(cls, value: Any) -> Any:
        """The class that a value of the chooser names; UserError if there is none."""
        if value not in cls.variants:
            raise UserError(f"there is no --{cls.prefix}{cls.chooser} {value}{suggest(str(value), cls.classes())}")
        return cls.variants[value]

    @classmethod
    def of(cls, **values: Any) -> Any:
        """Options of a group as an instance of the class that they choose; with the chooser open, of one for all.

        Raises:
            UserError: nothing is called so, or that class lacks an option that is set.
        """
        return _build_variant(_group_of(cls), values)

    @classmethod
    def select(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a group's options that are not other classes' alone."""
        surface, own = fields_of(_group_of(cls)), own_fields(cls)
        return {name: value for name, value in options.items() if name in own or name not in surface}

    def narrowed(self, kind: Kind) -> Any:
        """Open options as those of the class that is meant for this kind of data; others as they are.

        Raises:
            UserError: an option is set that the class lacks.
        """
        group = _group_of(type(self))
        if type(self) in group.variants.values():
            return self
        for variant in (group.variants[name] for name in _candidates(group)):
            if variant.kind in (None, kind):
                return _narrow(group, variant, _set_fields(self))
        raise UserError(
            f"--{group.prefix}{group.chooser} is not set, and nothing is chosen for {EXAMPLE[kind]}s: give it"
        )


def fields_of(cls: Any) -> dict[str, Leaf]:
    """The options and groups at one level of a dataclass, by name; of a `Variant` group those of all its classes."""
    group = _group_of(cls)
    if group is not cls:
        return own_fields(cls)
    common = own_fields(group)
    surface = dict(common)
    owners: dict[str, list[str]] = {}
    for name, variant in group.classes().items():
        for field, leaf in own_fields(variant).items():
            if field in common:
                continue
            first = surface.setdefault(field, leaf)
            if (first.type, first.default) != (leaf.type, leaf.default):
                raise TypeError(
                    f"{group.__name__}: {field} has another type or default in {owners[field][0]} and {name}"
                )
            if leaf.help not in first.help:
                surface[field] = dataclasses.replace(first, help=f"{first.help} {leaf.help}".strip())
            owners.setdefault(field, []).append(name)
    for field, names in owners.items():
        surface[field] = dataclasses.replace(surface[field], when={group.chooser: tuple(names), **surface[field].when})
    surface[group.chooser] = _chooser(group, common[group.chooser])
    return surface


def _chooser(group: Any, leaf: Leaf) -> Leaf:
    """The option that chooses a class, explained by the classes that there are."""
    classes = [f"{' or '.join(each.forms)}: {_first_line(each)}" for each in group.classes().values()]
    words = " ".join([leaf.help, *(["; ".join(classes) + "."] if classes else [])])
    if "variant_of" in vars(group) or not group.variants:
        return dataclasses.replace(leaf, help=words)
    names: Any = Literal[tuple(group.classes())]  # the names are all that there are
    return dataclasses.replace(leaf, help=words, type=names | None if leaf.default is None else names)


def _first_line(cls: type) -> str:
    line = (cls.__doc__ or "").split("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Every option of a dataclass and of the groups in it."""
    for name, leaf in fields_of(cls).items():
        if is_group(leaf.type):
            for inner in leaves(leaf.type, f"{prefix}{name}."):
                yield dataclasses.replace(inner, when={**leaf.when, **inner.when})
        else:
            yield dataclasses.replace(leaf, path=f"{prefix}{name}")


def build(cls: type[Options], values: Mapping[str, Any]) -> Options:
    """An instance of a dataclass from values of the right types."""
    known = fields_of(cls)
    built = {name: build(known[name].type, v) if is_group(known[name].type) else v for name, v in values.items()}
    group: Any = _group_of(cls)
    return cls(**built) if group is not cls else _build_variant(group, built)


def _build_variant(group: Any, values: Mapping[str, Any]) -> Any:
    """An instance of the class that the values choose, or an open one; what it lacks is refused where it is set."""
    choice = values.get(group.chooser, own_fields(group)[group.chooser].default)
    if choice is not None:
        return _narrow(group, group.variant_of(choice), values)
    surface, names = fields_of(group), _candidates(group)
    given = {name: value for name, value in values.items() if value != surface[name].default}
    lacking = {name: {*given} - {*own_fields(group.variants[name])} for name in names}
    everywhere = set.intersection(*lacking.values()) if lacking else set()
    for name in (name for name in given if name in everywhere):
        raise UserError(_lacks(group, None, name, given[name]))
    # One of them will be built once the data are known: what is wrong for all that have the options is said now.
    fitting = [name for name in names if not lacking[name]] or names
    mistakes = []
    for name in fitting:
        try:
            _narrow(group, group.variants[name], given)
        except UserError as error:
            mistakes.append(error)
    if fitting and len(mistakes) == len(fitting):
        raise mistakes[0]
    return _open_variant(group, names)(**given)


def _narrow(group: Any, cls: Any, values: Mapping[str, Any]) -> Any:
    """An instance of one class of a group; UserError for what it lacks where that is set."""
    surface, own = fields_of(group), own_fields(cls)
    for name, value in values.items():
        if name not in own and value != surface[name].default and value not in cls.neutral.get(name, ()):
            raise UserError(_lacks(group, cls, name, value, values.get(group.chooser)))
    open_choice = values.get(group.chooser) is None
    return cls(**{n: v for n, v in values.items() if n in own and not (open_choice and n == group.chooser)})


def _candidates(group: Any) -> tuple[str, ...]:
    """The variants that can be meant while the chooser is open."""
    return group.unnamed or tuple(group.variants)


@functools.cache
def _open_variant(group: Any, names: tuple[str, ...]) -> type[Any]:
    """A class with the fields of several classes of a group, for options whose chooser is still open."""
    common = own_fields(group)
    more = {n: leaf for name in names for n, leaf in own_fields(group.variants[name]).items() if n not in common}
    fields = [(n, leaf.type, _default_field(leaf)) for n, leaf in more.items()]
    return dataclasses.make_dataclass(f"Open{group.__name__}", fields, bases=(group,), frozen=True)


def _default_field(leaf: Leaf) -> Any:
    if is_group(leaf.type):
        return dataclasses.field(default_factory=leaf.type)
    return dataclasses.field(default=leaf.default)


def _group_of(cls: type) -> Any:
    """The base of the `Variant` group that a class belongs to, or None."""
    return next((base for base in cls.__mro__ if Variant in base.__bases__), None)


def _set_fields(config: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    values = {name: (getattr(config, name), leaf.default) for name, leaf in own_fields(type(config)).items()}
    return {name: value for name, (value, default) in values.items() if value != default}


def refuse_unused(config: Any, prefix: str = "", **context: Any) -> None:
    """Raise a UserError for the first option that is set and has no effect.

    Args:
        config: a dataclass of options, with groups in it.
        prefix: of its options' names, such as "optim.".
        context: what else options may depend on: `kind`, the kind of data; or any word that a field's `when` names.
            Conditions on words that are not given, or None, are passed over.
    """
    if isinstance(config, Variant):
        _refuse_class(config, prefix, context.get("kind"))
    known = own_fields(type(config))
    for name, leaf in known.items():
        value = getattr(config, name)
        if value != leaf.default:
            for key, values in leaf.when.items():
                beside = key in known
                word = getattr(config, key) if beside else context.get(key)
                chosen = word if isinstance(word, tuple) else (word,)  # of several, one suffices
                unmet = (beside and word is None) if GIVEN in values else word is not None and not {*chosen} & {*values}
                if unmet:
                    chooser, path = f"{prefix}{key}" if beside else key, f"{prefix}{name}"
                    raise UserError(
                        no_effect(*_first_set(path, value, leaf.default), chooser, word, values, leaf.instead)
                    )
        if is_group(type(value)):
            refuse_unused(value, f"{prefix}{name}.", **context)


def _first_set(name: str, value: Any, default: Any) -> tuple[str, Any]:
    """An option and its value; of a group the first one in it that differs from its default."""
    while is_group(type(value)):
        field = next(each for each in own_fields(type(value)) if getattr(value, each) != getattr(default, each))
        name, value, default = f"{name}.{field}", getattr(value, field), getattr(default, field)
    return name, value


def _refuse_class(config: Variant, prefix: str, kind: Kind | None) -> None:
    """Raise a UserError where a class was chosen that is for another kind of data."""
    choice = getattr(config, config.chooser)
    if choice is None or kind is None or config.kind in (None, kind):
        return
    fitting = [form for each in config.classes().values() if each.kind in (None, kind) for form in each.forms]
    remedy = f", or choose {' or '.join(fitting)}" if fitting else ""
    words = _for_another(f"{prefix}{config.chooser} {choice}", (config.kind,), kind)
    raise UserError(f"{words}: leave it out{remedy}")


def no_effect(
    name: str, value: Any, chooser: str, choice: Any, owners: Sequence[Any], instead: str = "leave it out"
) -> str:
    """Says that an option has no effect here, and what to do instead.

    Args:
        name, value: the option.
        chooser, choice: what it depends on, and what that is.
        owners: what that would have to be.
        instead: the remedy.
    """
    option = f"{name} {as_written(value)}"
    if chooser == "kind" and choice in EXAMPLE:
        return f"{_for_another(option, owners, choice)}: {instead}"
    if GIVEN in owners:
        return f"--{option} has no effect without --{chooser}: {instead}, or give --{chooser}"
    where = f"without --{chooser}" if choice is None else f"with --{chooser} {as_written(choice)}"
    return f"--{option} has no effect {where}: {instead}, or choose {' or '.join(map(as_written, owners))}"


def _for_another(option: str, owners: Sequence[Any], kind: Kind) -> str:
    examples = " or ".join(f"{EXAMPLE[owner]}s" for owner in owners)
    return f"--{option} is for {examples}, and the data are {EXAMPLE[kind]}s"


def _lacks(group: Any, cls: Any, name: str, value: Any, choice: Any = None) -> str:
    """Says that an option has no effect with the class that was chosen (None: with any that may be meant)."""
    owners = [each for each in group.classes().values() if name in own_fields(each)]
    path, value = _first_set(f"{group.prefix}{name}", value, fields_of(group)[name].default)
    chooser, forms = f"{group.prefix}{group.chooser}", [form for each in owners for form in each.forms]
    if cls is None:
        meant = f"--{chooser} {' or '.join(_candidates(group))}, which the data choose"
        return f"--{path} {as_written(value)} has no effect with {meant}: leave it out, or choose {' or '.join(forms)}"
    choice = choice or getattr(cls(), group.chooser) or cls.forms[0]
    kinds = [each.kind for each in owners]
    if cls.kind is not None and None not in kinds and cls.kind not in kinds:
        examples = " or ".join(dict.fromkeys(f"{EXAMPLE[kind]}s" for kind in kinds))
        return (
            f"--{path} {as_written(value)} has no effect with --{chooser} {choice}, it is of {' or '.join(forms)}, "
            f"for {examples}: leave it out"
        )
    return no_effect(path, value, chooser, choice, forms)
