"""Files that ask for far more than they are: how each is made, and what reads it. Nothing here is a test."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_forms import FORMS
from PIL import Image
from safetensors.torch import save_file

from twofold.data import DataConfig, open_source
from twofold.encoders.weights import load_classifier, load_encoder, load_head, sealed
from twofold.errors import UserError
from twofold.evaluation.feature_cache import _load as load_features
from twofold.interop.bundle import Bundle
from twofold.interop.moco import read_moco
from twofold.recipe import read_layers
from twofold.training.checkpoint import load_checkpoint

Case = tuple[Callable[[Path], Path], Callable[[Path], Any], str]
"""Makes the file in a folder and gives the path to read; reads it; what the error has to say."""


def open_data(path: Path) -> Any:
    return open_source(path, DataConfig(max_skipped=1.0))


def encoder(spec: dict[str, Any], head: Any = None, classifier: Any = None) -> Callable[[Path], Path]:
    """An encoder file of four weights with a header that says more."""

    def make(folder: Path) -> Path:
        header = {"format": 2, "spec": spec, "head": head, "classifier": classifier, "versions": {}, "extra": {}}
        tensors = {"encoder.x": torch.zeros(4)}
        save_file(tensors, folder / "encoder.safetensors", metadata=sealed(json.dumps(header), tensors))
        return folder / "encoder.safetensors"

    return make


def index_of_shared_names(folder: Path) -> Path:
    """A TensorFlow index whose 60,000 names are each a byte more than the one before."""
    from bundle_writer import mask, varint

    from twofold.interop.crc32c import crc32c

    data = b""

    def append(content: bytes) -> bytes:
        nonlocal data
        handle = varint(len(data)) + varint(len(content))
        data += content + b"\0" + struct.pack("<I", mask(crc32c(content + b"\0")))
        return handle

    entries = b"".join(varint(i) + varint(1) + varint(0) + b"x" for i in range(60_000))
    tail = struct.pack("<II", 0, 1)
    handle = append(entries + tail)
    index = append(varint(0) + varint(1) + varint(len(handle)) + b"y" + handle + tail)
    footer = (handle + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (folder / "model.index").write_bytes(data + footer)
    return folder / "model"


def moco_of_repeated_tensors(folder: Path) -> Path:
    state = {"module.encoder_q.conv1.weight": torch.zeros(1).expand(60_000, 60_000)}
    torch.save({"epoch": 1, "arch": "resnet50", "state_dict": state}, folder / "moco.pth.tar")
    return folder / "moco.pth.tar"


def calling(module: str, name: str, argument: int) -> Callable[[Path], Path]:
    """A PyTorch archive whose pickle calls a function with a number."""

    def make(folder: Path) -> Path:
        call = f"c{module}\n{name}\n".encode() + b"\x8a\x08" + argument.to_bytes(8, "little") + b"\x85R"
        program = b"\x80\x02}(" + b"X\x0a\0\0\0state_dict" + b"}X\x01\0\0\0a" + call + b"su."
        with zipfile.ZipFile(folder / "moco.pth.tar", "w") as archive:
            archive.writestr("moco/data.pkl", program)
            archive.writestr("moco/byteorder", "little")
            archive.writestr("moco/version", "3\n")
        return folder / "moco.pth.tar"

    return make


def old_style_calling(folder: Path) -> Path:
    """The same in the form of PyTorch before 1.6, in which the published checkpoints of MoCo come."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    call = (
        b"\x80\x02}X\x0a\0\0\0state_dictctorch\nFloatTensor\n\x8a\x08" + (4 * 10**9).to_bytes(8, "little") + b"\x85Rs."
    )
    before = b"".join(pickle.dumps(part, 2) for part in parts)
    (folder / "moco.pth.tar").write_bytes(before + call + pickle.dumps([], 2))
    return folder / "moco.pth.tar"


def checkpoint_that_repeats_itself(folder: Path) -> Path:
    value: Any = [torch.zeros(1)]
    for _ in range(60):
        value = [value, value]
    torch.save({"step": 1, "model": value, "seconds": "none"}, folder / "step-000000001.pt")
    return folder / "step-000000001.pt"


