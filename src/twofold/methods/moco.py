"""MoCo (arXiv 1911.05722, 2003.04297): find each query's key among those of earlier batches, kept in a queue."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from twofold.distributed import all_gather, keep_batch_norm_local, rank, world_size
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.losses import info_nce
from twofold.methods.base import Method, Output
from twofold.methods.queue import KeyQueue
from twofold.randomness import permutation


class MoCo(Method):
    """A query encoder that learns, a key encoder that follows it slowly, and a queue of the latter's outputs.

    One step (moco/builder.py of facebookresearch/moco): the key encoder's parameters move towards the query encoder's;
    queries q = f_q(a) and keys k = f_k(b), of unit length, are compared with each other and with the queue; then the
    keys of all ranks, rank by rank, replace the oldest in the queue. No gradient reaches keys.

    Batch norm takes statistics of a rank's rows, or of each of its splits. Keys are encoded in shuffled order, because
    a query whose key went through the same statistics would be found by them. The running averages of the two encoders
    are their own.

    Args:
        encoder: f_q, [n, C, S, S] in [0, 1] -> [n, d]; its batch norm layers are kept local.
        head: linear for MoCo v1, two layers for v2; without batch norm unless `norm` says true.
        temperature: tau > 0.
        queue: K, at least the keys of one step.
        momentum: m in [0, 1]: share of the key encoder that stays at each step.
        symmetric: also compare queries of b with keys of a: two losses added, both batches of keys queued (a's part of
            the step first), one move of the key encoder, as in the repository's CIFAR-10 demo.
        bn_splits: runs of a rank's rows that stand for ranks. The demo has 8, of rows taken in turn; here they are
            runs of rows, so that S splits equal S ranks.
        shuffle: encode keys in shuffled order (where there is more than one rank or split).
        seed: of the shuffling and of the queue's start; the same on all ranks.

    Raises:
        UserError: an option out of range, or an encoder whose batch norm cannot be split.
    """

    normalize = True

    def __init__(
        self,
        encoder: Encoder,
        head: HeadConfig,
        temperature: float = 0.2,
        queue: int = 65536,
        momentum: float = 0.999,
        symmetric: bool = False,
        bn_splits: int = 1,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if queue < 1 or bn_splits < 1 or not 0 <= momentum <= 1:
            raise UserError(
                f"MoCo needs a queue and bn_splits of 1 or more and a momentum in [0, 1], got {queue}, {bn_splits} and "
                f"{momentum}"
            )
        self.encoder = encoder
        self.head = ProjectionHead(encoder.feature_dim, replace(head, norm=bool(head.norm)))
        keep_batch_norm_local(nn.ModuleList([self.encoder, self.head]), bn_splits)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_head = copy.deepcopy(self.head).requires_grad_(False)
        self.queue = KeyQueue(self.head.out_dim, queue, seed)
        self.temperature, self.momentum, self.symmetric = temperature, momentum, symmetric
        self.bn_splits, self.shuffle, self.seed = bn_splits, shuffle, seed
        self.steps = 0

    def forward(self, a: Tensor, b: Tensor) -> Output:
        """One step's loss of two batches of views, [n, C, S, S] each, row i of both from image i.

        In training mode the key encoder moves first and the queue last; in inference mode both stay.
        """
        if self.training:
            self.follow()
        negatives = self.queue.keys.clone()  # the queue is overwritten before the backward pass reads it
        h, q = self.queries(a)
        k, keys = self.keys(b, "shuffle")
        loss, _ = info_nce(q, k, negatives, self.temperature)
        if self.symmetric:
            h_b, q_b = self.queries(b)
            k_a, keys_a = self.keys(a, "shuffle/swapped")
            loss = loss + info_nce(q_b, k_a, negatives, self.temperature)[0]
            h, keys = torch.cat([h, h_b]), torch.cat([keys, keys_a])
        if self.training:
            self.queue.push(keys)
            self.steps += 1
        return Output(loss, h.detach(), q.detach(), k)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the key encoder's parameters: m * theta_k + (1 - m) * theta_q. Buffers are no parameters and stay."""
        queries, keys = [*self.encoder.parameters(), *self.head.parameters()], self.key_parameters()
        get_ema_multi_avg_fn(self.momentum)(keys, queries, self.steps)

    def key_parameters(self) -> list[nn.Parameter]:
        """The key encoder's and its head's parameters, in the order of the query encoder's."""
        return [*self.momentum_encoder.parameters(), *self.momentum_head.parameters()]

    def queries(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Representations [n, d] and queries [n, k]."""
        h = self.encoder(images)
        return h, unit(self.head(h))

    @torch.no_grad()
    def keys(self, images: Tensor, stream: str) -> tuple[Tensor, Tensor]:
        """This rank's keys [n, k], and those of all ranks [world * n, k], rank by rank."""
        n, total = len(images), world_size() * len(images)
        own = slice(rank() * n, (rank() + 1) * n)
        shuffled = self.shuffle and world_size() * self.bn_splits > 1
        if shuffled:
            order = torch.from_numpy(permutation(self.seed, stream, self.steps, total)).to(
                images.device, non_blocking=images.is_cuda
            )
            images = all_gather(images)[order[own]]
        keys = all_gather(unit(self.momentum_head(self.momentum_encoder(images))))
        if shuffled:
            keys = keys[order.argsort()]
        return keys[own], keys

    def negatives(self, batch: int) -> int:  # noqa: ARG002 (other methods' depend on it)
        """K, whatever the batch."""
        return self.queue.size

    def chance(self, batch: int) -> float:  # noqa: ARG002
        """ln(K + 1), twice that for the symmetric loss. A run starts below: its first negatives are noise."""
        return math.log(self.queue.size + 1) * (2 if self.symmetric else 1)

    def notice(self) -> str:
        """Where chance lies, and why the loss rises before it falls."""
        level = f"{'2 ' if self.symmetric else ''}ln(K + 1) = {self.chance(0):.2f}"
        return (
            f"the loss of chance is {level} (K = {self.queue.size:,} keys); a run starts below it and rises first, "
            "while keys take the place of the queue's random start: that is no fault"
        )

    def get_extra_state(self) -> dict[str, Any]:
        """What the state dict holds beside tensors: the number of the step, which is the shuffling's address."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up a saved number of the step."""
        self.steps = int(state["steps"])


def unit(z: Tensor) -> Tensor:
    """Rows of unit length, in float32 or better whatever autocast made of z."""
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
