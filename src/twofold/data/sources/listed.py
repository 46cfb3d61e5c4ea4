"""Images as a notebook has them: pictures of Pillow's, lists of such, iterators, columns of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twofold.errors import UserError
from twofold.views.pairs import pixel_values


class Listed(torch.utils.data.Dataset[Any]):
    """Images in memory as a data set.

    Args:
        images: each a path, a picture of Pillow's, an array [H, W] or [H, W, C], or a tensor [C, H, W], of uint8 or of
            floats in [0, 1].

    Raises:
        UserError: there is none, or one is no image.
    """

    def __init__(self, images: Sequence[Any]) -> None:
        if not len(images):
            raise UserError("there is no image: the list is empty")
        self.images = [_item(image, place) for place, image in enumerate(images)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        return Image.open(image).convert("RGB") if isinstance(image, str | Path) else image


def as_listed(what: Any) -> Any:
    """Data in the forms that notebooks have in those that sources are made of; others as they are.

    See `as_list`; a list with an image that is no path becomes a `Listed`.

    Raises:
        UserError: a table in memory of several columns.
    """
    what = as_list(what)
    if isinstance(what, list) and any(isinstance(each, Image.Image | np.ndarray | Tensor) for each in what):
        return Listed(what)
    return what


def as_list(what: Any) -> Any:
    """One picture of Pillow's, an iterator, a column of a table, an array of text as a list; others as they are.

    Raises:
        UserError: a table in memory of several columns.
    """
    if isinstance(what, Image.Image):
        return [what]
    if hasattr(what, "columns") and hasattr(what, "to_numpy"):
        if len(what.columns) != 1:
            listed = ", ".join(str(name) for name in list(what.columns)[:5])
            raise UserError(
                f"data given as {type(what).__name__} with the columns {listed}: give the column of the paths alone, "
                "table['path'], or write the table to a .csv file and give that"
            )
        return list(what.to_numpy()[:, 0])
    if isinstance(what, Iterator) or (hasattr(what, "to_numpy") and getattr(what, "ndim", None) == 1):
        return list(what)
    if isinstance(what, np.ndarray) and what.dtype.kind in "OU" and what.ndim and what.size == len(what):
        return what.reshape(-1).tolist()
    return what


def as_bytes(images: Any, what: str) -> Tensor:
    """Pixels as uint8 on the CPU, floats rounded; UserError for other types and values."""
    tensor = pixel_values(images, what).detach().cpu()
    return tensor if tensor.dtype == torch.uint8 else (tensor * 255).round().to(torch.uint8)


def _item(image: Any, place: int) -> Any:
    """One image as a data set gives it."""
    if isinstance(image, Image.Image | str | Path):
        return image
    pixels = as_bytes(image, f"image {place}")
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim != 3:
        raise UserError(
            f"image {place} is of shape {tuple(pixels.shape)}: give [H, W, C], [H, W] or a tensor [C, H, W]"
        )
    return pixels.permute(2, 0, 1).contiguous() if isinstance(image, np.ndarray) else pixels
