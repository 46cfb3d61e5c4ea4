"""No encoder of images at all: their pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from twofold.encoders.base import Encoder, InputSpec

MOST = 32
"""Side in pixels up to which images are read as they are; larger ones are averaged down to it."""


class PixelEncoder(Encoder, kind="pixels"):
    """The pixels themselves, in [0, 1], one after another: the baseline beside every number of an encoder of images.

    Args:
        height, width: of the grid that pixels are averaged over, or repeated for.
        channels: of the images.
    """

    def __init__(self, height: int, width: int, channels: int = 3) -> None:
        super().__init__(InputSpec(channels), channels * height * width)
        self.grid = height, width

    def features(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, channels * height * width]."""
        pixels: Tensor = (x if tuple(x.shape[2:]) == self.grid else F.adaptive_avg_pool2d(x, self.grid)).flatten(1)
        return pixels

    def arguments(self) -> dict[str, int]:
        """See `Encoder.arguments`."""
        return {"height": self.grid[0], "width": self.grid[1], "channels": self.input.channels}


def pixels_of(channels: int, height: int, width: int) -> PixelEncoder:
    """The pixels of images of one size, at most 32 a side."""
    return PixelEncoder(min(height, MOST), min(width, MOST), channels)
