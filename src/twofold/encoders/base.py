"""What an encoder is: an input it states, features it gives, and a specification it can be rebuilt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from twofold.encoders.blocks import Blocks
from twofold.errors import UserError
from twofold.kinds import Kind

MISFIT = (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError, AssertionError)
"""What constructors raise for arguments that they were not made for."""


@dataclass(frozen=True)
class Preprocessing:
    """What was done to test images of any size when an encoder was trained, and is to be done to those it is given.

    Decoded as `pixels` says; then, where a side is given and the image is not of it, the central square is cut out and
    resized to it. The square is `crop` of the shorter side, or all of it where the side or the image has at most
    `whole_up_to` pixels (tf2/data_util.py in google-research/simclr). At last values lie in [0, 1], and the encoder
    normalises by itself what it normalises.
    """

    size: int | None = None
    """Side in pixels of what the encoder is given; None: images stay as large as they are."""
    crop: float = 0.875
    """Share of the shorter side that the central square has."""
    whole_up_to: int = 32
    """The central square is all of the shorter side where the size, or the image, is no larger."""
    resample: str = "antialias"
    """Interpolation: bicubic antialias as Pillow's, tf2 and tf1 as TensorFlow's two; bilinear as Pillow's."""
    rule: str = "auto"
    """auto as above; crop and resize whatever the sides; letterbox: the whole image between bars of its mean colour;
    squares: several along the longer side, whose features are averaged; none: as it is."""
    pixels: Mapping[str, Any] = field(default_factory=dict)
    """How files become pixels, by the names of `data.*`: background, orient, deep_pixels, pixel_range, bands, ..."""

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return asdict(self) | {"pixels": dict(self.pixels)}


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
    preprocessing: Preprocessing | None = None
    """Of images, where it is known: of encoders that `twofold.load` has loaded."""


class Encoder(nn.Module):
    """Base of all encoders. A subclass names its `kind` and gives `features` and `arguments`.

    Args:
        input: what it takes.
        feature_dim: d, the length of a feature vector.
    """

    kinds: ClassVar[dict[str, type[Encoder]]] = {}
    kind: ClassVar[str]
    feature_dim: int
    preprocessor: Callable[[Any], Tensor] | None = None
    """What `preprocess` does; `twofold.load` sets it from the encoder's file."""

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

    def forward(self, images: Any) -> Tensor:
        """Features of images.

        Args:
            images: tensor or array [N, channels, H, W], floats in [0, 1], or uint8, which is divided by 255; or
                anything that `preprocess` takes, which is then preprocessed.

        Returns:
            [N, feature_dim].

        Raises:
            UserError: wrong shape or type of values.
        """
        return self.features(self.prepare(images))

    def preprocess(self, images: Any) -> Tensor:
        """Images of any size as the encoder was evaluated on them: decoded, cut, resized, in [0, 1].

        Args:
            images: a picture of Pillow's, the path of a file, an array or tensor [H, W], [H, W, channels] or
                [channels, H, W]; or several: a list of these, or an array of four dimensions.

        Returns:
            float32 [n, channels, S, S] on the CPU, n = 1 for one image.

        Raises:
            UserError: the encoder was not loaded from a file and so does not know its preprocessing; an image that
                cannot be read; channels that the encoder does not take; images that stay of different sizes.
        """
        if self.preprocessor is None:
            raise UserError(
                "this encoder does not know how its images are preprocessed: load it with twofold.load, or give it "
                f"tensors [N, {self.input.channels}, H, W] of floats in [0, 1]"
            )
        return self.preprocessor(images)

    def _as_tensor(self, images: Any) -> Tensor:
        """An array [N, channels, H, W] as it is, anything else preprocessed; on the parameters' device."""
        if isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[1] == self.input.channels:
            tensor = torch.from_numpy(np.array(images))  # a copy: of arrays that must not be written to torch warns
            low, high = (float(tensor.min()), float(tensor.max())) if tensor.numel() else (0.0, 0.0)
            if tensor.is_floating_point() and not (low >= 0 and high <= 1):
                raise UserError(
                    f"images with values from {low:g} to {high:g}: this encoder takes floats in [0, 1], or uint8; "
                    "divide those of 0 to 255 by 255"
                )
        else:
            tensor = self.preprocess(images)
        return tensor.to(next((p.device for p in self.parameters()), torch.device("cpu")))

    def prepare(self, images: Any) -> Tensor:
        """Check images and bring them to floats of the parameters' type."""
        x: Tensor = images if isinstance(images, Tensor) else self._as_tensor(images)
        expected = f"[N, {self.input.channels}, {self.input.size or 'H'}, {self.input.size or 'W'}]"
        got = tuple(x.shape)
        if x.ndim != 4 or got[1] != self.input.channels:
            last = x.ndim == 4 and got[3] == self.input.channels
            hint = "channels come second: use images.permute(0, 3, 1, 2)" if last else "see encoder.channels"
            raise UserError(f"this encoder takes images of shape {expected}, got {got}; {hint}")
        if self.input.size is not None and got[2:] != (self.input.size, self.input.size):
            raise UserError(f"this encoder takes images of shape {expected} only, got {got}; resize them first")
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        if x.dtype == torch.uint8:
            return x.to(dtype) / 255
        if not x.is_floating_point():
            raise UserError(f"this encoder takes floats in [0, 1] or uint8, got {x.dtype}; convert the images")
        return x.to(dtype)

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
