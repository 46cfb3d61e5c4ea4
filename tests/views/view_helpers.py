"""What the tests of views share."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from twofold.views.color import jitter


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


def same_jitter(device: torch.device, height: int, width: int, tolerance: float) -> None:
    """Assert that the kernels do what the operators do, in every order, by every rule, and to the chosen rows alone."""
    from twofold.views import kernels

    orders = torch.tensor(list(itertools.permutations(range(4))))
    checked = 0
    for additive, tf, seed in itertools.product((False, True), (False, True), (0, 1)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(27, 3, height, width, generator=generator)
        x[3], x[4, :, :, :5], x[5, 1] = 0.5, 0.0, x[5, 0]  # no colour, black, two channels alike
        factors = 0.2 + 1.6 * torch.rand(24, 4, generator=generator)
        factors[:, 3] -= 1  # turns
        if additive:
            factors[:, 0] -= 1
        rows = torch.randperm(27, generator=generator)[:24]
        expected = x.clone()
        rules = "additive" if additive else "multiplicative", "tf" if tf else "torchvision"
        for i, row in enumerate(rows):
            expected[row] = jitter(x[row : row + 1].clone(), orders[i], factors[i : i + 1], *rules)[0]
        found = x.clone().to(device)
        kernels.kernel_jitter(found, *(t.to(device) for t in (rows, orders, factors)), additive, tf)
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=tolerance)
        checked += 1
    print(f"{checked} x {len(orders)} orders")
