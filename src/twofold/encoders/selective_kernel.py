"""What SimCLR v2 adds to its larger ResNets: selective kernels, and ResNet-D's stem and shortcuts.

Source: google-research/simclr, tf2/resnet.py (SK_Conv2D, sk_ratio); Li et al., "Selective Kernel Networks", CVPR 2019;
He et al., "Bag of Tricks for Image Classification", CVPR 2019 (ResNet-D). Both streams of the selective kernel are 3x3
here, as in the released code, where the paper of Li et al. has a 3x3 and a 5x5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.distributed import BatchNorm


class DeepStem(nn.Sequential):
    """Three 3x3 convolutions, the first of stride 2, instead of one of 7x7 (the last one's norm is the net's bn1).

    Args:
        channels: of the images.
        n: filters of the last convolution; the first two have half.
    """

    def __init__(self, channels: int, n: int) -> None:
        super().__init__(
            nn.Conv2d(channels, n // 2, 3, stride=2, padding=1, bias=False),
            BatchNorm(n // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(n // 2, n // 2, 3, padding=1, bias=False),
            BatchNorm(n // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(n // 2, n, 3, padding=1, bias=False),
        )


class ShortcutPool(nn.Module):
    """2x2 average pooling on a shortcut, as TensorFlow pads it.

    Stride 2: an odd height or width gets one more row or column of zeros, below or right, which count.
    Stride 1: windows reach over the lower and right edge, and only the pixels inside count.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, H, W] -> [n, channels, ceil(H / stride), ceil(W / stride)]."""
        if self.stride == 1:
            # Padded on all sides torch gives H+1 by W+1 windows; those that hang over the left and upper edge go.
            return F.avg_pool2d(x, 2, 1, padding=1, count_include_pad=False)[:, :, 1:, 1:]
        height, width = x.shape[2:]
        if torch.compiler.is_exporting() or height % 2 or width % 2:  # to ask would fix the parity in an export
            x = F.pad(x, (0, width % 2, 0, height % 2))
        return F.avg_pool2d(x, 2, 2)


class SelectiveKernel(nn.Module):
    """Two 3x3 convolutions whose outputs are mixed, channel by channel, by weights that the image itself gives.

    Args:
        f: channels in and out.
        stride: of the convolutions.
        ratio: the mixing weights come through max(int(f * ratio), 32) hidden units.
    """

    def __init__(self, f: int, stride: int, ratio: float) -> None:
        super().__init__()
        hidden = max(int(f * ratio), 32)
        self.conv = nn.Conv2d(f, 2 * f, 3, stride, padding=1, bias=False)  # both streams in one
        self.bn = BatchNorm(2 * f)
        self.squeeze = nn.Conv2d(f, hidden, 1, bias=False)
        self.squeeze_bn = BatchNorm(hidden)
        self.expand = nn.Conv2d(hidden, 2 * f, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, f, H, W] -> [n, f, H / stride, W / stride]."""
        first, second = F.relu(self.bn(self.conv(x)), inplace=True).chunk(2, dim=1)  # [n, f, H, W] each
        summary = (first + second).mean((2, 3), keepdim=True)  # [n, f, 1, 1]
        logits = self.expand(F.relu(self.squeeze_bn(self.squeeze(summary)), inplace=True))  # [n, 2f, 1, 1]
        # [n, 2, f, 1, 1]: the two weights add to 1
        mix: Tensor = logits.unflatten(1, (2, -1)).softmax(1).to(first.dtype)
        return first * mix[:, 0] + second * mix[:, 1]
