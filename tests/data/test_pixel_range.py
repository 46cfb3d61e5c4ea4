"""Brightness and colour are decided once for a source, never image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from twofold.data import DataConfig, open_source
from twofold.errors import UserError


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def flat(values, dtype):
    return Items([torch.from_numpy(np.full((1, 8, 8), value, dtype=dtype)) for value in values])


def read(source):
    return [int(source.read(i).max()) for i in range(len(source))]


def test_sixteen_bits_are_sixteen_bits_in_each_item():
    source = open_source(flat([200, 300, 60000], np.uint16))
    assert read(source) == [1, 1, 233]
    assert "uint16 pixels, of which 0 is black and 65535 white" in source.facts().pixels
    assert read(open_source(np.full((3, 8, 8), 200, np.uint16))) == [1, 1, 1]


def test_a_dark_array_of_sixteen_bits_is_as_dark_as_its_training_array():
    bright = open_source(np.array([[[60000] * 8] * 8, [[250] * 8] * 8], dtype=np.uint16))
    dark = open_source(np.full((2, 8, 8), 250, np.uint16))
    assert read(bright)[1] == read(dark)[0] == 1
    assert "nearly black" in dark.facts().pixels
    assert "nearly black" not in bright.facts().pixels


def test_float_files_share_one_range(tmp_path):
    for i, top in enumerate((0.9, 1.0, 3.0, 254.0, 300.0, 4000.0)):
        Image.fromarray(np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / f"{i}.tif")
    source = open_source(tmp_path)
    assert read(source) == [0, 0, 0, 1, 1, 16]
    assert "nearly black" not in source.facts().pixels
    assert source.facts().pixel_range == (0.0, 65535.0)
    for path in tmp_path.iterdir():
        if path.name in ("2.tif", "3.tif", "4.tif", "5.tif"):
            path.unlink()
    assert read(open_source(tmp_path)) == [229, 255]


def test_what_white_is_can_be_said(tmp_path):
    array = np.array([[[0, 2047, 4095, 9000]] * 4] * 2, dtype=np.uint16)
    config = DataConfig(pixel_range=(0, 4095))
    assert open_source(array, config).read(0)[0, :, 0].tolist() == [0, 127, 255, 255]
    Image.fromarray(array[0]).save(tmp_path / "a.png")
    Image.fromarray(array[1]).save(tmp_path / "b.png")
    assert open_source(tmp_path, config).read(0)[0, :, 0].tolist() == [0, 127, 255, 255]
    normalised = np.linspace(-2, 2, 2 * 64, dtype=np.float32).reshape(2, 8, 8)
    with pytest.raises(UserError, match=r"--data.pixel_range"):
        open_source(normalised)
    assert open_source(normalised, DataConfig(pixel_range=(-2, 2))).read(1).max() == 255
    with pytest.raises(UserError, match="pixel_range"):
        DataConfig(pixel_range=(1, 0))


def test_one_grey_image_does_not_make_the_others_grey():
    rng = np.random.default_rng(0)
    grey, colour = (torch.from_numpy(rng.integers(0, 256, (c, 8, 8), dtype=np.uint8)) for c in (1, 3))
    source = open_source(Items([grey, colour, colour]))
    assert source.channels == 3
    np.testing.assert_array_equal(source.read(1), colour.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(source.read(0), grey.permute(1, 2, 0).numpy().repeat(3, axis=2))
    assert open_source(Items([grey, grey])).channels == 1


def test_random_transforms_inside_a_data_set_are_noticed():
    class Jittered(Items):
        def __getitem__(self, index):
            return self.items[index] + torch.randint(0, 50, self.items[index].shape, dtype=torch.uint8)

    with pytest.raises(UserError, match="another image each time it is read"):
        open_source(Jittered([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4))
