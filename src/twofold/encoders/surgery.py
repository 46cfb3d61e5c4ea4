"""What is changed in other people's networks, so that they take any images and train as one over several processes."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from twofold.distributed import batch_norm
from twofold.encoders.convolution import convolve
from twofold.errors import UserError


def drop_classifier(model: nn.Module) -> str:
    """Replace the last layer that gives the 1,000 classes of ImageNet by the identity; returns its name."""
    last = ""
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and part.out_features == 1000:
            last = name
        if isinstance(part, nn.Conv2d) and part.out_channels == 1000:  # SqueezeNet's
            last = name
    parent, _, leaf = last.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    return last


def use_cifar_stem(model: nn.Module, name: str, stem: str, pretrained: bool) -> None:
    """Let a ResNet see small images as they are: a 3x3 convolution of stride 1, and no pooling."""
    first = getattr(model, "conv1", None)
    if stem != "cifar" or pretrained or not isinstance(first, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise UserError(
            f"torchvision:{name} has no stem {stem!r}{' with pretrained weights' if pretrained else ''}: only its "
            "ResNets without weights take cifar; leave encoder.stem out"
        )
    model.conv1 = nn.Conv2d(3, first.out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()


def adapt_first_convolution(model: nn.Module, channels: int) -> None:
    """Let the first convolution take `channels`: one channel sums RGB's weights, more repeat them, scaled to fit."""
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    with torch.no_grad():
        if channels == 1:
            weight = first.weight.sum(1, keepdim=True)
        else:
            weight = torch.empty(first.out_channels, channels, *first.kernel_size, dtype=first.weight.dtype)
            weight = torch.index_select(first.weight, 1, torch.arange(channels) % 3, out=weight) * (3 / channels)
    first.in_channels, first.weight = channels, nn.Parameter(weight)


def _over_all_ranks(self: Any, x: Tensor) -> Any:
    """Forward pass of torch's batch norm (and timm's, with activation) whose statistics are those of all ranks."""
    if not self.training:
        return type(self).forward(self, x)
    y = batch_norm(
        x,
        self.running_mean,
        self.running_var,
        self.weight,
        self.bias,
        self.momentum,
        self.eps,
        unbiased=True,
        synchronized=self.synchronized,
        splits=self.splits,
    )
    return self.act(self.drop(y)) if hasattr(self, "act") else y


def guard_tiny_maps(module: nn.Module) -> None:
    """Let torch's own convolutions in `module` pass maps of a few positions as `convolve` does."""
    for part in module.modules():
        if type(part) is nn.Conv2d and part.kernel_size != (1, 1):
            part.forward = MethodType(convolve, part)  # type: ignore[method-assign]


def share_batch_norm(module: nn.Module) -> None:
    """Make the batch norm layers of `module` see the batch of all ranks; names and values of their tensors stay."""
    for part in module.modules():
        kind = type(part)
        known = kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or kind.__qualname__ == "BatchNormAct2d"
        if known and part.momentum is not None and part.track_running_stats:
            # `distributed.keep_batch_norm_local` changes them
            vars(part).update(synchronized=True, splits=1, averaged=False)
            part.forward = MethodType(_over_all_ranks, part)
