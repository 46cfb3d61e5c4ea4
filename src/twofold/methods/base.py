"""What a method is: the modules it trains, what one step computes, and what happens after the step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from twofold.encoders import Encoder
from twofold.losses import chance_level, describe, negatives_per_anchor


@dataclass(frozen=True)
class Output:
    """What one step gives.

    Attributes:
        loss: scalar to minimise: the mean over this rank's examples.
        h: [2n, d] representations that the encoder gave, detached: of view a, then of view b. [n, d] of view a alone
            where it saw no other.
        z_a, z_b: [n, k] projections that the loss compares, detached.
    """

    loss: Tensor
    h: Tensor
    z_a: Tensor
    z_b: Tensor


class Method(nn.Module):
    """A pretraining method: `forward(a, b)` takes two batches of views and returns an `Output`.

    Attributes:
        encoder: what is kept after training.
        head: what maps its output to the space of the loss.
        temperature, normalize: of the contrastive logits, as in `twofold.losses.nt_xent`.
    """

    encoder: Encoder
    head: nn.Module
    temperature: float
    normalize: bool

    def forward(self, a: Tensor, b: Tensor) -> Output:
        raise NotImplementedError(
            f"{type(self).__name__} does not say what a step of {len(a)} and {len(b)} views computes"
        )

    def trained(self) -> list[nn.Module]:
        """The modules whose parameters the optimiser updates."""
        return [self.encoder, self.head]

    def after_step(self) -> None:
        """Called when the optimiser has made its update (nothing to do unless a method averages or stores)."""

    def negatives(self, batch: int) -> int:
        """Negatives for each anchor at a global batch of `batch` images."""
        return negatives_per_anchor(batch)

    def notice(self) -> str:
        """What somebody who watches the loss should know before it starts; empty where there is nothing to say."""
        return ""

    def chance(self, batch: int) -> float:
        """The loss of an embedding that tells nothing apart, at a global batch of `batch` images."""
        return chance_level(batch)

    def describe(self, output: Output, batch: int) -> dict[str, float]:
        """What a row of metrics tells of a step beside its loss, at a global batch of `batch` images."""
        embedding = describe(output.z_a, output.z_b, output.h, self.temperature, batch, self.normalize)
        return {"negatives": self.negatives(batch)} | embedding | {"chance": self.chance(batch)}
