"""Pixels of any kind as 8 bits: modes of Pillow, and arrays of any type and layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from twofold.data.decoding.dicom import INVERTED, WINDOW
from twofold.errors import UserError

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
"""The modes of Pillow that hold no colour."""
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
"""Those of them whose pixels have more than 8 bits."""

DeepPixels = Literal["full", "bands", "stretch", "window"]
"""One range for all images; one for each band; each image's own; the window that a DICOM file asks for."""

PixelRange = tuple[float, float]
"""The values of black and of white among pixels of more than 8 bits."""

NODATA = 42113
"""GDAL's tag for the value of TIFF pixels without data (documentation of its GTiff driver)."""
_KEPT = "gdal_nodata"
"""Where `info` of a part of an image keeps that value."""
_KNOWN = (1.0, 255.0, 65535.0)
"""What white is among floats, in the order in which it is tried."""
_TWELVE_BITS = 4095
_LITTLE = 0.05
"""A source whose brightest pixel lies below this share of its range is warned of."""
_INNER = (1.0, 99.0)
"""Percentiles of a band that are black and white where its range is measured."""


def range_of(samples: Sequence[NDArray[Any]]) -> PixelRange:
    """Black and white of images of more than 8 bits: one range for all, from the type and from what samples hold.

    16-bit integers range from 0 to 65535, whatever is in them. Floats, and integers of more bits, range from 0 to the
    first of 1 (floats alone), 255 and 65535 that no sample exceeds; where none does, or where there are values below
    0, from the smallest value of the samples to their largest.

    Raises:
        ValueError: a value is not a finite number.
    """
    if not all(np.isfinite(values).all() for values in samples):
        raise ValueError("it has pixels that are not finite numbers")
    if all(values.dtype == np.bool_ for values in samples):
        return 0.0, 1.0
    if all(values.dtype == np.uint16 or values.dtype == np.dtype(">u2") for values in samples):
        return 0.0, 65535.0
    low = min((float(values.min()) for values in samples if values.size), default=0.0)
    high = max((float(values.max()) for values in samples if values.size), default=1.0)
    known = _KNOWN if any(values.dtype.kind == "f" for values in samples) else _KNOWN[1:]
    top = next((white for white in known if low >= 0 and high <= white), None)
    return (low, high) if top is None else (0.0, top)


def range_of_arrays(samples: Sequence[NDArray[Any]]) -> PixelRange | None:
    """Black and white of arrays and tensors, which only their type can tell; None where it does not.

    Nobody knows what white is among floats beyond 0..1 (normalised ones, say) or integers beyond 0..255.
    """
    if any(values.dtype.kind not in "biuf" for values in samples):
        return None
    low, high = range_of(samples)
    floats = any(values.dtype.kind == "f" for values in samples)
    wide = all(values.dtype in (np.uint16, np.bool_) for values in samples)
    return (low, high) if wide or (low, high) == ((0.0, 1.0) if floats else (0.0, 255.0)) else None


def describe_range(pixels: PixelRange, dtype: np.dtype[Any], samples: Sequence[NDArray[Any]]) -> str:
    """How pixels of more than 8 bits are read, in words, with a warning where they use little of their range."""
    text = f"{dtype} pixels, of which {pixels[0]:g} is black and {pixels[1]:g} white"
    brightest = max((float(values.max()) for values in samples if values.size), default=pixels[1])
    if dtype.kind == "u" and pixels == (0.0, 65535.0) and _LITTLE * 65535 <= brightest <= _TWELVE_BITS:
        text += (
            f" (warning: the brightest that was looked at is {brightest:g}: if these are 12 bits in 16, as of many "
            f"cameras, say so with --data.pixel_range '[0, {_TWELVE_BITS}]')"
        )
    if dtype != np.bool_ and brightest - pixels[0] < _LITTLE * (pixels[1] - pixels[0]):
        text += (
            f" (warning: the brightest that was looked at is {brightest:g}, so that all is nearly black: say what "
            f"white is with --data.pixel_range '[{pixels[0]:g}, {brightest:g}]')"
        )
    return text


