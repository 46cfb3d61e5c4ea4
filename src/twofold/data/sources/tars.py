"""What lies where in tar archives, and the index that is kept beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.decoding.bands import NPY
from twofold.data.decoding.images import image_extensions
from twofold.data.labels import UNLABELLED, class_labels
from twofold.errors import UserError
from twofold.reading import read_text, regular
from twofold.text import counted

_PLACE = [("offset", "<i8"), ("size", "<i4"), ("shard", "<i4"), ("label", "<i4")]
_CHECKED = [*_PLACE, ("crc", "<u4")]
RECORD = np.dtype([*_CHECKED, ("group", "<u8")])
"""One image: where its bytes begin in which archive, how many there are, its label (-1 none, BAD_LABEL one that cannot
be read), the CRC-32 of its bytes, 0 where they were not read, and a hash of its group, 0 without one."""
BAD_LABEL = -2
PLACE = np.dtype(_PLACE)
"""What of it tells one image from another, and all that indices of the first format hold."""
_FORMATS = {"twofold-shards-1": PLACE, "twofold-shards-2": np.dtype(_CHECKED), "twofold-shards-3": RECORD}

LARGEST_LABEL, _LARGEST_INDEX = 2**24, 2**28
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


@dataclass
class TarWalk:
    """What one archive holds."""

    records: NDArray[Any]
    """[n] RECORD with shard 0, in the archive's order; labels are those of `labels` that are numbers."""
    labels: list[int | str]
    """[n] class numbers or names; UNLABELLED or BAD_LABEL."""
    problems: list[tuple[str, str]]
    """(path, reason) if the archive is damaged: what lies whole before the damage counts."""


def index_tar(path: Path, checksums: bool = False) -> TarWalk:
    """Walk one archive, reading no images unless their `checksums` are asked for.

    Members .npy are images where the archive has no others: beside images they may hold anything.
    """
    images: list[tuple[str, int, int, int]] = []
    arrays: list[tuple[str, int, int, int]] = []
    labels: dict[str, int | str] = {}
    groups: dict[str, int] = {}
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
                key, extension, hidden = _parts(member.name)
                kind = f".{extension.lower()}"
                if (kind in known or kind == NPY) and not hidden:
                    crc = _checksum(archive, member) if checksums else 0
                    (arrays if kind == NPY else images).append((key, member.offset_data, member.size, crc))
                elif extension in ("cls", "json"):
                    _note(archive, member, key, labels, groups)
            if size < archive.offset + 512 or (not images and not arrays and size == 0):
                raise tarfile.ReadError("cut short: the end of the archive is missing")
    except (tarfile.TarError, OSError, EOFError) as error:
        left = f"; {counted(len(images or arrays), 'image')} before that can be used" if images or arrays else ""
        problems.append((str(path), f"not a whole tar archive ({error}){left}"))
    images = images or arrays
    found = [labels.get(key, UNLABELLED) for key, *_ in images]
    records = np.zeros(len(images), RECORD)
    records["offset"], records["size"] = [o for _, o, _, _ in images], [s for _, _, s, _ in images]
    records["label"] = [UNLABELLED if isinstance(label, str) else label for label in found]
    records["crc"] = [crc for *_, crc in images]
    records["group"] = [groups.get(key, 0) for key, *_ in images]
    return TarWalk(records, found, problems)


def member_fields(path: Path, name: str) -> list[str | None]:
    """[n] what ``KEY.json`` says under a name of each image of an archive, in the order of `index_tar`; else None."""
    keys: list[str] = []
    arrays: list[str] = []
    values: dict[str, Any] = {}
    known = image_extensions()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, extension, hidden = _parts(member.name)
                if not member.isfile():
                    continue
                kind = f".{extension.lower()}"
                if (kind in known or kind == NPY) and not hidden:
                    (arrays if kind == NPY else keys).append(key)
                elif extension == "json" and (stream := archive.extractfile(member)) is not None:
                    with contextlib.suppress(ValueError, RecursionError):  # told where labels are read
                        document = json.loads(stream.read(LARGEST_LABEL))
                        values[key] = document.get(name) if isinstance(document, dict) else None
    except (tarfile.TarError, OSError, EOFError):  # told where the archive is indexed, and what lies before counts
        pass
    return [None if values.get(key) is None else str(values[key]) for key in keys or arrays]


