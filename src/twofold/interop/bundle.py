"""TensorFlow's tensor bundles, read without TensorFlow: a checkpoint's `.index` and `.data-*` files.

The index is a sorted table of names (the format of LevelDB's files), whose blocks carry checksums; each entry says the
type and shape of a tensor, where its bytes lie in the data files, and their checksum. All checksums are compared.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.{h,cc}, tensorflow/core/protobuf/tensor_bundle.proto,
tensorflow/core/lib/io/table_format.txt.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.interop.crc32c import crc32c, masked
from twofold.interop.protobuf import Malformed, integer, messages, varint
from twofold.reading import read_bytes

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_LARGEST_INDEX = 2**28
_LONGEST_NAME, _LARGEST_NAMES = 2**14, 2**26
"""Bytes of one name, and of all: a name is written as what it adds to the one before, so that an index of 400 kB could
hold gigabytes of them."""
_MOST_DIMENSIONS = 32
_TRAILER = 5  # a byte that names the compression, and a checksum, follow each block

STRING = 7
BFLOAT16 = 14
_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    BFLOAT16: np.dtype("<u2"),
    19: np.dtype("<f2"),
    22: np.dtype("<u4"),
    23: np.dtype("<u8"),
}
"""tensorflow/core/framework/types.proto; bfloat16 is read as the upper halves of float32."""


@dataclass(frozen=True)
class Entry:
    """What the index says about one tensor.

    Attributes:
        dtype: TensorFlow's number of the type.
        shape: of the tensor.
        shard: number of the data file.
        offset, size: where its bytes lie there.
        crc: masked CRC-32C of its bytes.
        sliced: whether it was saved in parts (a partitioned variable).
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