def measured_ranges(bands: Sequence[Sequence[NDArray[Any]]]) -> tuple[PixelRange, ...]:
    """A range for each band: from the 1st to the 99th percentile of what the samples hold.

    Args:
        bands: the values of some images, band by band.

    Raises:
        ValueError: a value is not a finite number.
    """
    result = []
    for samples in bands:
        values = np.concatenate([each.reshape(-1) for each in samples]).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it has pixels that are not finite numbers")
        if not values.size:  # none of the samples has data
            result.append((0.0, 1.0))
            continue
        low, high = (float(value) for value in np.percentile(values, _INNER))
        result.append((low, high) if low < high else (low, low + 1.0))
    return tuple(result)


def describe_bands(ranges: Sequence[PixelRange], dtype: np.dtype[Any], bands: Sequence[Sequence[NDArray[Any]]]) -> str:
    """How pixels of several bands are read, in words, with a warning where most use little of their range."""
    if len(ranges) > 1:
        listed = ", ".join(f"{low:g} to {high:g}" for low, high in ranges)
        return f"{dtype} pixels, of which black and white are by band {listed}"
    low, high = ranges[0]
    text = f"{dtype} pixels, of which {low:g} is black and {high:g} white"
    values = [each.reshape(-1).astype(np.float64) for samples in bands for each in samples if each.size]
    bright = float(np.percentile(np.concatenate(values), _INNER[1])) if values else high
    if dtype != np.bool_ and bright - low < _LITTLE * (high - low):
        text += (
            f" (warning: 99 of 100 that were looked at are below {bright:g}, so that all is nearly black: say what "
            f"white is with --data.pixel_range '[{low:g}, {bright:g}]', or --data.deep_pixels bands)"
        )
    return text


def scaled(
    values: NDArray[Any], deep: DeepPixels, ranges: Sequence[PixelRange] = (), nodata: float | None = None
) -> NDArray[np.uint8]:
    """Values of any type as 8 bits.

    Args:
        values: [H, W, C].
        deep: see `eight_bits`.
        ranges: black and white, of all bands or of each of the C; none leaves 8 bits as they are, and asks `range_of`
            about others.
        nodata: the value of pixels without data, which become black among those of more than 8 bits.

    Raises:
        ValueError: a value is not finite.
    """
    if values.dtype == np.uint8 and not ranges:
        return np.ascontiguousarray(values)
    if nodata is not None:
        missing = without_data(values, nodata)
        present = values[~missing]
        values = np.where(missing, present.min() if present.size else values.dtype.type(0), values)
    if len(ranges) > 1 and deep != "stretch":
        layers = [eight_bits(values[..., c], "full", pixels) for c, pixels in enumerate(ranges)]
        result = np.stack(layers, axis=-1)
    else:
        result = eight_bits(values, deep, ranges[0] if ranges else None)
    return result if nodata is None else np.where(missing, np.uint8(0), result)


def no_data(text: Any) -> float | None:
    """The number that the tag NODATA holds; None where it holds a remark, or there is none."""
    try:
        return None if text is None else float(str(text).strip().strip("\0"))
    except ValueError:
        return None


def nodata_of(image: Image.Image) -> float | None:
    """The value of deep pixels without data in an opened file, or a part of one (see `keep_nodata`); None without."""
    if image.mode not in DEEP_MODES:
        return None
    return no_data(getattr(image, "tag_v2", {}).get(NODATA, image.info.get(_KEPT)))


def keep_nodata(part: Image.Image, whole: Image.Image) -> Image.Image:
    """A part of an opened file, which knows of pixels without data as the file does."""
    part.info[_KEPT] = nodata_of(whole)
    return part


