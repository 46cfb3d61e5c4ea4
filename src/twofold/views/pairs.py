"""Two views of images for anyone's training loop: SimCLR's augmentations behind one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views.config import ViewsConfig
from twofold.views.images import ImageDraw, ImageViews
from twofold.views.studies.views import build_views


def two_views(
    images: Any, generator: torch.Generator | int | None = None, *, size: int | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Two random views of each image: cropped, resized, flipped, with other colours and blurred, as SimCLR does it.

    What `twofold pretrain` makes of an image, in one call for a loop of your own. It runs on the images' device, whole
    batches at a time. Every number is drawn from one seed, so that the same generator state gives the same views.
    Source: arXiv 2002.05709, appendix A; google-research/simclr, tf2/data_util.py.

    Args:
        images: [n, C, H, W], a tensor or an array, or arrays [n, H, W, C] or [n, H, W]; or a list of images of any
            sizes, each an array [H, W, C], [H, W], a tensor [C, H, W] or a picture of Pillow's. uint8, or floats in
            [0, 1].
        generator: from which the seed is drawn, or the seed itself; torch's own generator when not given.
        size: side S of a view in pixels; the shorter side of the smallest image when not given.
        options: fields of `ViewsConfig` (`twofold.views`), such as ``color_strength=0.5``, ``crop_area=(0.2, 1.0)``,
            ``blur=0.0``. Where colour strength is left open, views up to 64 px get 0.5, larger ones 1.0; where blur is,
            views up to 32 px get none, larger ones 0.5; where the crops' area is, views up to 16 px get (0.3, 1.0),
            larger ones (0.08, 1.0).

    Returns:
        Both views, float32 [n, C, S, S] in [0, 1], row i of both of image i. No gradient reaches the images.

    Raises:
        UserError: images of another shape, type or range, or an option that will not do.
    """
    several = _as_batch(images)
    sides = [(part.shape[2], part.shape[3]) for part in several]
    size = min(min(pair) for pair in sides) if size is None else size
    views = views_of(size, **options)
    key, count = Key(_seed(generator), 0), sum(len(part) for part in several)
    if len(several) == 1:
        draws = views.draw(key, np.arange(count), *sides[0])
        return views.apply(several[0], draws)
    heights, widths = np.array(sides).T
    draws = views.draw(key, np.arange(count), heights, widths)
    crops = torch.stack([_crops(views, several, draw) for draw in draws])
    return views.apply(crops, draws)


def views_of(size: int, **options: Any) -> ImageViews:
    """The views that `two_views` makes, for loops that draw and apply apart; raises UserError."""
    unknown = sorted(options.keys() - ViewsConfig.__dataclass_fields__.keys())
    if unknown:
        raise UserError(f"views have no option {unknown[0]}: see the fields of twofold.views.ViewsConfig")
    return build_views(ViewsConfig(**options).suited(size))


def _crops(views: ImageViews, several: Sequence[Tensor], draw: ImageDraw) -> Tensor:
    """The crop of each image, [n, C, S, S]."""
    return torch.cat([views.crop(image, draw[i : i + 1]) for i, image in enumerate(several)])


def _seed(generator: torch.Generator | int | None) -> int:
    if isinstance(generator, int):
        if not 0 <= generator < 2**63:
            raise UserError(f"the seed of views is {generator}: give a number from 0 to 2**63 - 1")
        return generator
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def _as_batch(images: Any) -> list[Tensor]:
    """One tensor [n, C, H, W], or several [1, C, H, W] of one number of channels."""
    if isinstance(images, list | tuple):
        several = [_one(image) for image in images]
        if not several:
            raise UserError("there is no image to make views of: the list is empty")
        channels = sorted({part.shape[1] for part in several})
        if len(channels) > 1:
            raise UserError(f"images of {channels[0]} and of {channels[1]} channels: bring them to the same number")
        alike = len({part.shape for part in several}) == 1
        return [torch.cat(several)] if alike else several
    tensor = pixel_values(images)
    if tensor.ndim == 3 and isinstance(images, np.ndarray):
        tensor = tensor[:, None]
    if tensor.ndim != 4 or not len(tensor):
        raise UserError(
            f"images of shape {tuple(tensor.shape)}: give a batch [n, C, H, W], an array [n, H, W, C] or [n, H, W], or "
            "a list of images"
        )
    last = isinstance(images, np.ndarray) and tensor.shape[3] <= 4 < tensor.shape[1]
    return [tensor.permute(0, 3, 1, 2).contiguous() if last else tensor]


def _one(image: Any) -> Tensor:
    """One image as [1, C, H, W]."""
    if isinstance(image, Image.Image):
        pixels: NDArray[np.uint8] = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        image = pixels
    tensor = pixel_values(image, "an image")
    if tensor.ndim == 2:
        return tensor[None, None]
    if tensor.ndim != 3:
        raise UserError(f"an image of shape {tuple(tensor.shape)}: give [H, W, C], [H, W] or a tensor [C, H, W]")
    return (tensor.permute(2, 0, 1).contiguous() if isinstance(image, np.ndarray) else tensor)[None]


def pixel_values(images: Any, what: str = "images") -> Tensor:
    """An array or tensor of pixels as a tensor: uint8, or floats in [0, 1]; bits become 0 and 255.

    Args:
        images: of any shape.
        what: they are, for the message.

    Raises:
        UserError: no array, another type, or values beyond [0, 1].
    """
    if not isinstance(images, np.ndarray | Tensor):
        raise UserError(f"{what} given as {type(images).__name__}: give arrays, tensors or pictures of Pillow's")
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "bufi":
            raise UserError(f"{what}: an array of {images.dtype} holds no pixels: give uint8, or floats in [0, 1]")
        images = torch.from_numpy(np.array(images))  # a copy: of arrays that must not be written to torch warns
    tensor: Tensor = images
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8) * 255
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{what}: pixels of {kind}: give uint8, or floats in [0, 1]")
    low, high = (float(tensor.min()), float(tensor.max())) if tensor.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{what}: values from {low:g} to {high:g}; floats have to lie in [0, 1]: divide those of 0 to 255 by 255, "
            "or give uint8"
        )
    return tensor.float()
