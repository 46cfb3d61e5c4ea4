"""Pixels of any kind as 8 bits: modes of Pillow, and arrays of any type and layout."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from twofold.errors import UserError

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
"""The modes of Pillow that hold no colour."""

DeepPixels = Literal["full", "stretch"]


def to_uint8(image: Image.Image, channels: int, background: str, deep: DeepPixels) -> NDArray[np.uint8]:
    """Pixels [H, W, channels] of an image of any mode.

    Transparency (alpha, a transparent palette entry or a transparent colour) is laid over `background`. Colour becomes
    grey by ITU-R 601 luma. Pixels of more than 8 bits follow `eight_bits`. Colour profiles are not applied.

    Raises:
        ValueError: Pillow knows no conversion from the image's mode, or a float pixel is not finite.
    """
    if image.mode.startswith(("I", "F")):
        values = np.array(image)
        grey = eight_bits(values, deep)
        if isinstance(key := image.info.get("transparency"), int):
            grey[values == key] = np.array(Image.new("RGB", (1, 1), background).convert("L"))[0, 0]
        return np.repeat(grey[..., None], channels, axis=2)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background)[:3])
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def eight_bits(values: NDArray[Any], deep: DeepPixels = "full") -> NDArray[np.uint8]:
    """Scale one image of 16-bit, 32-bit or float pixels to 0..255, rounding to nearest.

    ``"full"`` takes the range that the values' type stands for: 0..65535 for integers, and for floats the first of
    0..1, 0..255 and 0..65535 that holds them all. ``"stretch"``, and values beyond those ranges, are scaled from the
    image's own smallest and largest value: right for 12-bit cameras, whose pictures would come out nearly black.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    top = next((r for r in ranges if low >= 0 and high <= r), None) if deep == "full" else None
    bottom, top = (low, high) if top is None else (0.0, top)
    scale = 255.0 / (top - bottom) if top > bottom else 0.0
    return np.rint((values.astype(np.float64) - bottom) * scale).astype(np.uint8)


def images_to_tensor(images: Any, name: str) -> torch.Tensor:
    """Images of any type and layout as a uint8 tensor [N, C, H, W].

    Args:
        images: numpy array or tensor, [N, H, W], [N, H, W, C] or [N, C, H, W]. With four dimensions the channels are
            the second or last one of size 1, 3 or 4; if both or neither are, the smaller; if equal, the last of an
            array and the second of a tensor, as is usual for each. Values: bool; integers in 0..255; uint16 beyond
            255 (scaled by 255 / 65535); floats in [0, 1] (scaled by 255).
        name: for messages.

    Raises:
        UserError: wrong number of dimensions, or values outside these ranges.
    """
    tensor_like = isinstance(images, torch.Tensor)
    array = images.detach().cpu().numpy() if tensor_like else np.asarray(images)
    if array.ndim not in (3, 4) or array.size == 0:
        raise UserError(f"{name}: images must be [N, H, W], [N, H, W, C] or [N, C, H, W], got {list(array.shape)}")
    array = _as_uint8(array, name)
    if array.ndim == 3:
        array = array[:, None]
    elif _channels_last(array.shape, default=not tensor_like):
        array = array.transpose(0, 3, 1, 2)
    # Memory-mapped files stay on disk unless their layout has to change; mapped copy-on-write, so torch may write.
    return torch.from_numpy(np.ascontiguousarray(array))


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
    raise UserError(f"{name} has {have} channels; --data.channels {channels} would need 1, 3 or {channels} of them")


def _as_uint8(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = (float(array.min()), float(array.max())) if array.dtype.kind in "iuf" else (np.nan, np.nan)
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(array * 255).astype(np.uint8)
    if array.dtype == np.uint16 and high > 255:
        return np.rint(array / 257).astype(np.uint8)
    if array.dtype.kind in "iu" and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    raise UserError(
        f"{name}: images must be uint8, or floats in [0, 1]; got {array.dtype} from {low:g} to {high:g}: scale them"
    )


def _channels_last(shape: tuple[int, ...], default: bool) -> bool:
    second, last = shape[1], shape[3]
    usual = (second in (1, 3, 4), last in (1, 3, 4))
    if usual[0] != usual[1]:
        return usual[1]
    return last < second if last != second else default


def _int32_chunks(images: torch.Tensor) -> list[torch.Tensor]:
    return [chunk.to(torch.int32) for chunk in images.split(4096)]
