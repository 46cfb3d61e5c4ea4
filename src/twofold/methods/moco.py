"""MoCo (arXiv 1911.05722, 2003.04297): find each query's key among those of earlier batches, kept in a queue."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from twofold.distributed import all_gather, keep_batch_norm_local, rank, world_size
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.losses import info_nce
from twofold.methods.base import ContrastiveMethod, ContrastiveOutput, Inputs
from twofold.methods.config import ContrastiveConfig, image_temperature
from twofold.methods.queue import KeyQueue, check_fits
from twofold.randomness import permutation
from twofold.text import counted

if TYPE_CHECKING:
    from twofold.data import DataFacts


class MoCo(ContrastiveMethod):
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

    local_batch_norm = True

    @dataclass(frozen=True)
    class Config(ContrastiveConfig, variant="moco"):
        """Contrast with a queue of keys, for small batches."""

        kind = "image"

        name: str | None = "moco"
        queue: int | None = None
        """Number of keys K, the negatives of each query. Chosen from the data when not given: up to 65,536."""
        momentum: float | None = None
        """Share of the key encoder that stays at each step. When not given, so that it averages over a two-hundredth of
        the steps, as the CIFAR-10 demo's, and at most over 1,000, as published: 0.8 for 1,000 steps, 0.999 from
        200,000."""
        symmetric: bool | None = None
        """Each view is query and key in turn, and both losses are added. When not given, false, as published, and true
        where the key encoder follows fast (a momentum below 0.99)."""
        bn_splits: int | None = None
        """Equal runs of a device's batch that batch norm takes for devices (the CIFAR-10 demo: 8). When not given, up
        to 8 of at least 16 images for a ResNet on one device, else 1."""
        shuffle: bool | None = None
        """Encode keys in an order that parts them from their queries' batch statistics; default true."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_least(1, "queue", "bn_splits")
            self.check_shares("momentum")

        def chosen(self, facts: DataFacts, batch: int, steps: int, encoder: str) -> tuple[Self, list[str]]:
            """A key encoder that averages over a two-hundredth of the run and a queue of an eighth of the images, as in
            the CIFAR-10 demo; and what suits a run so short that the key encoder has to follow fast (docs/moco.md).
            """
            config, reasons = self, []
            if config.temperature is None:
                temperature, reason = image_temperature(batch)
                reasons.append(reason)
                config = replace(config, temperature=temperature)
            if config.momentum is None:
                over = min(max(steps / 200, 1), 1000)
                config = replace(config, momentum=round(1 - 1 / over, 3))
                reasons.append(f"method.momentum {config.momentum:g} (over {over:,.0f} of {counted(steps, 'step')})")
            if config.follows_fast and config.symmetric is None:
                reasons.append(f"method.symmetric true (momentum {config.momentum:g})")
                config = replace(config, symmetric=True)
            if config.queue is None:
                keys = batch * (2 if config.symmetric else 1)
                queue = min(65536, max(2 ** int(math.log2(max(facts.count // 8, 1))), 2 * keys))
                reasons.append(f"method.queue {queue} ({counted(facts.count, 'image')})")
                config = replace(config, queue=queue)
            if config.bn_splits is None and world_size() == 1 and "resnet" in encoder and "timm:" not in encoder:
                splits = max(s for s in (1, 2, 4, 8) if batch % s == 0 and batch // s >= (16 if s > 1 else 1))
                reasons.append(f"method.bn_splits {splits} (one device)")
                config = replace(config, bn_splits=splits)
            return config, reasons

        @property
        def follows_fast(self) -> bool:
            """Whether the key encoder is nearly the query encoder, as in runs of less than 20,000 steps."""
            return self.momentum is not None and self.momentum < 0.99

        @property
        def head_norm(self) -> bool:
            """None, as published, but where the key encoder follows fast."""
            return self.follows_fast

        def check_batch(self, batch: int) -> None:
            """The queue has to hold the batch's keys, and the splits have to divide a device's batch."""
            if self.queue is not None:
                check_fits(batch * (2 if self.symmetric else 1), self.queue)
            own, splits = batch // world_size(), self.bn_splits or 1
            if splits > 1 and own % splits:
                raise UserError(
                    f"--method.bn_splits {splits} does not divide the {counted(own, 'image')} of a device's batch: "
                    "choose a --batch that it divides"
                )

        def about_chance(self) -> str:
            """Where it comes from; a run starts below it."""
            twice = "2 " if self.symmetric else ""
            return f" = {twice}ln(K + 1), K = {self.queue:,}; the loss rises first, while the queue fills"

        def build(self, encoder: Encoder, head: HeadConfig, seed: int = 0) -> MoCo:
            """MoCo; what is left open is as published."""
            names = ("queue", "momentum", "symmetric", "bn_splits", "shuffle")
            given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            return MoCo(encoder, head, self.tau(), **given, seed=seed)

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

    def forward(self, inputs: Inputs) -> ContrastiveOutput:
        """One step's loss of two batches of views, [n, C, S, S] each, row i of both from image i.

        In training mode the key encoder moves first and the queue last; in inference mode both stay.
        """
        a, b = inputs.images()
        if self.training:
            self.follow()
        negatives = self.queue.keys.clone()  # the queue is overwritten before the backward pass reads it
        h, q, layers = self.queries(a)
        k, keys = self.keys(b, "shuffle")
        loss, _ = info_nce(q, k, negatives, self.temperature)
        if self.symmetric:
            h_b, q_b, layers_b = self.queries(b)
            k_a, keys_a = self.keys(a, "shuffle/swapped")
            loss = loss + info_nce(q_b, k_a, negatives, self.temperature)[0]
            h, keys = torch.cat([h, h_b]), torch.cat([keys, keys_a])
            layers = tuple(torch.cat(pair) for pair in zip(layers, layers_b, strict=True))
        if self.training:
            self.queue.push(keys)
            self.steps += 1
        return ContrastiveOutput(loss, h.detach(), q.detach(), k, layers=layers)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the key encoder's parameters: m * theta_k + (1 - m) * theta_q. Buffers are no parameters and stay."""
        queries, keys = [*self.encoder.parameters(), *self.head.parameters()], self.key_parameters()
        get_ema_multi_avg_fn(self.momentum)(keys, queries, self.steps)

    def key_parameters(self) -> list[nn.Parameter]:
        """The key encoder's and its head's parameters, in the order of the query encoder's."""
        return [*self.momentum_encoder.parameters(), *self.momentum_head.parameters()]

    def queries(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Representations [n, d], queries [n, k], and what each layer of the head gave."""
        h = self.encoder(images)
        z, layers = self.project(h)
        return h, unit(z), layers

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
            f"the loss of chance is {level} (K = {counted(self.queue.size, 'key')}); a run starts below it and rises "
            "first, while keys take the place of the queue's random start: that is no fault"
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
