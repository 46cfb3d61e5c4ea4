"""The linear classifier on frozen or fine-tuned features."""

from __future__ import annotations

from typing import Literal

from torch import nn

from twofold.errors import UserError


class Classifier(nn.Linear):
    """Logits [N, classes] of features [N, in_dim]; a class of its own for optimisers to find.

    Weights start as N(0, 0.01^2) (init "normal") or 0 ("zero"), the bias at 0.
    """

    def __init__(self, in_dim: int, classes: int, init: Literal["normal", "zero"] = "normal") -> None:
        super().__init__(in_dim, classes)
        if init not in ("normal", "zero"):
            raise UserError(f"a classifier starts as normal or zero, got init={init!r}")
        nn.init.normal_(self.weight, std=0.01 if init == "normal" else 0.0)
        nn.init.zeros_(self.bias)
