"""YAML that people and programs wrote, as nested mappings by name; what could not be meant is refused."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from twofold.errors import UserError
from twofold.reading import read_bytes, usable

LARGEST = 2**20
"""Bytes of a document; a run's own config.yaml has some thousands."""
_DEEPEST, _MOST, _LONGEST_NUMBER = 32, 100_000, 100
"""Levels of nesting, values with all that aliases repeat, and characters of a number."""
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float"))
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = ("null", "bool", "int", "float", "seq", "map", "str")


class _Loader(yaml.SafeLoader):
    """Plain values under names: text is what could be a date, and nothing else is made."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """As its base, no deeper than it can be walked through."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested deeper than {_DEEPEST} levels")
        result: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return result

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As its base; each key is a name, and comes once."""
        named = [key for key, _ in node.value if key.tag != _MERGE]
        for key in named:
            if not isinstance(key, ScalarNode) or key.tag != _TEXT:
                what = repr(key.value) if isinstance(key, ScalarNode) else f"a {key.id}"
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {what} is no name; put it in quotes if it is meant as one", key.start_mark
                )
        _refuse_twice(named)
        result = super().construct_mapping(node, deep=deep)
        if not all(isinstance(key, str) for key in result):  # of a mapping that was merged into this one
            raise yaml.constructor.ConstructorError(None, None, "a key is no name", node.start_mark)
        return result


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _PLAIN
}


def read_yaml(path: str | Path, name: str, parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The document in a file: a mapping whose keys are all names, each once.

    Aliases are followed as far as they repeat a reasonable number of values; dates stay text.

    Args:
        path: the file.
        name: of the file, as messages are to call it, such as `--config run.yaml`.
        parts: keys that it must have, each a mapping.

    Raises:
        UserError: naming the file and, where one is at fault, the key: it cannot be read, is not UTF-8 or no YAML, has
            a key that is no text or comes twice, lacks a part, is nested too deep, or is larger than a document is.
    """
    if (problem := usable(str(path))) is not None:
        raise UserError(f"{name[:100]}: the path {problem}")
    try:
        document = parse_yaml(read_bytes(path, LARGEST).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not written in UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
    if not isinstance(document, dict | None):
        raise UserError(f"{name} must hold options by name, got {_kind(document)}")
    return require_parts(document or {}, name, parts)


def require_parts(document: dict[str, Any], name: str, parts: Iterable[str]) -> dict[str, Any]:
    """The document itself; UserError where it lacks one of the parts, or has something else than a mapping there."""
    for part in parts:
        if not isinstance(document.get(part), dict):
            found = f"holds {_kind(document[part])}" if part in document else "is missing"
            raise UserError(f"{name}: '{part}' {found}, and must be a mapping of names to values")
    return document


def parse_yaml(text: str) -> Any:
    """What a document holds; None of an empty one.

    Raises:
        yaml.YAMLError, ValueError: it is no YAML, or none of the plain kind that `read_yaml` describes.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_twice(keys: list[Node]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' comes twice", key.start_mark)
        seen.add(key.value)


def _check_size(root: Node) -> None:
    """Raise a YAMLError for a document that aliases make endless or larger than anyone writes by hand."""
    sizes: dict[int, int] = {}

    def size(node: Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise yaml.YAMLError(f"an alias leads back to what it stands in{node.start_mark}")
        if id(node) not in sizes:
            if isinstance(node, ScalarNode) and node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
                raise yaml.YAMLError(f"a number of {len(node.value):,} digits{node.start_mark}")
            sizes[id(node)] = 1 + sum(size(child, above | {id(node)}) for child in _children(node))
        if sizes[id(node)] > _MOST:
            raise yaml.YAMLError(f"with what its aliases repeat it holds more than {_MOST:,} values")
        return sizes[id(node)]

    size(root, frozenset())


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, SequenceNode):
        yield from node.value


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a mapping" if isinstance(value, Mapping) else f"a {type(value).__name__}"
