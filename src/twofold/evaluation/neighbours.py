"""Nearest neighbours of features by cosine similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIMILARITIES_AT_ONCE = 2**25  # 128 MB of float32 similarities a block


def nearest(bank: Tensor, queries: Tensor, k: int, block: int | None = None) -> tuple[Tensor, Tensor]:
    """The k rows of `bank` with the highest cosine similarity to each query, exactly.

    Args:
        bank: [N, d] features of any norm; a row of zeros has similarity 0 to everything.
        queries: [M, d].
        k: 1 <= k <= N.
        block: queries at a time; by default as many as keep the similarities within 128 MB.

    Returns:
        Similarities [M, k] in descending order and positions in the bank [M, k].
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must lie between 1 and the bank's {len(bank)} rows, got {k}")
    bank = F.normalize(bank.float(), dim=1)
    queries = F.normalize(queries.float(), dim=1)
    block = block or max(1, SIMILARITIES_AT_ONCE // len(bank))
    result = [torch.topk(part @ bank.T, k, dim=1) for part in queries.split(block)]
    return torch.cat([f.values for f in result]), torch.cat([f.indices for f in result])
