"""Decoding: every mode and format that Pillow writes, every kind of broken file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.data.config import DataConfig
from twofold.data.decoding.images import decode_image, find_images
from twofold.data.decoding.opening import BadImage, image_header
from twofold.data.decoding.pixels import eight_bits, images_to_tensor, set_channels
from twofold.errors import UserError

CONFIG = DataConfig()
H, W = 20, 30
rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = rng.integers(0, 256, (H, W), dtype=np.uint8)


def decode(path: Path, channels: int = 3, **options) -> np.ndarray:
    config = DataConfig(**options)
    pixels = decode_image(str(path), channels, config)
    header = image_header(str(path), config)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (header.height, header.width, channels), "the header must promise what decoding gives"
    return pixels


def saved(tmp_path: Path, image: Image.Image, name: str, **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


LOSSLESS = ["png", "bmp", "tif", "ppm", "tga", "sgi", "pcx", "webp", "jp2", "qoi"]


@pytest.mark.parametrize("extension", LOSSLESS)
def test_lossless_colour_formats_are_exact(tmp_path, extension):
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path, Image.fromarray(RGB), f"a.{extension}", **options)
    np.testing.assert_array_equal(decode(path), RGB)
    assert find_images(tmp_path) == [path.name]


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "jfif", "avif", "webp", "gif"])
def test_lossy_formats_come_close(tmp_path, extension):
    smooth = np.broadcast_to(np.linspace(0, 255, W, dtype=np.uint8)[None, :, None], (H, W, 3))
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(smooth)), f"a.{extension}")
    assert np.abs(decode(path).astype(int) - smooth).max() <= 16
    assert find_images(tmp_path) == [path.name]


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 by its formula; rounding may differ by one from Pillow's fixed point."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def test_grey_is_repeated_and_colour_becomes_luma(tmp_path):
    grey, colour = saved(tmp_path, Image.fromarray(GREY), "g.png"), saved(tmp_path, Image.fromarray(RGB), "c.png")
    np.testing.assert_array_equal(decode(grey, 1)[..., 0], GREY)
    np.testing.assert_array_equal(decode(grey, 3), np.repeat(GREY[..., None], 3, 2))
    assert np.abs(decode(colour, 1)[..., 0] - luma(RGB)).max() <= 1
    assert image_header(str(grey), CONFIG).grey
    assert not image_header(str(colour), CONFIG).grey


def over(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """The definition of laying a transparent image over a background, in floats."""
    share = alpha[..., None] / 255
    return colour * share + np.array(background) * (1 - share)


@pytest.mark.parametrize(("name", "background"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48))])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_over_background(tmp_path, mode, name, background):
    alpha = rng.integers(0, 256, (H, W), dtype=np.uint8)
    alpha[:5], alpha[5:10] = 0, 255
    image = Image.fromarray(RGB if mode == "RGBA" else GREY)
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    colour = RGB if mode == "RGBA" else np.repeat(GREY[..., None], 3, 2)
    got = decode(saved(tmp_path, image, "a.png"), background=name)
    assert np.abs(got - over(colour, alpha, background)).max() <= 1  # Pillow blends in integers
    np.testing.assert_array_equal(got[:5], np.broadcast_to(background, (5, W, 3)))
    np.testing.assert_array_equal(got[5:10], colour[5:10])


def test_palette_with_and_without_transparency(tmp_path):
    indices = rng.integers(0, 4, (H, W), dtype=np.uint8)
    palette = np.array([[250, 0, 0], [0, 200, 0], [0, 0, 150], [9, 9, 9]], dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode(saved(tmp_path, image, "plain.png")), palette[indices])
    np.testing.assert_array_equal(decode(saved(tmp_path, image, "plain.gif")), palette[indices])
    clear = np.where(indices[..., None] == 2, 255, palette[indices])
    np.testing.assert_array_equal(decode(saved(tmp_path, image, "index.png", transparency=2)), clear)
    np.testing.assert_array_equal(decode(saved(tmp_path, image, "index.gif", transparency=2)), clear)
    alphas = bytes([255, 255, 0, 255])
    np.testing.assert_array_equal(decode(saved(tmp_path, image, "alphas.png", transparency=alphas)), clear)


def test_transparent_colour_of_rgb_grey_and_16_bit_png(tmp_path):
    key = tuple(int(v) for v in RGB[0, 0])
    expected = np.where((RGB[0, 0] == RGB).all(-1, keepdims=True), 255, RGB)
    np.testing.assert_array_equal(decode(saved(tmp_path, Image.fromarray(RGB), "c.png", transparency=key)), expected)
    grey = np.where(GREY[0, 0] == GREY, 255, GREY)
    path = saved(tmp_path, Image.fromarray(GREY), "g.png", transparency=int(GREY[0, 0]))
    np.testing.assert_array_equal(decode(path, 1)[..., 0], grey)
    deep = (GREY.astype(np.uint16)) * 257
    path = saved(tmp_path, Image.fromarray(deep), "d.png", transparency=int(deep[0, 0]))
    np.testing.assert_array_equal(decode(path, 1)[..., 0], grey)


def test_bilevel(tmp_path):
    bits = GREY > 127
    np.testing.assert_array_equal(decode(saved(tmp_path, Image.fromarray(bits), "b.png"), 1)[..., 0], bits * 255)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_keep_their_meaning(tmp_path, extension):
    deep = rng.integers(0, 65536, (H, W)).astype(np.uint16)
    deep[0, :2] = 0, 65535
    path = saved(tmp_path, Image.fromarray(deep), f"d.{extension}")
    expected = np.rint(deep / 65535 * 255)
    np.testing.assert_array_equal(decode(path, 1)[..., 0], expected)
    np.testing.assert_array_equal(decode(path, 3), np.repeat(expected[..., None], 3, 2))
    assert image_header(str(path), CONFIG).grey


def test_big_endian_sixteen_bits(tmp_path):
    deep = rng.integers(0, 65536, (H, W)).astype(np.uint16)
    image = Image.frombytes("I;16B", (W, H), deep.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(saved(tmp_path, image, "b.tif"), 1)[..., 0], np.rint(deep / 257))


def test_twelve_bit_cameras_can_be_stretched(tmp_path):
    deep = rng.integers(100, 4096, (H, W)).astype(np.uint16)
    path = saved(tmp_path, Image.fromarray(deep), "d.png")
    assert decode(path, 1).max() <= 16
    stretched = decode(path, 1, deep_pixels="stretch")
    assert (stretched.min(), stretched.max()) == (0, 255)


def test_32_bit_integers_and_floats(tmp_path):
    wide = rng.integers(0, 65536, (H, W)).astype(np.int32)
    path = saved(tmp_path, Image.fromarray(wide), "i.tif")
    assert Image.open(path).mode == "I"
    np.testing.assert_array_equal(decode(path, 1)[..., 0], np.rint(wide / 257))
    unit = rng.random((H, W)).astype(np.float32)
    path = saved(tmp_path, Image.fromarray(unit), "f.tif")
    assert Image.open(path).mode == "F"
    np.testing.assert_array_equal(decode(path, 1)[..., 0], np.rint(unit * 255.0))
    np.testing.assert_array_equal(eight_bits(np.array([0.0, 100.4, 255.0])), [0, 100, 255])
    np.testing.assert_array_equal(eight_bits(np.array([-1.0, 0.0, 1.0])), [0, 128, 255])  # no known range: its own
    np.testing.assert_array_equal(eight_bits(np.array([70000, 70000])), [0, 0])
    unit[0, 0] = np.nan
    with pytest.raises(BadImage, match="not finite"):
        decode(saved(tmp_path, Image.fromarray(unit), "nan.tif"))


def test_cmyk_and_ycbcr(tmp_path):
    cmyk = Image.fromarray(RGB).convert("CMYK")
    path = saved(tmp_path, cmyk, "c.tif")
    np.testing.assert_array_equal(decode(path), RGB)
    assert not image_header(str(path), CONFIG).grey
    flat = Image.new("CMYK", (W, H), (0, 255, 255, 0))
    assert np.abs(decode(saved(tmp_path, flat, "c.jpg")).astype(int) - [255, 0, 0]).max() <= 3
    ycbcr = Image.fromarray(RGB).convert("YCbCr")
    expected = np.array(ycbcr.convert("RGB"))
    np.testing.assert_array_equal(decode(saved(tmp_path, ycbcr, "y.tif")), expected)


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tif"])
def test_first_frame_of_animations_and_pages(tmp_path, extension):
    frames = [Image.new("RGB", (W, H), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path, frames[0], f"a.{extension}", save_all=True, append_images=frames[1:], **options)
    assert Image.open(path).n_frames == 3
    np.testing.assert_array_equal(decode(path), np.broadcast_to([255, 0, 0], (H, W, 3)))


UPRIGHT = {  # what a viewer does for each tag (CIPA DC-008), by array operations
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
    99: lambda a: a,
}


@pytest.mark.parametrize("tag", list(UPRIGHT))
@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_exif_orientation(tmp_path, extension, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path, Image.fromarray(RGB), f"a.{extension}", exif=exif, **options)
    np.testing.assert_array_equal(decode(path), UPRIGHT[tag](RGB))
    if extension != "tif":  # Pillow turns TIFF whatever we ask
        np.testing.assert_array_equal(decode(path, orient=False), RGB)


def test_exif_orientation_of_jpeg_and_16_bit(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(RGB), "a.jpg", exif=exif, quality=95)
    plain = saved(tmp_path, Image.fromarray(RGB), "b.jpg", quality=95)
    np.testing.assert_array_equal(decode(path), np.rot90(decode(plain), -1))
    deep = GREY.astype(np.uint16) * 257
    path = saved(tmp_path, Image.fromarray(deep), "d.png", exif=exif)
    np.testing.assert_array_equal(decode(path, 1)[..., 0], np.rot90(GREY, -1))


def test_a_late_exif_chunk_does_not_part_header_and_pixels(tmp_path):
    """PNG allows eXIf after the pixels; header and pixels must agree about it (`decode` checks that)."""
    path = saved(tmp_path, Image.fromarray(RGB), "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk + data[-12:])
    np.testing.assert_array_equal(decode(path), RGB)


def test_draft_halves_jpeg_only(tmp_path):
    big = Image.fromarray(RGB[:4, :6]).resize((90, 60), Image.Resampling.BICUBIC)
    jpeg, png = saved(tmp_path, big, "a.jpg", quality=95), saved(tmp_path, big, "a.png")
    half = decode_image(str(jpeg), 3, CONFIG, shrink=2)
    assert half.shape == (30, 45, 3)
    averaged = np.array(Image.open(jpeg)).reshape(30, 2, 45, 2, 3).mean((1, 3))
    assert np.abs(half - averaged).mean() < 2
    assert decode_image(str(png), 3, CONFIG, shrink=2).shape == (60, 90, 3)


def broken_files(folder: Path) -> dict[str, str]:
    """One file of every bad kind, and what its reason must say."""
    good = saved(folder, Image.fromarray(RGB).resize((300, 200)), "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("this is no picture\n")
    png = saved(folder, Image.fromarray(RGB), "whole.png").read_bytes()
    (folder / "damaged.png").write_bytes(png[:60] + b"\0" * 40 + png[100:])
    (folder / "cut.png").write_bytes(png[:20])
    (folder / "folder.png").mkdir()
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "bomb.png").write_bytes(png[:8] + chunk + png[33:])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return {
        "truncated.jpg": "truncated",
        "empty.png": "empty file",
        "text.jpg": "not an image",
        "damaged.png": "",
        "cut.png": "",
        "folder.png": "folder",
        "bomb.png": "pixels",
        "dangling.png": "No such file",
        "missing.png": "No such file",
    }


def test_every_broken_file_is_a_bad_image_with_a_reason(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(BadImage) as caught:
            decode_image(str(tmp_path / name), 3, CONFIG)
        assert reason in caught.value.reason
        assert caught.value.reason
        assert caught.value.path.endswith(name)


def test_max_pixels(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "a.png")
    with pytest.raises(BadImage, match=r"30 x 20 pixels, more than 599"):
        decode(path, max_pixels=599)
    decode(path, max_pixels=600)


def test_find_images_is_recursive_sorted_and_skips_hidden(tmp_path):
    for name in [
        "b/2.png",
        "b/10.PNG",
        "a.Jpeg",
        "b/c/d.webp",
        ".hidden.png",
        ".git/x.png",
        "b/notes.txt",
        "png",
        "e.pdf",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked.png").symlink_to(tmp_path / "b" / "2.png")
    assert find_images(tmp_path) == ["a.Jpeg", "b/10.PNG", "b/2.png", "b/c/d.webp", "linked.png"]


def test_arrays_of_any_layout():
    colour, grey = rng.integers(0, 256, (5, 8, 6, 3), dtype=np.uint8), rng.integers(0, 256, (5, 8, 6), dtype=np.uint8)
    channels_first = colour.transpose(0, 3, 1, 2)
    for images in (colour, channels_first, colour / 255, channels_first / np.float32(255), colour.astype(np.int64)):
        np.testing.assert_array_equal(images_to_tensor(images, "x").numpy(), channels_first)
    np.testing.assert_array_equal(images_to_tensor(grey, "x").numpy(), grey[:, None])
    np.testing.assert_array_equal(images_to_tensor(colour.astype(np.uint16) * 257, "x").numpy(), channels_first)
    np.testing.assert_array_equal(images_to_tensor(grey > 9, "x").numpy(), (grey > 9)[:, None] * 255)
    assert images_to_tensor(np.zeros((2, 7, 30, 30)), "x").shape == (2, 7, 30, 30)
    assert images_to_tensor(np.zeros((2, 30, 30, 7)), "x").shape == (2, 7, 30, 30)
    with pytest.raises(UserError, match=r"x: images must be uint8, or floats in \[0, 1\]; got float64 from -1 to 2"):
        images_to_tensor(np.linspace(-1, 2, 27).reshape(3, 3, 3), "x")
    with pytest.raises(UserError, match="got float64 from nan"):
        images_to_tensor(np.full((3, 3, 3), np.nan), "x")
    with pytest.raises(UserError, match=r"got \[3, 4\]"):
        images_to_tensor(np.zeros((3, 4)), "x")
    with pytest.raises(UserError, match="object"):
        images_to_tensor(np.full((3, 3, 3), None), "x")


def test_channels_of_arrays_follow_pillow():
    colour = rng.integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    grey = set_channels(images_to_tensor(colour, "x"), 1, "x")
    pillow = np.stack([np.array(Image.fromarray(image).convert("L")) for image in colour])
    np.testing.assert_array_equal(grey[:, 0].numpy(), pillow)
    np.testing.assert_array_equal(set_channels(grey, 3, "x").numpy(), np.repeat(pillow[:, None], 3, 1))
    for channels, others in ((3, "1 or 3"), (1, "1 or 3"), (5, "1 or 5")):
        with pytest.raises(UserError, match=rf"--data.channels {channels} would need {others} of them"):
            set_channels(images_to_tensor(np.zeros((2, 9, 9, 4)), "x"), channels, "x")


def test_configuration_errors_name_the_option():
    for options in (
        {"channels": 0},
        {"max_skipped": 1.5},
        {"workers": -1},
        {"cache_gb": -1.0},
        {"max_pixels": 0},
        {"max_pixels": 10**12},
        {"background": "octarine"},
    ):
        with pytest.raises(UserError, match=f"--data.{next(iter(options))} "):
            DataConfig(**options)
    with pytest.raises(UserError, match=r"--data.jpeg_draft"):
        DataConfig(jpeg_draft=True, cache="ram")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on what it finds
@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp", "tif", "bmp", "jp2", "tga", "pcx", "psd"])
def test_damaged_bytes_give_pixels_or_a_bad_image(tmp_path, extension):
    """Nothing else may come out of a file, whatever is in it."""
    path = tmp_path / f"a.{extension}"
    if extension == "psd":  # Pillow writes none: a header, and noise
        path.write_bytes(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, H, W, 8, 3) + bytes(500))
    else:
        Image.fromarray(RGB).save(path)
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    damage = np.random.default_rng(1)
    for trial in range(40):
        broken = data.copy()
        broken[damage.integers(0, len(data), 8)] = damage.integers(0, 256, 8)
        path.write_bytes(broken[: len(data) if trial % 2 else int(damage.integers(1, len(data)))].tobytes())
        for shrink in (1, 2):
            try:
                pixels = decode_image(str(path), 3, DataConfig(max_pixels=10**6), shrink)
            except BadImage:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
