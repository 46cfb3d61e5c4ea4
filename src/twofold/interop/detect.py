"""Which network a set of names and shapes is: depth, width, stem, selective kernels, head and classifier.

A guess is made from a few shapes, the network is built without memory (on torch's meta device), and every name and
shape is compared with what that network has: a wrong guess, or a file that is not whole, cannot pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from twofold.encoders import ResNet
from twofold.encoders.reference_names import Pair, classifier_pairs, encoder_pairs, head_pairs, to_ours
from twofold.encoders.resnet import BLOCKS, Stem
from twofold.errors import UserError
from twofold.heads import Classifier, HeadConfig, ProjectionHead

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Weights = Literal["auto", "base", "ema"]

BASE, HEAD, CLASSIFIER = "base_model", "head_contrastive", "head_supervised"
EMA = "ema_model/"
PUBLISHED_SK_RATIO = 0.0625
_SHOWN = 20


@dataclass(frozen=True)
class Network:
    """A SimCLR network without weights, and the variables that belong to it.

    Attributes:
        encoder, head, classifier: on the meta device; None for what the file does not hold.
        prefix: of the tree of variables that was chosen, "" or "ema_model/".
        other: variables of the tree that was not chosen.
    """

    encoder: ResNet
    head: ProjectionHead | None
    classifier: Classifier | None
    prefix: str
    other: list[str]

    def parts(self) -> Iterator[tuple[nn.Module, list[Pair]]]:
        """Each module with its tensors under both names (the reference's as in the file, with the tree's prefix)."""
        yield self.encoder, list(encoder_pairs(self.encoder, self.prefix + BASE))
        if self.head is not None:
            yield self.head, list(head_pairs(self.head, self.prefix + HEAD))
        if self.classifier is not None:
            yield self.classifier, list(classifier_pairs(self.classifier, f"{self.prefix}{CLASSIFIER}/linear_layer"))

    def expected(self) -> dict[str, Shape]:
        """Name and shape, in TensorFlow's layout, of every variable that the network needs."""
        return {pair.reference: _theirs(module, pair) for module, pairs in self.parts() for pair in pairs}

    def fill(self, read: Callable[[str], NDArray[np.float32]]) -> int:
        """Give the modules their weights and put them in inference mode; the number of tensors.

        Args:
            read: gives a variable's values by its name in the file.
        """
        count = 0
        for module, pairs in self.parts():
            state = {pair.name: to_ours(read(pair.reference), pair.kind) for pair in pairs}
            module.load_state_dict(state, assign=True)
            module.eval()
            count += len(state)
        return count


def detect(shapes: Shapes, source: str, weights: Weights = "auto") -> Network:
    """Find the network that has exactly these variables.

    Args:
        shapes: of every variable that is a weight, under TF1's names.
        source: the file, for messages.
        weights: "base", "ema" (the moving average that the memory of SimCLR v2 keeps: `ema_model/`), or "auto": base
            where there is one, since the classifier was trained on it.

    Raises:
        UserError: no SimCLR network, or variables that are missing, left over or of another shape, by name.
    """
    prefix, selection, other = _choose_tree(shapes, source, weights)
    with torch.device("meta"):
        encoder = _closest(_encoders(selection, source, prefix), selection, prefix)
        head = _head(selection, prefix, encoder.feature_dim, source)
        classifier = _classifier(selection, prefix, source)
    network = Network(encoder, head, classifier, prefix, other)
    what = f"{source} is not a whole ResNet-{encoder.arguments()['depth']} of SimCLR, which it resembles most"
    require_same(network.expected(), selection, what)
    return network


def require_same(expected: Shapes, shapes: Shapes, what: str) -> None:
    """Raise UserError, beginning with `what` and listing all that differs, unless names and shapes are the same."""
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "left over": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(shapes[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & shapes.keys())
            if shapes[name] != expected[name]
        ],
    }
    if any(problems.values()):
        message = [f"{len(names)} {problem}: {shorten(names)}" for problem, names in problems.items() if names]
        raise UserError(f"{what}; {'; '.join(message)}")


