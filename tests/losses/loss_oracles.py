"""Slow losses that follow the papers' formulas entry by entry, in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(v: Array) -> Array:
    return v / max(math.sqrt(float(v @ v)), 1e-6)


def nt_xent(z_a: Array, z_b: Array, temperature: float, normalize: bool = True) -> float:
    """Algorithm 1 of arXiv 2002.05709: views of image k at 2k and 2k + 1, every pair by itself."""
    z = [row for pair in zip(z_a, z_b, strict=True) for row in pair]
    n2 = len(z)
    s = [[float(unit(u) @ unit(v)) if normalize else float(u @ v) for v in z] for u in z]

    def pair_loss(i: int, j: int) -> float:
        largest = max(s[i][k] for k in range(n2) if k != i)
        total = sum(math.exp((s[i][k] - largest) / temperature) for k in range(n2) if k != i)
        return -(s[i][j] - largest) / temperature + math.log(total)

    return sum(pair_loss(2 * k, 2 * k + 1) + pair_loss(2 * k + 1, 2 * k) for k in range(n2 // 2)) / n2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def nearest_below(similarities: list[float], positive: float, margin: float) -> list[float]:
    """The semi-hard negative, or nothing."""
    return sorted(s for s in similarities if positive - margin < s < positive)[-1:]


def pairwise(z_a: Array, z_b: Array, attract, repel, select, mean: bool) -> float:  # type: ignore[no-untyped-def]
    """Mean over anchors of attract(s+) + reduce over selected negatives of repel(s-, s+), cosine similarities."""
    total = 0.0
    for i, anchor in enumerate(z_a):
        positive = float(unit(anchor) @ unit(z_b[i]))
        chosen = select([float(unit(anchor) @ unit(v)) for j, v in enumerate(z_b) if j != i], positive)
        terms = [repel(s, positive) for s in chosen]
        total += attract(positive) + (sum(terms) / max(len(terms), 1) if mean else sum(terms))
    return total / len(z_a)
