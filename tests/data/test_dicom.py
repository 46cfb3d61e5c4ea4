"""DICOM files: pixels as their headers say, by pydicom; the values expected are worked out from the stored ones."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.data import DataConfig, open_source
from twofold.data.decoding import dicom
from twofold.data.sources.pack import items, write_shards
from twofold.errors import UserError

pydicom = pytest.importorskip("pydicom")
FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def copies(folder, *names):
    """Those of pydicom's own files, in a folder."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        shutil.copy(FILES / name, folder / f"{i}_{name}")
    return folder


def changed(path, name="MR_small.dcm", **elements):
    """One of pydicom's files with other elements."""
    data = pydicom.dcmread(FILES / name)
    for key, value in elements.items():
        setattr(data, key, value)
    data.save_as(path)
    return path


def scaled(values, black, white):
    return np.rint((np.clip(values.astype(np.float64), black, white) - black) * (255 / (white - black))).astype(
        np.uint8
    )


def test_pixels_are_rescaled_and_share_one_range(tmp_path):
    ct = pydicom.dcmread(FILES / "CT_small.dcm")
    assert (ct.RescaleSlope, ct.RescaleIntercept, ct.BitsStored, ct.PixelRepresentation) == (1, -1024, 16, 1)
    source = open_source(copies(tmp_path / "x", "CT_small.dcm", "CT_small.dcm"))
    units = ct.pixel_array.astype(np.float64) - 1024
    assert source.channels == 1
    assert source.pixel_range == (units.min(), units.max())  # 16 bits are stored: how many are used, the values tell
    np.testing.assert_array_equal(source.read(0)[..., 0], scaled(units, units.min(), units.max()))
    said = open_source(tmp_path / "x", DataConfig(pixel_range=(-160, 240)))
    np.testing.assert_array_equal(said.read(1)[..., 0], scaled(units, -160, 240))


def test_stored_bits_are_the_range(tmp_path):
    for i in range(2):
        changed(
            tmp_path / f"{i}.dcm", BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleSlope=2, RescaleIntercept=-8
        )
    stored = pydicom.dcmread(tmp_path / "0.dcm").pixel_array
    source = open_source(tmp_path)
    assert source.facts().pixel_range == (-8.0, 2 * 4095 - 8)
    np.testing.assert_array_equal(source.read(0)[..., 0], scaled(2 * stored.astype(np.int64) - 8, -8, 2 * 4095 - 8))


def test_low_values_are_white_where_the_file_says_so(tmp_path):
    for i, kind in enumerate(("MONOCHROME1", "MONOCHROME2")):
        changed(tmp_path / f"{i}.dcm", PhotometricInterpretation=kind)
    source = open_source(tmp_path)
    np.testing.assert_array_equal(source.read(0), 255 - source.read(1))
    assert source.read(0).std() > 5


@pytest.mark.parametrize("options", [{}, {"deep_pixels": "window"}, {"deep_pixels": "stretch"}, {"frames": "all"}])
def test_a_band_of_a_file_is_read_as_its_picture(tmp_path, options):
    for i, kind in enumerate(("MONOCHROME1", "MONOCHROME2")):
        changed(tmp_path / f"{i}.dcm", PhotometricInterpretation=kind, WindowCenter=600, WindowWidth=1200)
    picture, band = (open_source(tmp_path, DataConfig(bands=each, **options)) for each in (None, (1,)))
    assert band.groups == picture.groups
    for i in range(2):
        np.testing.assert_array_equal(band.read(i), picture.read(i))
    tiles = open_source(tmp_path, DataConfig(bands=(1,), tile=32, pixel_range=(0, 4000)))
    whole = open_source(tmp_path, DataConfig(pixel_range=(0, 4000)))
    np.testing.assert_array_equal(tiles.read(3), whole.read(0)[32:, 32:])


