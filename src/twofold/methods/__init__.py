"""What is trained and what one step is: one file a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.methods.base import Method, Output
from twofold.methods.simclr import SimCLR


@dataclass(frozen=True)
class MethodConfig:
    """What is minimised."""

    name: Literal["simclr"] = "simclr"
    """The method."""
    temperature: float | None = None
    """Temperature of the contrastive logits, above 0. Chosen from the batch when not given: 0.1 for 2,048 and more
    (the paper's value), 0.2 below (arXiv 2011.02803 finds small batches better there)."""
    normalize: bool = True
    """Compare projections by cosine; false compares by inner product (Table 5 of the paper)."""
    scale: Literal["mean_2n", "simclr_sum2"] = "mean_2n"
    """Mean over the 2N anchors (the paper's loss), or the released code's value, which is twice that."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"--method.temperature must be above 0, got {self.temperature}")


def build_method(config: MethodConfig, encoder: Encoder, head: HeadConfig) -> Method:
    """Build the method that `config` names around `encoder`; `config.temperature` must be set."""
    if config.temperature is None:
        raise ValueError("the temperature has not been chosen yet")
    return SimCLR(encoder, head, config.temperature, config.normalize, config.scale)


__all__ = ["Method", "MethodConfig", "Output", "SimCLR", "build_method"]
