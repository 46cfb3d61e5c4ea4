"""Two views of each image: every random number of a step is drawn first, then applied to the whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from twofold.errors import UserError
from twofold.randomness import Key, uniforms
from twofold.views.blur import blur_radius, gaussian_blur
from twofold.views.boxes import crop_boxes
from twofold.views.color import luma
from twofold.views.config import CROP_AREA, ViewsConfig
from twofold.views.jitter import jitter_rows
from twofold.views.resample import crop_resize, rotate
from twofold.views.rows import update_rows


@dataclass(frozen=True)
class ImageDraw:
    """The random numbers of one view of n images. Keep it on the CPU: what decides on shapes is read from it."""

    box: Tensor  # int64 [n, 4] top, left, height, width in pixels
    flip: Tensor  # bool [n]
    angle: Tensor  # float32 [n] degrees, anticlockwise
    jitter: Tensor  # bool [n]
    order: Tensor  # int64 [n, 4] the operators (0 brightness, 1 contrast, 2 saturation, 3 hue), first to last
    factors: Tensor  # float32 [n, 4] by operator; the hue's in turns
    gray: Tensor  # bool [n]
    blur: Tensor  # bool [n]
    sigma: Tensor  # float32 [n] pixels

    def __len__(self) -> int:
        return len(self.box)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> ImageDraw:
        return self._map(lambda values: values[rows])

    def to(self, device: torch.device | str) -> ImageDraw:
        return self._map(lambda values: values.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> ImageDraw:
        return type(self)(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    @staticmethod
    def cat(draws: Sequence[ImageDraw]) -> ImageDraw:
        names = [field.name for field in fields(draws[0])]
        return type(draws[0])(**{name: torch.cat([getattr(draw, name) for draw in draws]) for name in names})


class ImageViews:
    """Draws and applies SimCLR's augmentations (paper, appendix A; tf2/data_util.py) to batches of images."""

    def __init__(self, config: ViewsConfig) -> None:
        if config.size is None:
            raise UserError("views.size is not set: give the side of a view in pixels")
        self.config = config
        self.size = config.size

    def draw(self, key: Key, rows: ArrayLike, heights: ArrayLike, widths: ArrayLike) -> tuple[ImageDraw, ImageDraw]:
        """The random numbers of both views: a pure function of the key, and for each row of its number and size.

        Args:
            key: seed and step.
            rows: [n] positions in the global batch.
            heights, widths: of the images in pixels; one for all, or [n].
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        first, second = (self._draw(key, view, rows, heights, widths) for view in ("a", "b"))
        return first, second

    def _draw(self, key: Key, view: str, rows: NDArray[np.int64], heights: ArrayLike, widths: ArrayLike) -> ImageDraw:
        c = self.config
        rule, area, aspect = c.crop_rule, c.crop_area or CROP_AREA, c.crop_aspect
        box = crop_boxes(key, f"{view}/crop", rows, heights, widths, rule=rule, area=area, aspect=aspect)
        u = uniforms(key, f"{view}/photometric", rows, 14)
        # One sigma for the batch is the one of its row 0, which every rank can tell.
        u_sigma = u[:, 13] if c.blur_sigma_per == "image" else uniforms(key, f"{view}/photometric", [0], 14)[:, 13]
        strength, blur = strength_of(c), 0.5 if c.blur is None else c.blur
        reach = max(strength, 0.0) * np.array(c.jitter_ranges)
        low, high = np.maximum(1 - reach, 0), 1 + reach
        low[3], high[3] = -reach[3], reach[3]
        if c.brightness_rule == "additive":
            low[0], high[0] = -reach[0], reach[0]
        order = u[:, 3:7].argsort(axis=1) if c.jitter_order == "random" else np.tile(np.arange(4), (len(rows), 1))
        sigma = c.blur_sigma[0] + (c.blur_sigma[1] - c.blur_sigma[0]) * u_sigma
        return ImageDraw(
            box=torch.from_numpy(box),
            flip=torch.from_numpy(u[:, 0] < c.flip),
            angle=torch.from_numpy(c.rotation * (2 * u[:, 1] - 1)).float(),
            jitter=torch.from_numpy((u[:, 2] < c.jitter) & (strength > 0)),
            order=torch.from_numpy(order),
            factors=torch.from_numpy(low + (high - low) * u[:, 7:11]).float(),
            gray=torch.from_numpy((u[:, 11] < c.grayscale) & (strength > 0)),
            blur=torch.from_numpy(u[:, 12] < blur),
            sigma=torch.from_numpy(np.broadcast_to(sigma, len(rows)).copy()).float(),
        )

    @torch.no_grad()
    def crop(self, images: Tensor, draw: ImageDraw) -> Tensor:
        """Crop and resize: uint8 [n, C, H, W] -> float32 [n, C, S, S] in units of [0, 1], which tf rules overshoot."""
        return crop_resize(images, draw.box.cpu(), self.size, self.config.resample)

    @torch.no_grad()
    def photometric(self, x: Tensor, draw: ImageDraw) -> Tensor:
        """All that follows the crop. x: float [n, C, S, S] in units of [0, 1], or uint8 -> float32 in [0, 1].

        Where there are not three channels, jitter is brightness and contrast, with one factor for all channels of an
        image, and grayscale does nothing. Contrast is about each channel's own mean under the color rule "tf" and about
        the mean of all channels under "torchvision".
        """
        copy = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return self._finish(copy.div_(255) if x.dtype == torch.uint8 else copy, draw)

    @torch.no_grad()
    def apply(self, images: Tensor, draws: tuple[ImageDraw, ImageDraw]) -> tuple[Tensor, Tensor]:
        """Both views [n, C, S, S] of uint8 images [n, C, H, W], or of crops [2, n, C, S, S] that `crop` made before."""
        if images.dim() == 5:
            views = self.photometric(images.flatten(0, 1), ImageDraw.cat(draws))
        else:
            views = torch.empty(2, *images.shape[:2], self.size, self.size, device=images.device)
            for view, draw in zip(views, draws, strict=True):
                crop_resize(images, draw.box.cpu(), self.size, self.config.resample, out=view)
            views = self._finish(views.flatten(0, 1), ImageDraw.cat(draws))
        first, second = views.chunk(2)
        return first, second

    @torch.no_grad()
    def one(self, images: Tensor, draw: ImageDraw) -> Tensor:
        """The view that was drawn, [n, C, S, S], of uint8 images [n, C, H, W] or of its crops [1, n, C, S, S]."""
        return self.photometric(images[0] if images.dim() == 5 else self.crop(images, draw), draw)

    def _finish(self, x: Tensor, draw: ImageDraw) -> Tensor:
        """`photometric` in place, each operator on the images that it was drawn for."""
        c, draw = self.config, draw.to("cpu")
        update_rows(x, draw.flip, lambda part: part.flip(3))
        if c.rotation > 0:
            update_rows(x, torch.ones_like(draw.flip), rotate, draw.angle)
        jitter_rows(x, draw.jitter.nonzero().flatten(), draw.order, draw.factors, c.brightness_rule, c.color_rule)
        if x.shape[1] == 3:
            update_rows(x, draw.gray, lambda part: luma(part).expand_as(part))
        x.clamp_(0, 1)
        radius = blur_radius(x.shape[2])
        update_rows(
            x, draw.blur, lambda part, s: gaussian_blur(part, s, radius, c.blur_padding).clamp_(0, 1), draw.sigma
        )
        return x


def strength_of(config: ViewsConfig) -> float:
    """The colour strength, SimCLR's where it was left open."""
    return 1.0 if config.color_strength is None else config.color_strength