def joined(walks: Sequence[TarWalk], name: str) -> TarIndex:
    """One index of all archives; where labels are names they are numbered in the order of these."""
    for shard, walk in enumerate(walks):
        walk.records["shard"] = shard
    records = np.concatenate([walk.records for walk in walks]) if walks else np.zeros(0, RECORD)
    problems, classes = [problem for walk in walks for problem in walk.problems], None
    if any(isinstance(label, str) for walk in walks for label in walk.labels):
        values = [None if label in (UNLABELLED, BAD_LABEL) else label for walk in walks for label in walk.labels]
        numbers, classes = class_labels(values, len(records), name)
        records["label"] = np.where(records["label"] == BAD_LABEL, BAD_LABEL, numbers)
    return TarIndex(records, classes, problems)


def _parts(name: str) -> tuple[str, str, bool]:
    """A member's key, its extension, and whether it is a hidden file; WebDataset's keys end at the first dot."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}", extension, base.startswith(".")


def _checksum(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    stream = archive.extractfile(member)
    crc = 0
    while stream is not None and (part := stream.read(2**24)):
        crc = zlib.crc32(part, crc)
    return crc


def _note(
    archive: tarfile.TarFile, member: tarfile.TarInfo, key: str, labels: dict[str, int | str], groups: dict[str, int]
) -> None:
    """Take down what a .cls member, or the label and the group in a .json member, say of an image."""
    stream = archive.extractfile(member)
    text = stream.read(LARGEST_LABEL) if stream is not None else b""
    of_json = member.name.endswith(".json")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        # (a name stands in a .cls without quotes)
        named = not of_json and member.size <= LARGEST_LABEL
        value = text.decode(errors="replace").strip() if named else BAD_LABEL
    if of_json and value != BAD_LABEL:
        if isinstance(value, dict) and isinstance(value.get("group"), str | int):
            digest = hashlib.sha256(str(value["group"]).encode(errors="surrogatepass")).digest()
            groups[key] = int.from_bytes(digest[:8], "little")
        names = [name for name in ("label", "cls") if isinstance(value, dict) and name in value]
        if not names:
            return  # about something else
        value = value[names[0]]
    if value is None or value == "" or value != value or value == UNLABELLED:  # (nan is not itself)
        labels[key] = UNLABELLED
    elif isinstance(value, str) or (type(value) is int and 0 <= value < 2**31):
        labels[key] = value
    else:
        labels[key] = BAD_LABEL


def write_index(folder: Path, names: list[str], index: TarIndex) -> None:
    """Keep an index beside the archives `names` of a folder; index.json is written last, whole or not at all."""
    part = folder / f".{RECORDS}.{os.getpid()}.npy"
    np.save(part, index.records)
    part.replace(folder / RECORDS)
    shards = [[name, (folder / name).stat().st_size] for name in names]
    document = {"format": "twofold-shards-3", "images": len(index.records), "classes": index.classes, "shards": shards}
    document["sha256"] = _digest(document, folder / RECORDS)
    part = folder / f".{INDEX}.{os.getpid()}"
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(folder / INDEX)


def _digest(document: dict[str, Any], records: Path) -> str:
    """sha256 of an index: of its document, but for the digest itself, and of the file of its records."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    regular(records)
    with records.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def read_index(folder: Path) -> TarIndex | None:
    """The index kept in a folder; None if there is none of ours.

    Labels, places and checksums of the images lie in it: it is compared with its digest, which indices that were made
    before there was one lack.

    Raises:
        UserError: it is damaged, or the archives are not those it was made from.
    """
    file = folder / INDEX
    if not file.is_file():
        return None
    remedy = f"make it again: twofold shard {folder} --index true"
    try:
        document = json.loads(read_text(file, _LARGEST_INDEX))
        if not isinstance(document, dict):
            return None
        if document.get("format") not in _FORMATS:
            if "sha256" in document and "shards" in document:
                raise ValueError(f"its format is {document.get('format')!r}")
            return None
        if "sha256" in document and document["sha256"] != _digest(document, folder / RECORDS):
            raise ValueError("the digest in it differs from what it and index.npy hold")
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
