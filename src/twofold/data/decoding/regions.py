"""A region of a TIFF file without decoding the rest: its tiles or strips as a small TIFF file in memory.

What decodes the region is the same code that decodes whole files (Pillow with libtiff), so every compression, layout of
planes and kind of pixel that is read at all is read the same in parts. Layout of the format: TIFF 6.0 (Adobe, 1992),
sections 2, 8 and 15.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, TiffImagePlugin

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels; the last two lie outside."""

BEGINS = (b"II*\0", b"MM\0*", b"II+\0")
"""The first bytes of TIFF files, and of BigTIFF files of the byte order that Pillow reads."""
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _PLANAR = 256, 257, 258, 259, 262, 274, 284
_YCBCR = 6
_STRIPS = {"rows": 278, "offsets": 273, "counts": 279}
_TILES = {"width": 322, "rows": 323, "offsets": 324, "counts": 325}
_COPIED = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532)
"""Tags that say how pixels are stored: bits, compression, colour, planes, predictor, tables, subsampling."""
_OLD_JPEG = 6
"""The one compression whose strips are no streams of their own."""
_SHORT, _LONG, _RATIONAL, _UNDEFINED = 3, 4, 5, 7


class Grid(NamedTuple):
    """How a page is cut up in its file: blocks of one size, in rows."""

    width: int
    rows: int
    across: int
    down: int
    tiled: bool
    strip: int = 0
    """Rows in a strip, where what is not compressed is cut anywhere: between rows, and between pixels of whole bytes;
    0 elsewhere."""
    row_bytes: int = 0
    """Bytes of a row of such a strip."""


def grid_for(image: Image.Image, side: int, most: int) -> Grid | None:
    """How to read squares of `side` pixels of the current page alone; None where the whole has to be decoded instead.

    That is so where its blocks would make it decode more than `most` pixels for one square; and where the whole has no
    more than `most`, and the blocks are so large that decoding it once costs less.
    """
    grid, whole = grid_of(image), image.width * image.height
    if grid is None or (cost := pixels_read(grid, side)) > most or (whole <= most and 4 * cost > whole):
        return None
    return grid


