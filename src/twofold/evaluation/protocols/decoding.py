"""From the frames of a CTC recogniser to a text: the best path, and prefix beam search (arXiv 1408.2873, section 2.2).

Texts are tuples of symbols; symbol 0 is the blank.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Symbols = tuple[int, ...]
_NEVER = -np.inf


def collapse(path: list[int]) -> Symbols:
    """The text of a path: repeats become one, then blanks go."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def best_path(log_probs: NDArray[np.floating]) -> Symbols:
    """The text of the likeliest path (greedy decoding) of log_probs [T, V]."""
    return collapse(log_probs.argmax(1).tolist())


def beam_search(log_probs: NDArray[np.floating], width: int) -> Symbols:
    """The likeliest text, all its paths taken together, as far as `width` beginnings a frame show it.

    Args:
        log_probs: [T, V] natural logs.
        width: beginnings that are kept after each frame, 1 or more; with as many as there are the search is exact.
    """
    # of each beginning: the log probability of its paths that end in a blank, and of those that end in its last symbol
    beams: dict[Symbols, tuple[float, float]] = {(): (0.0, _NEVER)}
    for frame in log_probs.astype(np.float64):
        grown: defaultdict[Symbols, list[float]] = defaultdict(lambda: [_NEVER, _NEVER])
        for text, (blank, symbol) in beams.items():
            either = np.logaddexp(blank, symbol)
            stays = grown[text]
            stays[0] = np.logaddexp(stays[0], either + frame[0])
            for k in range(1, len(frame)):
                if text and k == text[-1]:  # again without a blank between is the same symbol still
                    stays[1] = np.logaddexp(stays[1], symbol + frame[k])
                    longer = grown[*text, k]
                    longer[1] = np.logaddexp(longer[1], blank + frame[k])
                else:
                    longer = grown[*text, k]
                    longer[1] = np.logaddexp(longer[1], either + frame[k])
        kept = sorted(grown.items(), key=lambda item: -float(np.logaddexp(item[1][0], item[1][1])))[:width]
        beams = {text: (scores[0], scores[1]) for text, scores in kept}
    return max(beams, key=lambda text: float(np.logaddexp(beams[text][0], beams[text][1])))
