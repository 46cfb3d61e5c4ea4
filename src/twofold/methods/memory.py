"""SimCLR v2's memory: a slow copy of the network gives what views are compared with, now and in earlier batches.

The option is described in arXiv 2006.10029 (section 3) and was never released. What is here follows its author's words
in an issue of google-research/simclr (#115): what an anchor is contrasted with comes from the momentum network, of the
current batch and of past ones as in MoCo, under SimCLR's augmentation.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from twofold.distributed import all_gather, rank
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.methods.base import ContrastiveOutput, Inputs
from twofold.methods.moco import unit
from twofold.methods.queue import KeyQueue
from twofold.methods.simclr import SimCLR


class SimCLRMemory(SimCLR):
    """SimCLR whose positives and negatives are keys of a momentum network: this batch's, and K of earlier ones.

    An anchor is a view's projection z of the network that learns. Its positive is the key of the image's other view;
    its negatives are both views' keys of all other images of the batch, on all ranks, and the queue: 2(N - 1) + K. No
    gradient reaches a key. In training mode the momentum network moves before the step, and the queue takes the batch's
    2N keys after it. Batch norm takes statistics over all ranks in both networks, so that no order gives a key away.

    Args:
        encoder, head, temperature, normalize, scale: see `SimCLR`.
        memory: K, at least the 2N keys of one step.
        momentum: share of the momentum network that stays at each step, in [0, 1].
        seed: of the queue's random start; the same on all ranks.

    Raises:
        UserError: memory or momentum out of range, or comparison by inner product.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: HeadConfig,
        temperature: float = 0.1,
        normalize: bool = True,
        scale: Literal["mean_2n", "simclr_sum2"] = "mean_2n",
        memory: int = 65536,
        momentum: float = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder, head, temperature, normalize, scale)
        if memory < 1 or not 0 <= momentum <= 1:
            raise UserError(
                "--method.memory must be at least 1 and --method.memory_momentum in [0, 1], got "
                f"{memory} and {momentum}"
            )
        if not normalize:
            raise UserError("--method.memory keeps keys of unit length: leave --method.normalize true")
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_head = copy.deepcopy(self.head).requires_grad_(False)
        assert isinstance(self.head, ProjectionHead)
        self.queue = KeyQueue(self.head.out_dim, memory, seed)
        self.momentum = momentum

    def forward(self, inputs: Inputs) -> ContrastiveOutput:
        """One step's loss of two batches of views, [n, C, S, S] each, row i of both from image i."""
        if self.training:
            self.follow()
        views = torch.cat(inputs.images())
        h = self.encoder(views)
        z, layers = self.project(h)
        z_a, z_b = unit(z).chunk(2)
        keys_a, keys_b = self.keys(views)
        old = self.queue.keys.clone()  # the queue is overwritten before the backward pass reads it
        loss = (self._contrast(z_a, keys_b, keys_a, old) + self._contrast(z_b, keys_a, keys_b, old)) / 2
        if self.training:
            self.queue.push(torch.cat([keys_a, keys_b]))
        loss = loss * (2 if self.scale == "simclr_sum2" else 1)
        return ContrastiveOutput(loss, h.detach(), z_a.detach(), z_b.detach(), layers=layers)

    def _contrast(self, z: Tensor, other: Tensor, same: Tensor, old: Tensor) -> Tensor:
        """Mean cross-entropy of this rank's anchors z [n, k] among keys of the other view and of their own [N, k]."""
        own = rank() * len(z) + torch.arange(len(z), device=z.device)  # each anchor's image in the global batch
        with torch.autocast(z.device.type, enabled=False):  # 8 bits of a bfloat16 logit are too few
            beside = (z @ same.T).scatter(1, own[:, None], -math.inf)  # its own view is no negative
            logits = torch.cat([z @ other.T, beside, z @ old.to(z.dtype)], dim=1) / self.temperature
            return F.cross_entropy(logits, own)

    @torch.no_grad()
    def keys(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of both views of all ranks' images, [N, k] each, rank by rank."""
        first, second = unit(self.momentum_head(self.momentum_encoder(views))).chunk(2)
        return all_gather(first), all_gather(second)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the momentum network's parameters: m * slow + (1 - m) * fast. Its running averages are its own."""
        fast = [*self.encoder.parameters(), *self.head.parameters()]
        slow = [*self.momentum_encoder.parameters(), *self.momentum_head.parameters()]
        get_ema_multi_avg_fn(self.momentum)(slow, fast, 0)

    def negatives(self, batch: int) -> int:
        """2(N - 1) of the batch and K of the memory."""
        return super().negatives(batch) + self.queue.size

    def chance(self, batch: int) -> float:
        """ln(2N - 1 + K), twice that by the scale simclr_sum2. A run starts below: its first memory is noise."""
        return math.log(self.negatives(batch) + 1) * (2 if self.scale == "simclr_sum2" else 1)
