"""Which parameters are decayed and adapted, told by what they are rather than by what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from twofold.errors import UserError
from twofold.heads import Classifier

Kind = Literal["kernel", "norm", "bias", "classifier"]
Decay = Literal["kernels", "all_but_norms", "all"]

_DECAYED: dict[str, tuple[Kind, ...]] = {
    "kernels": ("kernel", "classifier"),
    "all_but_norms": ("kernel", "classifier", "bias"),
    "all": ("kernel", "classifier", "bias", "norm"),
}
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(
    modules: nn.Module | Iterable[nn.Module], weight_decay: float, decay: Decay = "kernels", lars: bool = True
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of `modules` into groups for an optimiser, each parameter into one.

    Args:
        modules: where to look. Parameters that need no gradient are left out, shared ones taken once.
        weight_decay: for the decayed kinds; the others get 0.
        decay: what is decayed. "kernels": neither normalisation nor biases, as SimCLR with LARS. "all_but_norms":
            biases too, as SimCLR with any other optimiser (add_weight_decay in tf2/model.py). "all": everything, as
            MoCo (main_moco.py hands all parameters to SGD).
        lars: for LARS, a `Classifier` is not adapted and its kernel's decay belongs into the loss (see
            `classifier_decay`), so that it is 0 here. For other optimisers its kernel is one like any other.

    Returns:
        Groups with the keys params, weight_decay, adapt (true for kernels) and kind: kernel, norm (parameters of
        normalisation layers, and other scales that stand alone), bias (vectors beside a kernel), classifier (kernels).

    Raises:
        UserError: nothing is trainable, or there is no such `decay`.
    """
    if decay not in _DECAYED:
        raise UserError(f"decay must be {' or '.join(_DECAYED)}, got {decay!r}")
    kinds: dict[Kind, list[nn.Parameter]] = {"kernel": [], "norm": [], "bias": [], "classifier": []}
    for module in _each(modules):
        for parameter in _own(module):
            kinds[_kind(module, parameter)].append(parameter)
    seen: set[int] = set()
    groups = []
    for kind, parameters in kinds.items():
        new = [p for p in parameters if p.requires_grad and not (id(p) in seen or seen.add(id(p)))]  # type: ignore[func-returns-value]
        if new:
            decayed = kind in _DECAYED[decay] and not (lars and kind == "classifier")
            adapted = kind == "kernel" or (kind == "classifier" and not lars)
            groups.append(
                {"params": new, "weight_decay": weight_decay if decayed else 0.0, "adapt": adapted, "kind": kind}
            )
    if not groups:
        raise UserError("nothing to train: every parameter is frozen (requires_grad is False)")
    return groups


def classifier_decay(modules: nn.Module | Iterable[nn.Module], weight_decay: float) -> Tensor | float:
    """weight_decay * |W|^2 / 2 over the kernels of all trainable classifiers: the term that LARS leaves to the loss.

    Source: add_weight_decay in tf2/model.py of google-research/simclr. 0.0 if there is no classifier.
    """
    weights = {id(m.weight): m.weight for m in _each(modules) if isinstance(m, Classifier) and m.weight.requires_grad}
    return weight_decay / 2 * torch.stack([w.square().sum() for w in weights.values()]).sum() if weights else 0.0


def _each(modules: nn.Module | Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in [modules] if isinstance(modules, nn.Module) else modules:
        yield from module.modules()


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _kind(module: nn.Module, parameter: nn.Parameter) -> Kind:
    if isinstance(module, _NORMS):
        return "norm"
    if parameter.ndim >= 2:
        return "classifier" if isinstance(module, Classifier) else "kernel"
    # A vector beside a kernel is its bias. One alone scales or shifts features: a normalisation layer of a class
    # unknown here (ours, timm's), or a layer's scale.
    return "bias" if any(p.ndim >= 2 for p in _own(module)) else "norm"
