"""Smaller learning rates for the layers further from the output (as for fine-tuning ELECTRA, arXiv 2003.10555)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from twofold.errors import UserError


def decay_layers(optimizer: torch.optim.Optimizer, encoder: nn.Module, rate: float) -> None:
    """Split an optimiser's groups by the encoder's layers and give each the key `lr_scale`, which the loop applies.

    What lies above the encoder has scale 1, the encoder's last layer `rate`, the one below `rate` squared, and so on.

    Args:
        optimizer: fresh, without state.
        encoder: see `layers`.
        rate: in (0, 1].

    Raises:
        UserError: `rate` out of range.
    """
    if not 0 < rate <= 1:
        raise UserError(f"--layer_decay must lie in (0, 1], got {rate}")
    depth = {id(parameter): i for i, layer in enumerate(layers(encoder)) for parameter in layer}
    top = 1 + max(depth.values(), default=-1)
    groups = []
    for group in optimizer.param_groups:
        by_layer: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_layer.setdefault(depth.get(id(parameter), top), []).append(parameter)
        groups += [group | {"params": part, "lr_scale": rate ** (top - i)} for i, part in sorted(by_layer.items())]
    optimizer.param_groups = groups


def layers(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer, from the input up.

    A layer is a child with parameters, in the order of definition, and each child of a Sequential or ModuleList: the
    blocks of a ResNet or a transformer. An adapter's single child is looked into. Parameters of the encoder itself
    (tokens, positions) belong to the first layer.
    """
    module = encoder
    while len(inside := [c for c in module.children() if any(True for _ in c.parameters())]) == 1:
        module = inside[0]
    result = [part for part in (list(layer.parameters()) for layer in _parts(module)) if part]
    placed = {id(parameter) for part in result for parameter in part}
    rest = [parameter for parameter in encoder.parameters() if id(parameter) not in placed]
    return [rest + result[0], *result[1:]] if result else [rest]


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from child.children()
        else:
            yield child
