"""Our parameters beside the variables of the reference implementation (google-research/simclr, TF1 names).

TensorFlow numbers variables by order of creation; our modules register their children in that order (stem, then each
block's shortcut before its branch), so that walking them gives the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twofold.distributed import BatchNorm
from twofold.encoders.resnet import ResNet
from twofold.heads import Classifier, ProjectionHead

Kind = Literal["conv", "dense", "vector"]


@dataclass(frozen=True)
class Pair:
    """One tensor under both names.

    Attributes:
        name: our name in the module's state_dict.
        reference: the TF1 checkpoint's name.
        kind: conv: [kh, kw, in, out] there, [out, in, kh, kw] here; dense: [in, out] there, [out, in] here; vector:
            the same on both sides.
    """

    name: str
    reference: str
    kind: Kind


def _norm(name: str, reference: str, norm: BatchNorm) -> Iterator[Pair]:
    theirs = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for ours, leaf in theirs.items():
        if getattr(norm, ours) is not None:
            yield Pair(f"{name}.{ours}", f"{reference}/{leaf}", "vector")


def _numbered(layer: str, number: int) -> str:
    return f"{layer}_{number}" if number else layer


def encoder_pairs(encoder: ResNet, scope: str = "base_model") -> Iterator[Pair]:
    """Every tensor of a ResNet of any depth, width and stem, with or without selective kernels, in creation order."""
    convs = norms = 0
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            yield Pair(f"{name}.weight", f"{scope}/{_numbered('conv2d', convs)}/kernel", "conv")
            convs += 1
        elif isinstance(module, BatchNorm):
            yield from _norm(name, f"{scope}/{_numbered('batch_normalization', norms)}", module)
            norms += 1


def head_pairs(head: ProjectionHead, scope: str = "head_contrastive") -> Iterator[Pair]:
    """Every tensor of a projection head with norm; layers are nl_0, nl_1 ... (nonlinear) or l_0 (linear)."""
    prefix = "l" if head.config.kind == "linear" else "nl"
    for name, module in head.named_modules():  # layers.j.0 is dense, layers.j.1 its norm
        layer = f"{scope}/{prefix}_{name.split('.')[1]}" if "." in name else ""
        if isinstance(module, nn.Linear):
            yield Pair(f"{name}.weight", f"{layer}/dense/kernel", "dense")
        elif isinstance(module, BatchNorm):
            yield from _norm(name, f"{layer}/batch_normalization", module)


def classifier_pairs(classifier: Classifier, scope: str = "head_supervised/linear_layer") -> Iterator[Pair]:
    """Both tensors of the supervised head."""
    kinds: dict[str, tuple[str, Kind]] = {"weight": ("kernel", "dense"), "bias": ("bias", "vector")}
    for name, _ in classifier.named_parameters():
        leaf, kind = kinds[name]
        yield Pair(name, f"{scope}/dense/{leaf}", kind)


def to_ours(value: NDArray[Any], kind: Kind) -> Tensor:
    """A TensorFlow variable's value in our layout, contiguous."""
    tensor = torch.from_numpy(value)
    if kind == "conv":
        tensor = tensor.permute(3, 2, 0, 1)
    elif kind == "dense":
        tensor = tensor.t()
    return tensor.contiguous()