def deflated_checkpoint(folder: Path) -> Path:
    buffer = io.BytesIO()
    torch.save({"step": 1, "model": torch.zeros(2**26)}, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    return folder / "a.pt"


def npz_of_zeros(folder: Path) -> Path:
    """3 GB of equal pixels in 3 MB, packed a piece at a time."""
    count, side = 48, 8000
    facts = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side)}
    with (
        zipfile.ZipFile(folder / "images.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, facts)
        for _ in range(count):
            file.write(bytes(side * side))
    return folder / "images.npz"


def npz_that_claims(folder: Path) -> Path:
    """A header of 10 TB before 100 bytes."""
    with zipfile.ZipFile(folder / "images.npz", "w") as archive, archive.open("images.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (10_000_000, 1000, 1000)}
        )
        file.write(bytes(100))
    return folder / "images.npz"


def npy_that_is_sparse(folder: Path) -> Path:
    """100 GB of float pixels of which the disk holds nothing."""
    with (folder / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (25_000_000, 1000)}
        )
        file.truncate(file.tell() + 10**11)
    return folder / "images.npy"


def features_of_zeros(folder: Path) -> Path:
    h = np.zeros((400, 500_000), np.float32)
    np.savez_compressed(folder / "f.npz", h=h, index=np.arange(400), facts=np.zeros(1))
    return folder / "f.npz"


def wav(folder: Path, name: str, rate: int = 16000, channels: int = 1, seconds: int = 1) -> Path:
    """A WAV file whose header can say anything."""
    data = np.random.default_rng(0).integers(-9000, 9000, 16000 * seconds, dtype=np.int16).tobytes()
    facts = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * 2) % 2**32, channels * 2 % 2**16, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + facts + b"data" + struct.pack("<I", len(data)) + data
    (folder / name).write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return folder


