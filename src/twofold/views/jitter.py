"""Colour jitter of some images of a batch, each with its operators in an order of its own."""

from __future__ import annotations

import functools

from torch import Tensor

from twofold import gpu
from twofold.views.color import BrightnessRule, ColorRule, jitter
from twofold.views.rows import operator_groups, to_device, update_rows


def jitter_rows(
    x: Tensor, rows: Tensor, order: Tensor, factors: Tensor, brightness_rule: BrightnessRule, color_rule: ColorRule
) -> None:
    """Change some images of x in place: by a GPU's kernels, or group by group of the images that share an order.

    Args:
        x: float [n, C, H, W].
        rows: int64 [m] which images, on the CPU, as are the others.
        order, factors: [n, 4], see `color.jitter`.
        brightness_rule, color_rule: see views/color.py.
    """
    kernels = gpu.kernels("twofold.views.kernels", x) if x.shape[1] == 3 and x.is_contiguous() else None
    if kernels is not None and len(rows):
        selection = (to_device(t, x.device) for t in (rows, order[rows], factors[rows]))
        kernels.kernel_jitter(x, *selection, brightness_rule == "additive", color_rule == "tf")
        return
    for operators, group in operator_groups(x, rows, order):
        operate = functools.partial(jitter, order=operators, brightness_rule=brightness_rule, color_rule=color_rule)
        update_rows(x, group, lambda part, some, op=operate: op(part, factors=some), factors)
