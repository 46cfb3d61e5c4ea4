"""The ResNets of SimCLR, as published: depths 10 (ours) to 200, any width, three stems.

Source: google-research/simclr (tf2/resnet.py, resnet.py); arXiv 2002.05709, arXiv 2006.10029. What differs from
torchvision: a projection shortcut opens every stage, the first of ResNet-18/34 too; max-pooling pads as TensorFlow's
'SAME'; inputs are not normalised; convolutions start at variance 1/fan_in and residual branches at zero.
Modules carry torchvision's names (conv1, bn1, layer1 ... layer4, downsample).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.distributed import BatchNorm
from twofold.encoders.base import Encoder, InputSpec
from twofold.encoders.blocks import Blocks
from twofold.encoders.build import ImageEncoderConfig
from twofold.encoders.convolution import Conv2d
from twofold.encoders.selective_kernel import DeepStem, SelectiveKernel, ShortcutPool
from twofold.errors import UserError

# fmt: off
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}  # depth: blocks of each stage
# fmt: on
Stem = Literal["imagenet", "cifar", "small"]


def conv(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that pads (kernel-1)/2 on each side and has no bias: batch normalisation follows."""
    return Conv2d(n_in, n_out, kernel, stride, padding=(kernel - 1) // 2, bias=False)


def filters(width: float, stage: int) -> int:
    """Filters of a stage (0..3): 64 * width * 2**stage, to the nearest multiple of 8 (exact for whole widths)."""
    return max(8, round(64 * width * float(2**stage) / 8) * 8)


def fan_in_normal_(weight: Tensor) -> None:
    """Fill with normal numbers cut at two deviations whose variance is then 1/fan_in (Keras: VarianceScaling)."""
    std = math.sqrt(1 / weight[0].numel()) / 0.87962566103423978  # the deviation that the cut leaves of 1
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def shortcut(n_in: int, n_out: int, stride: int, pooled: bool) -> nn.Sequential:
    """The projection beside a stage's first block; `pooled`: ResNet-D's, which averages instead of skipping."""
    if pooled:
        return nn.Sequential(ShortcutPool(stride), conv(n_in, n_out, 1), BatchNorm(n_out))
    return nn.Sequential(conv(n_in, n_out, 1, stride), BatchNorm(n_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet-10, 18, 34)."""

    def __init__(self, n_in: int, f: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample  # first: TensorFlow numbers the shortcut's variables before the branch's
        self.conv1, self.bn1 = conv(n_in, f, 3, stride), BatchNorm(f)
        self.conv2, self.bn2 = conv(f, f, 3), BatchNorm(f)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride sits on the 3x3, or on its selective kernel."""

    def __init__(self, n_in: int, f: int, stride: int, downsample: nn.Module, sk_ratio: float = 0.0) -> None:
        super().__init__()
        self.downsample = downsample
        self.conv1, self.bn1 = conv(n_in, f, 1), BatchNorm(f)
        self.conv2: nn.Module = SelectiveKernel(f, stride, sk_ratio) if sk_ratio > 0 else conv(f, f, 3, stride)
        # A selective kernel normalises inside and gives a mean of rectified streams, which the ReLU leaves as it is.
        self.bn2: nn.Module = nn.Identity() if sk_ratio > 0 else BatchNorm(f)
        self.conv3, self.bn3 = conv(f, 4 * f, 1), BatchNorm(4 * f)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x), inplace=True)


class SamePool(nn.Module):
    """3x3 max-pooling of stride 2 with TensorFlow's 'SAME' padding: even sizes are padded right and below only."""

    def forward(self, x: Tensor) -> Tensor:
        odd = (x.shape[2] % 2, x.shape[3] % 2)
        if torch.compiler.is_exporting():  # the same windows; a pooling whose own padding varies would fix the parity
            return F.max_pool2d(F.pad(x, (odd[1], 1, odd[0], 1), value=-math.inf), 3, 2)
        return F.max_pool2d(x, 3, 2, padding=odd, ceil_mode=True)


