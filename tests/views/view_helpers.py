"""What the tests of views share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nchw(image: np.ndarray) -> Tensor:
    """[H, W, C] or [n, H, W, C] -> [n, C, H, W]."""
    batch = image if image.ndim == 4 else image[None]
    return torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())


def some_images(n: int, channels: int = 3, height: int = 32, width: int | None = None, seed: int = 0) -> Tensor:
    """uint8 images with smooth and noisy parts, and one that is black."""
    generator = torch.Generator().manual_seed(seed)
    width = width or height
    coarse = torch.rand(n, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = torch.rand(n, channels, height, width, generator=generator)
    images = (0.7 * smooth + 0.3 * noisy).mul(255).byte()
    images[:1] = 0
    return images


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance between the two samples' distribution functions."""
    places = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(sample), places, "right") / len(sample) for sample in (a, b)]
    return float(np.abs(below[0] - below[1]).max())
