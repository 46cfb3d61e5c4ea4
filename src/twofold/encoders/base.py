"""What an encoder is: an input it states, features it gives, and a specification it can be rebuilt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from twofold.encoders.blocks import Blocks
from twofold.errors import UserError
from twofold.kinds import Kind

MISFIT = (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError, AssertionError)
"""What constructors raise for arguments that they were not made for."""


@dataclass(frozen=True)
class InputSpec:
    """What an encoder takes: images [N, channels, H, W] of floats in [0, 1], or waveforms [N, samples] with lengths."""

    channels: int = 3
    """Number of channels."""
    size: int | None = None
    """The one side H = W in pixels that it takes; None where any will do."""
    kind: Kind = "image"
    """What the input is."""
    sample_rate: int | None = None
    """Of recordings, in Hz."""


class Encoder(nn.Module):
    """Base of all encoders. A subclass names its `kind` and gives `features` and `arguments`.

    Args:
        input: what it takes.
        feature_dim: d, the length of a feature vector.
    """

    kinds: ClassVar[dict[str, type[Encoder]]] = {}
    kind: ClassVar[str]
    feature_dim: int

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        """Register the subclass under `kind`, the word by which a specification finds it again."""
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind
            Encoder.kinds[kind] = cls

    def __init__(self, input: InputSpec, feature_dim: int) -> None:  # noqa: A002 (the contract's word)
        super().__init__()
        self.input = input
        self.feature_dim = feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: [N, channels, H, W], floats in [0, 1], or uint8, which is divided by 255.

        Returns:
            [N, feature_dim].

        Raises:
            UserError: wrong shape or type of values.
        """
        return self.features(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Check images and bring them to floats of the parameters' type."""
        expected = f"[N, {self.input.channels}, {self.input.size or 'H'}, {self.input.size or 'W'}]"
        got = tuple(images.shape)
        if images.ndim != 4 or got[1] != self.input.channels:
            last = images.ndim == 4 and got[3] == self.input.channels
            hint = "channels come second: use images.permute(0, 3, 1, 2)" if last else "see encoder.channels"
            raise UserError(f"this encoder takes images of shape {expected}, got {got}; {hint}")
        if self.input.size is not None and got[2:] != (self.input.size, self.input.size):
            raise UserError(f"this encoder takes images of shape {expected} only, got {got}; resize them first")
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        if images.dtype == torch.uint8:
            return images.to(dtype) / 255
        if not images.is_floating_point():
            raise UserError(f"this encoder takes floats in [0, 1] or uint8, got {images.dtype}; convert the images")
        return images.to(dtype)

    def features(self, x: Tensor) -> Tensor:
        """Features [N, feature_dim] of prepared images."""
        raise NotImplementedError(f"{type(self).__name__} gives no features")

    def body(self) -> nn.Module:
        """What a training step runs, compiled or in chunks: all of it, unless its method runs a part by itself."""
        return self

    def blocks(self) -> Blocks | None:
        """Its stem and its blocks, from the input up; None where its structure does not tell them."""
        return None

    def arguments(self) -> dict[str, Any]:
        """What `from_arguments` needs to build it again, in JSON's types."""
        raise NotImplementedError(f"{type(self).__name__} cannot say how it was built")

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], module: nn.Module | None = None) -> Encoder:
        """Build from `arguments()`; `module` only for the kind that wraps a module of the user's own."""
        if module is not None:
            raise UserError(f"an encoder of kind '{cls.kind}' is rebuilt from its specification; leave `module` out")
        return cls(**arguments)

    def spec(self) -> dict[str, Any]:
        """The specification, in JSON's types, from which `build_encoder_from_spec` rebuilds it (without weights)."""
        return {"kind": self.kind, **self.arguments()}


def build_encoder_from_spec(spec: dict[str, Any], module: nn.Module | None = None) -> Encoder:
    """Build the encoder that `spec` describes, with fresh weights.

    Args:
        spec: what `Encoder.spec()` gave.
        module: for kind "custom" the user's own module, which a specification cannot hold.

    Raises:
        UserError: unknown kind, or arguments that the kind does not take.
    """
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in Encoder.kinds:
        raise UserError(f"unknown kind of encoder {kind!r}; known are {', '.join(sorted(Encoder.kinds))}")
    try:
        return Encoder.kinds[kind].from_arguments(arguments, module)
    except MISFIT as error:
        raise UserError(f"the specification {spec} builds no encoder: {error}") from error
