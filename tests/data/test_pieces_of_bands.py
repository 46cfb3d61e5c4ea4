"""Tiles and frames of images of n bands: every piece is what the same options read of the whole."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from twofold.data import DataConfig, open_source
from twofold.data.sources.pack import items, write_shards

rng = np.random.default_rng(0)
CONTIG = {"photometric": "minisblack", "planarconfig": "contig"}
PLANAR = {"photometric": "minisblack", "planarconfig": "separate"}


def scenes(root, kind=np.uint8, count=5, **layout):
    """Two classes of two scenes of 70 x 90 pixels."""
    for i in range(4):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 200 if kind == np.uint8 else 4000, (70, 90, count)).astype(kind)
        if layout.get("planarconfig") == "separate":
            values = values.transpose(2, 0, 1)
        tifffile.imwrite(root / "ab"[i % 2] / f"{i}.tif", values, **layout)
    return root


def same_as_whole(root, alone=False, **options):
    """Compare tiles; `alone`: the whole has more than `max_pixels`, so that only a part of it can be decoded."""
    whole = open_source(root, DataConfig(**options))
    source = open_source(root, DataConfig(tile=32, **options, **({"max_pixels": 3700} if alone else {})))
    assert source.channels == whole.channels
    assert len(source) == 4 * 3 * 2  # 90 = 2 x 32 + 26, and 70 = 2 x 32 + 6, which is less than half
    for i in range(len(source)):
        left, top = map(int, source.path(i).split("#")[-1].split(","))
        pixels = whole.read(int(source.files[i]))[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(source.read(i), pixels)
    return whole, source


@pytest.mark.parametrize(
    "layout",
    [
        CONTIG | {"tile": (16, 16)},
        PLANAR | {"tile": (16, 32), "compression": "zlib"},
        CONTIG | {"tile": (16, 16), "compression": "zlib", "predictor": True, "byteorder": ">"},
        CONTIG | {"rowsperstrip": 5, "compression": "zlib"},
        PLANAR | {"rowsperstrip": 5},
        CONTIG | {"bigtiff": True},
        CONTIG | {"extratags": [(274, "H", 1, 6, True)]},
        {"photometric": "rgb", "tile": (16, 16)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_tiles_of_five_bands_are_those_of_the_whole(tmp_path, layout, kind):
    if "extratags" in layout:  # turned, and so not in blocks of its own
        layout = layout | {"extratags": [(274, "H", 1, 3, True)]}
    if kind == np.float32 and layout.get("predictor"):
        layout = layout | {"predictor": False}
    scenes(tmp_path, kind, **layout)
    # Black and white are given: they are measured on the middle of what is read, which for tiles is one tile.
    options = {} if kind == np.uint8 else {"pixel_range": (0.0, 4095.0)}
    alone = "extratags" not in layout
    _, source = same_as_whole(tmp_path, alone, **options)
    assert source.channels == 5
    assert source.labels.tolist() == [0] * 12 + [1] * 12
    assert len(set(source.groups)) == 4
    same_as_whole(tmp_path, alone, bands=(4, 1, 3), **options)
    same_as_whole(tmp_path, bands=(4, 1, 3), **options)


def test_ranges_of_bands_hold_for_tiles(tmp_path):
    scenes(tmp_path, np.uint16, **CONTIG, tile=(16, 16))
    same_as_whole(tmp_path, True, band_ranges=tuple((10.0 * i, 3000.0 + i) for i in range(5)))
    source = open_source(tmp_path, DataConfig(tile=32, deep_pixels="bands"))
    assert len(source.facts().band_ranges) == len(source.band_ranges) == 5


@pytest.mark.parametrize(("count", "bands"), [(5, None), (1, None), (1, (1,))])
@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 70}])
def test_tiles_know_of_pixels_without_data(tmp_path, count, bands, layout):
    for i in range(4):
        values = rng.integers(500, 4000, (70, 90, count)).astype(np.uint16)
        values[:, 40:60] = 65000
        shape = values if count > 1 else values[..., 0]
        extra = [(42113, "s", 0, "65000", True)]
        tifffile.imwrite(tmp_path / f"{i}.tif", shape, extratags=extra, **(CONTIG if count > 1 else {}), **layout)
    same_as_whole(tmp_path, pixel_range=(0.0, 4095.0), bands=bands)
    _, source = same_as_whole(tmp_path, True, pixel_range=(0.0, 4095.0), bands=bands)
    assert not source.read(1)[:, 40 - 32 : 60 - 32].any()
    measured = open_source(tmp_path, DataConfig(tile=32, bands=bands, deep_pixels="bands"))
    assert all(high <= 4000 for _, high in measured.band_ranges)


def test_scenes_far_beyond_the_limit_are_read_in_tiles(tmp_path):
    block = np.arange(256 * 256 * 5, dtype=np.uint32).reshape(256, 256, 5).astype(np.uint8)
    for name in ("x", "y"):
        shape = (24 * 256, 24 * 256, 5)
        tifffile.imwrite(
            tmp_path / f"{name}.tif", (block for _ in range(24 * 24)), shape=shape, dtype=np.uint8, tile=(256, 256),
            compression="zlib", **CONTIG,
        )  # fmt: skip
    tracemalloc.start()
    source = open_source(tmp_path, DataConfig(tile=256, max_pixels=1_000_000))
    assert len(source) == 2 * 24 * 24
    np.testing.assert_array_equal(source.read(700), block)
    assert tracemalloc.get_traced_memory()[1] < 30e6  # one scene has 189 MB
    tracemalloc.stop()


def test_tiles_of_arrays_and_of_pictures_have_the_bands_that_are_chosen(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", rng.integers(0, 256, (70, 90, 6), dtype=np.uint8))
    same_as_whole(tmp_path, bands=(6, 2))
    for i in range(4):
        (tmp_path / f"{i}.npy").unlink()
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
    same_as_whole(tmp_path, bands=(3, 2, 1))


def test_pages_are_frames_unless_they_are_bands(tmp_path):
    pages = rng.integers(0, 256, (3, 4, 20, 30), dtype=np.uint8)
    for i, stack in enumerate(pages):
        tifffile.imwrite(tmp_path / f"{i}.tif", stack, photometric="minisblack")
    frames = open_source(tmp_path, DataConfig(frames="all"))
    assert (len(frames), frames.channels) == (12, 1)
    assert frames.path(5).endswith("1.tif#1")
    np.testing.assert_array_equal(np.stack([frames.read(i)[..., 0] for i in range(12)]), pages.reshape(12, 20, 30))
    for options in ({"bands": (4, 1)}, {"channels": 4}):
        asked = [open_source(tmp_path, DataConfig(frames=each, **options)) for each in ("all", "first")]
        chosen = [3, 0] if "bands" in options else [0, 1, 2, 3]
        for source in asked:
            assert len(source) == 3
            np.testing.assert_array_equal(source.read(1), pages[1][chosen].transpose(1, 2, 0))
            assert "more than one frame" not in source.facts().layout
        tiles = open_source(tmp_path, DataConfig(tile=20, frames="all", tile_rest=0, **options))
        np.testing.assert_array_equal(tiles.read(1), asked[0].read(0)[:, 10:])


def test_pages_of_several_bands_are_frames(tmp_path):
    pages = rng.integers(0, 256, (3, 4, 20, 30, 5), dtype=np.uint8)
    for i, stack in enumerate(pages):
        with tifffile.TiffWriter(tmp_path / f"{i}.tif") as file:
            for page in stack:
                file.write(page, **CONTIG, tile=(16, 16))
            file.write(stack[0, ::2, ::2], subfiletype=1, **CONTIG)  # a smaller version
    first = open_source(tmp_path, DataConfig())
    assert len(first) == 3
    assert "3 files have more than one frame" in first.facts().layout
    for options, chosen in (({}, [0, 1, 2, 3, 4]), ({"bands": (5, 2)}, [4, 1])):
        frames = open_source(tmp_path, DataConfig(frames="all", **options))
        assert len(frames) == 12
        for i in range(12):
            np.testing.assert_array_equal(frames.read(i), pages[i // 4, i % 4][..., chosen])
        tiles = open_source(tmp_path, DataConfig(frames="all", frame_step=3, tile=20, tile_rest=0, **options))
        assert len(tiles) == 12
        assert tiles.path(3).endswith("0.tif#3#10,0")
        np.testing.assert_array_equal(tiles.read(3), pages[0, 3][:, 10:, chosen])


def test_packed_tiles_of_bands_are_the_same(tmp_path):
    source = open_source(scenes(tmp_path / "scenes", **CONTIG), DataConfig(tile=32, bands=(5, 1, 2, 4)))
    write_shards(items(source), tmp_path / "packed", 10**6, source.classes)
    packed = open_source(tmp_path / "packed")
    assert packed.channels == 4
    assert packed.labels.tolist() == source.labels.tolist()
    assert len(set(packed.groups)) == 4
    for i in range(len(source)):
        np.testing.assert_array_equal(packed.read(i), source.read(i))
