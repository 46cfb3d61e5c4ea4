"""Views and losses for a loop of one's own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views import ImageViews, ViewsConfig, two_views, views_of


def pixels(n: int = 6, height: int = 20, width: int = 28, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def test_they_are_the_views_of_a_run() -> None:
    images = pixels()
    first, second = two_views(images, 5, size=16, crop_area=(0.3, 1.0))
    views = ImageViews(ViewsConfig(size=16, crop_area=(0.3, 1.0), color_strength=0.5, blur=0.0))
    want = views.apply(images, views.draw(Key(5, 0), range(6), 20, 28))
    assert torch.equal(first, want[0])
    assert torch.equal(second, want[1])
    assert first.shape == (6, 3, 16, 16)
    assert not torch.equal(first, second)
    settings = {
        side: (views.color_strength, views.blur) for side in (32, 33, 64, 65) for views in [views_of(side).config]
    }
    assert settings == {32: (0.5, 0.0), 33: (0.5, 0.5), 64: (0.5, 0.5), 65: (1.0, 0.5)}


def test_the_generator_decides_and_others_are_left_alone() -> None:
    images, state = pixels(), torch.get_rng_state()
    a = two_views(images, torch.Generator().manual_seed(3))
    b = two_views(images, torch.Generator().manual_seed(3))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert torch.equal(state, torch.get_rng_state())
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(two_views(images, generator)[0], two_views(images, generator)[0])
    torch.manual_seed(0)
    c = two_views(images)
    torch.manual_seed(0)
    assert torch.equal(c[0], two_views(images)[0])
    assert c[0].shape[2] == 20  # the shorter side


def test_every_form_of_images_gives_the_same_views() -> None:
    images = pixels()
    want = two_views(images, 1, size=16)[1]
    rows = images.permute(0, 2, 3, 1).numpy()
    forms: list[Any] = [
        images.numpy(), rows, list(images), list(rows), [Image.fromarray(row) for row in rows], images.float() / 255,
        rows / np.float32(255), tuple(rows),
    ]  # fmt: skip
    for form in forms:
        assert torch.allclose(two_views(form, 1, size=16)[1], want, atol=1e-5)
    grey = two_views(rows[..., 0], 1, size=16)[0]
    assert grey.shape == (6, 1, 16, 16)


def test_images_of_any_sizes_are_viewed_together() -> None:
    images = [pixels(1, 20 + 3 * i, 30 - i)[0] for i in range(5)]
    first, second = two_views(images, 2, size=12)
    assert first.shape == second.shape == (5, 3, 12, 12)
    alone = ImageViews(ViewsConfig(size=12, color_strength=0.5, blur=0.0, crop_area=(0.3, 1.0)))
    draws = alone.draw(Key(2, 0), [3], *images[3].shape[1:])
    assert torch.allclose(alone.apply(images[3][None], draws)[0][0], first[3], atol=1e-5)
    assert two_views(images, 2)[0].shape[2] == 20


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((4, 8, 8, 3)) + 2, {}, "values from 2 to 2; floats have to lie in"),
        (np.zeros((4, 8, 8, 3), np.int32), {}, "pixels of int32: give uint8"),
        (torch.zeros(8, 8), {}, r"images of shape \(8, 8\)"),
        ([], {}, "the list is empty"),
        ([torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)], {}, "images of 1 and of 3 channels"),
        ("photos", {}, "given as str"),
        (torch.zeros(2, 3, 8, 8), {"crop": 0.5}, "views have no option crop"),
        (torch.zeros(2, 3, 8, 8), {"flip": 2}, r"views.flip = 2 will not do"),
        (torch.zeros(2, 3, 8, 8), {"generator": -1}, "seed of views is -1"),
    ],
)
def test_what_will_not_do_is_said(images: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        two_views(images, options.pop("generator", 0), **options)


def test_a_loop_of_one_s_own_learns() -> None:
    torch.manual_seed(0)
    images = torch.zeros(32, 1, 12, 12)
    for i in range(32):
        images[i, 0, i % 8 : i % 8 + 4, (i // 8) * 2 : (i // 8) * 2 + 4] = 1
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
    optimizer, generator = torch.optim.Adam(net.parameters(), 3e-3), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        a, b = twofold.two_views(images, generator, size=12, crop_area=(0.7, 1.0))
        loss = twofold.nt_xent(net(a), net(b), temperature=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5


def test_importing_the_package_stays_free_of_torch() -> None:
    code = (
        "import sys, twofold\n"
        "print('torch' in sys.modules, 'sklearn' in sys.modules)\n"
        "print(twofold.losses.nt_xent is twofold.nt_xent, twofold.views.two_views is twofold.two_views)\n"
        "print('sklearn' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == ["False", "False", "True", "True", "False"]
