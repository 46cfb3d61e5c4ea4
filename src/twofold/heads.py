"""What sits on an encoder: the projection head of contrastive training, and the linear classifier.

Source: google-research/simclr, model_util.py and tf2/model.py; arXiv 2002.05709 section 4.2 (kinds of head);
arXiv 2006.10029 section 3 (deeper heads, fine-tuning from a middle layer).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from twofold.distributed import BatchNorm
from twofold.errors import UserError


@dataclass(frozen=True)
class HeadConfig:
    """The projection head."""

    kind: Literal["none", "linear", "nonlinear"] = "nonlinear"
    """none: z = h; linear: one layer; nonlinear: an MLP."""
    layers: int = 2
    """Layers of the nonlinear head, 1 to 4: SimCLR has 2, SimCLR v2 has 3."""
    out_dim: int = 128
    """Length of z; the head of kind none leaves h as it is."""
    hidden_dim: int | None = None
    """Width of the nonlinear head's hidden layers; none = that of h."""
    norm: bool | None = None
    """Batch norm after each layer (SimCLR's code), or biases instead (MoCo); as the method has it when not given."""

    def __post_init__(self) -> None:
        if self.kind not in ("none", "linear", "nonlinear"):
            raise UserError(f"head.kind must be none, linear or nonlinear, got {self.kind!r}")
        if not 1 <= self.layers <= 4:
            raise UserError(f"head.layers must be 1, 2, 3 or 4, got {self.layers}")
        if self.out_dim < 1 or (self.hidden_dim is not None and self.hidden_dim < 1):
            raise UserError(f"head.out_dim and head.hidden_dim must be positive, got {self.out_dim}, {self.hidden_dim}")


class ProjectionHead(nn.Module):
    """Maps representations h [N, in_dim] to projections z [N, out_dim].

    With norm (None too), dense layers have no bias and start as N(0, 0.01^2), and the last norm has no bias either.
    Without, they start as torch's Linear does, which is what facebookresearch/moco (moco/builder.py) trains.
    """

    def __init__(self, in_dim: int, config: HeadConfig | None = None) -> None:
        super().__init__()
        config = config or HeadConfig()
        self.in_dim, self.config = in_dim, replace(config, norm=config.norm is not False)
        count = {"none": 0, "linear": 1, "nonlinear": self.config.layers}[self.config.kind]
        self.out_dim = self.config.out_dim if count else in_dim
        self.layers = nn.ModuleList()
        self.widths = [in_dim]  # of each of `outputs`
        n_in = in_dim
        for j in range(count):
            last = j == count - 1
            n_out = self.out_dim if last else self.config.hidden_dim or in_dim
            dense = nn.Linear(n_in, n_out, bias=not self.config.norm)
            layer = nn.Sequential(dense)
            if self.config.norm:
                nn.init.normal_(dense.weight, std=0.01)
                layer.append(BatchNorm(n_out, bias=not last))
            self.layers.append(layer if last else layer.append(nn.ReLU(inplace=True)))
            self.widths.append(n_out)
            n_in = n_out

    def outputs(self, h: Tensor) -> list[Tensor]:
        """h and the output of each layer, z last. SimCLR v2 fine-tunes from output 1 of a 3-layer head."""
        outputs: list[Tensor] = self(h, every_layer=True)  # called as a module is, so that hooks see it
        return outputs

    def forward(self, h: Tensor, every_layer: bool = False) -> Tensor | list[Tensor]:
        """[N, in_dim] -> [N, out_dim], or the list of `outputs`; the loss, not the head, normalises z."""
        outputs = [h]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs if every_layer else outputs[-1]


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
