"""SimCLR (arXiv 2002.05709, Algorithm 1): agree on two views of an image, disagree on all others."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from twofold.encoders import Encoder
from twofold.heads import HeadConfig, ProjectionHead
from twofold.losses import chance_level, nt_xent
from twofold.methods.base import Method, Output


class SimCLR(Method):
    """Encoder f, projection head g, NT-Xent on z = g(f(view)).

    Args:
        encoder: f, [n, C, S, S] in [0, 1] -> [n, d].
        head: what g is; section 4.2 of the paper compares none, linear and nonlinear.
        temperature: tau > 0.
        normalize: compare by cosine (True) or by inner product (False; Table 5).
        scale: `mean_2n`, the paper's mean over the 2N anchors, or `simclr_sum2`, the released code's sum of the two
            directions' means: twice as large (tf2/objective.py of google-research/simclr).
    """

    def __init__(
        self,
        encoder: Encoder,
        head: HeadConfig,
        temperature: float = 0.1,
        normalize: bool = True,
        scale: Literal["mean_2n", "simclr_sum2"] = "mean_2n",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(encoder.feature_dim, head)
        self.temperature = temperature
        self.normalize = normalize
        self.scale = scale

    def forward(self, a: Tensor, b: Tensor) -> Output:
        """One step's loss of two batches of views, [n, C, S, S] each, row i of both from image i."""
        # One pass over both views: batch normalisation must see them together, or its statistics tell views apart.
        h = self.encoder(torch.cat([a, b]))  # [2n, d]
        z_a, z_b = self.head(h).chunk(2)  # [n, k] each
        loss = nt_xent(z_a, z_b, self.temperature, self.normalize, self.scale)
        return Output(loss, h.detach(), z_a.detach(), z_b.detach())

    def chance(self, batch: int) -> float:
        """ln(2N - 1), or what `scale` makes of it."""
        return chance_level(batch) * (2 if self.scale == "simclr_sum2" else 1)
