"""Applying an operator to some images of a batch only, without waiting for a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def update_rows(x: Tensor, rows: Tensor, operate: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Replace some images of x by what `operate` makes of them and of their parameters.

    Args:
        x: [n, C, H, W], changed in place.
        rows: which images, on the CPU: bool [n] or int64.
        operate: takes [m, C, H, W] and each parameter's [m, ...].
        parameters: [n, ...], on the CPU.
    """
    if rows.dtype == torch.bool:
        rows = rows.nonzero().flatten()
    # On a CPU a few images at a time, which stay in its cache from one operation to the next.
    size = max(1, 2**18 // x[0].numel()) if x.device.type == "cpu" and len(x) else max(1, len(rows))
    for some in rows.split(size) if len(rows) else ():
        there = some.to(x.device)
        x.index_copy_(0, there, operate(x.index_select(0, there), *(p[some].to(x.device) for p in parameters)))


def order_groups(order: Tensor, channels: int) -> list[tuple[Tensor, Tensor]]:
    """Group rows that share an order: [(order, rows)], at most 24 groups of a batch, on the CPU.

    Saturation and hue are left out where there are not three channels: no other image has them.
    """
    if channels != 3:
        order = order[order < 2].view(-1, 2)
    kinds, group = torch.unique(order, dim=0, return_inverse=True)
    return [(kind, (group == i).nonzero().flatten()) for i, kind in enumerate(kinds)]
