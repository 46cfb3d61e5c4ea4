"""Which output of the head the classifier reads, told by the graph beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_writer import message, meta_graph, node, saved_model

from golden_data import SLICES, whole_set
from twofold.errors import UserError
from twofold.interop.graphs import classifier_layer

LOGITS = "head_supervised/linear_layer/dense_3/MatMul"


def test_a_graph_that_tensorflow_wrote() -> None:
    """Two layers, classifier on the first; gradients of a trained graph are no classifier."""
    assert classifier_layer(SLICES / "checkpoints" / "tensorflow_written" / "one" / "model.ckpt-2.meta") == 1


@pytest.mark.skipif(whole_set() is None, reason="the whole golden set, which holds the SavedModel, is not here")
def test_the_golden_saved_model() -> None:
    folder = whole_set()
    assert folder is not None
    path = folder / "checkpoints" / "tf2_r18_1x_cifar_pretrain" / "saved_model" / "1234" / "saved_model.pb"
    assert classifier_layer(path) == 0


def network(reads: int, layers: int = 3) -> list[bytes]:
    """Nodes of a head of `layers`, and a classifier on output `reads`; written in no order, with control inputs."""
    nodes = [
        node("images", "Placeholder"),
        node("fc_before/MatMul", "MatMul", "images:0"),
        node("base_model/Conv2D", "Conv2D", "fc_before/MatMul:product:0"),  # nothing below convolutions counts
        node("final_avg_pool", "Mean", "base_model/Conv2D:output:0"),
    ]
    outputs = ["final_avg_pool"]
    for j in range(layers):
        nodes += [
            node(f"head/nl_{j}/MatMul", "MatMul", f"{outputs[-1]}:output:0", f"head/nl_{j}/kernel"),
            node(f"head/nl_{j}/kernel", "ReadVariableOp"),
            node(f"head/nl_{j}/Relu", "Relu", f"head/nl_{j}/MatMul:product:0", "^noise"),
        ]
        outputs.append(f"head/nl_{j}/Relu")
    nodes += [
        node("noise", "MatMul"),
        node("loop/a", "NextIteration", "loop/b:0"),
        node("loop/b", "Merge", "loop/a:0", outputs[reads]),
        node(LOGITS, "MatMul", "loop/b:output:0"),
        node("gradients/head_supervised/linear_layer/dense/MatMul_grad/MatMul", "MatMul", outputs[-1]),
    ]
    return nodes[::-1]


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
@pytest.mark.parametrize("function", [False, True])
def test_every_layer(tmp_path: Path, reads: int, function: bool) -> None:
    graph = meta_graph(network(reads), function)
    (tmp_path / "saved_model.pb").write_bytes(saved_model(graph, graph))
    (tmp_path / "model.ckpt-1.meta").write_bytes(graph)
    assert classifier_layer(tmp_path / "saved_model.pb") == reads
    assert classifier_layer(tmp_path / "model.ckpt-1.meta") == reads


def test_graphs_that_disagree_or_have_no_classifier(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    path.write_bytes(saved_model(meta_graph(network(0)), meta_graph(network(1), function=True)))
    assert classifier_layer(path) is None
    path.write_bytes(saved_model(meta_graph([node("x", "MatMul")])))
    assert classifier_layer(path) is None
    path.write_bytes(b"")
    assert classifier_layer(path) is None


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt-1.meta"
    path.write_bytes(meta_graph(network(1))[:-3])
    with pytest.raises(UserError, match=r"model.ckpt-1.meta is damaged"):
        classifier_layer(path)
    path.write_bytes(message(2, b"\xff\xff"))
    with pytest.raises(UserError, match="damaged"):
        classifier_layer(path)
