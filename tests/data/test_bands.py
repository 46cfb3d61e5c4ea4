"""Images of n bands: what is read of TIFF in every arrangement, of .npy files, of arrays, shards and tables."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from twofold import cli
from twofold.commands.shard import shard
from twofold.data import DataConfig, Loader, Order, open_source
from twofold.errors import UserError
from twofold.views import ImageViews, ViewsConfig

rng = np.random.default_rng(0)
FIVE = rng.integers(0, 256, (6, 20, 30, 5), dtype=np.uint8)
CONTIG = {"photometric": "minisblack", "planarconfig": "contig"}
PLANAR = {"photometric": "minisblack", "planarconfig": "separate"}


def folder(root, images, **options):
    """A folder of TIFF files, or with the option `npy` of arrays."""
    root.mkdir(exist_ok=True)
    for i, pixels in enumerate(images):
        if options.get("npy"):
            np.save(root / f"{i}.npy", pixels)
        else:
            tifffile.imwrite(root / f"{i}.tif", pixels, **options)
    return root


def pixels(what, **options):
    source = open_source(what, DataConfig(**options))
    read = np.stack([source.read(i) for i in range(len(source))])
    assert read.shape[3] == source.channels == source.facts().channels
    assert all(source.size(i) == read.shape[1:3] for i in range(len(source)))
    return read


@pytest.mark.parametrize(
    "layout",
    [
        CONTIG,
        PLANAR,
        CONTIG | {"compression": "zlib", "predictor": True},
        PLANAR | {"compression": "zlib", "rowsperstrip": 7},
        CONTIG | {"tile": (16, 16)},
        CONTIG | {"bigtiff": True},
        CONTIG | {"byteorder": ">"},
        {"photometric": "rgb"},
    ],
    ids=str,
)
def test_tiff_of_five_bands_in_any_arrangement(tmp_path, layout):
    first = layout.get("planarconfig") == "separate"
    root = folder(tmp_path / "a", FIVE.transpose(0, 3, 1, 2) if first else FIVE, **layout)
    np.testing.assert_array_equal(pixels(root), FIVE)
    np.testing.assert_array_equal(pixels(root, bands=(4, 3, 2)), FIVE[..., [3, 2, 1]])


@pytest.mark.parametrize("count", [2, 3, 4, 13])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64", "int32"])
def test_any_number_of_bands_and_depth(tmp_path, count, kind):
    stored = rng.integers(0, 256, (3, 12, 10, count))
    scale = {"uint16": 257, "float32": 1 / 255, "float64": 1 / 255}.get(kind, 1)
    root = folder(tmp_path / "a", (stored * scale).astype(kind), **CONTIG)
    np.testing.assert_array_equal(pixels(root), stored)


def test_pages_are_bands_where_bands_are_asked_for(tmp_path):
    root = folder(tmp_path / "a", FIVE.transpose(0, 3, 1, 2), photometric="minisblack")
    np.testing.assert_array_equal(pixels(root), FIVE[..., :1])  # the first page, as of any image of several
    np.testing.assert_array_equal(pixels(root, channels=5), FIVE)
    np.testing.assert_array_equal(pixels(root, bands=(5, 1)), FIVE[..., [4, 0]])


@pytest.mark.parametrize("tag", range(1, 9))
def test_bands_are_turned_as_pillow_turns_colours(tmp_path, tag):
    turned = {"extratags": [(274, "H", 1, tag, True)]}
    bands = pixels(folder(tmp_path / "five", FIVE[:2], **CONTIG, **turned))
    colours = pixels(folder(tmp_path / "rgb", FIVE[:2, ..., :3], photometric="rgb", **turned))
    np.testing.assert_array_equal(bands[..., :3], colours)


def test_transparency_is_no_band_unless_it_is_asked_for(tmp_path):
    four = FIVE[..., :4]
    root = folder(tmp_path / "tif", four, photometric="rgb", extrasamples=["unassalpha"])
    assert pixels(root).shape[3] == 3
    np.testing.assert_array_equal(pixels(root, channels=4), four)
    np.testing.assert_array_equal(pixels(root, bands=(4, 1)), four[..., [3, 0]])
    (tmp_path / "png").mkdir()
    for i in range(3):
        Image.fromarray(four[i]).save(tmp_path / "png" / f"{i}.png")
    np.testing.assert_array_equal(pixels(tmp_path / "png", channels=4), four[:3])
    infrared = folder(tmp_path / "x", four, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(pixels(infrared), four)
    mixed = FIVE.copy()  # alpha before another sample
    root = folder(tmp_path / "mixed", mixed, photometric="rgb", extrasamples=["unassalpha", "unspecified"])
    np.testing.assert_array_equal(pixels(root), mixed[..., [0, 1, 2, 4]])


def test_bands_of_ordinary_pictures(tmp_path):
    for i in range(3):
        Image.fromarray(FIVE[i, ..., :3]).save(tmp_path / f"{i}.png")
    np.testing.assert_array_equal(pixels(tmp_path, bands=(3, 1)), FIVE[:3, ..., [2, 0]])
    with pytest.raises(UserError, match=r"no image has the bands .*it has 3 bands, and --data.bands asks for number 4"):
        open_source(tmp_path, DataConfig(bands=(4,)))
    with pytest.raises(UserError, match=r"it has 3 bands, and --data.channels or the encoder asks for 5"):
        open_source(tmp_path, DataConfig(channels=5))


def test_three_channels_of_five_bands_have_to_be_chosen(tmp_path):
    root = folder(tmp_path / "a", FIVE, **CONTIG)
    with pytest.raises(UserError, match=r"it has 5 bands: choose some of them with --data.bands"):
        open_source(root, DataConfig(channels=3))
    with pytest.raises(UserError, match=r"bands \[1, 2\] gives 2 channels, and --data.channels or the encoder asks"):
        DataConfig(channels=3, bands=(1, 2))


@pytest.mark.parametrize("bands", [(), (0,), (1, 1)])
def test_numbers_that_are_no_bands_are_refused(bands):
    with pytest.raises(UserError, match=r"--data.bands .*numbers from 1"):
        DataConfig(bands=bands)


def test_images_of_other_bands_are_skipped_by_name(tmp_path):
    root = folder(tmp_path / "a", FIVE, **CONTIG)
    tifffile.imwrite(root / "z.tif", FIVE[0, ..., :4], **CONTIG)
    source = open_source(root)
    assert (len(source), source.channels) == (6, 5)
    assert dict(source.skipped) == {str(root / "z.tif"): "it has 4 bands, and most of the images have 5"}
    for i in range(3):
        tifffile.imwrite(root / f"y{i}.tif", FIVE[0, ..., :4], **CONTIG)
    with pytest.raises(UserError, match=r"3 of 10 images cannot be read(.|\n)*y0.tif: it has 4 bands"):
        open_source(root)


def test_a_file_of_bands_among_photographs_is_skipped(tmp_path):
    for i in range(6):
        Image.fromarray(FIVE[i, ..., :3]).save(tmp_path / f"{i}.png")
    tifffile.imwrite(tmp_path / "z.tif", FIVE[0], **CONTIG)
    source = open_source(tmp_path)
    assert (len(source), source.channels) == (6, 3)
    assert dict(source.skipped) == {str(tmp_path / "z.tif"): "it has 5 bands: choose some of them with --data.bands"}


def test_deep_colours_with_a_band_more_are_pictures_among_photographs(tmp_path):
    for i in range(6):
        Image.fromarray(FIVE[i, ..., :3]).save(tmp_path / f"{i}.png")
    deep = FIVE[0, ..., :4].astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "z.tif", deep, photometric="rgb", extrasamples=["unspecified"])
    source = open_source(tmp_path)
    assert (len(source), source.channels) == (7, 3)
    assert source.facts().pixels == ""
    np.testing.assert_array_equal(source.read(6), FIVE[0, ..., :3])  # as Pillow reads it


def test_what_is_broken_is_skipped_with_a_reason(tmp_path):
    root = folder(tmp_path / "a", [*FIVE] * 3, **CONTIG)
    whole = (root / "0.tif").read_bytes()
    (root / "cut.tif").write_bytes(whole[:-100])
    (root / "head.tif").write_bytes(whole[:40])
    source = open_source(root, DataConfig(max_skipped=0.5))
    assert list(dict(source.skipped)) == [str(root / "head.tif")]  # the other's header is whole
    with pytest.raises(Exception, match=r"cut.tif: failed to read 3000 bytes"):
        source.read(len(source) - 1)
    with pytest.raises(UserError, match=r"30 x 20 pixels of 5 bands, more than 599"):
        open_source(root, DataConfig(max_pixels=599))


def test_a_missing_codec_is_named(tmp_path, monkeypatch):
    root = folder(tmp_path / "a", FIVE, **CONTIG)

    def needs_codec(*_):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", needs_codec)
    with pytest.raises(Exception, match=r"compression NONE need a codec: pip install 'twofold\[bands\]'"):
        open_source(root).read(0)


# .npy files


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_arrays_in_a_folder(tmp_path, axes):
    root = folder(tmp_path / "a", FIVE.transpose(axes), npy=True)
    np.testing.assert_array_equal(pixels(root), FIVE)
    np.testing.assert_array_equal(pixels(root, bands=(2, 5)), FIVE[..., [1, 4]])
    grey = folder(tmp_path / "grey", FIVE[..., 0], npy=True)
    np.testing.assert_array_equal(pixels(grey), FIVE[..., :1])
    np.testing.assert_array_equal(pixels(grey, channels=3), FIVE[..., [0, 0, 0]])


def test_the_layout_of_arrays_is_decided_once(tmp_path):
    shapes = [(7, 20, 30), (7, 22, 18), (7, 6, 30), (7, 30, 5)]  # alone the last two would be [H, W, C]
    root = folder(tmp_path / "a", [np.zeros(shape, np.uint8) for shape in shapes], npy=True)
    source = open_source(root)
    assert source.channels == 7
    assert [source.read(i).shape for i in range(4)] == [(20, 30, 7), (22, 18, 7), (6, 30, 7), (30, 5, 7)]
    assert source.sizes().tolist() == [[20, 30], [22, 18], [6, 30], [30, 5]]
    last = folder(tmp_path / "c", [np.zeros(s, np.uint8) for s in ((20, 30, 7), (22, 18, 7), (5, 30, 7))], npy=True)
    assert open_source(last).sizes().tolist() == [[20, 30], [22, 18], [5, 30]]
    tall = folder(tmp_path / "b", [np.zeros((8, 6, 9), np.uint8)] * 2, npy=True)
    assert open_source(tall).channels == 8  # the smaller of the first and the last
    assert open_source(tall, DataConfig(channels=9)).read(0).shape == (8, 6, 9)
    assert open_source(tall, DataConfig(channels=8)).read(0).shape == (6, 9, 8)


def test_arrays_beside_images_are_no_images(tmp_path):
    for i in range(3):
        Image.fromarray(FIVE[i, ..., :3]).save(tmp_path / f"{i}.png")
        np.save(tmp_path / f"{i}.npy", rng.random(512))
    assert len(open_source(tmp_path)) == 3


def test_arrays_beside_a_split_of_images_are_no_other_folder_of_images(tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(3):
        Image.fromarray(FIVE[i, ..., :3]).save(tmp_path / "train" / f"{i}.png")
    folder(tmp_path / "features", rng.random((3, 512)), npy=True)
    source = open_source(tmp_path)
    assert (len(source), source.labels) == (3, None)
    assert source.layout == f"{tmp_path}: 3 images in train, no classes"
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for kind in ("a", "b"):
        folder(arrays / kind, FIVE[:3], npy=True)
    assert open_source(arrays).classes == ["a", "b"]


def test_arrays_that_are_no_images_are_skipped(tmp_path):
    root = folder(tmp_path / "a", FIVE, npy=True)
    np.save(root / "vector.npy", np.zeros(7))
    np.save(root / "object.npy", np.array([{}]), allow_pickle=True)
    (root / "cut.npy").write_bytes((root / "0.npy").read_bytes()[:-9])
    source = open_source(root, DataConfig(max_skipped=0.5))
    reasons = {path.rsplit("/", 1)[1]: reason for path, reason in source.skipped}
    assert set(reasons) == {"vector.npy", "object.npy", "cut.npy"}
    assert reasons["vector.npy"] == "an array [7] of float64 is no image: numbers [H, W], [H, W, C] or [C, H, W] are"


# What black and white are


def test_one_range_for_all_bands_or_one_for_each(tmp_path):
    deep = FIVE.astype(np.uint16) * np.array([1, 10, 100, 4, 8], np.uint16)
    root = folder(tmp_path / "a", deep, **CONTIG)
    np.testing.assert_array_equal(pixels(root), np.rint(deep / 257))
    np.testing.assert_array_equal(pixels(root, pixel_range=(0, 25500)), np.rint(deep / 100))
    ranges = tuple((0.0, 255.0 * scale) for scale in (1, 10, 100, 4, 8))
    np.testing.assert_array_equal(pixels(root, band_ranges=ranges), FIVE)
    np.testing.assert_array_equal(pixels(root, bands=(3, 1), band_ranges=(ranges[2], ranges[0])), FIVE[..., [2, 0]])
    facts = open_source(root, DataConfig(deep_pixels="bands")).facts()
    low, high = np.percentile(deep.reshape(-1, 5), (1, 99), axis=0)
    np.testing.assert_allclose(np.array(facts.band_ranges), np.stack([low, high], 1))
    assert facts.pixel_range is None
    assert f"by band {low[0]:g} to {high[0]:g}, " in facts.pixels
    again = pixels(root, deep_pixels="bands", band_ranges=facts.band_ranges)
    np.testing.assert_array_equal(again, pixels(root, deep_pixels="bands"))
    stretched = pixels(root, deep_pixels="stretch")
    assert (stretched.reshape(6, -1).max(1) == 255).all()


@pytest.mark.parametrize("options", [{"photometric": "rgb"}, CONTIG])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_deep_colours_and_more_are_measured_by_band(tmp_path, count, options):
    deep = FIVE[..., :count].astype(np.uint16) * 40 + 7
    extra = {"extrasamples": ["unspecified"] * (count - 3)} if options is not CONTIG and count > 3 else {}
    facts = open_source(folder(tmp_path / "a", deep, **options, **extra), DataConfig(deep_pixels="bands")).facts()
    np.testing.assert_allclose(np.array(facts.band_ranges).T, np.percentile(deep.reshape(-1, count), (1, 99), axis=0))
    ranges = ((7.0, 10207.0),) * count
    np.testing.assert_array_equal(pixels(tmp_path / "a", band_ranges=ranges), FIVE[..., :count])
    if count > 3:
        assert "uint16 pixels, of which 0 is black" in open_source(tmp_path / "a").facts().pixels


@pytest.mark.parametrize("count", [1, 4])
def test_ranges_of_bands_are_for_eight_bits_as_well(tmp_path, count):
    stored = FIVE[..., :count] // 5  # 0 to 51
    expected = stored * 5
    root = folder(tmp_path / "a", stored, npy=True)
    np.testing.assert_array_equal(pixels(root, band_ranges=((0, 51),) * count), expected)
    np.testing.assert_array_equal(pixels(root, pixel_range=(0, 51)), stored)  # pixels of more than 8 bits alone
    np.testing.assert_array_equal(pixels(stored, band_ranges=((0, 51),) * count), expected)


def test_drafts_of_photographs_have_the_bands_that_are_chosen(tmp_path):
    y, x = np.mgrid[:400, :400]
    photo = np.stack([x * 255 // 399, y * 255 // 399, (x + y) * 255 // 798], axis=-1).astype(np.uint8)
    for i in range(4):
        Image.fromarray(photo).save(tmp_path / f"{i}.jpg", quality=95)
    views = ImageViews(ViewsConfig(size=16, crop_area=(0.5, 1.0), flip=0.0, color_strength=0.0, blur=0.0))

    def crops(draft, bands):
        config = DataConfig(workers=0, cache="off", jpeg_draft=draft, bands=bands)
        loader = Loader(open_source(tmp_path, config), views, Order(4, 4, 0), 0, 0, 1, config=config)
        (batch,) = loader.iterate(0, 1)
        return views.apply(batch.examples, batch.draws)[0]

    for bands in ((2, 1), (3,), (3, 2, 1)):
        exact, draft = crops(False, bands), crops(True, bands)
        assert draft.shape == (4, len(bands), 16, 16)
        assert not torch.equal(draft, exact)
        assert (draft - exact).abs().max() < 0.03


def test_signed_bytes_are_no_bytes(tmp_path):
    root = folder(tmp_path / "a", (FIVE[..., :2].astype(np.int16) - 128).astype(np.int8), **CONTIG)
    source = open_source(root)
    assert "int8 pixels, of which -128 is black and 127 white" in source.facts().pixels
    np.testing.assert_array_equal(source.read(0), FIVE[0, ..., :2])


def test_dark_bands_are_warned_of(tmp_path):
    root = folder(tmp_path / "a", FIVE.astype(np.uint16), **CONTIG)
    assert "nearly black" in open_source(root).facts().pixels
    assert "nearly black" not in open_source(root, DataConfig(pixel_range=(0, 255))).facts().pixels


@pytest.mark.parametrize("nodata", [-9999.0, float("nan")])
@pytest.mark.parametrize("bands", [1, 4])
def test_pixels_without_data_are_black_and_change_no_range(tmp_path, nodata, bands):
    stored = FIVE[..., :bands].astype(np.float32)
    stored[:, 3:5] = nodata
    tag = {"extratags": [(42113, "s", 0, str(nodata), True)]}
    root = folder(tmp_path / "a", stored if bands > 1 else stored[..., 0], **(CONTIG if bands > 1 else {}), **tag)
    source = open_source(root)
    expected = FIVE[..., :bands].copy()
    expected[:, 3:5] = 0
    assert source.facts().pixel_range == (0.0, 255.0)
    assert f"{nodata:g} means no data, as the files say, and is black" in source.facts().pixels
    np.testing.assert_array_equal(np.stack([source.read(i) for i in range(6)]), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"band_ranges": ((1.0, 1.0),)}, r"band_ranges \[\[1.0, 1.0\]\]: give black, and a larger number"),
        ({"band_ranges": ((0.0, 1.0),), "pixel_range": (0.0, 1.0)}, "both say what black and white are"),
        ({"band_ranges": ((0.0, 1.0),), "bands": (1, 2)}, "1 ranges for 2 channel"),
        ({"pixel_range": (0.0, 1.0), "deep_pixels": "bands"}, "leave out --data.deep_pixels bands"),
    ],
)
def test_ranges_that_contradict_each_other_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        DataConfig(**options)


# Arrays, tensors, tables, shards, Hugging Face


def test_bands_of_arrays_and_tensors():
    for array in (FIVE, FIVE.transpose(0, 3, 1, 2)):
        np.testing.assert_array_equal(pixels(array, bands=(4, 3, 2)), FIVE[..., [3, 2, 1]])
    with pytest.raises(UserError, match=r"bands \[6\]: array has 5 channels"):
        open_source(FIVE, DataConfig(bands=(6,)))
    with pytest.raises(UserError, match=r"array has 5 channels; .*choose some with --data.bands"):
        open_source(FIVE, DataConfig(channels=3))
    deep = FIVE.astype(np.uint16) * 10
    np.testing.assert_array_equal(pixels(deep, bands=(2, 1), band_ranges=((0, 2550),) * 2), FIVE[..., [1, 0]])
    measured = open_source(deep, DataConfig(deep_pixels="bands")).facts()
    np.testing.assert_allclose(np.array(measured.band_ranges).T, np.percentile(deep.reshape(-1, 5), (1, 99), axis=0))
    tensors = TensorDataset(torch.from_numpy(deep.transpose(0, 3, 1, 2).astype(np.float32)))
    np.testing.assert_array_equal(pixels(tensors, bands=(4, 2), band_ranges=((0, 2550),) * 2), FIVE[..., [3, 1]])
    source = open_source(tensors, DataConfig(deep_pixels="bands"))
    assert source.facts().band_ranges == measured.band_ranges


def test_a_data_set_of_pictures_gives_bands():
    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Image.fromarray(FIVE[index, ..., :4])

    np.testing.assert_array_equal(pixels(Pictures(), bands=(4, 2)), FIVE[:3, ..., [3, 1]])


def test_a_table_of_bands(tmp_path):
    folder(tmp_path / "x", FIVE, npy=True)
    rows = "".join(f"x/{i}.npy,{'ab'[i % 2]}\n" for i in range(6))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    source = open_source(tmp_path / "t.csv", DataConfig(bands=(5, 4)))
    np.testing.assert_array_equal(source.read(3), FIVE[3][..., [4, 3]])
    assert source.classes == ["a", "b"]


@pytest.mark.parametrize("form", ["tif", "npy", "array"])
def test_shards_keep_every_band(tmp_path, form):
    what = FIVE if form == "array" else folder(tmp_path / "a", FIVE, **({"npy": True} if form == "npy" else CONTIG))
    for out in ("one", "two"):
        shard(what, tmp_path / out)
    np.testing.assert_array_equal(pixels(tmp_path / "one"), FIVE)
    np.testing.assert_array_equal(pixels(tmp_path / "one", bands=(1, 5)), FIVE[..., [0, 4]])
    assert (tmp_path / "one" / "000000.tar").read_bytes() == (tmp_path / "two" / "000000.tar").read_bytes()
    if form != "array":
        with pytest.raises(UserError, match="images keep their bytes in archives"):
            shard(what, tmp_path / "three", **{"data.bands": [1]})


def test_a_hugging_face_column_of_arrays(tmp_path):
    features = datasets.Features({"image": datasets.Array3D((5, 20, 30), "uint8"), "label": datasets.Value("int64")})
    rows = {"image": list(FIVE.transpose(0, 3, 1, 2)), "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert source.labels.tolist() == [0, 1] * 3
    np.testing.assert_array_equal(pixels(tmp_path / "saved"), FIVE)
    np.testing.assert_array_equal(pixels(tmp_path / "saved", bands=(2,)), FIVE[..., [1]])


# Batches


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_batches_of_bands_are_the_same_for_any_number_of_processes(tmp_path, cache):
    root = folder(tmp_path / "a", FIVE, **CONTIG)
    views = ImageViews(ViewsConfig(size=16))

    def batches(workers, ranks):
        rows = []
        for rank in range(ranks):
            config = DataConfig(workers=workers, cache=cache)
            loader = Loader(open_source(root, config), views, Order(6, 4, 0), 0, rank, ranks, config=config)
            rows += [views.apply(batch.examples, batch.draws) for batch in loader.iterate(0, 2)]
            loader.close()
        return rows

    one = batches(0, 1)
    assert one[0][0].shape == (4, 5, 16, 16)
    two = batches(0, 2)
    joined = torch.cat([two[0][0], two[2][0]])
    assert torch.allclose(joined, one[0][0], atol=1e-6)
    for a, b in zip(one, batches(2, 1), strict=True):
        assert torch.equal(a[0], b[0])


def test_the_command_says_what_is_read(tmp_path, capsys):
    root = folder(tmp_path / "a", FIVE.astype(np.float32), **CONTIG)
    out = str(tmp_path / "run")
    words = ["--epochs", "1", "--batch", "4", "--encoder.name", "resnet10", "--encoder.width", "0.125"]
    words += ["--data.workers", "0", "--views.size", "16", "--training.device", "cpu", "--data.bands", "[4, 2]"]
    assert cli.main(["pretrain", str(root), "--out", out, *words]) == 0
    told = capsys.readouterr().out
    assert "2 channel(s)" in told
    assert "float32 pixels, of which 0 is black and 255 white" in told
    assert "of the views saturation, hue and grayscale are left out" in " ".join(told.split())
    assert "band 4 in grey" in (tmp_path / "run" / "report.html").read_text()