def test_the_window_of_the_file_where_it_is_asked_for(tmp_path):
    for i in range(2):
        changed(tmp_path / f"{i}.dcm", WindowCenter=[600, 50], WindowWidth=[1200, 7])
    stored = pydicom.dcmread(FILES / "MR_small.dcm").pixel_array
    source = open_source(tmp_path, DataConfig(deep_pixels="window"))
    np.testing.assert_array_equal(source.read(0)[..., 0], scaled(stored, 600 - 0.5 - 599.5, 600 - 0.5 + 599.5))
    assert (source.read(0) != open_source(tmp_path).read(0)).any()


def test_frames_are_images(tmp_path):
    folder = copies(tmp_path / "x", "rtdose.dcm", "SC_rgb_rle_2frame.dcm")
    plain = open_source(folder)
    assert len(plain) == 2
    assert "2 files have more than one frame" in plain.facts().layout
    source = open_source(folder, DataConfig(frames="all", channels=3))
    dose, colours = (pydicom.dcmread(FILES / name).pixel_array for name in ("rtdose.dcm", "SC_rgb_rle_2frame.dcm"))
    assert len(source) == len(dose) + len(colours) == 17
    np.testing.assert_array_equal(source.read(16), colours[1])
    np.testing.assert_array_equal(source.read(15), colours[0])
    ranked = source.read(7)[..., 0].astype(np.int64).ravel()[np.argsort(dose[7].ravel())]
    assert (np.diff(ranked) >= 0).all()


@pytest.mark.parametrize(
    "name",
    ["examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm", "SC_ybr_full_422_uncompressed.dcm"],
)
def test_colours_are_colours(tmp_path, name):
    source = open_source(copies(tmp_path / "x", name, name), DataConfig(frames="all"))
    assert source.channels == 3
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    expected = pixel_array(FILES / name, index=0)
    if "palette" in name:
        expected = apply_color_lut(expected, pydicom.dcmread(FILES / name))
        expected = np.rint(expected / (65535 if expected.dtype == np.uint16 else 255) * 255)
    assert expected.std() > 5
    np.testing.assert_array_equal(source.read(0), expected)


def test_files_are_known_by_what_they_begin_with(tmp_path):
    for name in ("IM0001", "1.2.840.113619.2", "scan.ima", "a.dcm"):
        shutil.copy(FILES / "MR_small.dcm", tmp_path / name)
    shutil.copy(FILES / "dicomdirtests" / "DICOMDIR", tmp_path / "DICOMDIR")
    (tmp_path / "README").write_text("no image")
    (tmp_path / "data.2").write_bytes(b"x" * 200)
    source = open_source(tmp_path)
    assert [Path(source.path(i)).name for i in range(len(source))] == [
        "1.2.840.113619.2",
        "IM0001",
        "a.dcm",
        "scan.ima",
    ]
    assert not source.skipped


def test_those_without_pixels_are_skipped(tmp_path):
    folder = copies(tmp_path / "x", "MR_small.dcm", "CT_small.dcm", "reportsi.dcm", "rtplan.dcm")
    source = open_source(folder, DataConfig(max_skipped=0.5))
    assert len(source) == 2
    assert {reason for _, reason in source.skipped} == {"a DICOM file without pixels"}


def test_patients_are_groups_and_stay_unnamed(tmp_path, capsys):
    secret = {"PatientName": "Mustermann^Erika", "PatientBirthDate": "19640812"}
    for i, patient in enumerate(("P-8812-07", "P-8812-07", "Q-17", "")):
        changed(tmp_path / f"{i}.dcm", PatientID=patient, **secret)
    source = open_source(tmp_path)
    first, second, third, fourth = source.groups
    assert first == second != third
    assert fourth == ""
    out = tmp_path / "packed"
    write_shards(items(source), out, 10**6, None)
    packed = open_source(out)
    assert packed.groups[0] == packed.groups[1] != packed.groups[2]
    np.testing.assert_array_equal(packed.read(0), source.read(0))
    with tarfile.open(out / "000000.tar") as archive:
        images = [archive.extractfile(name).read() for name in archive.getnames() if name.endswith(".png")]
    assert Image.open(io.BytesIO(images[0])).size == (64, 64)
    written = b"".join(path.read_bytes() for path in out.iterdir())
    told = "".join(capsys.readouterr()) + repr(source.groups) + repr(vars(source)) + source.facts().layout
    for word in ("Mustermann", "19640812", "P-8812-07", "Q-17"):
        assert word.encode() not in written
        assert word not in told


