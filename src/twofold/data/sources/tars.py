"""What lies where in tar archives, and the index that is kept beside them."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.decoding.images import image_extensions
from twofold.errors import UserError
from twofold.reading import read_text, regular

_PLACE = [("offset", "<i8"), ("size", "<i4"), ("shard", "<i4"), ("label", "<i4")]
RECORD = np.dtype([*_PLACE, ("crc", "<u4")])
"""One image: where its bytes begin in which archive, how many there are, its label (-1 none, -2 a bad one), and the
CRC-32 of its bytes; 0 where they were not read."""
PLACE = np.dtype(_PLACE)
"""What of it tells one image from another, and all that indices of the first format hold."""
_FORMATS = {"twofold-shards-1": PLACE, "twofold-shards-2": RECORD}

_LARGEST_LABEL, _LARGEST_INDEX = 2**20, 2**28
"""Bytes of a member that says a label, and of index.json, that are read."""

INDEX, RECORDS = "index.json", "index.npy"
"""The files that keep an index beside the archives of a folder."""


@dataclass
class TarIndex:
    """The images of some archives."""

    records: NDArray[Any]
    """[n] RECORD; mapped from a file where it was kept, so that the processes of a machine share it."""
    classes: list[str] | None
    """Names of the classes, by label."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of archives that are no archives, or cut short."""
    names: list[str] = field(default_factory=list)
    """The archives, relative to the index."""


def index_tar(path: Path, checksums: bool = False) -> tuple[NDArray[Any], list[tuple[str, str]]]:
    """Walk one archive, reading no images unless their `checksums` are asked for.

    Returns:
        [n] RECORD with shard 0, in the archive's order, and (path, reason) if the archive is damaged: what lies whole
        before the damage counts.
    """
    images: list[tuple[str, int, int, int]] = []
    labels: dict[str, int] = {}
    problems: list[tuple[str, str]] = []
    known = image_extensions()
    try:
        size = regular(path).size
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"cut short in {member.name}")
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")  # WebDataset's keys end at the first dot
                if f".{extension.lower()}" in known and not base.startswith("."):
                    crc = _checksum(archive, member) if checksums else 0
                    images.append((f"{folder}/{stem}", member.offset_data, member.size, crc))
                elif extension in ("cls", "json"):
                    _note_label(archive, member, f"{folder}/{stem}", labels)
            if size < archive.offset + 512 or (not images and size == 0):
                raise tarfile.ReadError("cut short: the end of the archive is missing")
    except (tarfile.TarError, OSError, EOFError) as error:
        left = f"; {len(images)} images before that are used" if images else ""
        problems.append((str(path), f"not a whole tar archive ({error}){left}"))
    records = np.zeros(len(images), RECORD)
    records["offset"], records["size"] = [o for _, o, _, _ in images], [s for _, _, s, _ in images]
    records["label"] = [labels.get(key, -1) for key, *_ in images]
    records["crc"] = [crc for *_, crc in images]
    return records, problems


def _checksum(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    stream = archive.extractfile(member)
    return zlib.crc32(stream.read() if stream is not None else b"")


def _note_label(archive: tarfile.TarFile, member: tarfile.TarInfo, key: str, labels: dict[str, int]) -> None:
    stream = archive.extractfile(member)
    text = stream.read(_LARGEST_LABEL) if stream is not None else b""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = "not JSON"
    if member.name.endswith(".json"):
        names = [name for name in ("label", "cls") if isinstance(value, dict) and name in value]
        if not names:
            return  # about something else
        value = value[names[0]]
    labels[key] = value if type(value) is int and 0 <= value < 2**31 else -2


def write_index(folder: Path, names: list[str], index: TarIndex) -> None:
    """Keep an index beside the archives `names` of a folder; index.json is written last, whole or not at all."""
    part = folder / f".{RECORDS}.{os.getpid()}.npy"
    np.save(part, index.records)
    part.replace(folder / RECORDS)
    shards = [[name, (folder / name).stat().st_size] for name in names]
    document = {"format": "twofold-shards-2", "images": len(index.records), "classes": index.classes, "shards": shards}
    part = folder / f".{INDEX}.{os.getpid()}"
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(folder / INDEX)


def read_index(folder: Path) -> TarIndex | None:
    """The index kept in a folder; None if there is none of ours.

    Raises:
        UserError: it is damaged, or the archives are not those it was made from.
    """
    file = folder / INDEX
    if not file.is_file():
        return None
    remedy = f"make it again: twofold shard {folder} --index true"
    try:
        document = json.loads(read_text(file, _LARGEST_INDEX))
        if not isinstance(document, dict) or document.get("format") not in _FORMATS:
            return None
        records = np.load(folder / RECORDS, mmap_mode="r", allow_pickle=False)
        shards: dict[str, int] = dict(document["shards"])
        if records.dtype != _FORMATS[document["format"]] or len(records) != document["images"]:
            raise ValueError(f"{RECORDS} does not belong to it")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error}); {remedy}") from error
    present = {path.name: path.stat().st_size for path in folder.glob("*.tar") if not path.name.startswith(".")}
    if present != shards:
        other = sorted(name for name in present.keys() | shards.keys() if present.get(name) != shards.get(name))
        raise UserError(f"{file} is not of these archives ({other[0]} differs); {remedy}")
    return TarIndex(records, document["classes"], names=list(shards))
