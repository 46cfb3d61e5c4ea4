"""NT-Xent, the loss of SimCLR (arXiv 2002.05709, equation 1 and Algorithm 1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.distributed import all_gather, rank, world_size
from twofold.losses.blocks import large_nt_xent
from twofold.losses.checks import check_choice, check_temperature, check_views

# Measured on a CPU (benchmarks/loss.py): up to 2N = 1024 the two take about the same time; from 2048 on blocks win.
BLOCKS_FROM = 2048


def l2_normalize(z: Tensor) -> Tensor:
    """Divide each row by max(its norm, 1e-6), the reference's rule (tf.math.l2_normalize); torch's stops at 1e-12."""
    return z * torch.rsqrt(z.square().sum(1, keepdim=True).clamp(min=1e-12))


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float = 0.1,
    normalize: bool = True,
    scale: Literal["mean_2n", "simclr_sum2"] = "mean_2n",
    implementation: Literal["auto", "dense", "blocks", "kernel"] = "auto",
) -> Tensor:
    """Normalised temperature-scaled cross entropy: each view must find its partner among all views of all ranks.

    Args:
        z_a, z_b: [n, d] projections of this rank's two views, row i of both from image i; n is the same on all ranks.
        temperature: tau > 0.
        normalize: compare by cosine (True) or by inner product (False; Table 5 of the paper).
        scale: mean over the 2n anchors, as in the paper, or the two views' means summed, as in tf2/objective.py.
        implementation: the 2n x 2N matrix at once, block by block, or in a GPU's kernels; auto goes by size and device.

    Returns:
        Scalar in float32 or better, the mean over this rank's anchors: its mean over ranks is the global loss.
        Raises UserError for an option without such a value, ValueError for views that are not [n, d] alike.
    """
    check_views(z_a, z_b)
    check_temperature(temperature)
    check_choice("scale", scale, ("mean_2n", "simclr_sum2"))
    check_choice("implementation", implementation, ("auto", "dense", "blocks", "kernel"))
    with torch.autocast(z_a.device.type, enabled=False):  # 8 bits of a bfloat16 logit are too few at low temperatures
        z = torch.cat([z_a, z_b])  # [2n, d]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if normalize:
            z = l2_normalize(z)
        if implementation == "auto" and len(z) * world_size() < BLOCKS_FROM:
            implementation = "dense"
        large = implementation != "dense"
        loss = large_nt_xent(z, temperature, implementation) if large else dense_nt_xent(z, temperature)
    return loss if scale == "mean_2n" else 2 * loss


def dense_nt_xent(z: Tensor, temperature: float) -> Tensor:
    """The mean loss of this rank's anchors z [2n, d], from the whole matrix of logits."""
    everyone = all_gather(z)  # [2N, d]: each rank's 2n rows in turn; gradients of all ranks' losses flow back
    logits = z @ everyone.T / temperature  # [2n, 2N]
    own = torch.arange(len(z), device=z.device) + len(z) * rank()  # [2n]: where the anchors are among the columns
    partner = own.roll(len(z) // 2)  # [2n]: a_i's is b_i, b_i's is a_i
    # An anchor is no candidate of its own. Minus infinity says so in any type; the reference's -1e9 overflows float16.
    logits = logits.scatter(1, own[:, None], float("-inf"))
    return F.cross_entropy(logits, partner)
