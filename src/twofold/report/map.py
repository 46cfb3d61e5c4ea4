"""The 2-D map of a representation: images that it holds to be similar lie close together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twofold.data import Source
from twofold.errors import UserError
from twofold.randomness import derive_seed, permutation
from twofold.report.images import Pixels, thumbnails

Method = Literal["tsne", "pca"]
_FEWEST = 10  # below that many points neighbourhoods mean nothing, and the map is a plain projection


@dataclass(frozen=True)
class EmbeddingMap:
    """Points of a map.

    Attributes:
        xy: [n, 2] in [0, 1], the longer side spanning it all.
        labels: [n] classes, below 0 where unknown; None without labels.
        classes: names, by label.
        tiles: uint8 [n, S, S, C] pictures shown under the pointer; None for none.
        method: how it was made, in words.
    """

    xy: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    classes: Sequence[str] | None = None
    tiles: Pixels | None = None
    method: str = ""


def embedding_map(
    features: NDArray[np.float32],
    source: Source | None = None,
    index: NDArray[np.int64] | None = None,
    labels: NDArray[np.int64] | None = None,
    classes: Sequence[str] | None = None,
    most: int = 2000,
    method: Method = "tsne",
    seed: int = 0,
    side: int = 32,
) -> EmbeddingMap:
    """Project features to two dimensions: rows to unit length, PCA to 50 dimensions, then t-SNE.

    Args:
        features: [N, d].
        source: where the pictures come from; None for a map without.
        index: [N] position in the source of each row of `features`; by default 0..N-1.
        labels: [N] classes, if known.
        classes: names, by label; by default the source's.
        most: points at most; of more images a random part is drawn.
        method: "tsne", or "pca": the first two principal components.
        seed: fixes the part and the projection.
        side: of the pictures in pixels, at most.

    Raises:
        UserError: fewer than two images.
    """
    if len(features) < 2:
        raise UserError(f"a map needs at least 2 images, got {len(features)}")
    selection = np.sort(permutation(seed, "report/map", 0, len(features))[:most])
    index = np.arange(len(features)) if index is None else index
    xy, words = project(features[selection], method, seed)
    if len(selection) < len(features):
        words += f"; {len(selection):,} of {len(features):,} images, drawn at random"
    return EmbeddingMap(
        xy,
        None if labels is None else labels[selection],
        classes if classes is not None or source is None else source.classes,
        None if source is None else thumbnails(source, index[selection], side),
        words,
    )


def project(features: NDArray[np.float32], method: Method = "tsne", seed: int = 0) -> tuple[NDArray[np.float32], str]:
    """Positions [n, 2] in [0, 1] of features [n, d], and how they were made in words (see `embedding_map`)."""
    from sklearn.decomposition import PCA  # here: they take seconds to import, and not every command draws a map
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    state = derive_seed(seed, "report/projection") % 2**32
    components = min(50, *unit.shape)
    x = PCA(components, random_state=state).fit_transform(unit)
    if method == "pca" or len(x) < _FEWEST:
        xy, words = np.pad(x, ((0, 0), (0, 2)))[:, :2], "projection on the first two principal components"
    else:
        perplexity = min(30.0, (len(x) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=state)
        xy, words = tsne.fit_transform(x), f"PCA to {components} dimensions, then t-SNE (perplexity {perplexity:.0f})"
    low, high = xy.min(axis=0), xy.max(axis=0)
    span = float((high - low).max()) or 1.0
    return ((xy - low) / span + (1 - (high - low) / span) / 2).astype(np.float32), words