def shorten(names: list[str]) -> str:
    """The names, or the first of very many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _choose_tree(shapes: Shapes, source: str, weights: Weights) -> tuple[str, dict[str, Shape], list[str]]:
    """(prefix, the chosen tree's variables, the other's names). A file with both trees holds every layer twice."""
    if weights not in ("auto", "base", "ema"):
        raise UserError(f"--weights {weights}: give auto, base or ema")
    trees = {"base": [n for n in shapes if not n.startswith(EMA)], "ema": [n for n in shapes if n.startswith(EMA)]}
    has = {tree: any(f"{BASE}/" in name for name in names) for tree, names in trees.items()}
    if not any(has.values()):
        raise UserError(
            f"{source} is no SimCLR checkpoint: it has no variables {BASE}/...; it has {shorten(sorted(shapes))}"
        )
    if weights != "auto" and not has[weights]:
        raise UserError(
            f"--weights {weights}: {source} holds no such variables, only {'base' if has['base'] else 'ema'}"
        )
    tree = weights if weights != "auto" else "base" if has["base"] else "ema"
    selection = {name: shapes[name] for name in trees[tree]}
    return EMA if tree == "ema" else "", selection, trees["ema" if tree == "base" else "base"]


def _encoders(shapes: Shapes, source: str, prefix: str) -> Iterator[ResNet]:
    """Networks that could have these variables, the likelier first."""
    stem_name = f"{prefix}{BASE}/conv2d/kernel"
    first = shapes.get(stem_name)
    if first is None or len(first) != 4:
        raise UserError(f"{source} is no whole SimCLR checkpoint: {stem_name} is missing or no convolution ({first})")
    convs = [_convolution(shapes, prefix, k) for k in range(sum(_is_convolution(name) for name in shapes))]
    guesses: list[tuple[Stem, float, float]]
    if first[0] == 7:
        guesses = [("imagenet", first[3] / 64, 0.0)]
    else:
        ratio = _sk_ratio(convs)
        # With basic blocks and the CIFAR stem, sk_ratio adds no variable, only pooling: such nets pass for plain ones.
        # None was published, and the TF1 code cannot build them.
        guesses = [("cifar", first[3] / 64, 0.0), ("imagenet", first[3] / 32, ratio), ("cifar", first[3] / 64, ratio)]
    for stem, width, sk_ratio in guesses:
        depth = min(BLOCKS, key=lambda depth: abs(_count_convolutions(depth, stem, sk_ratio) - len(convs)))
        yield ResNet(depth, width, stem, first[2], sk_ratio)


def _closest(candidates: Iterator[ResNet], shapes: Shapes, prefix: str) -> ResNet:
    """The first network that has exactly the variables of the encoder, else the one that differs in the fewest."""
    result = {name: shape for name, shape in shapes.items() if name.startswith(f"{prefix}{BASE}/")}
    distances: list[tuple[int, ResNet]] = []
    for encoder in candidates:
        theirs = {pair.reference: _theirs(encoder, pair) for pair in encoder_pairs(encoder, prefix + BASE)}
        distances.append((len(set(theirs.items()) ^ set(result.items())), encoder))
        if distances[-1][0] == 0:
            break
    return min(distances, key=lambda pair: pair[0])[1]


def _is_convolution(name: str) -> bool:
    return re.search(rf"{BASE}/conv2d(_\d+)?/kernel$", name) is not None


def _convolution(shapes: Shapes, prefix: str, number: int) -> Shape:
    return shapes.get(f"{prefix}{BASE}/conv2d{f'_{number}' if number else ''}/kernel", ())


def _count_convolutions(depth: int, stem: Stem, sk_ratio: float) -> int:
    each = 2 if depth < 50 else 5 if sk_ratio else 3
    return (3 if stem == "imagenet" and sk_ratio else 1) + 4 + each * sum(BLOCKS[depth])


def _sk_ratio(convs: list[Shape]) -> float:
    """The ratio of the last block's squeezing convolution; the published one where that gives the same width.

    A narrow kernel squeezes to 32 units at the least, whatever the ratio. Nets of basic blocks have none to look at.
    """
    squeeze, expand = convs[-3:-1] if len(convs) >= 3 else ((), ())
    if len(squeeze) != 4 or expand != (1, 1, squeeze[3], 2 * squeeze[2]):
        return PUBLISHED_SK_RATIO
    filters, hidden = squeeze[2:]
    return PUBLISHED_SK_RATIO if hidden == max(int(filters * PUBLISHED_SK_RATIO), 32) else hidden / filters


def _head(shapes: Shapes, prefix: str, in_dim: int, source: str) -> ProjectionHead | None:
    names = [name.removeprefix(f"{prefix}{HEAD}/") for name in shapes if name.startswith(f"{prefix}{HEAD}/")]
    if not names:
        return None
    matches = [re.match(r"(nl|l)_(\d+)/", name) for name in names]
    kinds = {match.group(1) for match in matches if match}
    count = 1 + max((int(match.group(2)) for match in matches if match), default=-1)
    if len(kinds) != 1 or (kinds == {"l"} and count > 1):
        raise UserError(f"{source} has a projection head of no known kind: {shorten(sorted(names))}")
    kind = kinds.pop()
    widths = [_width(shapes, f"{prefix}{HEAD}/{kind}_{j}", in_dim) for j in range(count)]
    hidden = widths[0] if count > 1 and widths[0] != in_dim else None
    return ProjectionHead(in_dim, HeadConfig("linear" if kind == "l" else "nonlinear", count, widths[-1], hidden))


def _width(shapes: Shapes, layer: str, default: int) -> int:
    """How many values a layer of the head gives, from whichever of its variables is there."""
    kernel, gamma = shapes.get(f"{layer}/dense/kernel", ()), shapes.get(f"{layer}/batch_normalization/gamma", ())
    return kernel[1] if len(kernel) == 2 else gamma[0] if len(gamma) == 1 else default


def _classifier(shapes: Shapes, prefix: str, source: str) -> Classifier | None:
    if not any(name.startswith(f"{prefix}{CLASSIFIER}/") for name in shapes):
        return None
    name = f"{prefix}{CLASSIFIER}/linear_layer/dense/kernel"
    shape = shapes.get(name, ())
    if len(shape) != 2:
        raise UserError(f"{source} has a classifier whose kernel is missing or no matrix: {name} {list(shape)}")
    return Classifier(*shape)


def _theirs(module: nn.Module, pair: Pair) -> Shape:
    tensor: Any = module.get_parameter(pair.name) if pair.name.endswith(("weight", "bias")) else None
    tensor = module.get_buffer(pair.name) if tensor is None else tensor
    shape = tuple(tensor.shape)
    if pair.kind == "conv":
        return shape[2], shape[3], shape[1], shape[0]
    return shape[::-1] if pair.kind == "dense" else shape