def test_the_missing_extra_is_said_with_its_remedy(tmp_path, monkeypatch):
    folder = copies(tmp_path / "x", "MR_small.dcm", "CT_small.dcm")
    real = dicom.importlib.util.find_spec
    monkeypatch.setattr(dicom.importlib.util, "find_spec", lambda name: None if name == "pydicom" else real(name))
    with pytest.raises(UserError, match=r'pip install "twofold\[dicom\]"'):
        open_source(folder)


def test_cut_short_files_are_skipped_when_they_are_read(tmp_path):
    from twofold.data import BadImage

    folder = copies(tmp_path / "x", "MR_small.dcm", "MR_small.dcm", "MR_small.dcm")
    broken = folder / "1_MR_small.dcm"
    broken.write_bytes(broken.read_bytes()[:5000])
    source = open_source(folder)
    with pytest.raises(BadImage, match="1_MR_small"):
        source.read(1)
    assert source.read(2).std() > 5


def test_twelve_bits_in_sixteen(tmp_path):
    for i in range(2):
        Image.fromarray((np.arange(64 * 64, dtype=np.uint16) % 4096).reshape(64, 64)).save(tmp_path / f"{i}.png")
    source = open_source(tmp_path)
    assert source.pixel_range == (0.0, 65535.0)
    assert "12 bits in 16" in source.facts().pixels
    assert "--data.pixel_range '[0, 4095]'" in source.facts().pixels
    said = open_source(tmp_path, DataConfig(pixel_range=(0, 4095)))
    assert said.read(0).max() == 255
    assert "12 bits" not in said.facts().pixels


def group(**elements):
    """A functional group: by sequence, its elements."""
    result = pydicom.Dataset()
    for sequence, values in elements.items():
        item = pydicom.Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        setattr(result, sequence, [item])
    return result


def test_each_frame_has_its_own_slope_and_window(tmp_path):
    stored = np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16)
    frames = [
        group(
            PixelValueTransformationSequence={"RescaleSlope": slope, "RescaleIntercept": 5, "RescaleType": "US"},
            FrameVOILUTSequence={"WindowCenter": 300, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
        )
        for slope in (1, 3)
    ]
    for i in range(2):
        changed(
            tmp_path / f"{i}.dcm", Rows=16, Columns=16, NumberOfFrames=2, PixelRepresentation=0, BitsStored=12,
            HighBit=11, PixelData=stored.tobytes(), PerFrameFunctionalGroupsSequence=frames,
        )  # fmt: skip
    source = open_source(tmp_path, DataConfig(frames="all", pixel_range=(0, 2000)))
    for i, slope in enumerate((1, 3, 1, 3)):
        np.testing.assert_array_equal(source.read(i)[..., 0], scaled(stored[i % 2] * slope + 5, 0, 2000))
    window = open_source(tmp_path, DataConfig(frames="all", deep_pixels="window"))
    np.testing.assert_array_equal(window.read(1)[..., 0], scaled(stored[1] * 3.0 + 5, 100, 500))


def test_a_table_of_values_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.add_new(0x00283002, "US", [4096, 0, 16])
    table.add_new(0x00283006, "US", (np.arange(4096) ** 2 // 256).tolist())
    table.ModalityLUTType = "US"
    stored = (np.arange(64 * 64, dtype=np.uint16) % 4096).reshape(64, 64)
    for i in range(2):
        changed(
            tmp_path / f"{i}.dcm", BitsStored=12, HighBit=11, PixelRepresentation=0, PixelData=stored.tobytes(),
            ModalityLUTSequence=[table],
        )  # fmt: skip
    source = open_source(tmp_path, DataConfig(pixel_range=(0, 65535)))
    np.testing.assert_array_equal(source.read(0)[..., 0], scaled(stored.astype(np.int64) ** 2 // 256, 0, 65535))