def wavs(**header: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for i in range(3):
            wav(folder, f"{i}.wav", **header)
        return folder

    return make


def sparse_text_beside(folder: Path) -> Path:
    wavs()(folder)
    return _sparse(folder / "0.txt").parent


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(10**11)
    return path


def sparse(name: str) -> Callable[[Path], Path]:
    return lambda folder: _sparse(folder / name)


def written(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def parquet_of_equal_rows(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2 * 10**7, np.int8)), pa.array(["x" * 10_000 + ".wav"]))
    with pq.ParquetWriter(folder / "m.parquet", pa.schema([("path", column.type)]), compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(pa.table({"path": column}))
    return folder / "m.parquet"


def silence(minutes: int, rate: int = 48_000, channels: int = 2) -> Callable[[Path], Path]:
    """FLAC files of nothing but zeros, which take a thousandth of what they decode to."""

    def make(folder: Path) -> Path:
        import soundfile

        for name in ("a", "b"):
            with soundfile.SoundFile(folder / f"{name}.flac", "w", rate, channels) as file:
                for _ in range(minutes):
                    file.write(np.zeros((60 * rate, channels), np.int16))
        return folder

    return make


def read_recordings(path: Path) -> Any:
    source = open_data(path)
    for index in range(len(source)):
        source.read(index, 0.5)
    return source


def huge_pngs(folder: Path) -> Path:
    image = Image.new("RGBA", (13_000, 13_000), (10, 200, 30, 120))
    for i in range(6):
        image.save(folder / f"{i}.png", compress_level=1)
    return folder


def read_pictures_at_once(path: Path) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    source = open_data(path)
    with ThreadPoolExecutor(6) as threads:
        shapes = set(threads.map(lambda index: source.read(index).shape, range(len(source))))
    assert shapes == {(13_000, 13_000, 3)}
    raise UserError("all were read")


NET = {"kind": "resnet", "depth": 18}
TIMM, TORCHVISION = {"kind": "timm", "name": "resnet18"}, {"kind": "torchvision", "name": "resnet18"}
HEAD = {"in_dim": 30_000, "layers": 4, "out_dim": 30_000, "hidden_dim": 30_000}
TOO_LARGE = "its header describes a network far larger than"
SPECS: dict[str, dict[str, Any]] = {
    "10**7 layers": {"kind": "speech", "layers": 10**7, "width": 1, "heads": 1, "hidden": 1},
    "10**7 wide layers": {"kind": "speech", "layers": 10**7},
    "rate 10**12": {"kind": "speech", "sample_rate": 10**12},
    "10**9 filters": {"kind": "filterbank", "mels": 10**9},
    "width 10**9": {**NET, "width": 1e9},
    "10**12 channels": {**NET, "channels": 10**12},
    "vit_giant": {"kind": "timm", "name": "vit_giant_patch14_224"},
    "side 50,000": {"kind": "timm", "name": "vit_tiny_patch16_224", "size": 50_000},
    "timm, 10**9 channels": {**TIMM, "channels": 10**9},
    "torchvision, 10**7 channels": {**TORCHVISION, "channels": 10**7},
}
CASES: dict[str, Case] = FORMS | {
    **{f"encoder: {name}": (encoder(spec), load_encoder, TOO_LARGE) for name, spec in SPECS.items()},
    "encoder: a module of one's own, side 50,000": (
        encoder({"kind": "custom", "module": "its", "channels": 3, "size": 50_000, "mean": None, "std": None}),
        lambda path: load_encoder(path, torch.nn.Conv2d(3, 4, 3)), TOO_LARGE,
    ),
    "encoder: a head of 30,000": (encoder(NET, HEAD), load_head, TOO_LARGE),
    "encoder: 10**12 weights of classes": (
        encoder(NET, None, {"in_dim": 10**6, "classes": 10**6, "layer": 0}), load_classifier, TOO_LARGE,
    ),
    "TensorFlow index: shared names": (index_of_shared_names, Bundle, "its names have more than 67,108,864 bytes"),
    "MoCo: repeated tensors": (moco_of_repeated_tensors, read_moco, "3,600,000,000 elements and 1 are stored"),
    "MoCo: FloatTensor(4e9)": (calling("torch", "FloatTensor", 4 * 10**9), read_moco, "it calls torch.FloatTensor"),
    "MoCo: bytearray(4e9)": (calling("builtins", "bytearray", 4 * 10**9), read_moco, "it calls builtins.bytearray"),
    "MoCo: FloatTensor(4e9), old form": (old_style_calling, read_moco, "it calls torch.FloatTensor"),
    "checkpoint: 2**60 repetitions": (checkpoint_that_repeats_itself, load_checkpoint, "'none' seconds"),
    "checkpoint: deflated": (deflated_checkpoint, load_checkpoint, "is compressed"),
    "npz: 3 GB in 3 MB": (npz_of_zeros, open_data, "all but equal ones"),
    "npz: a claim of 10 TB": (npz_that_claims, open_data, "cannot be read"),
    "npy: 100 GB, sparse": (npy_that_is_sparse, open_data, "images.npy"),
    "features: 800 MB in 1 MB": (features_of_zeros, lambda path: load_features(path, 8, 400), "it is compressed"),
    "WAV: 2e9 Hz": (wavs(rate=2 * 10**9), open_data, "its header says 2,000,000,000 Hz"),
    "WAV: 1 Hz": (wavs(rate=1), open_data, "its header says 1 Hz"),
    "WAV: 1,000 channels": (wavs(channels=1000), open_data, "its header says 1,000 channels"),
    "text beside a recording: 100 GB, sparse": (sparse_text_beside, open_data, "has 100,000,000,000 bytes"),
    "manifest: .csv of 100 GB, sparse": (sparse("m.csv"), open_data, "100,000,000,000 bytes"),
    "manifest: .jsonl of 100 GB, sparse": (sparse("m.jsonl"), open_data, "100,000,000,000 bytes"),
    "list: .txt of 100 GB, sparse": (sparse("m.txt"), open_data, "100,000,000,000 bytes"),
    "manifest: one line of 30 MB": (
        written("m.csv", "path\n" + "a" * 30_000_000), open_data, "field larger than field limit",
    ),
    "manifest: nested 10**6 deep": (written("m.jsonl", "[" * 10**6), open_data, "no readable manifest"),
    "options: aliases of aliases": (
        written("o.yaml", "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))),
        lambda path: read_layers(None, path, {}), "more than 100,000 values",
    ),
    "FLAC: silence of 20 minutes": (silence(20), read_recordings, "silent"),
}  # fmt: skip
SLOW: dict[str, Case] = {
    "FLAC: silence of 5 hours": (silence(300), read_recordings, "silent"),
    "FLAC: silence of 25 hours": (silence(1500, 8000, 1), open_data, "its header says 25 hours"),
    "PNG: 169 megapixels, six at once": (huge_pngs, read_pictures_at_once, "all were read"),
    "parquet: 200 million equal rows": (parquet_of_equal_rows, open_data, "need more memory than there is"),
}
"""Files that take a while to make or to read."""


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def read_measured(name: str, path: Path, results: Any) -> None:
    """Read a file in a process of its own; puts (kind of error, its message, seconds, bytes at the peak)."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    before, start, outcome = _memory("VmRSS"), time.monotonic(), ("none", "it was read")
    try:
        (CASES | SLOW)[name][1](path)
    except BaseException as error:
        outcome = (type(error).__name__, str(error))
    results.put((*outcome, time.monotonic() - start, _memory("VmHWM") - before))
