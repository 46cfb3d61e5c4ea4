"""The frames of animated and multi-page files that are images of their own."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, TiffImagePlugin

_NEW_SUBFILE_TYPE = 254  # TIFF 6.0, section 8
_REDUCED, _MASK = 1, 4
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
    """The frames of an opened file, of which the last may be the current one afterwards.

    Left out are what repeat the picture beside them: smaller versions and masks among the pages of a TIFF file (as its
    tag NewSubfileType says), and in MPO files, which phones write, pictures of another size than the first (previews,
    gain maps, depth).
    """
    first = Frame(0, image.height, image.width)
    if not has_more(image):
        return (first,)
    if image.format not in _OWN_SIZES:
        return tuple(Frame(number, *first[1:]) for number in range(image.n_frames))  # type: ignore[attr-defined]
    frames = [first]
    for number in range(1, image.n_frames):  # type: ignore[attr-defined]
        image.seek(number)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            kept = not int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & (_REDUCED | _MASK)
        else:
            kept = image.size == (first.width, first.height)
        if kept:
            frames.append(Frame(number, image.height, image.width))
    return tuple(frames)


def has_more(image: Image.Image) -> bool:
    """Whether a file has frames beside the current one, without counting them."""
    return image.format in _SERIES and bool(getattr(image, "is_animated", False))