def without_data(values: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    """Which pixels hold no data."""
    return np.asarray(np.isnan(values) if np.isnan(nodata) else values == nodata)


def as_picture(image: Image.Image, background: str, alpha: bool) -> NDArray[Any]:
    """The pixels [H, W, 1] or [H, W, 3] of a picture, deep ones as they are stored.

    Transparency is laid over `background`, or with `alpha` one channel more.
    """
    if image.mode in DEEP_MODES:
        return np.array(image)[..., None]
    grey = image.mode in GREY_MODES
    if alpha and image.has_transparency_data:
        return np.array(image.convert("LA" if grey else "RGBA"))
    return to_uint8(image, 1 if grey else 3, background, "full")


def to_uint8(
    image: Image.Image, channels: int, background: str, deep: DeepPixels, pixels: PixelRange | None = None
) -> NDArray[np.uint8]:
    """Pixels [H, W, channels] of an image of any mode.

    Transparency (alpha, a transparent palette entry or a transparent colour) is laid over `background`. Colour becomes
    grey by ITU-R 601 luma. Pixels of more than 8 bits follow `eight_bits`; of DICOM files, those whose low values are
    white are inverted afterwards, and `deep` window takes black and white from the file where it has a window. Colour
    profiles are not applied.

    Raises:
        ValueError: Pillow knows no conversion from the image's mode, or a float pixel is not finite.
    """
    if image.mode in DEEP_MODES:
        values = np.array(image)
        shown = (image.info.get(WINDOW) if deep == "window" else None) or pixels
        grey = scaled(values[..., None], deep, (shown,) if shown else (), nodata_of(image))[..., 0]
        if image.info.get(INVERTED):
            grey = 255 - grey
        if isinstance(key := image.info.get("transparency"), int):
            grey[values == key] = np.array(Image.new("RGB", (1, 1), background).convert("L"))[0, 0]
        return np.repeat(grey[..., None], channels, axis=2)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background)[:3])
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return array[..., None] if channels == 1 else array


def eight_bits(values: NDArray[Any], deep: DeepPixels = "full", pixels: PixelRange | None = None) -> NDArray[np.uint8]:
    """Scale pixels of more than 8 bits to 0..255, rounding to nearest.

    Args:
        values: of one image, or of several.
        deep: "stretch" takes black and white from the smallest and largest of these values, each image for itself;
            "full", "bands" and "window" from `pixels`.
        pixels: see `range_of`, which is asked about these values alone when not given. What lies beyond is black or
            white.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    if deep == "stretch":
        low, high = float(values.min()), float(values.max())
    else:
        low, high = pixels or range_of([values])
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.rint((np.clip(values.astype(np.float64), low, high) - low) * scale).astype(np.uint8)


def as_array(images: Any) -> NDArray[Any]:
    """An array or tensor as an array."""
    return images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)


def images_to_tensor(
    images: Any, name: str, pixels: PixelRange | None = None, bands: Sequence[int] | None = None,
    ranges: Sequence[PixelRange] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Images of any type and layout as a uint8 tensor [N, C, H, W].

    Args:
        images: numpy array or tensor, see `channels_second`. Values: bool; uint8; uint16, of which 65535 is white;
            other integers in 0..255; floats in [0, 1]; or any, with `pixels` or `ranges`.
        name: for messages.
        pixels: the values of black and white, where they are not those above.
        bands: channels to take, by number from 1; all when not given.
        ranges: black and white of each channel that is taken.

    Raises:
        UserError: wrong number of dimensions, no such channel, or values outside these ranges.
    """
    array = channels_second(images, name, bands)
    if ranges is None:
        array = _as_uint8(array, name, pixels)
    elif len(ranges) != array.shape[1]:
        raise UserError(f"--data.band_ranges has {len(ranges)} ranges, and {name} has {array.shape[1]} channels")
    else:
        array = np.stack([eight_bits(array[:, c], "full", each) for c, each in enumerate(ranges)], axis=1)
    # Memory-mapped files stay on disk unless their layout has to change; mapped copy-on-write, so torch may write.
    return torch.from_numpy(np.ascontiguousarray(array))


