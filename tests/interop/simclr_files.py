"""Official checkpoints rebuilt for tests: from the golden set's rule, or from small nets of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle_writer import node, write_bundle

from golden_data import golden_path
from twofold.encoders import ResNet
from twofold.encoders.reference_names import classifier_pairs, encoder_pairs, head_pairs
from twofold.heads import Classifier, HeadConfig, ProjectionHead

Tensors = dict[str, np.ndarray]


def rule_value(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """A golden variable's value (golden README, section 9); `seed` is the set's plus the name's position."""
    z = np.random.default_rng(seed).standard_normal(tuple(shape))
    leaf = name.split("/")[-1].split(":")[0]
    if leaf == "kernel":
        value = z * np.sqrt(1 / np.prod(shape[:-1]))
    elif leaf == "gamma":
        value = 1 + 0.1 * z
    else:
        value = np.exp(0.2 * z) if leaf == "moving_variance" else 0.1 * z
    return value.astype(np.float32)


def by_rule(meta: Mapping[str, object]) -> Tensors:
    """All variables of a golden model, under the names in its `var_names` (without ':0')."""
    names, shapes, seed = meta["var_names"], meta["var_shapes"], meta["weight_seed"]
    pairs = enumerate(zip(names, shapes, strict=True))  # type: ignore[call-overload]
    return {name.split(":")[0]: rule_value(name, shape, seed + i) for i, (name, shape) in pairs}  # type: ignore[operator]


def listed(name: str) -> dict[str, list[int]]:
    """A golden list of names and shapes."""
    lines = golden_path(f"checkpoints/{name}").read_text().splitlines()
    pairs = [line.split("\t")[:2] for line in lines if not line.startswith("#")]
    return {name: [int(side) for side in shape.strip("[]").split(",") if side.strip()] for name, shape in pairs}


def small_net(
    depth: int = 18,
    layers: int = 2,
    classes: int | None = 10,
    seed: int = 0,
    sk_ratio: float = 0.0,
    stem: str = "cifar",
) -> tuple[ResNet, ProjectionHead | None, Classifier | None]:
    """A narrow net in inference mode with random weights and averages; no head with `layers` = 0."""
    torch.manual_seed(seed)
    encoder = ResNet(depth, 0.125, stem, sk_ratio=sk_ratio)  # type: ignore[arg-type]
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=layers, out_dim=16)) if layers else None
    classifier = Classifier(encoder.feature_dim, classes) if classes else None
    for module in filter(None, (encoder, head, classifier)):
        for name, tensor in module.eval().state_dict().items():
            tensor.normal_(std=0.1).add_(
                float(name.endswith(("running_var", "bn3.weight", "bn2.weight", "bn1.weight")))
            )
            if name.endswith("running_var"):
                tensor.abs_()
    return encoder, head, classifier


def tf1_tensors(
    encoder: ResNet, head: ProjectionHead | None = None, classifier: Classifier | None = None, prefix: str = ""
) -> Tensors:
    """A net's tensors under the official TF1 names, in TensorFlow's layout."""
    found: Tensors = {}
    parts = [(encoder, encoder_pairs(encoder, f"{prefix}base_model"))]
    if head is not None:
        parts.append((head, head_pairs(head, f"{prefix}head_contrastive")))
    if classifier is not None:
        parts.append((classifier, classifier_pairs(classifier, f"{prefix}head_supervised/linear_layer")))
    for module, pairs in parts:
        state = module.state_dict()
        for pair in pairs:
            value = state[pair.name].numpy()
            axes = {"conv": (2, 3, 1, 0), "dense": (1, 0)}.get(pair.kind)
            found[pair.reference] = value.copy() if axes is None else np.ascontiguousarray(value.transpose(axes))
    return found


def images_of(arrays: np.ndarray) -> torch.Tensor:
    """Golden images [N, H, W, C] as [N, C, H, W]."""
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def checkpoint_file(folder: Path, latest: str) -> None:
    """TensorFlow's note of the latest checkpoint, with a path of another machine."""
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "gs://bucket/run/{latest}"\nall_model_checkpoint_paths: "x"\n'
    )


def report(file: Path) -> dict[str, Any]:
    """What `convert` wrote beside the encoder."""
    return json.loads((file.parent / "conversion.json").read_text())


def classifier_on(layer: int) -> list[bytes]:
    """A graph whose classifier reads that output of a head."""
    nodes = [node("h", "Mean", "conv"), node("conv", "Conv2D")]
    for j in range(layer):
        nodes.append(node(f"nl_{j}", "MatMul", f"nl_{j - 1}" if j else "h"))
    return [*nodes, node("head_supervised/linear_layer/dense/MatMul", "MatMul", f"nl_{layer - 1}" if layer else "h")]


def write_small(
    folder: Path, name: str = "model.ckpt-7", step: int | None = 7, **options: Any
) -> dict[str, np.ndarray]:
    """A narrow net as a TF1 checkpoint; its tensors."""
    tensors = tf1_tensors(*small_net(**options))
    counter = {} if step is None else {"global_step": np.array(step, np.int64)}
    write_bundle(folder / name, {**tensors, **counter})
    return tensors
