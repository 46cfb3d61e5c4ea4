"""Speaker verification without training: are two utterances of one speaker? By the cosine of their features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data import SoundSource, Source
from twofold.data.subset import subset
from twofold.encoders import Encoder, UtteranceEncoder
from twofold.encoders.utterance import floor_of
from twofold.errors import UserError
from twofold.evaluation.features import extract
from twofold.evaluation.frozen import frozen
from twofold.evaluation.splits import single_labels
from twofold.randomness import permutation

_MOST = 4000  # utterances, which make eight million pairs


@dataclass(frozen=True)
class Verification:
    """Error rates in [0, 1] over all pairs of utterances, and the same of the filterbank alone.

    Attributes:
        eer: where as many pairs of one speaker are refused as pairs of two are accepted.
        min_dcf: least cost at a prior of 0.01 for one speaker, both errors costing 1; 1 is that of refusing all.
        floor_eer, floor_min_dcf: of mean and deviation of the log-mel filterbank.
        utterances, speakers, pairs: how many.
        text: the protocol in words.
    """

    eer: float
    min_dcf: float
    floor_eer: float
    floor_min_dcf: float
    utterances: int
    speakers: int
    pairs: int
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)


def verify(encoder: Encoder, source: Source, seed: int = 0, batch: int = 256) -> Verification:
    """Compare all pairs of at most 4,000 utterances by cosine, after the features' mean is taken away.

    Args:
        encoder: of speech; it stays as it is.
        source: utterances whose labels are speakers.
        seed: which utterances take part where there are more.
        batch: utterances at a time.

    Raises:
        UserError: images, no labels, or no two utterances of a speaker.
    """
    if not isinstance(source, SoundSource) or not isinstance(encoder, UtteranceEncoder):
        raise UserError(f"--protocol verification compares speakers: {source.name} or the encoder is not of speech")
    labels = single_labels(source.labels, source.name)
    known = np.flatnonzero(labels >= 0)
    known = np.sort(known[permutation(seed, "verification", 0, len(known))[:_MOST]])
    part = subset(source, known)
    rates = []
    for model in (encoder, floor_of(encoder)):
        with frozen(model):
            found = extract(model, part, batch=batch)
        assert found.labels is not None
        scores, same = all_pairs(found.h, found.labels)
        if not same.any() or same.all():
            raise UserError(f"{source.name}: verification needs two speakers, and two utterances of one of them")
        rates += [equal_error_rate(scores, same), detection_cost(scores, same)]
    text = (
        f"cosine of features less their mean, all {len(same):,} pairs of {len(found.h):,} utterances; "
        f"{found.text}; encoder frozen"
    )
    return Verification(*rates, len(found.h), len(np.unique(found.labels)), len(same), text)


def all_pairs(h: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cosine of every pair of rows of h [n, d] less their mean, and whether it is of one label: [n (n - 1) / 2]."""
    x = h - h.mean(axis=0)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    first, second = np.triu_indices(len(x), 1)
    return (x @ x.T)[first, second], labels[first] == labels[second]


def equal_error_rate(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> float:
    """The error where misses and false alarms are equally frequent; between two thresholds, on the line."""
    miss, alarm = _errors(scores, same)
    after = int(np.argmax(miss >= alarm))
    gap = alarm - miss
    before = max(after - 1, 0)
    share = gap[before] / (gap[before] - gap[after]) if gap[before] > gap[after] else 0.0
    return float(miss[before] + share * (miss[after] - miss[before]))


def detection_cost(scores: NDArray[np.floating], same: NDArray[np.bool_], prior: float = 0.01) -> float:
    """Least normalised cost over all thresholds, misses and false alarms costing the same."""
    miss, alarm = _errors(scores, same)
    return float((prior * miss + (1 - prior) * alarm).min() / min(prior, 1 - prior))


def _errors(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares missed and falsely accepted for a threshold at each different score, from accept all to refuse all."""
    order = np.argsort(scores, kind="stable")
    last = np.append(np.diff(scores[order]) > 0, True)  # equal scores fall on one side together
    hits = same[order]
    miss = np.cumsum(hits)[last] / hits.sum()
    alarm = 1 - np.cumsum(~hits)[last] / (~hits).sum()
    return np.append(0.0, miss), np.append(1.0, alarm)
