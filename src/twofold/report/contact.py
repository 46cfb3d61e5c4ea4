"""Contact sheets: rows of small pictures with a line of text above each row and under each picture, as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from twofold.files import write_atomically
from twofold.text import counted, printable

SIDE, _GAP, _LINE = 112, 10, 17
_PAPER, _INK, _SOFT, _GREY, _MARK = (255, 255, 255), (25, 25, 25), (110, 110, 110), (200, 200, 200), (0, 150, 136)
MOST_ACROSS = 11
"""Pictures in a row; what a row has beyond is counted in its title."""
MOST_ROWS = 40
"""Rows of a sheet; a line says how many more there are."""


@dataclass(frozen=True)
class Shot:
    """One picture of a sheet.

    Attributes:
        pixels: uint8 [H, W, C], C 1 or 3; None where there is none.
        text: under it.
        marked: with a frame, as a query is.
    """

    pixels: NDArray[np.uint8] | None
    text: str
    marked: bool = False


@dataclass(frozen=True)
class Strip:
    """A row of pictures and what stands above it."""

    title: str
    shots: Sequence[Shot]


def write_sheet(path: Path, strips: Sequence[Strip], side: int = SIDE) -> Path:
    """Draw rows of pictures to a PNG file, whole or not at all.

    Args:
        path: the file.
        strips: rows; of many the first are drawn, and the sheet says how many follow.
        side: of each picture in pixels.
    """
    font = ImageFont.load_default(12)
    shown = strips[:MOST_ROWS]
    across = max((min(len(strip.shots), MOST_ACROSS) for strip in shown), default=1)
    row = side + 2 * _LINE + 2 * _GAP
    size = (max(_GAP + across * (side + _GAP), 480), _GAP + row * len(shown) + _LINE * (len(strips) > len(shown)))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, strip in enumerate(shown):
        top = _GAP + place * row
        left_out = len(strip.shots) - MOST_ACROSS
        title = strip.title + (f"  (and {left_out:,} more)" if left_out > 0 else "")
        draw.text((_GAP, top), _fitted(draw, title, font, size[0] - 2 * _GAP), _INK, font)
        for column, shot in enumerate(strip.shots[:MOST_ACROSS]):
            corner = (_GAP + column * (side + _GAP), top + _LINE)
            _place(sheet, draw, shot, corner, side)
            under = (corner[0], corner[1] + side + 2)
            draw.text(under, _fitted(draw, shot.text, font, side), _SOFT, font)
    if len(strips) > len(shown):
        draw.text(
            (_GAP, size[1] - _LINE), f"and {counted(len(strips) - len(shown), 'row')} more in the table", _INK, font
        )
    write_atomically(path, lambda file: sheet.save(file, "PNG"))
    return path


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, shot: Shot, corner: tuple[int, int], side: int) -> None:
    """Draw one picture, as large as the square allows; a grey square where there is none."""
    x, y = corner
    if shot.pixels is None:
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_GREY)
    else:
        pixels = shot.pixels[..., 0] if shot.pixels.shape[2] == 1 else shot.pixels
        picture = Image.fromarray(pixels).convert("RGB")
        scale = side / max(picture.size)
        small = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        kind = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
        sheet.paste(picture.resize(small, kind), (x + (side - small[0]) // 2, y + (side - small[1]) // 2))
    if shot.marked:
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_MARK, width=3)


def _fitted(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> str:
    """The text, its middle left out where it is too long: of paths the end tells most."""
    text = printable(text).replace("\n", " ")
    if draw.textlength(text, font) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shown = f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"
        if draw.textlength(shown, font) <= width:
            return shown
    return "…"