def grid_of(image: Image.Image) -> Grid | None:
    """The blocks of the current page of a TIFF file; None where no part can be decoded alone."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    if tags.get(_ORIENTATION, 1) != 1 or tags.get(_COMPRESSION, 1) == _OLD_JPEG:
        return None
    tiled = _TILES["width"] in tags
    width = int(tags[_TILES["width"]]) if tiled else image.width
    rows = int(tags[_TILES["rows"]]) if tiled else min(int(tags.get(_STRIPS["rows"], image.height)), image.height)
    if min(width, rows) < 1:
        return None
    grid = Grid(width, rows, -(-image.width // width), -(-image.height // rows), tiled)
    bits = _numbers(tags, _BITS) or (1,)
    planes = len(bits) if tags.get(_PLANAR, 1) == 2 else 1
    named = _TILES if tiled else _STRIPS
    blocks = [len(_numbers(tags, named[name])) for name in ("offsets", "counts")]
    if blocks != [grid.across * grid.down * planes] * 2:
        return None
    if tiled or tags.get(_COMPRESSION, 1) != 1 or tags.get(_PHOTOMETRIC, 1) == _YCBCR or rows == 1 or planes > 1:
        return grid
    step = 1 if sum(bits) % 8 == 0 else width
    return Grid(step, 1, width // step, image.height, False, rows, -(-image.width * sum(bits) // 8))


def pixels_read(grid: Grid, side: int) -> int:
    """Most pixels that are decoded for a square of so many a side."""
    across = min(-(-side // grid.width) + 1, grid.across)
    down = min(-(-side // grid.rows) + 1, grid.down)
    return across * grid.width * down * grid.rows


def region(image: Image.Image, grid: Grid, box: Box) -> Image.Image:
    """A part of the current page.

    Args:
        image: an opened TIFF file whose pixels have not been loaded.
        grid: its blocks.
        box: within the page.

    Raises:
        OSError, ValueError: the file is cut short or damaged there.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)  # it has a grid
    left, top, right, bottom = box
    columns = range(left // grid.width, -(-right // grid.width))
    lines = range(top // grid.rows, -(-bottom // grid.rows))
    tags, named = image.tag_v2, _TILES if grid.tiled else _STRIPS
    offsets, counts = _numbers(tags, named["offsets"]), _numbers(tags, named["counts"])
    if grid.strip:
        skip, count = (grid.row_bytes * part // grid.across for part in (columns[0], len(columns)))
        places = [(offsets[line // grid.strip] + line % grid.strip * grid.row_bytes + skip, count) for line in lines]
    else:
        chosen = [
            (plane * grid.down + line) * grid.across + column
            for plane in range(len(offsets) // (grid.across * grid.down)) for line in lines for column in columns
        ]  # fmt: skip
        places = [(offsets[block], counts[block]) for block in chosen]
    blocks = [_read(image, *place) for place in places]
    height = len(lines) * grid.rows
    if not grid.tiled:  # the last strip may be shorter
        height = min(height, image.height - lines[0] * grid.rows)
    data = _small_file(tags, grid, (len(columns) * grid.width, height), blocks)
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as part:
        corner = (columns[0] * grid.width, lines[0] * grid.rows)
        return part.crop((left - corner[0], top - corner[1], right - corner[0], bottom - corner[1]))


def _numbers(tags: Any, tag: int) -> Sequence[int]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _read(image: TiffImagePlugin.TiffImageFile, offset: int, count: int) -> bytes:
    assert image.fp is not None
    image.fp.seek(offset)
    data: bytes = image.fp.read(count)
    if len(data) < count or not count:
        raise OSError("the file is cut short or has an empty block")
    return data


def _small_file(tags: Any, grid: Grid, size: tuple[int, int], blocks: Sequence[bytes]) -> bytes:
    """A TIFF file of these blocks alone, in the byte order of the one that they come from."""
    order, mark = (">", b"MM") if tags.prefix == b"MM" else ("<", b"II")
    offsets, place = [], 8
    for block in blocks:
        offsets.append(place)
        place += len(block)
    entries: dict[int, tuple[int, list[Any]]] = {
        _WIDTH: (_LONG, [size[0]]), _LENGTH: (_LONG, [size[1]]),
    }  # fmt: skip
    named, counts = _TILES if grid.tiled else _STRIPS, [len(block) for block in blocks]
    for name, values in (("width", [grid.width]), ("rows", [grid.rows]), ("offsets", offsets), ("counts", counts)):
        if name in named:
            entries[named[name]] = (_LONG, values)
    entries |= {tag: _entry(tags, tag) for tag in _COPIED if tag in tags}
    place += place % 2
    table, beyond = [struct.pack(f"{order}H", len(entries))], b""
    after = place + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        data, count = _packed(order, kind, values)
        if len(data) > 4:
            beyond += b"\0" * (len(beyond) % 2)
            value, beyond = struct.pack(f"{order}L", after + len(beyond)), beyond + data
        else:
            value = data.ljust(4, b"\0")
        table.append(struct.pack(f"{order}HHL", tag, kind, count) + value)
    head = mark + struct.pack(f"{order}HL", 42, place)
    return b"".join([head, *blocks]).ljust(place, b"\0") + b"".join(table) + b"\0" * 4 + beyond


def _entry(tags: Any, tag: int) -> tuple[int, list[Any]]:
    value, kind = tags[tag], tags.tagtype.get(tag, _SHORT)
    if isinstance(value, bytes):
        return _UNDEFINED, [value]
    values = list(value) if isinstance(value, tuple) else [value]
    return (kind if kind in (_SHORT, _LONG, _RATIONAL) else _SHORT), values


def _packed(order: str, kind: int, values: Sequence[Any]) -> tuple[bytes, int]:
    """Bytes of a tag's values, and how many these are."""
    if kind == _UNDEFINED:
        return values[0], len(values[0])
    if kind == _RATIONAL:
        pairs = [number for value in values for number in (value.numerator, value.denominator)]
        return struct.pack(f"{order}{len(pairs)}L", *pairs), len(values)
    return struct.pack(f"{order}{len(values)}{'H' if kind == _SHORT else 'L'}", *values), len(values)
