"""TensorFlow's tensor bundles, written for tests: an independent, slow reading of the same format description.

Checksums are computed bit by bit (or by table) here, so that reader and writer share no code.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

TYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "int64": 9,
    "bool": 10,
    "float16": 19,
}
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def byte_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = byte_table()


def slow_crc(data: bytes) -> int:
    """CRC-32C, a byte at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register = (register >> 8) ^ _TABLE[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def entry(dtype: int, shape: Sequence[int], shard: int, offset: int, size: int, crc: int, extra: bytes = b"") -> bytes:
    dims = b"".join(message(2, number(1, side)) for side in shape)
    fields = number(1, dtype) + message(2, dims) + number(3, shard) + number(4, offset) + number(5, size)
    return fields + varint(6 << 3 | 5) + struct.pack("<I", crc) + extra


def block(pairs: Sequence[tuple[bytes, bytes]], restart: int = 16) -> bytes:
    out, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % restart == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return out + b"".join(struct.pack("<I", r) for r in restarts) + struct.pack("<I", len(restarts))


def table(pairs: Sequence[tuple[bytes, bytes]], per_block: int = 40, compression: int = 0) -> bytes:
    """A sorted table of `per_block` entries a block."""
    out, handles = b"", []

    def append(content: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        kind = bytes([compression])
        out += content + kind + struct.pack("<I", mask(slow_crc(content + kind)))
        return handle

    for start in range(0, len(pairs), per_block):
        part = pairs[start : start + per_block]
        handles.append((part[-1][0], append(block(part))))
    meta, index = append(block([])), append(block(handles, restart=1))
    return out + (meta + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, np.ndarray | bytes],
    shards: int = 1,
    holes: Mapping[str, Sequence[int]] | None = None,
    change: Mapping[str, bytes] | None = None,
    header: bytes | None = None,
) -> Path:
    """Write a checkpoint.

    Args:
        prefix: path without .index.
        tensors: arrays, and bytes for scalar strings.
        shards: number of data files, which take turns.
        holes: name -> shape of float32 tensors of no content in a data file of their own, which takes no disk space.
        change: entries of the index to put in place of the right ones.
        header: another header.
    """
    from twofold.interop.crc32c import crc32c  # 100 MB would take a minute bit by bit; test_crc32c compares both

    prefix.parent.mkdir(parents=True, exist_ok=True)
    count = shards + bool(holes)
    entries: dict[str, bytes] = {"": header or number(1, count) + message(3, number(1, 1))}
    data: list[list[bytes]] = [[] for _ in range(shards)]
    sizes = [0] * shards
    for i, name in enumerate(sorted(tensors)):
        value, shard = tensors[name], i % shards
        if isinstance(value, bytes):
            length = struct.pack("<I", len(value))
            check = struct.pack("<I", mask(crc32c(length)))
            raw, crc = varint(len(value)) + check + value, mask(crc32c(length + check + value))
            entries[name] = entry(7, (), shard, sizes[shard], len(raw), crc)
        else:
            raw = np.ascontiguousarray(value).tobytes()
            entries[name] = entry(
                TYPES[value.dtype.name], value.shape, shard, sizes[shard], len(raw), mask(crc32c(raw))
            )
        data[shard].append(raw)
        sizes[shard] += len(raw)
    if holes:
        total = 0
        for name, shape in holes.items():
            size = 4 * int(np.prod(shape))
            entries[name] = entry(1, shape, shards, total, size, 0)
            total += size
        with Path(f"{prefix}.data-{shards:05d}-of-{count:05d}").open("wb") as file:
            file.truncate(total)
    for shard, parts in enumerate(data):
        Path(f"{prefix}.data-{shard:05d}-of-{count:05d}").write_bytes(b"".join(parts))
    entries |= change or {}
    Path(f"{prefix}.index").write_bytes(table([(key.encode(), entries[key]) for key in sorted(entries)]))
    return prefix


def object_graph(names: Mapping[str, str]) -> bytes:
    """The graph of objects of a TF2 file: a node for each variable, with its key in the file and its full name."""
    nodes = [b""]
    for key, name in names.items():
        nodes.append(message(2, message(1, "VARIABLE_VALUE") + message(2, name) + message(3, key)))
        nodes[0] += message(1, number(1, len(nodes) - 1) + message(2, f"v{len(nodes)}"))
    return b"".join(message(1, node) for node in nodes)


def write_saved_model(
    folder: Path, tensors: Mapping[str, np.ndarray], keys: Mapping[str, str], graph: bytes = b""
) -> Path:
    """A TF2 SavedModel as far as it matters here: `tensors` by variable name, `keys` the key of each."""
    values: dict[str, np.ndarray | bytes] = {keys[name]: value for name, value in tensors.items()}
    values[GRAPH] = object_graph({key: name for name, key in keys.items()})
    write_bundle(folder / "variables" / "variables", values)
    (folder / "saved_model.pb").write_bytes(graph)
    return folder


def node(name: str, op: str, *inputs: str) -> bytes:
    """A node of a graph."""
    return message(1, name) + message(2, op) + b"".join(message(3, i) for i in inputs)


def meta_graph(nodes: Sequence[bytes], function: bool = False) -> bytes:
    """A MetaGraphDef with these nodes, in its graph or in a function of its library."""
    if function:
        signature = message(1, message(1, "__inference___call___1"))
        return message(2, message(2, message(1, signature + b"".join(message(3, n) for n in nodes))))
    return message(2, b"".join(message(1, n) for n in nodes))


def saved_model(*meta_graphs: bytes) -> bytes:
    """A SavedModel's saved_model.pb."""
    return number(1, 1) + b"".join(message(2, g) for g in meta_graphs)
