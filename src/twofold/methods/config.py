"""The options of methods: each method's class has its own beside it, and is built by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.options import Variant

if TYPE_CHECKING:
    from twofold.data import DataFacts
    from twofold.methods.base import Method


@dataclass(frozen=True)
class MethodConfig(Variant):
    """What is minimised.

    A method's class has its options as ``class Config(MethodConfig, variant="its_name")``, whose `build` makes it.
    """

    prefix = "method."
    unnamed = ("simclr", "speech_simclr")

    name: str | None = None
    """The method. When not given, simclr for images and speech_simclr, the only one, for recordings."""

    @property
    def head_norm(self) -> bool:
        """Whether the projection head has batch norm where `head.norm` does not say."""
        return True

    def build(self, encoder: Encoder, head: HeadConfig, seed: int = 0) -> Method:
        """The method around an encoder.

        Args:
            encoder: what is trained.
            head: of the projection.
            seed: of the method's own random numbers, the same on all ranks.

        Raises:
            UserError: the encoder or the head does not suit the method.
        """
        raise NotImplementedError(
            f"{type(self).__qualname__} builds no method of {type(encoder).__name__}, {head.kind} head and seed {seed}"
        )

    def chosen(self, facts: DataFacts, batch: int, steps: int, encoder: str) -> tuple[Self, list[str]]:  # noqa: ARG002
        """What is left open filled in, and what was chosen and why, for people.

        Args:
            facts: of the data.
            batch: images or recordings of the global batch.
            steps: of the whole run.
            encoder: its name.
        """
        return self, []

    def check_batch(self, batch: int) -> None:
        """Raise a UserError if a global batch of so many images or recordings does not suit the options."""

    def title(self) -> str:
        """The method in a few words."""
        return str(self.name)

    def about_chance(self) -> str:
        """What a report adds to the loss of chance."""
        return ""

    def hidden_span(self) -> int:
        """Frames hidden together, for which the views of recordings draw numbers; 1 where nothing is hidden."""
        return 1

    def check_least(self, least: float, *options: str) -> None:
        """Raise a UserError where one of these options is given and below `least`."""
        for option in options:
            value = getattr(self, option)
            if value is not None and not value >= least:
                raise UserError(f"--method.{option} must be at least {least:g}, got {value}")

    def check_shares(self, *options: str) -> None:
        """Raise a UserError where one of these options is given and not in [0, 1]."""
        for option in options:
            value = getattr(self, option)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"--method.{option} must lie in [0, 1], got {value}")


@dataclass(frozen=True)
class ContrastiveConfig(MethodConfig):
    """Options that all contrastive methods have."""

    temperature: float | None = None
    """Temperature of the contrastive logits, above 0. When not given, chosen from the batch for images: 0.1 for 2,048
    and more (the paper's value), 0.2 below (arXiv 2011.02803 finds small batches better there; MoCo v2's value too);
    0.1 for recordings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"--method.temperature must be above 0, got {self.temperature}")

    def title(self) -> str:
        """Name and temperature."""
        return f"{self.name}, temperature {self.temperature:g}"

    def tau(self) -> float:
        """The temperature, which must have been chosen."""
        if self.temperature is None:
            raise ValueError("the temperature has not been chosen yet")
        return self.temperature


def image_temperature(batch: int) -> tuple[float, str]:
    """The temperature for a batch of images, and why."""
    temperature = 0.1 if batch >= 2048 else 0.2
    return temperature, f"temperature {temperature} (batch {batch})"
