"""Whether one network is better than another on a test set: a permutation test on what each says of every image.

Source: arXiv 2002.05709, appendix B.8: 100,000 permutations. Under the null hypothesis the two networks' answers on an
image can be swapped. Where every image weighs the same, as in top-1 accuracy, the distribution is binomial, and the
exact test (McNemar's) takes the place of draws.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from twofold.errors import UserError
from twofold.evaluation.logistic import Array
from twofold.randomness import derive_seed
from twofold.studies.transfer.sets import Metric
from twofold.text import counted

DRAWS = 100_000
UNREAD = 255
"""In place of the hits of an image that could not be read."""
_AT_ONCE = 1_000


def hits_of(scores: Array, classes: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What a network says right of each image.

    Args:
        scores: [N, K], the higher the likelier; for labels [N, K] those above 0 say yes.
        classes: [K] label of each column.
        labels: [N], or [N, K] of 0 and 1.

    Returns:
        [N]: 0 or 1; of many labels how many of the K are told right.
    """
    if labels.ndim == 2:
        return np.asarray(((scores > 0) == (labels > 0)).sum(1), np.uint8)
    return np.asarray(classes[scores.argmax(1)] == labels, np.uint8)


def packed(hits: NDArray[np.uint8], index: NDArray[np.int64], count: int) -> str:
    """Hits of the images `index` of a test set of `count`, for a JSON file."""
    whole = np.full(count, UNREAD, np.uint8)
    whole[index] = hits
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode()


def unpacked(text: str) -> NDArray[np.uint8]:
    """[N] of the whole test set, `UNREAD` where an image could not be read; UserError if the text is damaged."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except (ValueError, zlib.error) as error:
        raise UserError(f"the answers that a result holds are damaged: {error}; have it measured again") from error


def p_value(
    first: NDArray[np.uint8], second: NDArray[np.uint8], labels: NDArray[np.int64], metric: Metric, seed: int = 0
) -> float:
    """How likely a difference as large as that of two networks is where there is none (two-sided).

    Args:
        first, second: [N] hits of each, see `unpacked`; images that either could not read take no part.
        labels: [N], or [N, K] of 0 and 1. Pascal VOC is compared by the share of the K that is told right (the paper
            says accuracy, in place of the mAP that it reports).
        metric: top1, mean_per_class or map11.
        seed: of the draws.

    Raises:
        UserError: they are not of the same images.
    """
    if not len(first) == len(second) == len(labels):
        raise UserError(
            f"two results of {len(first)} and {counted(len(second), 'image')} cannot be compared: measure both anew"
        )
    both = (first != UNREAD) & (second != UNREAD)
    gaps = first[both].astype(np.int64) - second[both]
    labels = labels[both]
    if metric == "mean_per_class":
        _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
        weights = 1 / counts[place]
    else:
        weights = np.ones(len(gaps))
    weighted = (gaps * weights)[gaps != 0]
    sizes, counts = np.unique(np.abs(weighted), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    if len(sizes) == 1:
        fewer = int(min((weighted > 0).sum(), (weighted < 0).sum()))
        return float(min(1.0, 2 * bdtr(fewer, int(counts[0]), 0.5)))
    seen, generator, beyond = (
        abs(float(weighted.sum())),
        np.random.default_rng(derive_seed(seed, "permutation test")),
        0,
    )
    for _ in range(DRAWS // _AT_ONCE):
        swapped = 2 * generator.binomial(counts, 0.5, (_AT_ONCE, len(counts))) - counts
        beyond += int((np.abs(swapped @ sizes) >= seen - 1e-12).sum())
    return (1 + beyond) / (1 + DRAWS)
