"""The options of encoders: each encoder's class has its own beside it, and is built by them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from twofold.encoders.base import Encoder
from twofold.errors import UserError
from twofold.options import Variant


@dataclass(frozen=True)
class EncoderConfig(Variant):
    """The encoder.

    An encoder's class has its options as ``class Config(EncoderConfig, variant="word")``; a name means it that is the
    word, the word and a number, or ``word:model``.
    """

    neutral = MappingProxyType({"width": (1.0,), "zero_init_residual": (True,)})  # defaults of earlier versions

    prefix = "encoder."
    unnamed = ("resnet", "speech")

    name: str | None = None
    """The encoder; chosen from the data when not given."""

    @classmethod
    def variant_of(cls, value: Any) -> Any:
        """The class that a name means; UserError if it means none."""
        word = str(value).partition(":")[0].rstrip("0123456789")
        if word not in cls.variants:
            raise cls.unknown(str(value))
        return cls.variants[word]

    @classmethod
    def names(cls) -> Iterable[str]:
        """Names that this class can be chosen by, to find those that are near a mistyped one."""
        return cls.forms

    @classmethod
    def unknown(cls, name: str) -> UserError:
        """The error for a name that means nothing, with those that are near."""
        classes = cls.classes().values()
        known: dict[str, str] = {}
        for full in (full for each in classes for full in each.names()):
            known.setdefault(full.rpartition(":")[2], full)  # our own stand before a library's of the same name
        close = [known[match] for match in difflib.get_close_matches(name.rpartition(":")[2], known, n=2)]
        guess = f"did you mean {' or '.join(close)}? " if close else ""
        forms = ", ".join(form for each in classes for form in each.forms)
        return UserError(f"unknown --encoder.name {name}; {guess}Known are {forms}")

    def model(self) -> str:
        """What the name says after its colon."""
        return str(self.name).partition(":")[2]

    def title(self) -> str:
        """The encoder in a few words."""
        return str(self.name)

    def chosen(
        self, count: int, channels: int, sample_rate: int | None, size: int | None, gpu: bool  # noqa: ARG002
    ) -> tuple[Self, list[str]]:  # fmt: skip
        """What is left open filled in, and what was chosen and why, for people.

        Args:
            count: of the images or recordings.
            channels: of the images.
            sample_rate: of the recordings in Hz.
            size: of the views in pixels.
            gpu: whether the run has one.
        """
        return self, []

    def build(self, image_size: int | None = None) -> Encoder:
        """The encoder with fresh weights, or a library's.

        Args:
            image_size: side of the images in pixels; None = large.

        Raises:
            UserError: the name is not set or means no encoder, or an option does not suit it.
        """
        size = "" if image_size is None else f" for {image_size} px"
        raise UserError(f"encoder.name is not set{size}; name one, e.g. resnet18 or timm:convnext_tiny")


@dataclass(frozen=True)
class ImageEncoderConfig(EncoderConfig):
    """Options that all named encoders of images have."""

    kind = "image"

    channels: int | None = None
    """Channels of the images; none = chosen from the data."""

    def chosen(
        self, count: int, channels: int, sample_rate: int | None, size: int | None, gpu: bool  # noqa: ARG002
    ) -> tuple[Self, list[str]]:  # fmt: skip
        """The data's channels."""
        return (self if self.channels is not None else replace(self, channels=channels)), []

    def channels_or_rgb(self) -> int:
        """The channels, 3 where nothing is said."""
        return 3 if self.channels is None else self.channels


def build_encoder(config: EncoderConfig, image_size: int | None = None) -> Encoder:
    """Build the encoder that options name; see `EncoderConfig.build`."""
    return config.build(image_size) if config.name is not None else EncoderConfig().build(image_size)
