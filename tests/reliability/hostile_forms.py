"""More of `hostile_files`: frames, bands, DICOM, archives and other people's weights. Nothing here is a test."""

from __future__ import annotations

import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from sound_files import tone, write
from twofold.data import DataConfig, open_source
from twofold.errors import UserError
from twofold.interop.backbones import read_backbone

Case = tuple[Callable[[Path], Path], Callable[[Path], Any], str]


def read_all(path: Path, **options: Any) -> Any:
    """Open data and read the first example; what was left out is told as an error."""
    source: Any = open_source(path, DataConfig(max_skipped=1.0, **options))
    if len(source.skipped):
        raise UserError(source.skipped.summary())
    return source.read(0)


def frames(path: Path) -> Any:
    return read_all(path, frames="all")


def apng_of_frames(folder: Path) -> Path:
    """Says 2**31 frames and holds one."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    data = (folder / "a.png").read_bytes()
    control = b"acTL" + struct.pack(">II", 2**31, 0)
    chunk = struct.pack(">I", 8) + control + struct.pack(">I", zlib.crc32(control))
    (folder / "a.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    return folder


def dicom_of_frames(folder: Path) -> Path:
    import pydicom

    data = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    data.NumberOfFrames = 10**9
    data.save_as(folder / "a.dcm")
    return folder


def dicom_deflated(folder: Path) -> Path:
    """A gigabyte of zeros, deflated, behind the usual beginning."""
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    data = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(folder / "a.dcm")
    whole = (folder / "a.dcm").read_bytes()
    begin = 144 + int.from_bytes(whole[140:144], "little")
    deflate = zlib.compressobj(9, wbits=-15)
    parts = [deflate.compress(zlib.decompress(whole[begin:], -15))]
    parts += [deflate.compress(struct.pack("<HH2sHI", 0x7FE1, 0x0010, b"OB", 0, 2**30))]
    parts += [deflate.compress(bytes(2**24)) for _ in range(64)] + [deflate.flush()]
    (folder / "a.dcm").write_bytes(whole[:begin] + b"".join(parts))
    return folder


def tiff_that_claims(width: int, height: int, samples: int) -> Callable[[Path], Path]:
    """Five bands of 8 x 8, and a header that says more of them or larger ones."""

    def make(folder: Path) -> Path:
        pixels = np.zeros((8, 8, 5), np.float32)
        tifffile.imwrite(folder / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
        with tifffile.TiffFile(folder / "a.tif", mode="r+b") as file:
            for tag, value in ((256, width), (257, height), (277, samples)):
                found: Any = file.pages[0].tags[tag]
                found.overwrite(value, dtype=4 if value >= 2**16 else None)
        return folder

    return make


def arrays_that_are_sparse(folder: Path) -> Path:
    """A folder of one image of 100 GB that is not there."""
    with (folder / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (10**5, 10**5, 10)}
        )
        file.truncate(file.tell() + 10**11)
    return folder


def archive(example: str, said: str) -> Callable[[Path], Path]:
    """An example, and 50 GB of what is said of it, which are not there."""

    def make(folder: Path) -> Path:
        name = folder / f"x{Path(example).suffix}"
        if name.suffix == ".png":
            Image.new("RGB", (8, 8)).save(name)
        else:
            write(name, tone(0))
        with tarfile.open(folder / "a.tar", "w") as file:
            file.add(name, example)
        name.unlink()
        header = tarfile.TarInfo(said)
        header.size = 50 * 10**9
        with (folder / "a.tar").open("r+b") as raw:
            place = _end_of_members(folder / "a.tar")
            raw.seek(place)
            raw.write(header.tobuf())
            raw.truncate(place + tarfile.BLOCKSIZE + header.size + 4 * tarfile.BLOCKSIZE)
        return folder

    return make


def _end_of_members(path: Path) -> int:
    with tarfile.open(path) as file:
        last = file.getmembers()[-1]
    return last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def backbone(content: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(content() if callable(content) else content, folder / "x.pth")
        return folder / "x.pth"

    return make


def mappings_in_mappings() -> dict[str, Any]:
    inner: dict[str, Any] = {"weight": torch.zeros(4)}
    for _ in range(40):
        inner = {"a": inner, "b": inner}
    return inner


def sparse_safetensors(folder: Path) -> Path:
    header = json.dumps({"x": {"dtype": "U8", "shape": [10**12], "data_offsets": [0, 10**12]}}).encode()
    with (folder / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 10**12)
    return folder / "x.safetensors"


FORMS: dict[str, Case] = {
    "APNG: 2**31 frames": (apng_of_frames, frames, "2,147,483,649 frames, more than 1,048,576"),
    "DICOM: 10**9 frames": (dicom_of_frames, frames, "it says that it has 1,000,000,000 frames"),
    "DICOM: 1 GB in 1 MB": (dicom_deflated, read_all, "its deflated elements"),
    "TIFF: 10**6 x 10**6 bands": (tiff_that_claims(10**6, 10**6, 5), read_all, "1000000 x 1000000 pixels of 5 bands"),
    "TIFF: 60,000 bands": (tiff_that_claims(13_000, 13_000, 60_000), read_all, "13000 x 13000 pixels of 60,000 bands"),
    "npy images: 100 GB, sparse": (arrays_that_are_sparse, read_all, "100000 x 100000 pixels, more than"),
    "archive of images: a label of 50 GB": (archive("0.png", "0.cls"), read_all, "its label is neither"),
    "archive of images: 50 GB of JSON": (
        archive("0.png", "0.json"), lambda path: read_all(path, group="who"), "its label is neither",
    ),
    "archive of recordings: a text of 50 GB": (archive("0.wav", "0.txt"), read_all, "50,000,000,000 bytes, more than"),
    "backbone: calls itself vit_h_14": (
        backbone({"arch": "vit_h_14", "state_dict": {"conv_proj.weight": torch.zeros(4)}}), read_backbone,
        "its header describes a network far larger than",
    ),
    "backbone: mappings in mappings": (backbone(mappings_in_mappings), read_backbone, "mappings in mappings"),
    "backbone: repeated tensors": (
        backbone({"conv1.weight": torch.zeros(1).expand(10**9, 4)}), read_backbone, "claims 4,000,000,000 elements",
    ),
    "backbone: 1 TB, sparse": (sparse_safetensors, read_backbone, "of memory are free"),
}  # fmt: skip
