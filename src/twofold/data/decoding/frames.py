"""The frames of animated and multi-page files that are images of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, TiffImagePlugin

_NEW_SUBFILE_TYPE = 254  # TIFF 6.0, section 8
REDUCED, MASK = 1, 4
"""Bits of it: a smaller version of another page, a mask."""
MOST_FRAMES = 2**20
"""Nine hours of film at 30 a second: a header that says more is damaged, or is to take all memory."""
_SERIES = frozenset({"GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO", "FLI", "DCX", "DICOM"})
"""Formats whose frames are pictures in a row; those of others (PSD) are layers of one."""
_OWN_SIZES = frozenset({"TIFF", "MPO"})
"""Formats each frame of which has a size of its own."""


class Frame(NamedTuple):
    """One frame of a file, counted from 0, and its size as it is stored."""

    number: int
    height: int
    width: int


def frames_of(image: Image.Image) -> tuple[Frame, ...]:
    """The frames of an opened file, of which another than the first may be the current one afterwards.

    Left out are what repeat the picture beside them: smaller versions and masks among the pages of a TIFF file (as its
    tag NewSubfileType says), and in MPO files, which phones write, pictures of another size than the first (previews,
    gain maps, depth).

    Raises:
        ValueError: more than `MOST_FRAMES`.
    """
    if image.format not in _OWN_SIZES and _several(image) and image.n_frames > MOST_FRAMES:  # type: ignore[attr-defined]
        raise ValueError(f"it says that it has {image.n_frames:,} frames, more than {MOST_FRAMES:,}")  # type: ignore[attr-defined]
    return tuple(_walked(image))


def are_more(image: Image.Image) -> bool:
    """Whether an opened file has frames beside the first; those that are damaged count."""
    if image.format not in _OWN_SIZES:
        return _several(image)
    try:
        return len(list(itertools.islice(_walked(image), 2))) > 1
    except Exception:  # malformed bytes make Pillow raise nearly every kind; the first frame may still be whole
        return True


def _walked(image: Image.Image) -> Iterator[Frame]:
    if not _several(image):
        yield Frame(0, image.height, image.width)
        return
    image.seek(0)
    first = Frame(0, image.height, image.width)
    yield first
    if image.format not in _OWN_SIZES:
        yield from (first._replace(number=number) for number in range(1, image.n_frames))  # type: ignore[attr-defined]
        return
    for number in itertools.count(1):
        try:
            image.seek(number)
        except EOFError:
            return
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            kept = not int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & (REDUCED | MASK)
        else:
            kept = image.size == (first.width, first.height)
        if kept:
            yield Frame(number, image.height, image.width)


def _several(image: Image.Image) -> bool:
    """Whether a file has several frames of any kind, without counting them."""
    return image.format in _SERIES and bool(getattr(image, "is_animated", False))
