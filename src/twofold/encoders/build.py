"""From configuration to encoder."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Literal

from twofold.encoders.adapters import TimmEncoder, TorchvisionEncoder, torchvision_names
from twofold.encoders.audio.encoder import SpeechEncoderConfig, speech_encoder
from twofold.encoders.base import Encoder
from twofold.encoders.resnet import BLOCKS, ResNet, Stem
from twofold.errors import UserError


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder."""

    name: str | None = None
    """resnet10|18|34|50|101|152|200, timm:NAME or torchvision:NAME; for recordings speech:corrected, speech:small or
    speech:released; none = chosen from the data."""
    width: float = 1.0
    """Multiplies the numbers of filters of a resnet: 1 to 4 were published, 0.25 and 0.5 are for CPUs."""
    stem: Literal["auto", "imagenet", "cifar", "small"] | None = None
    """First layers of a resnet: imagenet (7x7/2 and pooling), cifar (3x3), small (3x3/2); auto = cifar up to 32 px,
    imagenet above; none = chosen from the data. ResNets of torchvision: have imagenet, and cifar if asked."""
    channels: int | None = None
    """Channels of the images; none = chosen from the data."""
    zero_init_residual: bool = True
    """Start the last scale of each residual branch of a resnet at 0."""
    pretrained: bool = False
    """Start from the library's pretrained weights (timm: and torchvision: only; they are downloaded)."""
    sk_ratio: float = 0.0
    """Above 0, selective kernels and ResNet-D of SimCLR v2 in a resnet (published: 0.0625)."""
    mean: tuple[float, ...] | None = None
    """timm: and torchvision: only: one value a channel that is subtracted inside from images in [0, 1]; none = 0."""
    std: tuple[float, ...] | None = None
    """timm: and torchvision: only: one value a channel that the encoder then divides by; none = 1."""
    speech: SpeechEncoderConfig = field(default_factory=SpeechEncoderConfig)
    """Speech encoder"""


def build_encoder(config: EncoderConfig, image_size: int | None = None) -> Encoder:
    """Build the encoder that `config` names.

    Args:
        config: `name` must be set; channels default to 3.
        image_size: side of the images in pixels, which decides stem "auto" (cifar up to 32) and the input size of
            timm models that take only one; None = large.

    Raises:
        UserError: unknown name, or an option that this encoder does not have.
    """
    if config.name is None:
        raise UserError("encoder.name is not set; name one, e.g. resnet18 or timm:convnext_tiny")
    channels = 3 if config.channels is None else config.channels
    library, _, model = config.name.partition(":")
    if library == "speech":
        _refuse(config, {"width": 1.0, "sk_ratio": 0.0, "zero_init_residual": True, "pretrained": False})
        _refuse(config, {"stem": None, "channels": (None, 1), "mean": None, "std": None})
        return speech_encoder(model, config.speech)
    _refuse(config, {"speech": SpeechEncoderConfig()})
    if library in ("timm", "torchvision") and model:
        _refuse(config, {"width": 1.0, "sk_ratio": 0.0, "zero_init_residual": True})
        if config.pretrained:  # which come with their own
            _refuse(config, {"mean": None, "std": None})
        if library == "timm":
            _refuse(config, {"stem": (None, "auto")})
            return TimmEncoder(model, channels, image_size, config.mean, config.std, config.pretrained)
        stem = "imagenet" if config.stem in (None, "auto") else str(config.stem)
        return TorchvisionEncoder(model, channels, image_size, config.mean, config.std, config.pretrained, stem)
    names = {f"resnet{depth}": depth for depth in BLOCKS}
    if config.name not in names:
        close = difflib.get_close_matches(config.name, [*names, *torchvision_names()], n=2)
        meant = [match if match in names else f"torchvision:{match}" for match in close]
        guess = f"did you mean {' or '.join(meant)}? " if meant else ""
        raise UserError(
            f"unknown encoder.name '{config.name}'; {guess}Known are {', '.join(names)}, timm:NAME and torchvision:NAME"
        )
    _refuse(config, {"pretrained": False, "mean": None, "std": None})
    own: Stem
    if config.stem is None or config.stem == "auto":
        own = "cifar" if image_size is not None and image_size <= 32 else "imagenet"
    else:
        own = config.stem
    return ResNet(names[config.name], config.width, own, channels, config.sk_ratio, config.zero_init_residual)


def _refuse(config: EncoderConfig, neutral: dict[str, object]) -> None:
    """Raise where an option is set that the named encoder does not have."""
    for option, value in neutral.items():
        given = getattr(config, option)
        if given not in (value if isinstance(value, tuple) else (value,)):
            raise UserError(f"encoder '{config.name}' has no encoder.{option} (got {given!r}); leave the option out")
