"""A region of a TIFF file without decoding the rest: its tiles or strips as a small TIFF file in memory.

What decodes the region is the same code that decodes whole files (Pillow with libtiff, or tifffile), so every
compression, layout of planes and kind of pixel that is read at all is read the same in parts. Layout of the format:
TIFF 6.0 (Adobe, 1992), sections 2, 8 and 15.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from PIL import Image, TiffImagePlugin

from twofold.devices import available_memory

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
_ALWAYS = 2**28
"""Bytes for which there is room anyhow."""
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


class Page(NamedTuple):
    """A page of an opened TIFF file."""

    tags: Any
    """As Pillow parses them."""
    width: int
    height: int
    file: IO[bytes]


def page_of(image: Image.Image) -> Page | None:
    """The current page of an image; None of one that is no TIFF file."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.fp is None:
        return None
    return Page(image.tag_v2, image.width, image.height, image.fp)


def open_page(file: IO[bytes], number: int = 0) -> Page | None:
    """A page of a TIFF file, counted from 0, of any kind of samples; None of a file that Pillow cannot parse.

    Raises:
        EOFError: it has fewer pages.
    """
    file.seek(0)
    head = file.read(8)
    if not head.startswith(BEGINS):
        return None
    head += file.read(8 if head.startswith(BEGINS[2]) else 0)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    for _ in range(number + 1):
        if not tags.next:
            raise EOFError(f"the file has no page {number}")
        file.seek(tags.next)
        tags.load(file)
    return Page(tags, int(tags.get(_WIDTH, 0)), int(tags.get(_LENGTH, 0)), file)


def grid_for(page: Page | None, side: int, most: int) -> Grid | None:
    """How to read squares of `side` pixels of a page alone; None where the whole has to be decoded instead.

    That is so where its blocks would make it decode more than `most` pixels for one square; and where the whole has no
    more than `most`, and the blocks are so large that decoding it once costs less.
    """
    grid = None if page is None else grid_of(page)
    if page is None or grid is None:
        return None
    whole = page.width * page.height
    if (cost := pixels_read(grid, side)) > most or (whole <= most and 4 * cost > whole):
        return None
    return grid


def grid_of(page: Page) -> Grid | None:
    """The blocks of a page; None where no part can be decoded alone."""
    tags = page.tags
    if tags.get(_ORIENTATION, 1) != 1 or tags.get(_COMPRESSION, 1) == _OLD_JPEG:
        return None
    tiled = _TILES["width"] in tags
    width = int(tags[_TILES["width"]]) if tiled else page.width
    rows = int(tags[_TILES["rows"]]) if tiled else min(int(tags.get(_STRIPS["rows"], page.height)), page.height)
    if min(width, rows) < 1:
        return None
    grid = Grid(width, rows, -(-page.width // width), -(-page.height // rows), tiled)
    bits = _numbers(tags, _BITS) or (1,)
    planes = len(bits) if tags.get(_PLANAR, 1) == 2 else 1
    named = _TILES if tiled else _STRIPS
    blocks = [len(_numbers(tags, named[name])) for name in ("offsets", "counts")]
    if blocks != [grid.across * grid.down * planes] * 2:
        return None
    if tiled or tags.get(_COMPRESSION, 1) != 1 or tags.get(_PHOTOMETRIC, 1) == _YCBCR or rows == 1 or planes > 1:
        return grid
    step = 1 if sum(bits) % 8 == 0 else width
    return Grid(step, 1, width // step, page.height, False, rows, -(-page.width * sum(bits) // 8))


def pixels_read(grid: Grid, side: int) -> int:
    """Most pixels that are decoded for a square of so many a side."""
    across = min(-(-side // grid.width) + 1, grid.across)
    down = min(-(-side // grid.rows) + 1, grid.down)
    return across * grid.width * down * grid.rows


def region(page: Page, grid: Grid, box: Box) -> Image.Image:
    """A part of a page that Pillow can decode.

    Args:
        page: its pixels have not been loaded.
        grid: its blocks.
        box: within the page.

    Raises:
        OSError, ValueError: the file is cut short or damaged there.
    """
    data, within = region_file(page, grid, box)
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as part:
        return part.crop(within)


def region_file(page: Page, grid: Grid, box: Box) -> tuple[bytes, Box]:
    """A TIFF file of the blocks that a part of a page lies in, and where it lies in them; see `region`."""
    left, top, right, bottom = box
    columns = range(left // grid.width, -(-right // grid.width))
    lines = range(top // grid.rows, -(-bottom // grid.rows))
    tags, named = page.tags, _TILES if grid.tiled else _STRIPS
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
    needed = sum(count for _, count in places)
    if needed > _ALWAYS and needed > available_memory() // 4:
        raise ValueError(f"its blocks have {needed:,} bytes, more than there is memory for")
    blocks = [_read(page.file, *place) for place in places]
    height = len(lines) * grid.rows
    if not grid.tiled:  # the last strip may be shorter
        height = min(height, page.height - lines[0] * grid.rows)
    data = _small_file(tags, grid, (len(columns) * grid.width, height), blocks)
    x, y = columns[0] * grid.width, lines[0] * grid.rows
    return data, (left - x, top - y, right - x, bottom - y)


def _numbers(tags: Any, tag: int) -> Sequence[int]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _read(file: IO[bytes], offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
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
