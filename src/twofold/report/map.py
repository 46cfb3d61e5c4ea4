"""The 2-D map of a representation: images that it holds to be similar lie close together."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twofold.data import Source
from twofold.errors import UserError
from twofold.randomness import derive_seed, permutation
from twofold.report.images import Pixels, thumbnails
from twofold.text import counted

Method = Literal["tsne", "pca"]
LARGE = 5_000
"""Points up to which scikit-learn's t-SNE takes no more than a minute of a core; openTSNE takes over beyond."""
_LARGE_PERPLEXITY, _LARGE_STEPS = 10, 250
_PLACED_BY = 10  # nearest points of the drawn part that place one that is not in it
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
        words += f"; {len(selection):,} of {len(features):,}, drawn at random"
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

    if len(features) < 2:
        return np.full((len(features), 2), 0.5, np.float32), "nothing to compare it with"
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    state = derive_seed(seed, "report/projection") % 2**32
    components = min(50, *unit.shape)
    x = PCA(components, random_state=state).fit_transform(unit)
    if method == "pca" or len(x) < _FEWEST:
        xy, words = np.pad(x, ((0, 0), (0, 2)))[:, :2], "projection on the first two principal components"
    elif len(x) <= LARGE:
        perplexity = min(30.0, (len(x) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=state)
        xy, words = (
            tsne.fit_transform(x),
            f"PCA to {counted(components, 'dimension')}, then t-SNE (perplexity {perplexity:.0f})",
        )
    else:
        xy, words = _many(x.astype(np.float32), state)
        words = f"PCA to {counted(components, 'dimension')}, then {words}"
    low, high = xy.min(axis=0), xy.max(axis=0)
    span = float((high - low).max()) or 1.0
    return ((xy - low) / span + (1 - (high - low) / span) / 2).astype(np.float32), words


def _many(x: NDArray[np.float32], state: int) -> tuple[NDArray[np.float32], str]:
    """t-SNE of more points than scikit-learn's is made for, and in words how."""
    if importlib.util.find_spec("openTSNE") is not None:
        from openTSNE import TSNE

        found = TSNE(perplexity=_LARGE_PERPLEXITY, n_iter=_LARGE_STEPS, initialization="pca", random_state=state).fit(x)
        return np.asarray(found, np.float32), f"openTSNE (perplexity {_LARGE_PERPLEXITY})"
    from sklearn.manifold import TSNE as Exact

    part = np.sort(np.random.default_rng(state).permutation(len(x))[:LARGE])
    drawn = Exact(init="pca", random_state=state).fit_transform(x[part]).astype(np.float32)
    xy = _placed(x, x[part], drawn)
    xy[part] = drawn
    return xy, (
        f"t-SNE of {LARGE:,} of them, the others placed by their nearest among these, which is coarser: "
        'pip install "twofold[explore]" brings openTSNE, which takes them all'
    )


def _placed(x: NDArray[np.float32], part: NDArray[np.float32], drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positions [n, 2] of points [n, d] among those of a part [m, d] that are drawn at [m, 2]: means of the nearest,
    weighted by their closeness relative to the median of these."""
    xy = np.empty((len(x), 2), np.float32)
    for begin in range(0, len(x), 1000):
        rows = x[begin : begin + 1000]
        far = np.maximum((rows**2).sum(1)[:, None] + (part**2).sum(1) - 2 * rows @ part.T, 0)
        near = np.argpartition(far, _PLACED_BY, axis=1)[:, :_PLACED_BY]
        distance = np.take_along_axis(far, near, axis=1)
        weight = np.exp(-distance / np.maximum(np.median(distance, axis=1, keepdims=True), 1e-12))
        xy[begin : begin + 1000] = (drawn[near] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
    return xy
