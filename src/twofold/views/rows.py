"""Applying an operator to some images of a batch only, without waiting for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_PART = 2**18
"""Values of the images that a CPU changes at a time, so that they stay in its cache from one operation to the next."""

_MANY = 2**20
"""Values from which a CPU spends more on moving images than on starting operations (measured at 32 to 224 pixels)."""


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x where a batch is. A GPU is not waited for: CUDA takes a copy of memory that is not page-locked at once."""
    return x.to(device, non_blocking=device.type == "cuda")


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
    size = max(1, _PART // x[0].numel()) if x.device.type == "cpu" and len(x) else max(1, len(rows))
    for some in rows.split(size) if len(rows) else ():
        present = to_device(some, x.device)
        x.index_copy_(
            0, present, operate(x.index_select(0, present), *(to_device(p[some], x.device) for p in parameters))
        )


def operator_groups(x: Tensor, rows: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Group rows of x that share operators: (operators, rows), to be applied one group after the other.

    Saturation and hue are left out where there are not three channels: no other image has them.

    Args:
        x: [n, C, H, W].
        rows: int64 [m] which images, on the CPU.
        order: [n, 4] each image's operators, first to last, on the CPU.
    """
    order = order[rows] if x.shape[1] == 3 else order[rows][order[rows] < 2].view(-1, 2)
    # Rows of one order make up to 24 groups, and each image is fetched once. By the first operator, then the second and
    # so on, there are 16 larger groups of one operator: better where starting one costs more than moving the images.
    whole = x.device.type == "cpu" and x.numel() > _MANY
    for step in [order] if whole else order.split(1, dim=1):
        kinds, group = torch.unique(step, dim=0, return_inverse=True)
        for i, kind in enumerate(kinds):
            yield kind, rows[group == i]
