"""SimCLR with the losses that the paper compares NT-Xent with (arXiv 2002.05709, section 5.1, Tables 2 and 4)."""

from __future__ import annotations

import math
from typing import Literal

import torch

from twofold.encoders import Encoder
from twofold.heads import HeadConfig
from twofold.losses import margin_triplet, nt_logistic
from twofold.losses.studies import Mining, Reduction
from twofold.methods.base import ContrastiveOutput, Inputs
from twofold.methods.simclr import SimCLR


class SimCLRAblation(SimCLR):
    """SimCLR with NT-Logistic or the margin triplet loss in place of NT-Xent.

    Views a are anchors and views b of all ranks candidates, as in the paper's comparison (appendix B.10).

    Args:
        encoder, head, normalize: as in `SimCLR`.
        temperature: of nt_logistic; under margin_triplet, of the metrics alone.
        loss: which of the two.
        margin: of margin_triplet.
        mining: all negatives, or the semi-hard one.
        negatives: how all of an anchor's are reduced, see `losses.studies`.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: HeadConfig,
        temperature: float,
        normalize: bool = True,
        loss: Literal["nt_logistic", "margin_triplet"] = "nt_logistic",
        margin: float = 0.8,
        mining: Mining = "none",
        negatives: Reduction | None = None,
    ) -> None:
        super().__init__(encoder, head, temperature, normalize)
        self.loss, self.margin, self.mining, self.reduction = loss, margin, mining, negatives

    def forward(self, inputs: Inputs) -> ContrastiveOutput:
        """As `SimCLR.forward`, with the other loss."""
        h = self.encoder(torch.cat(inputs.images()))  # [2n, d], one pass
        z, layers = self.project(h)
        z_a, z_b = z.chunk(2)  # [n, k] each
        if self.loss == "nt_logistic":
            loss = nt_logistic(z_a, z_b, self.temperature, self.normalize, self.mining, self.reduction)
        else:
            loss = margin_triplet(z_a, z_b, self.margin, self.normalize, self.mining, self.reduction)
        return ContrastiveOutput(loss, h.detach(), z_a.detach(), z_b.detach(), layers=layers)

    def negatives(self, batch: int) -> int:
        """N - 1: the other images' second views."""
        return batch - 1

    def chance(self, batch: int) -> float:
        """The loss where all similarities are near 0 and in no order."""
        terms = self.negatives(batch) if self.reduction == "sum" else 1
        return math.log(2) * (1 + terms) if self.loss == "nt_logistic" else self.margin * terms
