"""The encoder of Speech SimCLR (arXiv 2010.13991): a transformer over frames of spectral features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import UserError

_SHORT = 200
"""Frames up to which attention on a CPU is computed in plain operators."""


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """bool [n, frames]: true within each example's length."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def mean_over_time(x: Tensor, lengths: Tensor, padded: bool = False) -> Tensor:
    """Mean of the frames within each example's length, [n, T, d] -> [n, d]; 0 for an example without frames.

    Args:
        x: [n, T, d].
        lengths: [n], at most T.
        padded: divide by T instead, as athena/models/simclr.py does, which scales an example by length / T.
    """
    valid = valid_frames(lengths, x.shape[1])
    total = torch.where(valid[:, :, None], x, 0.0).sum(1)
    return total / (x.shape[1] if padded else lengths.clamp(min=1)[:, None])


class TransformerLayer(nn.Module):
    """Self-attention and an MLP, each added to its input and normalised after that (post-norm).

    Layer norms have eps 1e-8 and the GELU is the approximation by tanh, as in athena/layers/transformer.py.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        """[n, T, width] -> the same; `attend` bool [n, 1, 1, T]: the frames that others may look at."""
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )  # [n, heads, T, width / heads]
        seen = _attention(q, k, v, attend).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.dropout(self.output(seen)))
        y: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return y


def _attention(q: Tensor, k: Tensor, v: Tensor, attend: Tensor) -> Tensor:
    """Scaled dot-product attention; [n, heads, T, d] each.

    Short sequences on a CPU: as three plain operators, whose backward pass takes a quarter of the time of the fused one
    at T = 100 (from some 200 frames on, the fused one wins).
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling() or q.shape[2] > _SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
    scores: Tensor = (q * float(q.shape[3]) ** -0.5) @ k.transpose(2, 3)
    return scores.masked_fill(~attend, float("-inf")).softmax(3).to(v.dtype) @ v


class SpeechTransformer(nn.Module):
    """Frames of spectral features in, a vector a frame out. Defaults: the published size.

    As the released code runs it: a dense layer with ReLU, then post-norm transformer layers; no positions (its
    convolutions and sinusoids are built and never called). Source: athena/models/simclr.py, branch simclr.

    Args:
        features: F, numbers a frame.
        width: d of what comes out; heads must divide it.
        layers, heads, hidden: of the transformer; hidden is the width inside its MLPs.
        dropout: in training, after attention and in the MLPs.
        stack: so many neighbouring frames become one step of the transformer (the published encoder has 1).
    """

    def __init__(
        self,
        features: int = 40,
        width: int = 768,
        layers: int = 3,
        heads: int = 12,
        hidden: int = 3072,
        dropout: float = 0.1,
        stack: int = 1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"heads must divide width, got {heads} and {width}")
        if stack < 1:
            raise UserError(f"stack must be 1 or more frames, got {stack}")
        self.features, self.feature_dim, self.stack = features, width, stack
        self.dense = nn.Linear(features * stack, width)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, hidden, dropout) for _ in range(layers))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encode [n, T, F] frames, of which the first `lengths` [n] count, as [n, ceil(T / stack), width].

        Steps beyond `steps(lengths)` are 0.

        Raises:
            UserError: x is not [n, T, F], or a length is not in 1 .. T.
        """
        return self.hidden_states(x, lengths)[-1]

    def steps(self, frames: Tensor) -> Tensor:
        """Steps that so many frames make: a stack that is not full counts."""
        return (frames + self.stack - 1) // self.stack

    def hidden_states(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        """What `forward` gives, after what the dense layer and each layer before gave: layers + 1 of its shape."""
        if x.ndim != 3 or x.shape[2] != self.features or lengths.shape != x.shape[:1]:
            raise UserError(
                f"this encoder takes frames [n, T, {self.features}] and lengths [n], got {tuple(x.shape)} and "
                f"{tuple(lengths.shape)}"
            )
        # (torch.compile and torch.export cannot follow a look at the values)
        looked = not torch.compiler.is_compiling() and len(lengths) > 0
        if looked and not 1 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
            raise UserError(f"lengths must lie in 1 .. {x.shape[1]}, got {int(lengths.min())} .. {int(lengths.max())}")
        if self.stack > 1:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stack)).unflatten(1, (-1, self.stack)).flatten(2)
        valid = valid_frames(self.steps(lengths), x.shape[1])
        states = [F.relu(self.dense(x))]
        for layer in self.layers:
            states.append(layer(states[-1], valid[:, None, None, :]))
        return [torch.where(valid[:, :, None], state, 0.0) for state in states]
