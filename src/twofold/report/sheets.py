"""Small pictures of many examples, as a few WebP files of square tiles that a browser decodes one by one."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ACROSS = 32
"""Tiles in a row of a sheet, and rows of a whole sheet."""
SIDES = ((1_000, 96), (10_000, 64), (100_000, 32))
"""Up to so many examples tiles have this side in pixels."""
_QUALITY = 70


@dataclass(frozen=True)
class Sheets:
    """Pictures of n examples.

    Attributes:
        side: of a tile in pixels. A picture fills it on its longer side and is transparent beside.
        files: WebP files of at most 32 x 32 tiles, filled row by row, in the order of the examples. What cannot be read
            is transparent.
    """

    side: int
    files: tuple[bytes, ...]


def side_for(count: int) -> int:
    """The side of tiles that keeps the pictures of `count` examples within some tens of megabytes."""
    return next((side for most, side in SIDES if count <= most), SIDES[-1][1])


def draw_sheets(
    picture: Callable[[int], NDArray[np.uint8] | None],
    count: int,
    side: int,
    progress: Callable[[int, int], None] | None = None,
) -> Sheets:
    """Draw the pictures [H, W, 1 or 3] of `count` examples, each read once.

    Args:
        picture: pixels of one; None where there are none.
        side: of a tile in pixels, at most: pictures that are smaller are not enlarged, and tiles are as large as the
            largest on the first sheet.
        progress: called with (examples done, examples in all) after each sheet.
    """
    files: list[bytes] = []
    held = ACROSS * ACROSS
    for begin in range(0, count, held):
        tiles = [_tile(picture(i), side) for i in range(begin, min(begin + held, count))]
        if begin == 0:
            side = max((max(tile.size) for tile in tiles if tile is not None), default=side)
        sheet = Image.new("RGBA", (ACROSS * side, -(-len(tiles) // ACROSS) * side))
        for place, tile in enumerate(tiles):
            if tile is not None:
                row, column = divmod(place, ACROSS)
                sheet.paste(tile, (column * side + (side - tile.width) // 2, row * side + (side - tile.height) // 2))
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=_QUALITY, method=4, exact=False)
        files.append(buffer.getvalue())
        if progress:
            progress(min(begin + held, count), count)
    return Sheets(side, tuple(files))


def _tile(pixels: NDArray[np.uint8] | None, side: int) -> Image.Image | None:
    """One picture, at most `side` high and wide."""
    if pixels is None:
        return None
    flat = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
    image = Image.fromarray(np.ascontiguousarray(flat)).convert("RGB")
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