class ResNet(Encoder, kind="resnet"):
    """A ResNet of SimCLR: features are the mean over positions of the last stage's output.

    Args:
        depth: 10, 18, 34 (basic blocks), 50, 101, 152 or 200 (bottlenecks).
        width: multiplies all numbers of filters; 1, 2, 3 and 4 were published.
        stem: imagenet: 7x7/2 convolution, 3x3/2 max-pooling; cifar: 3x3/1 alone; small (ours): 3x3/2 alone.
        channels: of the images.
        sk_ratio: above 0, the selective kernels and ResNet-D of SimCLR v2 (published: 0.0625).
        zero_init_residual: start the last scale of each residual branch at 0.
    """

    @dataclass(frozen=True)
    class Config(ImageEncoderConfig, variant="resnet"):
        """A published ResNet."""

        forms = ("resnet10|18|34|50|101|152|200",)

        width: float | None = None
        """Multiplies the numbers of filters: 1 to 4 were published, 0.25 and 0.5 are for CPUs. When not given, 1 for a
        named net, else chosen with it."""
        stem: Literal["auto", "imagenet", "cifar", "small"] | None = None
        """First layers: imagenet (7x7/2 and pooling), cifar (3x3), small (3x3/2); auto = cifar up to 32 px, imagenet
        above; none = chosen from the data."""
        zero_init_residual: bool | None = None
        """Start the last scale of each residual branch at 0, as SimCLR's code does and its recipes here. When not
        given, false: in runs of minutes the branches hardly grow (docs/defaults.md). Weights that a run starts from
        have begun already."""
        sk_ratio: float = 0.0
        """Above 0, selective kernels and ResNet-D of SimCLR v2 (published: 0.0625)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.name is not None and self.name not in self.names():
                raise self.unknown(self.name)

        @classmethod
        def names(cls) -> Iterable[str]:
            """One for each depth."""
            return [f"resnet{depth}" for depth in BLOCKS]

        def title(self) -> str:
            """Name, width and stem."""
            return f"{self.name} at width {self.width or 1.0:g}" + (f", stem {self.stem}" if self.stem else "")

        def chosen(
            self, count: int, channels: int, sample_rate: int | None, size: int | None, gpu: bool
        ) -> tuple[Self, list[str]]:
            """A net that the device trains in a time that people wait for, and a stem for the size."""
            config, reasons = super().chosen(count, channels, sample_rate, size, gpu)
            side = size or 224
            if config.name is None:
                if gpu:
                    name, width = ("resnet50", 1.0) if side > 64 and count >= 20_000 else ("resnet18", 1.0)
                else:
                    name, width = "resnet18" if count >= 20_000 else "resnet10", 1.0 if side <= 16 else 0.5
                config = replace(config, name=name, width=width if config.width is None else config.width)
                device = "GPU" if gpu else "CPU"
                reasons.append(f"encoder {name} at width {config.width:g} ({device}, {count:,} images)")
            width = 1.0 if config.width is None else config.width
            config = replace(config, width=width, zero_init_residual=bool(config.zero_init_residual))
            if config.stem is None:
                whole = side <= 32 if gpu else side < 16  # of 8 px the small stem would leave 4
                config = replace(config, stem="imagenet" if side > 64 else "cifar" if whole else "small")
                reasons.append(f"stem {config.stem} ({side} px)")
            return config, reasons

        def build(self, image_size: int | None = None) -> ResNet:
            """The net with fresh weights."""
            stem: Stem
            if self.stem is None or self.stem == "auto":
                stem = "cifar" if image_size is not None and image_size <= 32 else "imagenet"
            else:
                stem = self.stem
            depth = int(str(self.name).removeprefix("resnet"))
            width = 1.0 if self.width is None else self.width
            return ResNet(depth, width, stem, self.channels_or_rgb(), self.sk_ratio, bool(self.zero_init_residual))

    def __init__(
        self,
        depth: int = 50,
        width: float = 1.0,
        stem: Stem = "imagenet",
        channels: int = 3,
        sk_ratio: float = 0.0,
        zero_init_residual: bool = True,
    ) -> None:
        if depth not in BLOCKS or stem not in get_args(Stem):
            raise UserError(
                f"no ResNet has depth {depth} and stem {stem!r}: choose of {[*BLOCKS]} and {get_args(Stem)}"
            )
        if width <= 0 or sk_ratio < 0 or channels < 1:
            raise UserError(f"a ResNet cannot have width {width}, sk_ratio {sk_ratio} and {channels} channels")
        expansion = 4 if depth >= 50 else 1
        super().__init__(InputSpec(channels), filters(width, 3) * expansion)
        self._arguments = {"depth": depth, "width": width, "stem": stem, "channels": channels, "sk_ratio": sk_ratio}
        n = filters(width, 0)
        if stem == "imagenet":
            self.conv1: nn.Module = DeepStem(channels, n) if sk_ratio > 0 else conv(channels, n, 7, 2)
        else:
            self.conv1 = conv(channels, n, 3, 1 if stem == "cifar" else 2)
        self.bn1 = BatchNorm(n)
        self.pool = SamePool() if stem == "imagenet" else nn.Identity()
        stages = []
        for stage, blocks in enumerate(BLOCKS[depth]):
            f, layers = filters(width, stage), nn.Sequential()
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                beside = shortcut(n, f * expansion, stride, sk_ratio > 0) if i == 0 else nn.Identity()
                layers.append(
                    Bottleneck(n, f, stride, beside, sk_ratio) if depth >= 50 else BasicBlock(n, f, stride, beside)
                )
                n = f * expansion
            stages.append(layers)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self._start(zero_init_residual)

    def _start(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in_normal_(module.weight)
            elif isinstance(module, BasicBlock | Bottleneck) and zero_init_residual:
                nn.init.zeros_(module.bn3.weight if isinstance(module, Bottleneck) else module.bn2.weight)

    def features(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, feature_dim]."""
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))

    def blocks(self) -> Blocks:
        """The stem, and the four stages: block groups in tf2/resnet.py."""
        return Blocks((self.conv1, self.bn1), (self.layer1, self.layer2, self.layer3, self.layer4))

    def arguments(self) -> dict[str, Any]:
        """What rebuilds the net; how its weights once started is no part of it."""
        return dict(self._arguments)
