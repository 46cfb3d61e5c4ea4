"""Tiles of large images and frames of animated files: which there are, what they hold, and to whom they belong."""

from __future__ import annotations

import pickle
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiff_files import write_blocks, write_tiled

from twofold.data import ArraySource, BadImage, DataConfig, Loader, Order, open_source
from twofold.data.content import content_digest
from twofold.data.decoding import parts
from twofold.data.sources.pack import items, write_shards
from twofold.data.sources.pieces import PiecesSource
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.views import ImageViews, ViewsConfig


def picture(height, width, seed=0, channels=3):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.integers(0, 3, (height, width, channels)), axis=1).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes; two large images and two small ones."""
    save(tmp_path / "a" / "large.png", picture(130, 200))
    save(tmp_path / "a" / "small.png", picture(64, 50, 1))
    save(tmp_path / "b" / "wide.jpg", picture(40, 150, 2), quality=95)
    save(tmp_path / "b" / "tiny.png", picture(20, 20, 3))
    return tmp_path


def names(source, folder):
    return [str(source.path(i)).replace(f"{folder}/", "") for i in range(len(source))]


def test_tiles_cover_an_image_and_belong_to_its_file(folder):
    source = open_source(folder, DataConfig(tile=64, tile_rest=0))
    assert names(source, folder) == [
        *(f"a/large.png#{x},{y}" for y in (0, 64, 66) for x in (0, 64, 128, 136)), "a/small.png", "b/tiny.png",
        "b/wide.jpg#0,0", "b/wide.jpg#64,0", "b/wide.jpg#86,0",
    ]  # fmt: skip
    assert source.labels.tolist() == [0] * 13 + [1] * 4
    large, wide = str(folder / "a" / "large.png"), str(folder / "b" / "wide.jpg")
    assert source.groups == [large] * 12 + ["", ""] + [wide] * 3
    assert source.sizes()[[0, 12, 13, 14]].tolist() == [[64, 64], [64, 50], [20, 20], [40, 64]]
    whole = np.array(Image.open(folder / "a" / "large.png"))
    np.testing.assert_array_equal(source.read(11), whole[66:, 136:])
    np.testing.assert_array_equal(source.read(5), whole[64:128, 64:128])
    np.testing.assert_array_equal(source.read(16), np.array(Image.open(folder / "b" / "wide.jpg"))[:, 86:])
    assert "4 files, 17 tiles" in source.facts().layout
    assert "4 files, 17 tiles" in source.name


def test_what_is_left_over_gets_a_tile_if_it_is_wide_enough(folder):
    def columns(**options):
        source = open_source(folder, DataConfig(tile=64, **options))
        return [name.split("#")[1] for name in names(source, folder) if "wide" in name]

    assert columns() == ["0,0", "64,0"]  # 150 - 128 = 22 pixels are left, fewer than half of 64
    assert columns(tile_rest=22 / 64) == ["0,0", "64,0", "86,0"]
    assert columns(tile_overlap=32) == ["0,0", "32,0", "64,0"]
    assert columns(tile_overlap=32, tile_rest=0) == ["0,0", "32,0", "64,0", "86,0"]
    assert columns(tile_overlap=21) == ["0,0", "43,0", "86,0"]


def test_images_within_the_side_are_read_as_ever(folder):
    plain, tiled = open_source(folder), open_source(folder, DataConfig(tile=200))
    assert not isinstance(tiled, PiecesSource)
    assert plain.fingerprint() == tiled.fingerprint()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_tiles_of_turned_photographs_are_upright(tmp_path, turn, kind):
    exif = Image.Exif()
    exif[0x0112] = turn
    for name in ("x", "y"):
        save(tmp_path / f"{name}.{kind}", picture(70, 100), exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    whole, source = open_source(tmp_path).read(0), open_source(tmp_path, DataConfig(tile=32, tile_rest=0))
    assert whole.shape[:2] == ((100, 70) if turn >= 5 else (70, 100))
    assert len(source) == 2 * 12
    for i in range(12):
        left, top = map(int, source.path(i).split("#")[1].split(","))
        np.testing.assert_array_equal(source.read(i), whole[top : top + 32, left : left + 32])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["rgb", "grey", "deep"])
def test_a_tile_of_a_tiled_tiff_is_decoded_alone(tmp_path, monkeypatch, kind, order):
    pixels = picture(300, 421, channels=3 if kind == "rgb" else 1)
    pixels = pixels if kind == "rgb" else pixels[..., 0]
    pixels = pixels.astype(np.uint16) * 200 if kind == "deep" else pixels
    for name in ("x", "y"):
        write_tiled(tmp_path / f"{name}.tif", pixels, order=order)
    whole = open_source(tmp_path).read(0)
    monkeypatch.setattr(Image.Image, "load", _small_only(Image.Image.load))
    source = open_source(tmp_path, DataConfig(tile=50, tile_rest=0))
    assert len(source) == 2 * 6 * 9
    for i in range(54):
        left, top = map(int, source.path(i).split("#")[1].split(","))
        np.testing.assert_array_equal(source.read(i), whole[top : top + 50, left : left + 50])


def _small_only(load):
    def small(image):
        assert image.width * image.height <= 192 * 128
        return load(image)

    return small


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "F", "1", "CMYK"])
def test_strips_are_decoded_alone_too(tmp_path, compression, mode):
    image = Image.fromarray(picture(400, 90))
    if mode == "I;16":
        image = Image.fromarray(picture(400, 90)[..., 0].astype(np.uint16) * 150)
    elif mode == "P":
        image = image.quantize(64)
    else:
        image = image.convert(mode)
    if compression == "jpeg" and mode not in ("RGB", "L", "CMYK"):
        pytest.skip("libtiff writes no such file")
    for name in ("x", "y"):
        image.save(tmp_path / f"{name}.tif", compression=compression, strip_size=2000)
    whole = open_source(tmp_path)
    source = open_source(tmp_path, DataConfig(tile=32, tile_rest=0, pixel_range=whole.pixel_range))
    for i in range(len(source) // 2):
        left, top = map(int, source.path(i).split("#")[1].split(","))
        np.testing.assert_array_equal(source.read(i), whole.read(0)[top : top + 32, left : left + 32])


def test_files_far_beyond_the_limit_are_read_in_tiles_and_in_little_memory(tmp_path):
    side = 100_000  # 10^10 pixels, 30 GB decoded
    block = zlib.compress(np.full((1000, 1000, 3), 77, np.uint8).tobytes())
    for name in ("x", "y"):
        write_blocks(tmp_path / f"{name}.tif", [block], (side, side), (1000, 1000))
    with pytest.raises(UserError, match="exceeds limit"):
        open_source(tmp_path)
    tracemalloc.start()
    source = open_source(tmp_path, DataConfig(tile=1000))
    assert len(source) == 2 * 100 * 100
    assert (source.read(5050) == 77).all()
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_other_files_beyond_the_limit_are_skipped_with_the_remedy(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", picture(40, 40))
    save(tmp_path / "large.png", picture(60, 60))
    source = open_source(tmp_path, DataConfig(tile=32, max_pixels=2000, max_skipped=0.5))
    ((path, reason),) = source.skipped
    assert path.endswith("large.png")
    assert reason == (
        "60 x 60 pixels, more than 2000, and of this file no tile can be decoded alone: save it as a tiled TIFF file"
    )


def test_a_file_is_decoded_once_for_neighbouring_tiles(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(parts, "open_image", lambda path, *more: opened.append(path) or _open(path, *more))
    source = open_source(folder, DataConfig(tile=16, tile_rest=0))
    opened.clear()
    for i in range(len(source)):
        source.read(i)
    assert sorted(opened) == sorted(set(opened))
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(source.read, range(len(source))))
    fresh = pickle.loads(pickle.dumps(source))
    for i, pixels in enumerate(again):
        np.testing.assert_array_equal(fresh.read(i), pixels)


_open = parts.open_image


def test_a_forked_process_opens_files_of_its_own(tmp_path, monkeypatch):
    write_tiled(tmp_path / "x.tif", picture(300, 300))
    source = open_source(tmp_path, DataConfig(tile=50))
    expected = source.read(0)
    opened = []
    monkeypatch.setattr(parts, "open_image", lambda path, *more: opened.append(path) or _open(path, *more))
    source.read(1)
    assert not opened
    monkeypatch.setattr(parts.os, "getpid", lambda: -1)  # as in a child, whose descriptors move with the parent's
    np.testing.assert_array_equal(source.read(0), expected)
    assert len(opened) == 1


def test_batches_of_tiles_do_not_depend_on_workers_or_cache(folder):
    source = open_source(folder, DataConfig(tile=32))
    views = ImageViews(ViewsConfig(size=16))
    batches = []
    for workers, cache in ((0, "off"), (2, "off"), (2, "ram")):
        config = DataConfig(tile=32, workers=workers, cache=cache)
        with Loader(source, views, Order(len(source), 8, 0), seed=0, config=config) as loader:
            batches.append([batch.examples for batch in loader.iterate(0, 4)])
    for others in batches[1:]:
        for first, other in zip(batches[0], others, strict=True):
            np.testing.assert_array_equal(first, other)


def test_a_file_that_breaks_off_counts_once(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", picture(64, 64, i))
    contents = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(contents[: len(contents) // 2])
    source = open_source(tmp_path, DataConfig(tile=32))
    bad = []
    for i in range(len(source)):
        try:
            source.read(i)
        except BadImage as error:
            bad.append(i)
            source.skipped.add(error.path, error.reason)
    assert bad == [12, 13, 14, 15]
    assert [path for path, _ in source.skipped] == [str(tmp_path / "3.png")]


def test_arrays_are_cut_and_data_sets_say_so():
    pixels = np.stack([picture(40, 70, seed) for seed in range(3)])
    source = open_source((pixels, [0, 1, 2]), DataConfig(tile=35, tile_rest=0))
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(source.read(7), pixels[1, 5:, 35:])
    assert source.groups[4:8] == ["array[1]"] * 4
    assert isinstance(open_source(pixels, DataConfig(tile=70)), ArraySource)
    import torch
    from torch.utils.data import TensorDataset

    data = TensorDataset(torch.zeros(4, 3, 40, 40), torch.arange(4))
    assert len(open_source(data, DataConfig(tile=40))) == 4
    with pytest.raises(UserError, match=r"--data\.tile 32 cuts image files and arrays, and TensorDataset is neither"):
        open_source(data, DataConfig(tile=32))


def series(kind, count=5, size=(20, 24)):
    """Frames of one colour each."""
    return [Image.new("RGB" if kind != "gif" else "L", (size[1], size[0]), color=_shade(i, kind)) for i in range(count)]


def _shade(i, kind):
    return 40 * i + 20 if kind == "gif" else (40 * i + 20,) * 3


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif", "mpo"])
def test_every_frame_is_an_image(tmp_path, kind):
    for name in ("x", "y"):
        first, *rest = series(kind, 3)
        options = {"lossless": True} if kind == "webp" else {"quality": 95} if kind == "mpo" else {}
        first.save(tmp_path / f"{name}.{kind}", save_all=True, append_images=rest, **options)
    save(tmp_path / "z.png", picture(20, 24))
    plain = open_source(tmp_path)
    assert len(plain) == 3
    assert "2 files have more than one frame, of which the first is read (--data.frames all" in plain.facts().layout
    source = open_source(tmp_path, DataConfig(frames="all"))
    assert names(source, tmp_path) == [f"{name}.{kind}#{i}" for name in "xy" for i in range(3)] + ["z.png"]
    np.testing.assert_allclose([source.read(i).mean() for i in range(6)], [20, 60, 100] * 2, atol=1)
    np.testing.assert_allclose([source.read(i).mean() for i in (2, 1, 5, 0)], [100, 60, 100, 20], atol=1)  # backwards
    assert source.groups == [str(tmp_path / f"x.{kind}")] * 3 + [str(tmp_path / f"y.{kind}")] * 3 + [""]
    assert "3 files, 7 frames" in source.facts().layout
    assert "more than one frame" not in source.facts().layout
    every = open_source(tmp_path, DataConfig(frames="all", frame_step=2))
    assert names(every, tmp_path)[:3] == [f"x.{kind}#0", f"x.{kind}#2", f"y.{kind}#0"]
    tiles = open_source(tmp_path, DataConfig(frames="all", tile=12, tile_rest=0))
    assert names(tiles, tmp_path)[4:6] == [f"x.{kind}#1#0,0", f"x.{kind}#1#12,0"]
    np.testing.assert_allclose(tiles.read(4).mean(), 60, atol=1)
    assert "3 files, 7 frames, 28 tiles" in tiles.facts().layout


def test_a_photograph_whose_second_picture_is_damaged_is_read(tmp_path):
    for name in ("x", "y"):
        first, *rest = series("mpo", 2, (64, 64))
        first.save(tmp_path / f"{name}.mpo", save_all=True, append_images=rest)
        whole = (tmp_path / f"{name}.mpo").read_bytes()
        (tmp_path / f"{name}.mpo").write_bytes(whole[: whole.rindex(b"\xff\xd8")] + b"damaged")
    assert [round(open_source(tmp_path).read(i).mean()) for i in range(2)] == [20, 20]
    with pytest.raises(UserError, match="cannot be read"):
        open_source(tmp_path, DataConfig(frames="all"))


def test_smaller_versions_and_masks_in_a_tiff_are_no_frames(tmp_path):
    for name in ("x", "y"):
        pages = [Image.new("L", (32, 32), 10), Image.new("L", (8, 8), 20), Image.new("L", (30, 20), 30)]
        pages[1].encoderinfo = {"tiffinfo": {254: 1}}
        with (tmp_path / f"{name}.tif").open("w+b") as file, _tiff_writer()(file) as out:
            for page, kind in zip(pages, (0, 1, 2), strict=True):
                page.save(out, format="TIFF", tiffinfo={254: kind})
                out.newFrame()
    source = open_source(tmp_path, DataConfig(frames="all"))
    assert names(source, tmp_path) == ["x.tif#0", "x.tif#2", "y.tif#0", "y.tif#2"]
    assert source.sizes().tolist() == [[32, 32], [20, 30]] * 2
    assert source.read(1).max() == 30


def _tiff_writer():
    from PIL.TiffImagePlugin import AppendingTiffWriter

    return lambda file: AppendingTiffWriter(file, new=True)


def test_the_fingerprint_tells_tiles_apart(folder):
    ways = [{}, {"tile": 64}, {"tile": 32}, {"tile": 32, "tile_overlap": 8}]
    sources = [open_source(folder, DataConfig(**way)) for way in ways]
    assert len({source.fingerprint() for source in sources}) == 4
    assert len({content_digest(source) for source in sources}) == 1
    before = content_digest(sources[1])
    pixels = np.array(Image.open(folder / "a" / "small.png"))
    save(folder / "a" / "small.png", 255 - pixels)
    assert content_digest(sources[1]) != before
    part = subset(sources[1], [2, 5])
    np.testing.assert_array_equal(part.read(1), sources[1].read(5))
    assert part.path(1) == sources[1].path(5)


def test_packed_tiles_keep_their_groups_and_no_names(folder, tmp_path):
    source = open_source(folder, DataConfig(tile=64))
    out = tmp_path / "packed"
    write_shards(items(source), out, 10**6, source.classes)
    packed = open_source(out)
    assert len(packed) == len(source)
    assert packed.labels.tolist() == source.labels.tolist()
    for i in range(len(source)):
        np.testing.assert_array_equal(packed.read(i), source.read(i))
    same = [[a == b for a in groups] for groups in (source.groups, packed.groups) for b in groups]
    assert same[: len(source)] == same[len(source) :]
    assert packed.groups[source.groups.index("")] == ""
    assert b"large" not in (out / "000000.tar").read_bytes()
    (out / "index.json").unlink()  # as archives from elsewhere
    assert open_source(out).groups == packed.groups


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 0}, "--data.tile 0"),
        ({"tile": 20_000}, "--data.tile 20000"),
        ({"tile": 32, "tile_overlap": 32}, "--data.tile_overlap 32"),
        ({"tile": 32, "tile_rest": 1.5}, "--data.tile_rest 1.5"),
        ({"frames": "all", "frame_step": 0}, "--data.frame_step 0"),
        ({"tile": 32, "jpeg_draft": True}, "--data.jpeg_draft"),
        ({"tile_overlap": 8}, "tile_overlap 8"),
        ({"frame_step": 2}, "frame_step 2"),
    ],
)
def test_options_that_make_no_sense_are_named(folder, options, words):
    with pytest.raises(UserError, match=words):
        open_source(folder, DataConfig(**options))


@pytest.mark.parametrize("cache", ["off", "ram"])
def test_a_broken_file_of_many_tiles_is_one_broken_file(tmp_path, cache):
    """Each of its tiles is stood in for by a tile of another file, however many there are."""
    for name in ("a", "b", "c", "d", "e", "f"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 3])
    config = DataConfig(tile=16, cache=cache, workers=1)
    source = open_source(tmp_path, config)
    order = Order(len(source), 100, 0)
    with Loader(source, ImageViews(ViewsConfig(size=16)), order, 0, config=config) as loader:
        for batch in loader.iterate(0, 6):
            files = source.files[batch.index.numpy()]
            asked = source.files[order.indices(batch.step)]
            assert (files == np.where(asked == 1, 2, asked)).all()
    assert [path for path, _ in source.skipped] == [str(tmp_path / "b.png")]
