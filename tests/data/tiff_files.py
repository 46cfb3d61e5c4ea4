"""Tiled TIFF files for the tests: Pillow reads them and writes none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

_KINDS = {"H": 3, "I": 4}


def write_tiled(path: Path, pixels: np.ndarray, tile: tuple[int, int] = (64, 48), order: str = "<") -> Path:
    """Write [H, W], or [H, W, C] uint8 or uint16, with tiles (height, width), each deflated; layout as in TIFF 6.0."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    high, wide = tile
    blocks = []
    for top in range(0, height, high):
        for left in range(0, width, wide):
            block = np.zeros((high, wide, channels), pixels.dtype)
            part = pixels.reshape(height, width, channels)[top : top + high, left : left + wide]
            block[: part.shape[0], : part.shape[1]] = part
            blocks.append(zlib.compress(block.astype(pixels.dtype.newbyteorder(order)).tobytes(), 1))
    return write_blocks(path, blocks, (height, width), tile, channels, 8 * pixels.itemsize, order)


def write_blocks(
    path: Path, blocks: list[bytes], size: tuple[int, int], tile: tuple[int, int], channels: int = 3, bits: int = 8,
    order: str = "<",
) -> Path:  # fmt: skip
    """Write blocks that are deflated already; one that is given once stands for all of them."""
    (height, width), (high, wide) = size, tile
    count = -(-height // high) * -(-width // wide)
    starts = np.cumsum([8, *map(len, blocks)])[:-1].tolist()
    lengths = [len(block) for block in blocks]
    repeats = 1 if len(blocks) == count else count
    offsets, lengths = starts * repeats, lengths * repeats
    tags = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * channels), 259: ("H", [8]),
        262: ("H", [2 if channels == 3 else 1]), 277: ("H", [channels]), 284: ("H", [1]), 322: ("I", [wide]),
        323: ("I", [high]), 324: ("I", offsets), 325: ("I", lengths),
    }  # fmt: skip
    end = 8 + sum(map(len, blocks))
    end += end % 2
    table, beyond, after = [struct.pack(f"{order}H", len(tags))], b"", end + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place, beyond = struct.pack(f"{order}I", after + len(beyond)), beyond + data
        table.append(struct.pack(f"{order}HHI", tag, _KINDS[kind], len(values)) + place)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, end)
    path.write_bytes(b"".join([head, *blocks]).ljust(end, b"\0") + b"".join(table) + b"\0" * 4 + beyond)
    return path
