"""InfoNCE with a queue of negatives, the loss of MoCo (arXiv 1911.05722, equation 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.losses.checks import check_temperature, check_views


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> tuple[Tensor, Tensor]:
    """Find each query's key among the keys of a queue (moco/builder.py of facebookresearch/moco).

    Args:
        q: [n, d] queries, of unit length.
        k: [n, d] their keys, of unit length. No gradient reaches them.
        queue: [d, K] keys of earlier batches in columns, of unit length. No gradient reaches them. It may be
            overwritten after the backward pass, or at once if a clone is given.
        temperature: tau > 0.

    Returns:
        The mean cross entropy over the n queries, and the logits [n, 1 + K] in float32 or better, whose column 0 is
        the right one. A random embedding gives about ln(K + 1).

    Raises:
        UserError: the temperature is not above 0.
        ValueError: the shapes do not fit.
    """
    check_views(q, k)
    check_temperature(temperature)
    if queue.ndim != 2 or len(queue) != q.shape[1]:
        raise ValueError(f"the queue must be [d, K] with d = {q.shape[1]}, got {tuple(queue.shape)}")
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.promote_types(q.dtype, torch.float32)
        q, k, queue = q.to(dtype), k.detach().to(dtype), queue.detach().to(dtype)
        positive = (q * k).sum(1, keepdim=True)  # [n, 1]
        logits = torch.cat([positive, q @ queue], 1) / temperature  # [n, 1 + K]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device)), logits
