"""Gaussian blur against data_util.gaussian_blur and batch_random_blur (golden vectors), torchvision, and itself.

Tolerance 5e-7: sums of up to 529 products of float32 numbers in [0, 1] (the reference is within 2.4e-7 of float64).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as torchvision_ops
from view_helpers import nchw, some_images

from fidelity import agree
from golden_data import golden
from twofold.views import blur
from twofold.views.blur import blur_radius, gaussian_blur, gaussian_kernel

TOLERANCE = 5e-7
DATA = golden("blur.npz")


@pytest.mark.parametrize("case", DATA.meta["cases"], ids=lambda case: case["id"])
def test_blur_equals_the_reference(case: dict[str, Any]) -> None:
    x = nchw(DATA[f"{case['id']}/image"])
    radius = case["kernel_size"] // 2
    got = gaussian_blur(x, torch.full((len(x),), case["sigma"]), radius)
    assert 2 * radius + 1 == case["effective_kernel"]
    agree("Gaussian blur", got, nchw(DATA[f"{case['id']}/blurred"]), TOLERANCE)


@pytest.mark.parametrize("case", DATA.meta["batch_cases"], ids=lambda case: case["id"])
@pytest.mark.parametrize("view", [0, 1])
def test_batch_random_blur_equals_the_reference(case: dict[str, Any], view: int) -> None:
    name = f"{case['id']}/view{view}"
    x = nchw(DATA[f"{name}/images"])
    selected = torch.from_numpy(DATA[f"{name}/selector"].ravel() > 0)
    sigma = torch.full((int(selected.sum()),), case["sigmas"][view])
    x[selected] = gaussian_blur(x[selected], sigma, blur_radius(case["H"]))
    agree("Gaussian blur", x.clamp(0, 1), nchw(DATA[f"{name}/out"]), TOLERANCE)


@pytest.mark.parametrize(("height", "taps"), [(9, 1), (19, 1), (20, 3), (32, 3), (64, 7), (96, 9), (224, 23)])
def test_the_kernel_has_the_references_size(height: int, taps: int) -> None:
    assert 2 * blur_radius(height) + 1 == taps


@pytest.mark.parametrize("radius", [1, 3, 7])
def test_reflect_padding_is_torchvisions(radius: int) -> None:
    """2e-6, as torchvision sums the up to 225 products of the two-dimensional kernel in float32."""
    x = some_images(2, height=40, width=37) / 255
    sigma = [0.6, 1.9]
    got = gaussian_blur(x, torch.tensor(sigma), radius, "reflect")
    for i in range(2):
        size = 2 * radius + 1
        expected = torchvision_ops.gaussian_blur(x[i], [size, size], [sigma[i], sigma[i]])
        np.testing.assert_allclose(got[i], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (2, 4, 33, 70), (1, 3, 5, 96)])
@pytest.mark.parametrize("radius", [0, 2, 6, 40])
def test_matrices_and_shifted_sums_are_one(shape: tuple[int, ...], radius: int) -> None:
    padded = F.pad(torch.rand(shape), (radius,) * 4)
    kernel = gaussian_kernel(torch.rand(shape[0]) * 2 + 0.1, radius)
    np.testing.assert_allclose(
        blur._matrices(padded, kernel), blur._shifted_sums(padded, kernel), rtol=0, atol=TOLERANCE
    )


def test_zero_padding_darkens_the_border_and_reflection_does_not() -> None:
    x = torch.ones(1, 3, 64, 64)
    zero, reflect = (gaussian_blur(x, torch.tensor([1.5]), 3, padding) for padding in ("zero", "reflect"))
    assert zero[0, 0, 0, 0] < 0.5
    np.testing.assert_allclose(zero[:, :, 3:-3, 3:-3], 1, atol=TOLERANCE)
    np.testing.assert_allclose(reflect, 1, atol=TOLERANCE)


def test_a_batch_is_its_images_one_by_one() -> None:
    x = some_images(6, height=96) / 255
    sigma = torch.rand(6) + 0.2
    whole = gaussian_blur(x, sigma, 9)
    for i in range(6):
        np.testing.assert_allclose(whole[i], gaussian_blur(x[i : i + 1], sigma[i : i + 1], 9)[0], atol=TOLERANCE)
    in_other_layout = gaussian_blur(x.to(memory_format=torch.channels_last), sigma, 9)
    np.testing.assert_allclose(in_other_layout, whole, rtol=0, atol=TOLERANCE)
