"""How an embedding looks beside its loss: accuracy, entropy, alignment, uniformity, rank. Nothing here has gradients.

Over several ranks, what compares views with each other compares them with all ranks' and returns global means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.distributed import all_gather, all_reduce_mean, rank
from twofold.losses.checks import check_temperature, check_views
from twofold.losses.nt_xent import l2_normalize

ROWS = 1024  # rows of a similarity matrix held at a time: at 64k columns, a quarter of a gigabyte
RANK_SAMPLES = 512  # rows that `describe` takes the singular values of, which cost min(n, d)^2 max(n, d)


class ContrastiveMetrics(NamedTuple):
    """How well view a finds its partner among all views b; both scalars."""

    accuracy: Tensor
    entropy: Tensor


def chance_level(images: int) -> float:
    """The NT-Xent loss (scale mean_2n) of an embedding that tells nothing apart: ln(2N - 1) for N images in all."""
    return math.log(max(2 * images - 1, 1))


def negatives_per_anchor(images: int) -> int:
    """2(N - 1): all views of the other N - 1 images."""
    return 2 * (images - 1)


def cross_view_logits(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """[n, N] similarities of views a [n, d] to all ranks' views b [N, d], over temperature.

    Both are as they are compared: normalised already, if they are to be. The reference calls the result logits_ab
    (tf2/objective.py).
    """
    return a @ b.T / temperature


@torch.no_grad()
def contrastive_metrics(
    z_a: Tensor, z_b: Tensor, temperature: float = 0.1, normalize: bool = True
) -> ContrastiveMetrics:
    """Accuracy and entropy of the reference's training log (tf2/metrics.py): N candidates, those of the other view.

    So they are not the loss's: it has 2N - 1 candidates. The entropy is at most ln N; the reference adds 1e-8 to each
    probability inside the logarithm, which changes it by at most N * 1e-8.

    Args:
        z_a, z_b: [n, d] this rank's two views.
        temperature, normalize: as in `nt_xent`.

    Returns:
        Share in [0, 1] of the views a most similar to their partner among all ranks' views b, and the mean entropy of
        softmax(similarities / temperature) in nats.
    """
    check_views(z_a, z_b)
    check_temperature(temperature)
    a, b = _prepare(z_a, normalize), all_gather(_prepare(z_b, normalize))
    partner = torch.arange(len(a), device=a.device) + rank() * len(a)
    hits, entropies = [], []
    with torch.autocast(a.device.type, enabled=False):
        for rows in _chunks(len(a)):
            logits = cross_view_logits(a[rows], b, temperature)  # [r, N]
            hits.append(logits.argmax(1) == partner[rows])
            log_p = F.log_softmax(logits, 1)
            entropies.append(-(log_p.exp() * log_p).sum(1))
    accuracy, entropy = torch.cat(hits).to(a.dtype).mean(), torch.cat(entropies).mean()
    return ContrastiveMetrics(all_reduce_mean(accuracy), all_reduce_mean(entropy))


@torch.no_grad()
def retrieval_auc(z_a: Tensor, z_b: Tensor, normalize: bool = True) -> Tensor:
    """How often a view a is nearer to its partner than to the view b of another example; a tie counts half.

    That is the area under the ROC curve of an anchor's candidates, averaged over anchors: 0.5 where the embedding tells
    nothing apart, 1 where every partner is found. A few batches say more by it than by the share of first places.

    Args:
        z_a, z_b: [n, d] this rank's two views, n of 2 or more; other ranks' are no candidates, so nothing is sent.
        normalize: as in `nt_xent`.
    """
    check_views(z_a, z_b)
    a, b = _prepare(z_a, normalize), _prepare(z_b, normalize)
    if len(b) < 2:
        raise ValueError("a partner is told from other examples' views, and there is one example")
    own_rows = torch.arange(len(a), device=a.device)
    total = a.new_zeros(())
    with torch.autocast(a.device.type, enabled=False):
        for rows in _chunks(len(a)):
            similarity = a[rows] @ b.T
            own = similarity.gather(1, own_rows[rows, None])
            total += (own > similarity).sum() + ((own == similarity).sum() - len(own)) / 2
    return total / (len(a) * (len(b) - 1))


@torch.no_grad()
def alignment(z_a: Tensor, z_b: Tensor, power: float = 2.0) -> Tensor:
    """Mean of |a_i - b_i|^power over all ranks' pairs, z normalised: 0 when views agree (arXiv 2005.10242, eq. 1).

    Args:
        z_a, z_b: [n, d].
        power: alpha > 0.
    """
    check_views(z_a, z_b)
    distances = (_prepare(z_a) - _prepare(z_b)).norm(dim=1)
    return all_reduce_mean(distances.pow(power).mean())


@torch.no_grad()
def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """ln of the mean of exp(-t |z_i - z_j|^2) over pairs i != j of all ranks' rows (arXiv 2005.10242, eq. 2).

    0 when all are one point, lower the more evenly they cover the sphere: about -2t for random directions in many
    dimensions.

    Args:
        z: [n, d] of one view, at least two rows over all ranks; normalised here.
        t: > 0.
    """
    z = _prepare(z)
    everyone = all_gather(z)  # [N, d]
    if len(everyone) < 2:
        raise ValueError("uniformity compares rows with each other and needs at least two, got one")
    own = torch.arange(len(z), device=z.device)[:, None] + rank() * len(z)
    total = z.new_zeros(())
    with torch.autocast(z.device.type, enabled=False):
        for rows in _chunks(len(z)):
            squared = (2 - 2 * (z[rows] @ everyone.T)).clamp(min=0)  # |u - v|^2 on the sphere
            total += (-t * squared.scatter(1, own[rows], float("inf"))).exp().sum()
    return all_reduce_mean(total / (len(z) * (len(everyone) - 1))).log()


@torch.no_grad()
def effective_rank(h: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares: in how many directions the features h [n, d] really vary.

    Between 1 (all rows on one line) and min(n, d). Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007;
    arXiv 2210.02885 uses it, uncentred as here, to judge representations without labels.
    """
    share = torch.linalg.svdvals(_prepare(h, normalize=False))
    share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp()


def describe(
    z_a: Tensor, z_b: Tensor, h: Tensor, temperature: float, images: int, normalize: bool = True
) -> dict[str, float]:
    """What belongs beside the loss in a log. Every rank must call it.

    Args:
        z_a, z_b: [n, d] this rank's projections.
        h: [n or 2n, k] this rank's representations, view a's rows first.
        temperature, normalize: as in `nt_xent`.
        images: N, the images of the global batch.

    Returns:
        chance, contrastive_top1, contrastive_entropy, alignment, uniformity, effective_rank (of up to 512 rows of
        view a of this rank, averaged over ranks).
    """
    metrics = contrastive_metrics(z_a, z_b, temperature, normalize)
    row = {
        "contrastive_top1": metrics.accuracy,
        "contrastive_entropy": metrics.entropy,
        "alignment": alignment(z_a, z_b),
        "uniformity": uniformity(z_a),
        "effective_rank": all_reduce_mean(effective_rank(h[: len(z_a)][:RANK_SAMPLES])),
    }
    return {"chance": chance_level(images), **{name: float(value) for name, value in row.items()}}


def _prepare(z: Tensor, normalize: bool = True) -> Tensor:
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return l2_normalize(z) if normalize else z


def _chunks(n: int) -> Iterator[slice]:
    return (slice(i, i + ROWS) for i in range(0, n, ROWS))
