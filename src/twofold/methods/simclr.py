"""SimCLR (arXiv 2002.05709, Algorithm 1): agree on two views of an image, disagree on all others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch

from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.losses import chance_level, nt_xent
from twofold.losses.studies import Mining, Reduction
from twofold.methods.base import ContrastiveMethod, ContrastiveOutput, Inputs
from twofold.methods.config import ContrastiveConfig, image_temperature
from twofold.methods.queue import check_fits
from twofold.options import GIVEN, option

if TYPE_CHECKING:
    from twofold.data import DataFacts
_ABLATIONS = ("nt_logistic", "margin_triplet")


class SimCLR(ContrastiveMethod):
    """Encoder f, projection head g, NT-Xent on z = g(f(view)).

    Args:
        encoder: f, [n, C, S, S] in [0, 1] -> [n, d].
        head: what g is; section 4.2 of the paper compares none, linear and nonlinear.
        temperature: tau > 0.
        normalize: compare by cosine (True) or by inner product (False; Table 5).
        scale: `mean_2n`, the paper's mean over the 2N anchors, or `simclr_sum2`, the released code's sum of the two
            directions' means: twice as large (tf2/objective.py of google-research/simclr).
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig, variant="simclr"):
        """Contrast with the batch."""

        kind = "image"

        name: str | None = "simclr"
        normalize: bool = True
        """Compare projections by cosine; false compares by inner product (Table 5 of the paper)."""
        scale: Literal["mean_2n", "simclr_sum2"] = option("mean_2n", when={"loss": ("nt_xent",)})
        """Mean over the 2N anchors (the paper's loss), or the released code's value, which is twice that."""
        loss: Literal["nt_xent", "nt_logistic", "margin_triplet"] = "nt_xent"
        """nt_xent, or one that it was compared with (Table 4): its negatives are the second views alone."""
        mining: Mining | None = option(None, when={"loss": _ABLATIONS})
        """All negatives (none), or the semi_hard one only; default none."""
        margin: float | None = option(None, when={"loss": ("margin_triplet",)})
        """The margin, 0 or more (the paper tried 0, 0.4, 0.8 and 1.6); default 0.8."""
        negatives: Reduction | None = option(None, when={"loss": _ABLATIONS, "mining": ("none",)})
        """Mean or sum over an anchor's negatives; default mean."""
        memory: int | None = option(None, when={"loss": ("nt_xent",)})
        """Contrast with keys of a momentum network, the batch's and those of so many earlier views, as SimCLR v2 with
        memory (arXiv 2006.10029); none when not given."""
        memory_momentum: float | None = option(None, when={"memory": (GIVEN,)})
        """Share of the momentum network that stays at each step; default 0.999."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_least(0, "margin")
            self.check_least(1, "memory")
            self.check_shares("memory_momentum")
            if self.mining == "semi_hard" and self.margin == 0:
                raise UserError("--method.margin 0 leaves semi_hard mining no negative: give one above 0")

        def chosen(self, facts: DataFacts, batch: int, steps: int, encoder: str) -> tuple[Self, list[str]]:  # noqa: ARG002
            """The temperature, from the batch."""
            if self.temperature is not None:
                return self, []
            temperature, reason = image_temperature(batch)
            return replace(self, temperature=temperature), [reason]

        def check_batch(self, batch: int) -> None:
            """The memory has to hold the batch's keys."""
            if self.memory is not None:
                check_fits(2 * batch, self.memory, "memory")

        def build(self, encoder: Encoder, head: HeadConfig, seed: int = 0) -> SimCLR:
            """SimCLR, with the loss or the memory that is asked for."""
            from twofold.methods.ablations import SimCLRAblation  # they extend this class
            from twofold.methods.memory import SimCLRMemory

            if self.loss != "nt_xent":
                margin, mining = 0.8 if self.margin is None else self.margin, self.mining or "none"
                return SimCLRAblation(
                    encoder, head, self.tau(), self.normalize, self.loss, margin, mining, self.negatives
                )
            if self.memory is not None:
                momentum = 0.999 if self.memory_momentum is None else self.memory_momentum
                return SimCLRMemory(encoder, head, self.tau(), self.normalize, self.scale, self.memory, momentum, seed)
            return SimCLR(encoder, head, self.tau(), self.normalize, self.scale)

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

    def forward(self, inputs: Inputs) -> ContrastiveOutput:
        """One step's loss of two batches of views, [n, C, S, S] each, row i of both from image i."""
        # One pass over both views: batch normalisation must see them together, or its statistics tell views apart.
        h = self.encoder(torch.cat(inputs.images()))  # [2n, d]
        z, layers = self.project(h)
        z_a, z_b = z.chunk(2)  # [n, k] each
        loss = nt_xent(z_a, z_b, self.temperature, self.normalize, self.scale)
        return ContrastiveOutput(loss, h.detach(), z_a.detach(), z_b.detach(), layers=layers)

    def chance(self, batch: int) -> float:
        """ln(2N - 1), or what `scale` makes of it."""
        return chance_level(batch) * (2 if self.scale == "simclr_sum2" else 1)
