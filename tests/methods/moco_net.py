"""A small MoCo for tests: one convolution with batch norm, as the reference's run in the golden set."""

from __future__ import annotations

from torch import nn

from twofold.encoders import adapt
from twofold.heads import HeadConfig
from twofold.methods import MoCo

V1, V2 = "linear", "nonlinear"


def moco(width: int = 6, dim: int = 5, version: str = V2, channels: int = 3, **options: object) -> MoCo:
    """A MoCo around convolution, batch norm, ReLU and average pooling; its head is as wide as the encoder."""
    body = nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    head = HeadConfig(version, layers=2, out_dim=dim, norm=False)
    return MoCo(adapt(body, channels), head, **{"queue": 24, "momentum": 0.9, "temperature": 0.2, **options})
