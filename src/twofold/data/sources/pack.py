"""Writing images into tar archives, named as WebDataset names them; the same images give the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from twofold.data.base import SkipList, Source
from twofold.data.config import DataConfig
from twofold.data.decoding.bands import kind_of_file
from twofold.data.decoding.dicom import begins_as_dicom
from twofold.data.decoding.opening import BadImage, stored
from twofold.data.groups import groups_of
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.tars import TarIndex, index_tar, joined, write_index
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.reading import read_bytes


@dataclass(frozen=True)
class Item:
    """One image to be packed."""

    data: bytes
    """Encoded."""
    extension: str
    """Of its format, without a dot."""
    label: int | str | None
    """A class's number or name; None, or below 0, where it is not known."""
    group: str = ""
    """What it belongs to, kept as `group` in a .json member."""


def items(source: Source) -> Iterator[Item]:
    """The images of a source, in its order; those that cannot be decoded are noted in `skipped` and left out.

    Encoded images keep their bytes, but for DICOM files, whose pixels alone are taken: they name patients. Those,
    arrays, tiles and frames are encoded as PNG, or TIFF where they are neither grey nor RGB, which loses nothing of
    what is read.

    Raises:
        UserError: more unreadable images than `max_skipped`, or an image can have several labels.
    """
    labels = source.labels
    if labels is not None and labels.ndim != 1:
        raise UserError(f"{source.name}: its images can have several labels, and a .cls member holds one")
    groups = groups_of(source)
    for index in range(len(source)):
        label, group = None if labels is None else int(labels[index]), groups[index] if groups else ""
        try:
            pixels = source.read(index)
            if isinstance(source, EncodedSource):
                path, data = source.locate(index)
                contents = read_bytes(path, available_memory() // 8) if data is None else data
                if not begins_as_dicom(contents):
                    yield Item(contents, _extension(contents), label, group)
                    continue
            yield _encoded(pixels, label, group)
        except BadImage as error:
            source.skipped.add(error.path, error.reason)


def _encoded(pixels: NDArray[np.uint8], label: int | None, group: str) -> Item:
    buffer = io.BytesIO()
    if pixels.shape[2] in (1, 3):
        Image.fromarray(pixels if pixels.shape[2] != 1 else pixels[..., 0]).save(buffer, "PNG")
        return Item(buffer.getvalue(), "png", label, group)
    import tifffile  # here: most users need none

    tifffile.imwrite(
        buffer, np.ascontiguousarray(pixels), photometric="minisblack", planarconfig="contig", compression="zlib",
        metadata=None, software=False,
    )  # fmt: skip  # nothing of the day or of the program: the same images give the same bytes
    return Item(buffer.getvalue(), "tif", label, group)


def streamed_items(cells: Iterable[tuple[bytes, int | str | None]], skipped: SkipList) -> Iterator[Item]:
    """Encoded images as they come; those that cannot be decoded are noted and left out."""
    config = DataConfig()
    for number, (data, label) in enumerate(cells):
        try:
            stored(f"example {number}", config, data, first=False)
            yield Item(data, _extension(data), label)
        except BadImage as error:
            skipped.add(error.path, error.reason)


def write_shards(packed: Iterable[Item], out: Path, most: int, classes: list[str] | None) -> list[Path]:
    """Write archives of at most `most` bytes (one image at least), check what they hold, and keep their index.

    An archive has its name only when it is whole, and the folder its index only when all are.

    Args:
        packed: what to write, in this order.
        out: a folder that is new or empty.
        most: bytes.
        classes: names, by label.

    Raises:
        UserError: `out` holds something, nothing was given, the disk refuses, or an archive read back differs.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is no empty folder; choose another one, or remove it")
    counts: list[int] = []
    paths: list[Path] = []
    stream = iter(packed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        item = next(stream, None)
        while item is not None:
            path = out / f"{len(paths):06d}.tar"
            part, before, first = path.with_suffix(".part"), sum(counts), True
            count = 0
            with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
                while item is not None and (first or archive.offset + len(item.data) + 4096 <= most):
                    _add(archive, before + count, item)
                    count, first, item = count + 1, False, next(stream, None)
            part.replace(path)
            paths.append(path)
            counts.append(count)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}; remove the folder and free some space") from error
    if not paths:
        raise UserError(f"--out {out}: there is no image to pack")
    write_index(out, [path.name for path in paths], _read_back(paths, counts, classes))
    return paths


def _read_back(paths: list[Path], counts: list[int], classes: list[str] | None) -> TarIndex:
    walks = []
    for path, count in zip(paths, counts, strict=True):
        walk = index_tar(path, checksums=True)
        if walk.problems or len(walk.records) != count:
            raise UserError(
                f"{path}: {count} images were written and {len(walk.records)} read back; is the disk sound?"
            )
        walks.append(walk)
    index = joined(walks, str(paths[0].parent))
    return index if classes is None else dataclasses.replace(index, classes=classes)


def _add(archive: tarfile.TarFile, number: int, item: Item) -> None:
    members = [(item.extension, item.data)]
    if isinstance(item.label, str) or (item.label is not None and item.label >= 0):
        members.append(("cls", str(item.label).encode()))
    if item.group:  # a hash: names of files or patients stay where they are, and equal ones are equal in other archives
        members.append(("json", json.dumps({"group": hashlib.sha256(item.group.encode()).hexdigest()[:16]}).encode()))
    for extension, data in members:
        info = tarfile.TarInfo(f"{number:09d}.{extension}")  # no time, no owner: the same images give the same bytes
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def _extension(data: bytes) -> str:
    """By what the bytes say, as names lie."""
    if kind := kind_of_file("an image", data):
        return {"npy": "npy", "tiff": "tif"}[kind]
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "").lower()
    except UnidentifiedImageError as error:
        raise BadImage("an image", "not of a format that Pillow reads") from error
    usual = {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif", "jpeg2000": "jp2", "ppm": "ppm"}
    return usual.get(kind, kind)
