"""What h keeps of a view's transformation and z = g(h) does not (arXiv 2002.05709, Table 3).

An MLP is trained on either to tell which transformation a view has been through. What the head may throw away, since
the loss asks for the same z whatever was done to the view, is still in h.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from twofold.data import BadImage, Source
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import ProjectionHead
from twofold.options import OptionsParser
from twofold.randomness import Key, permutation
from twofold.text import counted
from twofold.views import ViewsConfig
from twofold.views.images import ImageDraw, ImageViews
from twofold.views.studies.views import StudyDraw, build_views

TRANSFORMATIONS: dict[str, list[Any]] = {
    "colour or grey": [],
    "rotation": ["rotate"],
    "original or noise": [{"name": "noise", "probability": 0.5}],
    "original or Sobel": [{"name": "sobel", "probability": 0.5}],
}
"""What is told apart, and the operators that pretraining takes on top of its usual views for it (ours in strength)."""
_BATCH = 256


def applied(name: str, draw: ImageDraw) -> NDArray[np.int64]:
    """[n] which transformation each view has been through: 0 or 1, or how many quarter turns."""
    if name == "colour or grey":
        return draw.gray.numpy().astype(np.int64)
    assert isinstance(draw, StudyDraw)
    column = draw.operators[:, 1] if name == "rotation" else draw.operators[:, 0]
    return column.numpy().astype(np.int64)


def transformation(
    model: Encoder,
    head: ProjectionHead,
    options: Mapping[str, Any],
    name: str,
    train: Source,
    test: Source,
    images: int = 2000,
) -> dict[str, float]:
    """How well an MLP tells a transformation from h and from z, on views of images that it did not see.

    Args:
        model, head: pretrained on views with that transformation.
        options: of those views.
        name: a key of `TRANSFORMATIONS`.
        train, test: images to fit on and to score on, at most `images` of each.

    Returns:
        Accuracies in [0, 1]: "NAME, h", "NAME, z", and "NAME, chance", that of always naming the commonest.
    """
    views = build_views(OptionsParser(ViewsConfig).build(dict(options)))
    (h, z, y), (h_test, z_test, y_test) = (
        _represented(model, head, views, name, source, images, step) for step, source in enumerate((train, test))
    )
    if len(np.unique(y)) < 2:
        raise UserError(f"{train.name}: all {len(y)} views have been through the same transformation; give more images")
    chance = float(np.bincount(y_test).max() / len(y_test))
    return {
        f"{name}, h": _told(h, y, h_test, y_test), f"{name}, z": _told(z, y, z_test, y_test),
        f"{name}, chance": chance,
    }  # fmt: skip


def _represented(
    model: Encoder, head: ProjectionHead, views: ImageViews, name: str, source: Source, most: int, step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """h and z of a view of each of some images, and which transformation it has been through."""
    selection = np.sort(permutation(0, "kept", step, len(source))[:most])
    parts: list[tuple[Tensor, Tensor, NDArray[np.int64]]] = []
    for begin in range(0, len(selection), _BATCH):
        x, y = _views(views, name, source, selection[begin : begin + _BATCH], step)
        with torch.inference_mode():
            h = model(x.to(next(model.parameters()).device)).cpu()
            parts.append((h, head.outputs(h)[-1], y))
    h, z = (torch.cat([part[i] for part in parts]).numpy() for i in (0, 1))  # type: ignore[misc]
    return h, z, np.concatenate([part[2] for part in parts])


def _views(
    views: ImageViews, name: str, source: Source, selection: NDArray[np.int64], step: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """One view of each image that can be read, and which transformation it has been through."""
    images, rows = read_some(source, selection)
    draw, crops = cut(views, images, Key(0, step), rows)
    return views.photometric(crops, draw), applied(name, draw)


def read_some(source: Source, selection: NDArray[np.int64]) -> tuple[list[Tensor], list[int]]:
    """Those images that can be read, uint8 [1, C, H, W] each, and which they are; UserError where none can."""
    images, rows = [], []
    for index in selection.tolist():
        try:
            images.append(torch.from_numpy(np.array(source.read(index))).permute(2, 0, 1)[None])
            rows.append(index)
        except BadImage as error:
            source.skipped.add(error.path, error.reason)
    if not images:
        raise UserError(f"{source.name}: none of {counted(len(selection), 'image')} can be read")
    return images, rows


def cut(views: ImageViews, images: Sequence[Tensor], key: Key, rows: Sequence[int]) -> tuple[ImageDraw, Tensor]:
    """The numbers of the first view of images of any sizes, and its crops [n, C, S, S]."""
    heights, widths = np.array([image.shape[2:] for image in images]).T
    draw, _ = views.draw(key, rows, heights, widths)
    return draw, torch.cat([views.crop(image, draw[i : i + 1]) for i, image in enumerate(images)])


def _told(
    x: NDArray[np.float32], y: NDArray[np.int64], x_test: NDArray[np.float32], y_test: NDArray[np.int64]
) -> float:
    """Test accuracy of an MLP with one hidden layer as wide as its input."""
    net = make_pipeline(StandardScaler(), MLPClassifier((x.shape[1],), max_iter=100, random_state=0))
    with warnings.catch_warnings():  # it may go on to learn by heart after so many passes, which is no news
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(net.fit(x, y).score(x_test, y_test))