class Bundle:
    """A checkpoint as a table of tensors, which are read when asked for.

    Args:
        prefix: path without `.index`.

    Attributes:
        entries: by name, in the file's (sorted) order.

    Raises:
        UserError: no index, a damaged one, or data files that are missing or too short for it.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self.index_path = Path(f"{self.prefix}.index")
        try:
            table = dict(_table(read_bytes(self.index_path, _LARGEST_INDEX)))
            header = table.pop(b"", None)
            if header is None:
                raise Malformed("it has no header")
            self.shards = integer(header, 1)
            if integer(header, 2) != 0:
                raise UserError(f"{self.index_path} was written on a big-endian machine; save it anew on a usual one")
            self.entries = {key.decode(): _entry(value) for key, value in table.items() if not key.startswith(b"\0")}
        except OSError as error:
            raise UserError(f"{self.index_path} cannot be read: {error.strerror or error}") from error
        except (Malformed, UnicodeDecodeError, IndexError, struct.error) as error:
            raise UserError(f"{self.index_path} is no TensorFlow checkpoint or is damaged: {error}") from error
        self._check_data_files()

    def shard_path(self, shard: int) -> Path:
        """The data file of that number."""
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self.shards:05d}")

    def read(self, name: str) -> NDArray[Any]:
        """The values of one tensor, as a new array; bfloat16 comes as float32.

        Raises:
            UserError: its bytes are not those that were written, or it is of a type or form that this does not read.
        """
        entry = self.entries[name]
        dtype = _TYPES.get(entry.dtype)
        if dtype is None:
            raise UserError(f"{name} in {self.prefix} has TensorFlow's type {entry.dtype}, which is no plain number")
        if entry.sliced:
            raise UserError(
                f"{name} in {self.prefix} is a partitioned variable, saved in parts; "
                "load it in TensorFlow and save it whole"
            )
        if entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise UserError(f"{self.index_path} is damaged: {name} {list(entry.shape)} cannot have {entry.size} bytes")
        data = self._bytes(entry)
        self._check(name, entry, crc32c(data))
        values = data.view(dtype).reshape(entry.shape)
        if entry.dtype == BFLOAT16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def read_text(self, name: str) -> bytes:
        """The bytes of a scalar string tensor."""
        entry = self.entries[name]
        if entry.dtype != STRING or entry.shape:
            raise UserError(f"{name} in {self.prefix} is no single string")
        data = self._bytes(entry).tobytes()
        # The length, a checksum of the length (as 4 or 8 bytes), and the string. The entry's checksum covers all three.
        try:
            length, start = varint(data, 0)
        except Malformed as error:
            raise self._damaged(name, entry) from error
        crc_of_length, content = data[start : start + 4], data[start + 4 :]
        plain = length.to_bytes(4 if length < 2**32 else 8, "little")
        if len(content) != length or masked(crc32c(plain)) != int.from_bytes(crc_of_length, "little"):
            raise self._damaged(name, entry)
        self._check(name, entry, crc32c(plain + crc_of_length + content))
        return content

    def _bytes(self, entry: Entry) -> NDArray[np.uint8]:
        path = self.shard_path(entry.shard)
        if entry.size > available_memory():
            raise UserError(f"{path} holds a tensor of {entry.size / 2**30:.0f} GiB, more than the memory that is free")
        try:
            return np.fromfile(path, dtype=np.uint8, count=entry.size, offset=entry.offset)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    def _check(self, name: str, entry: Entry, crc: int) -> None:
        if masked(crc) != entry.crc:
            raise self._damaged(name, entry)

    def _damaged(self, name: str, entry: Entry) -> UserError:
        return UserError(
            f"{self.shard_path(entry.shard)} is damaged: the checksum of {name} "
            f"({entry.size} bytes from byte {entry.offset}) is wrong; fetch or copy the file again"
        )

    def _check_data_files(self) -> None:
        needed: dict[int, int] = {}
        for entry in self.entries.values():
            needed[entry.shard] = max(needed.get(entry.shard, 0), entry.offset + entry.size)
        for shard, size in sorted(needed.items()):
            path = self.shard_path(shard)
            if not path.is_file():
                raise UserError(f"{path} is missing: {self.index_path.name} puts tensors there; copy it, too")
            if (present := path.stat().st_size) < size:
                raise UserError(
                    f"{path} is cut short: {present} bytes, of which there should be {size}; fetch it again"
                )


def _entry(message: bytes) -> Entry:
    shape = [integer(dim, 1) for proto in messages(message, 2) for dim in messages(proto, 2)]
    if len(shape) > _MOST_DIMENSIONS:
        raise Malformed(f"a tensor of {len(shape):,} dimensions")
    return Entry(
        dtype=integer(message, 1),
        shape=tuple(shape),
        shard=integer(message, 3),
        offset=integer(message, 4),
        size=integer(message, 5),
        crc=integer(message, 6),
        sliced=bool(messages(message, 7)),
    )


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a sorted table."""
    footer = data[-_FOOTER:]
    if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise Malformed("its end is not that of an index (cut short, or another kind of file)")
    _, position = _handle(footer, 0)  # of the block of filters, which bundles do not have
    index, _ = _handle(footer, position)
    names, blocks = 0, 0
    for _, value in _block(data, *index):
        handle, _ = _handle(value, 0)
        blocks += handle[1]
        if blocks > len(data):
            raise Malformed("its blocks lie over each other")
        for key, entry in _block(data, *handle):
            names += len(key)
            if names > _LARGEST_NAMES:
                raise Malformed(f"its names have more than {_LARGEST_NAMES:,} bytes")
            yield key, entry


def _handle(data: bytes, start: int) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, position after it)."""
    offset, position = varint(data, start)
    size, position = varint(data, position)
    return (offset, size), position


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block. A key is stored as what it adds to the beginning that it shares with the one before."""
    content, trailer = data[offset : offset + size], data[offset + size : offset + size + _TRAILER]
    if len(trailer) < _TRAILER or size < 4:
        raise Malformed(f"the block at byte {offset} ends beyond the file")
    if masked(crc32c(content + trailer[:1])) != int.from_bytes(trailer[1:], "little"):
        raise Malformed(f"the checksum of the block at byte {offset} is wrong")
    if trailer[0] != 0:
        raise Malformed("it is compressed, which TensorFlow's checkpoints are not")
    restarts = int.from_bytes(content[-4:], "little")
    end, position, key = size - 4 - 4 * restarts, 0, b""
    while position < end:
        shared, position = varint(content, position)
        added, position = varint(content, position)
        length, position = varint(content, position)
        if shared > len(key) or shared + added > _LONGEST_NAME:
            raise Malformed(f"a name of {shared + added:,} bytes, of which {shared:,} are those of one of {len(key):,}")
        key = key[:shared] + content[position : position + added]
        position += added
        yield key, content[position : position + length]
        position += length
