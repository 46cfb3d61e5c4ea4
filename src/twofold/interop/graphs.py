"""What only the graph of a TensorFlow model tells: which output of the projection head its classifier reads.

All layers of the head but the last are as wide as the features, so names and shapes cannot tell. The graph lies in
`saved_model.pb` of a SavedModel or in the `.meta` file of a TF1 checkpoint.

Source: saved_model.proto and meta_graph.proto in tensorflow/core/protobuf; graph.proto, function.proto and
node_def.proto in tensorflow/core/framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twofold.errors import UserError
from twofold.interop.protobuf import Malformed, messages, text, texts
from twofold.reading import read_bytes

_CLASSIFIER = re.compile(r"(^|/)head_supervised/linear_layer/dense(_\d+)?/MatMul$")
_LARGEST = 2**30
"""Bytes of a graph: its format allows 2 GiB, and the largest of SimCLR's has some MB."""


@dataclass(frozen=True)
class Node:
    """An operation and the names of the nodes that feed it."""

    op: str
    inputs: list[str]


def classifier_layer(path: Path) -> int | None:
    """How many layers of the projection head lie between features and classifier; 0: it reads the features.

    Args:
        path: `saved_model.pb`, or a `.meta` file.

    Returns:
        None where the graph holds no classifier, or several that differ.

    Raises:
        UserError: the file is damaged.
    """
    try:
        data = read_bytes(path, _LARGEST)
        graphs = messages(data, 2) if path.name == "saved_model.pb" else [data]
        result = {
            _layers_below(nodes, name)
            for meta_graph in graphs
            for graph in messages(meta_graph, 2)
            for nodes in _bodies(graph)
            for name, node in nodes.items()
            if node.op == "MatMul" and _CLASSIFIER.search(name)
        }
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Malformed as error:
        raise UserError(f"{path} is damaged: {error}; fetch it again") from error
    return result.pop() if len(result) == 1 else None


def _bodies(graph: bytes) -> Iterator[dict[str, Node]]:
    """The nodes of the graph, and those of each of its functions, by name."""
    yield _nodes(messages(graph, 1))
    for library in messages(graph, 2):
        for function in messages(library, 1):
            if b"head_supervised" in function:  # most functions belong to single layers
                yield _nodes(messages(function, 3))


def _nodes(definitions: list[bytes]) -> dict[str, Node]:
    # An input is "name:0", "name:output:0" (in a function) or "^name" (an order, no value).
    return {
        text(node, 1): Node(text(node, 2), [name.split(":")[0] for name in texts(node, 3) if not name.startswith("^")])
        for node in definitions
    }


def _layers_below(nodes: dict[str, Node], name: str) -> int:
    """Number of dense layers among the ancestors of a node, not looking below convolutions."""
    waiting, seen, count = list(nodes[name].inputs), set(), 0
    while waiting:
        name = waiting.pop()
        node = nodes.get(name)
        if node is None or name in seen or node.op == "Conv2D":
            continue
        seen.add(name)
        count += node.op == "MatMul"
        waiting += node.inputs
    return count
