"""`twofold.load(...).preprocess`: images as the evaluation gives them to the encoder, bit for bit."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold.data import ArraySource, DataConfig
from twofold.data.sources.files import FileSource
from twofold.encoders import ResNet, load_encoder, save_encoder
from twofold.encoders.audio.encoder import FilterbankEncoder
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels


def pixels_of(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(folder, channels=3, **options):
    torch.manual_seed(0)
    file = folder / "encoder.safetensors"
    save_encoder(file, ResNet(10, 0.125, "cifar", channels), extra={"options": options})
    return file


def given_to_encoder(file, source):
    """What `Extractor` hands to the encoder, as [1, C, S, S] an image."""
    encoder, seen = load_encoder(file), []
    features = encoder.features
    encoder.features = lambda x: seen.append(x.clone()) or features(x)
    Extractor.of(file, batch=1, device="cpu", workers=1).extract(encoder, source)
    return seen


@pytest.fixture
def files(tmp_path):
    """Photographs of several sizes, modes and depths: one turned by its EXIF tag, one transparent, one of 16 bits."""
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels_of(50, 90)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels_of(61, 40, 4)).save(folder / "clear.png")
    Image.fromarray(pixels_of(64, 64)).save(folder / "exact.png")
    Image.fromarray(pixels_of(20, 30)[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels_of(70, 80)[..., 0].astype(np.uint16) * 17).save(folder / "deep.png")
    return folder


@pytest.mark.parametrize("resample", ["antialias", "tf2", "tf1"])
@pytest.mark.parametrize("size", [16, 48, 64])
def test_files_and_pictures_are_what_the_evaluation_sees(tmp_path, files, size, resample):
    file = saved(
        tmp_path, views={"size": size, "resample": resample},
        data={"background": "#808080", "orient": True, "pixel_range": [0, 4095]},
    )  # fmt: skip
    names = sorted(path.name for path in files.iterdir())
    config = Pixels(background="#808080", orient=True, pixel_range=(0, 4095)).fill(DataConfig(channels=3))
    seen = given_to_encoder(file, FileSource(files, names, config))
    encoder = twofold.load(file)
    for name, expected in zip(names, seen, strict=True):
        for image in (files / name, str(files / name), Image.open(files / name)):
            got = encoder.preprocess(image)
            assert got.shape == (1, 3, size, size)
            assert torch.equal(got, expected), (name, type(image))
    assert torch.equal(encoder.preprocess([files / name for name in names]), torch.cat(seen))
    with torch.no_grad():  # and so the features are those of `twofold embed`
        found = Extractor.of(file, device="cpu").extract(load_encoder(file), FileSource(files, names, config)).h
        np.testing.assert_allclose(encoder([Image.open(files / n) for n in names]), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "uint16"])
@pytest.mark.parametrize("side", [40, 48])
def test_arrays_are_what_the_evaluation_sees(tmp_path, side, dtype):
    file = saved(tmp_path, views={"size": 48})
    array = np.stack([pixels_of(side, side, seed=seed) for seed in range(3)])
    array = array / np.float32(255) if dtype == "float32" else array.astype(dtype) * (257 if dtype == "uint16" else 1)
    expected = torch.cat(given_to_encoder(file, ArraySource(array)))
    encoder = twofold.load(file)
    assert torch.equal(encoder.preprocess(array), expected)
    assert torch.equal(encoder.preprocess(list(array)), expected)
    assert torch.equal(encoder.preprocess(array[1]), expected[1:2])
    assert torch.equal(encoder.preprocess(torch.from_numpy(array[1]).permute(2, 0, 1)), expected[1:2])
    assert torch.equal(encoder.preprocess(array[1, ..., 0]), encoder.preprocess(np.repeat(array[1, ..., :1], 3, 2)))
    with torch.no_grad():
        torch.testing.assert_close(encoder(array), encoder(expected))
        torch.testing.assert_close(encoder(expected.numpy()), encoder(expected))  # [n, C, H, W] is taken as it is


def test_the_preprocessing_is_told(tmp_path):
    file = saved(tmp_path, views={"size": 40, "resample": "tf2"}, data={"background": "black", "tile": 256})
    known = twofold.load(file).input.preprocessing
    assert (known.size, known.crop, known.resample) == (40, 0.875, "tf2")
    assert known.pixels == {"background": "black"}  # tiles are whole examples: an image is not cut into them
    assert dataclasses.replace(known, size=1).to_dict()["size"] == 1
    assert load_encoder(file).input.preprocessing is None


def test_what_cannot_be_preprocessed_is_told(tmp_path, files):
    file = saved(tmp_path)
    encoder, bare = twofold.load(file), ResNet(10, 0.125, "cifar").eval()
    (tmp_path / "torn.png").write_bytes((files / "clear.png").read_bytes()[:60])
    for image, said in (
        (tmp_path / "none.png", "there is no such file"),
        (tmp_path / "torn.png", "torn.png"),
        ([files / "clear.png", files / "grey.png"], "of different sizes"),
        ([], "the list is empty"),
        (3, "type int"),
        (pixels_of(9, 9)[None, None], "shape (1, 1, 9, 9, 3)"),
        (pixels_of(9, 9).astype(np.int64) + 9000, "from 9000"),
        (pixels_of(9, 9, 4), "channels"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            encoder.preprocess(image)
    for image in (Image.open(files / "clear.png"), pixels_of(9, 9), [pixels_of(9, 9)], str(files / "clear.png")):
        with pytest.raises(UserError, match=r"twofold\.load"):
            bare(image)
    assert bare(np.zeros((2, 3, 8, 8), np.float32)).shape == (2, 64)


def test_recordings_are_given_as_waveforms():
    encoder = FilterbankEncoder(8000, mels=20)
    wave = np.random.default_rng(0).uniform(-1, 1, (2, 4000)).astype(np.float32)
    expected = encoder(torch.from_numpy(wave))
    assert torch.equal(encoder(wave), expected)
    assert torch.equal(encoder(list(wave)), expected)
    for bad, said in (
        (wave[0], r"wave\[None\]"), ((wave * 32767).astype(np.int16), "divide int16"),
        ([(wave[0] * 32767).astype(np.int16)], "divide int16"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            encoder(bad)
    with pytest.raises(UserError, match="waveforms"):
        encoder.preprocess("a.wav")


def test_arrays_beyond_the_range_are_refused_and_fresh_encoders_take_arrays():
    net = ResNet(10, 0.125, "cifar").eval()
    array = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    array.flags.writeable = False
    with torch.inference_mode():
        assert torch.equal(net(array), net(torch.tensor(array)))
        assert torch.allclose(net((array * 255).astype(np.uint8)), net(array), atol=0.1)
    with pytest.raises(
        UserError, match=r"values from 0 to 255: this encoder takes floats in \[0, 1\], or uint8; divide"
    ):
        net(np.linspace(0, 255, 384, dtype=np.float32).reshape(2, 3, 8, 8))
    with pytest.raises(UserError, match="values from nan to nan"):
        net(np.full((1, 3, 8, 8), np.nan, np.float32))
    with pytest.raises(UserError, match=r"does not know how its images are preprocessed: load it with twofold.load"):
        net(Image.new("RGB", (8, 8)))
