"""Speaker verification without training: are two utterances of one speaker? By the cosine of their features.

All pairs of the utterances, or the trials of a list such as VoxCeleb1's.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data import AudioSource
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.feature_cache import Features
from twofold.evaluation.features import Extractor
from twofold.evaluation.parts import Parts
from twofold.evaluation.protocols.base import (
    EvaluationConfig,
    FeatureOptions,
    PartsOptions,
    Progress,
    Protocol,
    Result,
    ScoreOptions,
)
from twofold.evaluation.protocols.beside import NAMES, BaselineOptions
from twofold.evaluation.splits import single_labels
from twofold.randomness import permutation
from twofold.reading import read_text
from twofold.text import counted

_MOST = 4000  # utterances, which make eight million pairs


@dataclass(frozen=True)
class Trials(Parts):
    """Utterances that are compared.

    Attributes:
        pairs: trials of a list [n, 3]: 1 or 0, and two places in `train`; None compares all.
        said: who counts as one speaker, or where the trials come from.
    """

    pairs: NDArray[np.int64] | None = None
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification(Result):
    """Error rates in [0, 1] over all pairs of utterances, or those of a list.

    Attributes:
        eer: where as many pairs of one speaker are refused as pairs of two are accepted.
        min_dcf: least cost at a prior of 0.01 for one speaker, both errors costing 1; 1 is that of refusing all.
        baseline_eer, baseline_min_dcf: of mean and deviation of the log-mel filterbank, by as many parts.
        thirds_eer, thirds_min_dcf: of the filterbank by thirds, where the encoder is read whole.
        untrained_eer, untrained_min_dcf: of the encoder before training.
        utterances, speakers, pairs: how many; of a list of trials the speakers that the data name.
    """

    eer: float
    min_dcf: float
    baseline_eer: float | None = None
    baseline_min_dcf: float | None = None
    thirds_eer: float | None = None
    thirds_min_dcf: float | None = None
    untrained_eer: float | None = None
    untrained_min_dcf: float | None = None
    utterances: int
    speakers: int
    pairs: int

    @property
    def metrics(self) -> Mapping[str, float]:
        """The error rates."""
        return {"eer": self.eer, "min_dcf": self.min_dcf}

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"{_rates(self.eer, self.min_dcf)}  (verification, {counted(self.speakers, 'speaker')}, "
            f"{counted(self.pairs, 'pair')})"
        ]
        for name, field in _BESIDE.items():
            eer, min_dcf = (getattr(self, f"{field}_{rate}") for rate in ("eer", "min_dcf"))
            lines += [] if eer is None else [f"{NAMES[name]}: {_rates(eer, min_dcf)}"]
        return lines

    def beside(self, others: Mapping[str, Verification]) -> Verification:
        """The same with the error rates of others."""
        found: dict[str, Any] = {}
        for name, field in _BESIDE.items():
            if name in others:
                found |= {f"{field}_eer": others[name].eer, f"{field}_min_dcf": others[name].min_dcf}
        return dataclasses.replace(self, **found)


_BESIDE = {"filterbank": "baseline", "filterbank_thirds": "thirds", "untrained": "untrained"}
"""What the fields of each baseline begin with."""


def _rates(eer: float, min_dcf: float) -> str:
    return f"EER {eer:.2%}, minDCF {min_dcf:.3f}"


class SpeakerVerification(Protocol):
    """Compares utterances by cosine, after the features' mean is taken away: all pairs of at most 4,000, or a list.

    Speakers are what the data name; where they name none, and where `data.audio.label` names another column, the labels
    count as speakers.
    """

    kinds = ("audio",)

    @dataclass(frozen=True)
    class Config(FeatureOptions, PartsOptions, ScoreOptions, BaselineOptions, EvaluationConfig, variant="verification"):
        """equal error rate of telling whether two recordings are of one speaker, labels being speakers."""

        trials: str | None = None
        """File with a trial a line, `1 FILE FILE` (one speaker) or `0 FILE FILE` (two), as VoxCeleb1's; all pairs when
        not given."""

    def select(self, encoder: Encoder, parts: Parts) -> Trials:  # noqa: ARG002  # any encoder of speech will do
        """The utterances; raises UserError without labels, or where a list of trials does not fit."""
        source = parts.test or parts.train
        assert isinstance(source, AudioSource)  # the kind was checked
        if self.config.trials is None:
            part, who = _all_utterances(source, self.config.seed)
            return Trials(part, said=who)
        known, pairs = read_trials(self.config.trials, source)
        return Trials(source.subset(known), pairs=pairs, said=Path(self.config.trials).name)

    def measure(self, encoder: Encoder, parts: Trials, extractor: Extractor, progress: Progress | None) -> Verification:
        """Error rates of one encoder; raises UserError where no two utterances are of one speaker, or all are."""
        part, pairs = parts.train, parts.pairs
        assert isinstance(part, AudioSource)
        report = (lambda done, total: progress("features", done, total)) if progress else None
        result = extractor.extract(encoder, part, report)
        if pairs is None:
            assert result.labels is not None
            scores, same = all_pairs(result.h, result.labels)
            message = f"all {counted(len(same), 'pair')} of {counted(len(result.h), 'utterance')}, {parts.said}"
            speakers = len(np.unique(result.labels))
        else:
            scores, same = _scored(pairs, result)
            message = f"{len(same):,} of {counted(len(pairs), 'trial')} of {parts.said}"
            message += f", {counted(len(result.h), 'utterance')}"
            speakers = len({speaker for speaker in part.speakers if speaker is not None})
        if not same.any() or same.all():
            raise UserError(f"{part.name}: verification needs two speakers, and two utterances of one of them")
        return Verification(
            protocol=self.name, words=f"cosine of features less their mean, {message}; {result.text}",
            eer=equal_error_rate(scores, same), min_dcf=detection_cost(scores, same),
            utterances=len(result.h), speakers=speakers, pairs=len(same),
        )  # fmt: skip


def _all_utterances(source: AudioSource, seed: int) -> tuple[AudioSource, str]:
    """Those whose speakers are known, as labels, and what says who speaks."""
    who = "labels being speakers"
    if source.config.audio.label is None and any(speaker is not None for speaker in source.speakers):
        source, who = source.with_labels(source.speakers), "speakers as the data name them"
    labels = single_labels(source.labels, source.name)
    known = np.flatnonzero(labels >= 0)
    return source.subset(np.sort(known[permutation(seed, "verification", 0, len(known))[:_MOST]])), who


_LARGEST = 2**30
"""Bytes of a list of trials that is read."""


def read_trials(path: str | Path, source: AudioSource) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The utterances of `source` that a list of trials names, and its trials [n, 3]: 1 or 0, and two places in these.

    A line is ``1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav``; names are ends of the files' paths.

    Raises:
        UserError: the file cannot be read, another kind of line, names that the data lack or that several files have.
    """
    try:
        lines = [line.split() for line in read_text(path, _LARGEST).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"--trials {path} cannot be read: {error}") from error
    wrong = next((line for line in lines if len(line) != 3 or line[0] not in ("0", "1")), None)
    if wrong is not None or not lines:
        message = f"the line '{' '.join(wrong)}'" if wrong else "it is empty"
        raise UserError(f"--trials {path}: {message}; a line holds 1 (one speaker) or 0 (two), and two files' names")
    names = sorted({name for line in lines for name in line[1:]})
    ends = {len(PurePosixPath(name).parts) for name in names}
    tails = [("/".join(Path(source.path(i)).parts[-n:]), i) for i in range(len(source)) for n in ends]
    counts, place = Counter(tail for tail, _ in tails), dict(tails)
    unfit = [name for name in names if counts[name] != 1]
    if unfit:
        why = "several files end in" if counts[unfit[0]] else "there is no"
        raise UserError(
            f"--trials {path}: {len(unfit)} of {len(names)} names do not fit {source.name}: {why} {unfit[0]}; names "
            "are paths in the data's folder, and --data.split names the part that holds them"
        )
    known = np.array(sorted(place[name] for name in names), dtype=np.int64)
    number = {name: int(np.searchsorted(known, place[name])) for name in names}
    return known, np.array([[int(same), number[first], number[second]] for same, first, second in lines])


def _scored(pairs: NDArray[np.int64], found: Features) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cosines of the trials whose utterances could both be read, and whether they are of one speaker."""
    row = np.full(int(pairs[:, 1:].max()) + 1, -1)
    row[found.index] = np.arange(len(found.index))
    rows = row[pairs[:, 1:]]
    present = (rows >= 0).all(axis=1)
    x = _directions(found.h)
    return np.einsum("nd,nd->n", x[rows[present, 0]], x[rows[present, 1]]), pairs[present, 0] == 1


def all_pairs(h: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cosine of every pair of rows of h [n, d] less their mean, and whether it is of one label: [n (n - 1) / 2]."""
    x = _directions(h)
    first, second = np.triu_indices(len(x), 1)
    return (x @ x.T)[first, second], labels[first] == labels[second]


def _directions(h: NDArray[np.float32]) -> NDArray[np.float32]:
    x = h - h.mean(axis=0)
    directions: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return directions


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
