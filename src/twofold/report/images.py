"""Pictures for the page: PNGs as data addresses, thumbnails, pairs of views, nearest neighbours."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from twofold.data import ArraySource, AudioSource, BadImage, Source
from twofold.evaluation.neighbours import nearest
from twofold.randomness import permutation

Pixels = NDArray[np.uint8]
_GREY = 128  # in place of an image that can no longer be read
_PALETTE_ABOVE = 2**20  # bytes of pixels from which a colour picture is stored in 256 colours


@dataclass(frozen=True)
class Overall:
    """How often nearest neighbours are of the class of the example they are neighbours of.

    Attributes:
        share: of all neighbours of known class, in [0, 1].
        chance: the same if neighbours were drawn at random.
        count: examples of known class, each of which was asked.
        k: neighbours of each.
    """

    share: float
    chance: float
    count: int
    k: int


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours of some images.

    Attributes:
        queries: uint8 [q, S, S, C].
        images: uint8 [q, k, S, S, C], nearest first.
        similarity: [q, k] cosine similarities.
        query_labels, labels: [q] and [q, k] classes, below 0 where unknown; None without labels.
        classes: names, by label.
        overall: how often neighbours are of the same class over all examples; None without labels.
    """

    queries: Pixels
    images: Pixels
    similarity: NDArray[np.floating]
    query_labels: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    classes: Sequence[str] | None = None
    overall: Overall | None = None

    def name(self, label: int) -> str:
        """A class in words."""
        return class_name(label, self.classes)


def find_neighbours(
    features: NDArray[np.float32],
    source: Source,
    index: NDArray[np.int64] | None = None,
    labels: NDArray[np.int64] | None = None,
    queries: int = 8,
    k: int = 8,
    seed: int = 0,
    side: int = 64,
) -> Neighbours:
    """Pick query images at random and find their nearest neighbours among all others, by cosine similarity.

    Args:
        features: [N, d].
        source: where the pictures come from.
        index: [N] position in the source of each row of `features`; by default 0..N-1.
        labels: [N] classes, if known.
        queries: how many.
        k: neighbours of each, clipped to N - 1.
        seed: fixes which are picked.
        side: of the pictures in pixels, at most.

    Returns:
        Neighbours; queries of different classes first, where there are labels.
    """
    count = len(features)
    index = np.arange(count) if index is None else index
    order = permutation(seed, "report/queries", 0, count)
    if labels is not None:
        turn = np.zeros(count, dtype=np.int64)  # how many images of the same class come earlier in the order
        for label in np.unique(labels):
            members = np.flatnonzero(labels[order] == label)
            turn[members] = np.arange(len(members))
        order = order[np.argsort(turn, kind="stable")]
    picked = order[:queries]
    if labels is not None:
        picked = picked[np.argsort(labels[picked], kind="stable")]
    k = min(k, count - 1)
    bank = torch.from_numpy(features)
    similarity, result = (t.numpy() for t in nearest(bank, bank[torch.from_numpy(picked)], k + 1))
    # An image is its own nearest neighbour; of exact copies another one may come first, so it is looked for.
    keep = result != picked[:, None]
    keep[keep.all(axis=1), -1] = False
    result, similarity = result[keep].reshape(-1, k), similarity[keep].reshape(-1, k)
    pictures = thumbnails(source, index[np.concatenate([picked, result.ravel()])], side)
    first, rest = pictures[: len(picked)], pictures[len(picked) :]
    return Neighbours(
        first,
        rest.reshape(len(picked), k, *first.shape[1:]),
        similarity,
        None if labels is None else labels[picked],
        None if labels is None else labels[result],
        source.classes,
        None if labels is None else _overall(bank, labels, k),
    )


def _overall(bank: torch.Tensor, labels: NDArray[np.int64], k: int) -> Overall | None:
    """Over every example of known class, not only those that are shown; None where fewer than two classes are known."""
    known = np.flatnonzero(labels >= 0) if labels.ndim == 1 else np.empty(0, np.int64)
    counts = np.unique(labels[known], return_counts=True)[1]
    if len(counts) < 2 or k < 1:
        return None
    part, own = bank[torch.from_numpy(known)], labels[known]
    k = min(k, len(known) - 1)
    found = nearest(part, part, k + 1)[1].numpy()
    keep = found != np.arange(len(known))[:, None]
    keep[keep.all(axis=1), -1] = False  # (of exact copies another one may come first)
    share = float((own[found[keep]].reshape(len(known), k) == own[:, None]).mean())
    chance = float((counts * (counts - 1)).sum() / (len(known) * (len(known) - 1)))
    return Overall(share, chance, len(known), k)


def thumbnails(source: Source, indices: NDArray[np.int64], side: int = 48) -> Pixels:
    """Small square pictures: the central square, resized to `side`; images of one smaller size keep their pixels.

    Args:
        source: where they come from.
        indices: [n] positions in the source.
        side: in pixels, at most.

    Returns:
        uint8 [n, S, S, C], S <= side, C 1 or 3 (of more channels the first). An image that cannot be read is grey.
    """
    if isinstance(source, ArraySource):
        side = min(side, *source.images.shape[2:])
    channels = 1 if source.channels < 3 else 3
    out = np.full((len(indices), side, side, channels), _GREY, dtype=np.uint8)
    for row, i in enumerate(indices):
        try:
            picture_of = source.picture if isinstance(source, AudioSource) else source.read
            pixels = picture_of(int(i))[..., :channels]
        except BadImage:
            continue
        height, width = pixels.shape[:2]
        square = min(height, width)
        top, left = (height - square) // 2, (width - square) // 2
        picture = _picture(pixels[top : top + square, left : left + square])
        if square != side:
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        out[row] = np.asarray(picture).reshape(side, side, channels)
    return out


def png(pixels: Pixels) -> str:
    """uint8 [H, W] or [H, W, C] as a ``data:image/png`` address. Large colour pictures get 256 colours.

    Of two channels the first is shown, in grey, and of more than three the first three, in colour.
    """
    picture = _picture(pixels)
    if picture.mode == "RGB" and pixels.nbytes > _PALETTE_ABOVE:
        picture = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def sprite(tiles: Pixels) -> tuple[Pixels, int]:
    """Lay tiles [n, S, S, C] out row by row in one sheet: its pixels, and the number of tiles in a row."""
    n, side, _, channels = tiles.shape
    columns = max(1, int(np.ceil(np.sqrt(n))))
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, side, side, channels), dtype=np.uint8)
    sheet[:n] = tiles
    sheet = sheet.reshape(rows, columns, side, side, channels).transpose(0, 2, 1, 3, 4)
    return sheet.reshape(rows * side, columns * side, channels), columns


def class_name(label: int, classes: Sequence[str] | None) -> str:
    """A class in words."""
    if label < 0:
        return "unlabelled"
    return classes[label] if classes is not None else str(label)


def _picture(pixels: Pixels) -> Image.Image:
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels))
