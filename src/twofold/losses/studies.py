"""The losses that SimCLR was compared with: NT-Logistic and margin triplet (arXiv 2002.05709, Tables 2 and 4).

Anchors are views a and candidates are views b of all ranks, as in the paper's comparison (appendix B.10: negatives
from one view only). The paper leaves open how an anchor's negatives are reduced and what happens without a semi-hard
one; `negatives` and the rule of `semi_hard_negative` are our answers, so its Table 4 need not be met exactly.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.distributed import all_gather, rank
from twofold.errors import UserError
from twofold.losses.checks import check_choice, check_temperature, check_views
from twofold.losses.nt_xent import l2_normalize

Mining = Literal["none", "semi_hard"]
Reduction = Literal["mean", "sum"]


def nt_logistic(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float = 0.5,
    normalize: bool = True,
    mining: Mining = "none",
    negatives: Reduction | None = None,
) -> Tensor:
    """Each pair by itself: -ln sigmoid(u.v+ / tau) - ln sigmoid(-u.v- / tau), mean over this rank's anchors.

    Args:
        z_a, z_b: [n, d] this rank's anchors and their partners; n is the same on all ranks.
        temperature: tau > 0; the paper tried 0.1, 0.2, 0.5 and 1.
        normalize: compare by cosine.
        mining: use all negatives, or only the semi-hard one (see `semi_hard_negative`, without a margin).
        negatives: mean (default) or sum over an anchor's negatives; refused under mining, which leaves one.

    Returns:
        Scalar in float32 or better. Gradients reach all ranks' views b.

    Raises:
        UserError: an option has no such value.
    """
    check_temperature(temperature)
    positive, others, is_negative = _similarities(z_a, z_b, normalize, mining, negatives)
    if mining == "semi_hard":
        hardest, result = semi_hard_negative(positive, others, is_negative)
        repulsion = -F.logsigmoid(-hardest / temperature) * result
    else:
        repulsion = _reduce(-F.logsigmoid(-others / temperature), is_negative, negatives)
    return (repulsion - F.logsigmoid(positive / temperature)).mean()


def margin_triplet(
    z_a: Tensor,
    z_b: Tensor,
    margin: float = 0.8,
    normalize: bool = True,
    mining: Mining = "none",
    negatives: Reduction | None = None,
) -> Tensor:
    """A negative may come no nearer than the partner plus a margin: max(u.v- - u.v+ + m, 0), mean over anchors.

    Args:
        z_a, z_b: [n, d] this rank's anchors and their partners; n is the same on all ranks.
        margin: m >= 0 in units of similarity; the paper tried 0, 0.4, 0.8 and 1.6.
        normalize: compare by cosine.
        mining: use all negatives, or only the semi-hard one (see `semi_hard_negative`, with the margin).
        negatives: mean (default) or sum over an anchor's negatives; refused under mining, which leaves one.

    Returns:
        Scalar in float32 or better. Gradients reach all ranks' views b.

    Raises:
        UserError: margin below 0, or 0 under mining, where no negative could be semi-hard.
    """
    if not margin >= 0 or (margin == 0 and mining == "semi_hard"):
        raise UserError(f"margin must be at least 0, and above 0 with semi_hard mining; got {margin}")
    positive, others, is_negative = _similarities(z_a, z_b, normalize, mining, negatives)
    if mining == "semi_hard":
        hardest, result = semi_hard_negative(positive, others, is_negative, margin)
        return ((hardest - positive + margin) * result).mean()
    return _reduce(F.relu(others - positive[:, None] + margin), is_negative, negatives).mean()


def semi_hard_negative(
    positive: Tensor, others: Tensor, is_negative: Tensor, margin: float = float("inf")
) -> tuple[Tensor, Tensor]:
    """The nearest negative that is still farther than the partner, but within the margin.

    Args:
        positive: [n] similarity to the partner.
        others: [n, N] similarities to all candidates.
        is_negative: [n, N] which of them are negatives.
        margin: positive - margin < similarity < positive.

    Returns:
        Its similarity [n] (0 where there is none, and such an anchor adds nothing), and whether there is one [n].
    """
    with torch.no_grad():
        limit = positive[:, None]
        candidate = is_negative & (others < limit) & (others > limit - margin)
        result, index = candidate.any(1), others.masked_fill(~candidate, float("-inf")).argmax(1)
    return others.gather(1, index[:, None])[:, 0].where(result, 0.0), result


def _similarities(
    z_a: Tensor, z_b: Tensor, normalize: bool, mining: str, negatives: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Partners' similarity [n], all candidates' [n, N], and which of these are negatives [n, N]."""
    check_views(z_a, z_b)
    check_choice("mining", mining, ("none", "semi_hard"))
    if negatives is not None:
        check_choice("negatives", negatives, ("mean", "sum"))
        if mining == "semi_hard":
            raise UserError(
                f"negatives={negatives!r} has no effect with semi_hard mining, which keeps one; leave it out"
            )
    with torch.autocast(z_a.device.type, enabled=False):
        dtype = torch.promote_types(z_a.dtype, torch.float32)
        a, b = z_a.to(dtype), z_b.to(dtype)
        if normalize:
            a, b = l2_normalize(a), l2_normalize(b)
        others = a @ all_gather(b).T
    own = torch.arange(len(a), device=a.device)[:, None] + rank() * len(a)
    return others.gather(1, own)[:, 0], others, torch.arange(others.shape[1], device=a.device) != own


def _reduce(terms: Tensor, is_negative: Tensor, reduction: Reduction | None) -> Tensor:
    total = (terms * is_negative).sum(1)
    return total if reduction == "sum" else total / is_negative.sum(1).clamp(min=1)