def channels_second(images: Any, name: str, bands: Sequence[int] | None = None) -> NDArray[Any]:
    """Images of any layout as [N, C, H, W], with the channels in `bands`, numbered from 1, or all.

    Args:
        images: numpy array or tensor, [N, H, W], [N, H, W, C] or [N, C, H, W]. With four dimensions the channels are
            the second or last one of size 1, 3 or 4; if both or neither are, the smaller; if equal, the last of an
            array and the second of a tensor, as is usual for each.
        name: for messages.
        bands: which channels, in this order.

    Raises:
        UserError: another number of dimensions, or no such channel.
    """
    array = as_array(images)
    if array.ndim not in (3, 4) or array.size == 0:
        raise UserError(f"{name}: images must be [N, H, W], [N, H, W, C] or [N, C, H, W], got {list(array.shape)}")
    if array.ndim == 3:
        array = array[:, None]
    elif _channels_last(array.shape, default=not isinstance(images, torch.Tensor)):
        array = array.transpose(0, 3, 1, 2)
    if bands is None:
        return array
    if max(bands) > array.shape[1]:
        raise UserError(f"--data.bands {list(bands)}: {name} has {array.shape[1]} channels")
    return array[:, [number - 1 for number in bands]]


def set_channels(images: torch.Tensor, channels: int | None, name: str) -> torch.Tensor:
    """uint8 [N, C, H, W] with the channels asked for: grey is repeated, RGB becomes luma; None leaves them alone."""
    have = images.shape[1]
    if channels is None or channels == have:
        return images
    if have == 1:
        return images.repeat(1, channels, 1, 1)
    if have == 3 and channels == 1:
        # ITU-R 601 in the same 16-bit fixed point as Pillow, in chunks: the products need 4 bytes a pixel.
        parts = [(19595 * c[:, :1] + 38470 * c[:, 1:2] + 7471 * c[:, 2:] + 0x8000) >> 16 for c in _int32_chunks(images)]
        return torch.cat([part.to(torch.uint8) for part in parts])
    others = 3 if channels == 1 else channels
    raise UserError(
        f"{name} has {have} channels; --data.channels {channels} would need 1 or {others} of them: choose some with "
        "--data.bands"
    )


def to_channels(values: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """One image [H, W, C] with the channels asked for, as `set_channels`; ValueError where it has other ones."""
    have = values.shape[2]
    if have == channels:
        return values
    if have not in (1, 3) or channels not in (1, 3):
        raise ValueError(f"it has {have} bands: choose some of them with --data.bands")
    batch = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
    return set_channels(batch, channels, "an image")[0].permute(1, 2, 0).numpy()


def _as_uint8(array: NDArray[Any], name: str, pixels: PixelRange | None) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = (float(array.min()), float(array.max())) if array.dtype.kind in "iuf" else (np.nan, np.nan)
    if array.dtype == np.uint16 and pixels in (None, (0.0, 65535.0)):
        return np.rint(array / 257).astype(np.uint8)
    if array.dtype.kind == "f" and pixels in (None, (0.0, 1.0)) and low >= 0 and high <= 1:
        scaled: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
        return scaled
    if array.dtype.kind in "iu" and pixels in (None, (0.0, 255.0)) and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if pixels is not None and np.isfinite((low, high)).all():
        return eight_bits(array, "full", pixels)
    raise UserError(
        f"{name}: images must be uint8, or floats in [0, 1]; got {array.dtype} from {low:g} to {high:g}: scale them, "
        "or say what black and white are with --data.pixel_range"
    )


def _channels_last(shape: tuple[int, ...], default: bool) -> bool:
    second, last = shape[1], shape[3]
    usual = (second in (1, 3, 4), last in (1, 3, 4))
    if usual[0] != usual[1]:
        return usual[1]
    return last < second if last != second else default


def _int32_chunks(images: torch.Tensor) -> list[torch.Tensor]:
    return [chunk.to(torch.int32) for chunk in images.split(4096)]
