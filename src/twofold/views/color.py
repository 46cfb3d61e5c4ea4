"""The colour operators of SimCLR on batches: brightness, contrast, saturation, hue and grey; jitter in any order.

Images are float32 [n, C, H, W]; a factor per image is [n]. Nothing is clipped here except by `jitter`, which clips to
[0, 1] after each operator as tf2/data_util.py does. Saturation and hue are written without a trip through HSV.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BrightnessRule = Literal["multiplicative", "additive"]
ColorRule = Literal["tf", "torchvision"]

LUMA = (0.2989, 0.587, 0.114)
"""The grey weights of tf.image.rgb_to_grayscale (torchvision uses the same)."""


def brightness(x: Tensor, factor: Tensor, rule: BrightnessRule = "multiplicative") -> Tensor:
    """x * factor (the second version of SimCLR, and torchvision), or x + factor (the first version, "additive")."""
    return x * _per_image(factor) if rule == "multiplicative" else x + _per_image(factor)


def contrast(x: Tensor, factor: Tensor, rule: ColorRule = "tf") -> Tensor:
    """Scale the distance to the mean: each channel's own ("tf"), or the mean grey level ("torchvision")."""
    pivot = x.mean((2, 3), keepdim=True) if rule == "tf" else luma(x).mean((1, 2, 3), keepdim=True)
    return (x * _per_image(factor)).add_(pivot * (1 - _per_image(factor)))


def saturation(x: Tensor, factor: Tensor, rule: ColorRule = "tf") -> Tensor:
    """Scale HSV's S, which stops at 1 ("tf"), or the distance to the grey image ("torchvision"). x [n, 3, H, W]."""
    if rule == "torchvision":
        grey = luma(x)
        return (x - grey).mul_(_per_image(factor)).add_(grey)
    low, high = _extremes(x)
    # S' = min(factor * S, 1) at the same V and hue moves each channel towards V = high by the ratio S' / S.
    ratio = torch.minimum(high.clamp_min(0) / (high - low).clamp_min_(1e-12), _per_image(factor))
    return torch.lerp(high, x, ratio)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue by `turns` (1 = once round) and keep each pixel's smallest and largest value. x [n, 3, H, W]."""
    low, high = _extremes(x)
    spread = (high - low).mul_(6)
    red, green, blue = x.split(1, 1)
    # With channels scaled to [0, 1], 6 * hue is 1 + green + blue - red where green >= blue, else its negative.
    angle = (green + blue).sub_(red).sub_(low).div_(spread.clamp_min(1e-12)).add_(1 / 6).copysign_(green - blue)
    centres = torch.arange(3, device=x.device) / 3  # of red, green and blue, in turns
    distance = angle + (turns[:, None] - centres)[:, :, None, None]
    distance.sub_(distance.round()).abs_()
    # A channel is largest up to a sixth of a turn from its centre, smallest from a third on, and linear between.
    shifted: Tensor = distance.clamp_(1 / 6, 1 / 3).mul_(spread.neg()).add_(spread.mul_(1 / 3).add_(low))
    return shifted


def luma(x: Tensor) -> Tensor:
    """The grey level [n, 1, H, W] of [n, 3, H, W]; an image of any other number of channels is its own."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.split(1, 1)
    grey: Tensor = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return grey


def jitter(
    x: Tensor,
    order: Tensor,
    factors: Tensor,
    brightness_rule: BrightnessRule = "multiplicative",
    color_rule: ColorRule = "tf",
) -> Tensor:
    """Apply the operators in one order, common to all of x, and clip to [0, 1] after each.

    Args:
        x: float [n, C, H, W].
        order: the operators, first to last: 0 brightness, 1 contrast, 2 saturation, 3 hue (tf2/data_util.py's numbers).
        factors: [n, 4], by operator.
    """
    for operator in order.tolist():
        factor = factors[:, operator]
        if operator == 0:
            x = brightness(x, factor, brightness_rule)
        elif operator == 1:
            x = contrast(x, factor, color_rule)
        else:
            x = saturation(x, factor, color_rule) if operator == 2 else hue(x, factor)
        x = x.clamp_(0, 1)
    return x


def _per_image(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest channel, each [n, 1, H, W]."""
    red, green, blue = x.split(1, 1)
    return torch.minimum(torch.minimum(red, green), blue), torch.maximum(torch.maximum(red, green), blue)
