"""The head's output as features: what MoCo's kNN monitor looks at, where SimCLR's evaluations look at h."""

from __future__ import annotations

from torch import Tensor, nn

from twofold.encoders import Encoder


class Projected(Encoder):
    """Encoder and head as one: features are z = head(h), not normalised.

    Args:
        encoder: gives h [N, d].
        head: [N, d] -> [N, k].
        dim: k.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, dim: int) -> None:
        super().__init__(encoder.input, dim)
        self.encoder, self.head = encoder, head

    def prepare(self, images: Tensor) -> Tensor:
        """As the encoder takes them, sounds too."""
        return self.encoder.prepare(images)

    def features(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> z [N, k]."""
        z: Tensor = self.head(self.encoder.features(x))
        return z
