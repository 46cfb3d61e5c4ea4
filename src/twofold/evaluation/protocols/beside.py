"""What stands beside an encoder's number, by the same protocol: pixels or filterbank, and the untrained encoder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from twofold.data import ArraySource
from twofold.devices import available_memory
from twofold.encoders import Encoder, UtteranceEncoder
from twofold.encoders.audio.encoder import baseline_of
from twofold.encoders.composed import EncoderWithHead, in_parts
from twofold.encoders.pixels import MOST, pixels_of
from twofold.encoders.untrained import untrained
from twofold.errors import UserError
from twofold.evaluation.feature_cache import NOTHING_KEPT
from twofold.evaluation.features import Extractor
from twofold.evaluation.parts import Parts
from twofold.evaluation.scores import Scores, score
from twofold.evaluation.splits import Labels
from twofold.kinds import Kind

THIRDS = 3
"""Parts by which the filterbank is read, beside whatever else it is: pooled whole it is half as strong a baseline."""
NAMES = {
    "majority": "majority class", "pixels": "raw pixels", "filterbank": "filterbank alone",
    "filterbank_thirds": "filterbank alone by thirds", "untrained": "untrained encoder",
}  # fmt: skip
"""What the rows are called for people, in the order in which they stand."""
PLAIN: dict[Kind, str] = {"image": "raw pixels", "audio": "filterbank"}
"""What is left where nothing is learned."""
_MOST_KEPT = 2**27
"""Bytes of pixels up to which they are kept beside an encoder's features."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class BaselineOptions:
    """Baselines can be left out."""

    baselines: bool = True
    """Measure what stands beside the number, by the same protocol on the same labels: the majority class, raw pixels
    (of recordings the filterbank, whole and by thirds) and the untrained encoder. They take about as long again."""


@dataclass(frozen=True)
class Row:
    """One baseline: its name, what gives its features, and how these are extracted."""

    name: str
    encoder: Encoder
    extractor: Extractor


def beside(
    encoder: Encoder, parts: Any, extractor: Extractor, options: Any, seed: int | None, measure: Callable[[Row], Found]
) -> tuple[dict[str, Found], list[str], float]:  # fmt: skip
    """What the baselines of an encoder reach.

    Args:
        encoder: the evaluated one, before it is read by parts.
        parts: of the data, as the protocol has chosen them.
        extractor: of the encoder's features.
        options: of the protocol.
        seed: of the untrained encoder; None leaves it out.
        measure: the protocol on one of them.

    Returns:
        The results by name (see `NAMES`), what is to be said of them, and the seconds they took.
    """
    begun, found, words = time.monotonic(), dict[str, Found](), list[str]()
    number = getattr(options, "parts", 1)

    def plain() -> list[tuple[Row, str]]:
        if encoder.input.kind == "image" and not hasattr(options, "preprocessing"):
            return []
        return without_encoder(encoder, parts, extractor, number, thirds=number == 1 and hasattr(options, "parts"))

    fresh = partial(_untrained, encoder, extractor, number, seed)
    for make, what in ((plain, PLAIN[encoder.input.kind]), (fresh, NAMES["untrained"])):
        try:
            for row, said in make():
                found[row.name] = measure(row)
                words += [said] if said else []
        except UserError as error:
            words.append(f"without the {what}: {error}")
    return found, words, time.monotonic() - begun


def without_encoder(
    encoder: Encoder, parts: Parts, extractor: Extractor, number: int = 1, thirds: bool = False
) -> list[tuple[Row, str]]:
    """What takes an encoder's place where nothing is learned: pixels, or the filterbank.

    Args:
        encoder: the one beside which it stands.
        parts: of the data: pixels are of their size.
        extractor: of the encoder's features.
        number: parts that a recording is read by.
        thirds: the filterbank by thirds, too.

    Returns:
        Rows, each with what is to be said of it; none for an encoder that takes another thing than images or frames.

    Raises:
        UserError: the pixels take too much memory.
    """
    base = encoder.encoder if isinstance(encoder, EncoderWithHead) else encoder
    if isinstance(base, UtteranceEncoder):
        alone = baseline_of(base)
        rows = [(Row("filterbank", in_parts(alone, number), extractor), "")]
        if thirds:
            rows.append((Row("filterbank_thirds", in_parts(alone, THIRDS), extractor), ""))
        return rows
    if encoder.input.kind != "image":
        return []
    height, width = _sides(encoder, parts, extractor)
    pixels = pixels_of(encoder.input.channels, height, width)
    count = sum(len(part) for part in (parts.train, parts.test, parts.validation) if part is not None)
    needed = 4 * count * pixels.feature_dim
    if 3 * needed > available_memory() // 2:
        raise UserError(f"{count:,} images of {pixels.feature_dim:,} values are more than half the free memory")
    cache = extractor.cache if needed <= _MOST_KEPT else NOTHING_KEPT
    averaged = f"raw pixels averaged to {pixels.grid[1]} x {pixels.grid[0]}" if max(height, width) > MOST else ""
    return [(Row("pixels", pixels, dataclasses.replace(extractor, cache=cache, role="pixels")), averaged)]


def _sides(encoder: Encoder, parts: Parts, extractor: Extractor) -> tuple[int, int]:
    """Height and width of what an encoder is given."""
    size = extractor.size or encoder.input.size
    if size is not None and extractor.preprocessing != "none":
        return size, size
    if isinstance(parts.train, ArraySource):
        return parts.train.size(0)
    facts = parts.train.facts()
    return facts.median_height, facts.median_width


def _untrained(encoder: Encoder, extractor: Extractor, number: int, seed: int | None) -> list[tuple[Row, str]]:
    if seed is None:
        return []
    fresh = in_parts(untrained(encoder, seed), number)
    row = Row("untrained", fresh, dataclasses.replace(extractor, role=f"untrained {seed}"))
    return [(row, f"untrained encoder with fresh weights of seed {seed}")]


def majority(y: Labels, y_test: Labels) -> Scores:
    """Scores of the answer that does not look: the most frequent classes of the training examples, in this order.

    Args:
        y: [N] labels of the training examples.
        y_test: [M].
    """
    classes, counts = np.unique(y, return_counts=True)
    return score(np.broadcast_to(counts.astype(np.float64), (len(y_test), len(counts))), classes, y_test)
