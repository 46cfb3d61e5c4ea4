"""Bilinear resizing against torchvision's transforms of images and against Pillow, to the bit, on every path."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from twofold.randomness import Key
from twofold.views import ImageViews, ViewsConfig, bilinear
from twofold.views.bilinear import TWO_ORDERS, by_products, resize_bytes, vertical_first, weights
from twofold.views.resample import center_crop, crop_resize, crop_resize_image

SIZES = [
    (40, 50, 32),
    (100, 70, 32),
    (20, 20, 96),
    (300, 200, (64, 100)),
    (7, 3, 9),
    (64, 64, 64),
    (1, 1, 5),
    (33, 97, 1),
]


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def torchvisions(image, box, size):
    """ToTensor(resized_crop(image)), as MoCo's code comes to: bilinear is its default."""
    top, left, height, width = box
    pair = [size, size] if isinstance(size, int) else list(size)
    cut = tv.resized_crop(Image.fromarray(image), top, left, height, width, pair)
    return tv.to_tensor(cut)


def test_bilinear_is_what_torchvision_does_by_default():
    assert RandomResizedCrop(8).interpolation == InterpolationMode.BILINEAR


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_both_paths_equal_torchvision_to_the_bit(height, width, size):
    image = picture(height, width)
    rng = np.random.default_rng(1)
    for _ in range(4):
        tall, wide = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        box = [int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1)), tall, wide]
        expected = torchvisions(image, box, size)
        fast = crop_resize(torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([box]), size, "bilinear")[0]
        slow = crop_resize_image(image, box, size, "bilinear")
        assert slow.dtype == torch.uint8
        assert torch.equal(fast, expected)
        assert torch.equal(slow.float() / 255, expected)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), tall=st.integers(1, 70), wide=st.integers(1, 70),
    seed=st.integers(0, 99), channels=st.sampled_from([1, 2, 3, 4]),
)  # fmt: skip
def test_products_of_whole_numbers_are_pillows(height, width, tall, wide, seed, channels):
    """What other devices do: every output byte of every band, for shrinking and growing."""
    image = picture(height, width, channels, seed)
    whole = torch.tensor([0])
    down, across = (
        torch.from_numpy(weights(whole, torch.tensor([extent]), size, extent))
        for extent, size in ((height, tall), (width, wide))
    )
    first = vertical_first(torch.tensor([[0, 0, height, width]]), (tall, wide))
    got = by_products(torch.from_numpy(image).permute(2, 0, 1)[None], down, across, first)[0].permute(1, 2, 0)
    assert (got.numpy() == resize_bytes(image, (tall, wide))).all()


def test_the_order_of_the_passes_is_that_of_the_pillow_that_is_installed():
    """At the boundary: 20 rows less and 10 columns less are no reason yet, 21 rows less are."""
    boxes = torch.tensor([[0, 0, 50, 40], [0, 0, 51, 40], [0, 0, 29, 40], [0, 0, 31, 20]])
    assert vertical_first(boxes, (30, 30)).tolist() == [False, TWO_ORDERS, False, TWO_ORDERS]
    for seed in range(20):
        for height in (50, 51):
            image = picture(height, 40, 1, seed)
            whole = resize_bytes(image, (30, 30))
            steps = [(30, 40), (30, 30)] if height == 51 and TWO_ORDERS else [(height, 30), (30, 30)]
            assert (whole == resize_bytes(resize_bytes(image, steps[0]), steps[1])).all()


def test_products_of_boxes_are_those_of_the_cut_images():
    images = torch.from_numpy(np.stack([picture(31, 44, seed=k) for k in range(3)])).permute(0, 3, 1, 2)
    boxes = torch.tensor([[0, 0, 31, 44], [5, 7, 20, 11], [30, 43, 1, 1]])
    down = torch.from_numpy(weights(boxes[:, 0], boxes[:, 2], 16, 31))
    across = torch.from_numpy(weights(boxes[:, 1], boxes[:, 3], 16, 44))
    expected = crop_resize(images, boxes, 16, "bilinear")
    assert torch.equal(by_products(images, down, across, vertical_first(boxes, (16, 16))).float() / 255, expected)
    assert down.sum(2).sub(2**22).abs().max() <= 31, "weights of 22 bits, each rounded"


def test_bands_are_resized_one_by_one():
    """Pillow multiplies colours by the fourth channel of RGBA, which ours is not."""
    image = picture(20, 30, 4)
    image[..., 3] = 0
    got = resize_bytes(image, (11, 13))
    for band in range(4):
        alone = Image.fromarray(image[..., band]).resize((13, 11), Image.Resampling.BILINEAR)
        assert (got[..., band] == np.asarray(alone)).all()


def test_floats_are_not_rounded():
    x = torch.rand(2, 3, 40, 31)
    got = crop_resize(x, torch.tensor([[0, 0, 40, 31]]).expand(2, 4), 24, "bilinear")
    expected = F.interpolate(x, (24, 24), mode="bilinear", antialias=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
    up = crop_resize(x, torch.tensor([[0, 0, 40, 31]]).expand(2, 4), 61, "bilinear")
    np.testing.assert_allclose(up, F.interpolate(x, (61, 61), mode="bilinear", antialias=True), rtol=0, atol=2e-6)


def test_views_by_both_paths_are_the_same():
    """What a worker cut and what is cut of whole images: equal, since both are bytes."""
    config = ViewsConfig(size=16, resample="bilinear", color_strength=0.0, grayscale=0.0, blur=0.0)
    views, image = ImageViews(config), picture(24, 30)
    draws = views.draw(Key(0, 0), [0], 24, 30)
    whole = views.apply(torch.from_numpy(image).permute(2, 0, 1)[None], draws)
    cut = torch.stack([crop_resize_image(image, draw.box[0].tolist(), 16, "bilinear")[None] for draw in draws])
    for a, b in zip(whole, views.apply(cut, draws), strict=True):
        assert torch.equal(a, b)


def test_the_central_square_of_a_test_image():
    image = picture(60, 80)
    got = center_crop(torch.from_numpy(image).permute(2, 0, 1), 32, 0.875, "bilinear")
    expected = torchvisions(image, [(60 - 52 + 1) // 2, (80 - 52 + 1) // 2, 52, 52], 32)
    assert torch.equal(got, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_bytes():
    images = torch.from_numpy(np.stack([picture(90, 75, seed=k) for k in range(9)])).permute(0, 3, 1, 2)
    boxes = torch.tensor([[k, 2 * k, 90 - 3 * k, 70 - 4 * k] for k in range(9)])
    expected = crop_resize(images, boxes, 64, "bilinear")
    assert torch.equal(crop_resize(images.cuda(), boxes, 64, "bilinear").cpu(), expected)


def test_a_device_in_parts(monkeypatch):
    """The way of other devices, taken on this one."""
    images = torch.from_numpy(np.stack([picture(31, 44, seed=k) for k in range(5)])).permute(0, 3, 1, 2)
    boxes = torch.tensor([[k, k, 31 - 2 * k, 44 - 3 * k] for k in range(5)])
    expected = crop_resize(images, boxes, 16, "bilinear")
    monkeypatch.setattr(bilinear, "_PART", 1)
    monkeypatch.setattr(bilinear, "_by_pillow", lambda _images: False)
    assert torch.equal(crop_resize(images, boxes, 16, "bilinear"), expected)
