"""Leave one fold out: each fold is scored once by a classifier of the others (sessions, speakers)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from twofold.data import Source
from twofold.encoders import Encoder, UtteranceEncoder
from twofold.encoders.audio.encoder import baseline_of
from twofold.encoders.composed import EncoderWithHead, all_layers
from twofold.errors import UserError
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.features import Preprocessing
from twofold.evaluation.frozen import frozen
from twofold.evaluation.logistic import GRID
from twofold.evaluation.protocols.knn import evaluate_knn
from twofold.evaluation.protocols.linear import evaluate_linear
from twofold.evaluation.protocols.weighted import evaluate_weighted
from twofold.evaluation.scores import Scores
from twofold.evaluation.splits import single_labels
from twofold.views.resample import Resample


@dataclass(frozen=True)
class FoldsResult:
    """Scores of each fold, of the encoder and (of recordings) of the filterbank alone.

    Attributes:
        folds: their names.
        scores, baseline: one for each fold; `baseline` is empty for images.
        text: the protocol in words.
    """

    folds: tuple[str, ...]
    scores: tuple[Scores, ...]
    baseline: tuple[Scores, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)


def leave_one_out(
    encoder: Encoder,
    source: Source,
    protocol: Literal["linear", "knn", "weighted"] = "linear",
    seed: int = 0,
    batch: int = 256,
    device: str | None = None,
    k: int = 200,
    temperature: float | None = 0.1,
    size: int | None = None,
    preprocessing: Preprocessing = "auto",
    resample: Resample = "antialias",
    grid: tuple[float, ...] = GRID,
    workers: int | None = None,
    cache: FeatureCache | None = None,
) -> FoldsResult:
    """Score each fold of `source` once, by a classifier of the other folds; features are made once.

    Args:
        encoder: stays as it is.
        source: examples with one label each, and with folds.
        protocol, seed, batch, device, k, temperature, size, preprocessing, resample, grid, workers, cache: see
            `twofold.evaluation.protocols.evaluate`.

    Raises:
        UserError: no folds or only one, no labels, a class of one fold that no other fold has.
    """
    groups = getattr(source, "folds", None)
    if groups is None or len(set(groups) - {None}) < 2:
        raise UserError(
            f"--folds: {source.name} has no two folds; give a manifest with a column 'fold', or name another one with "
            "--data.audio.fold (IEMOCAP's sessions are folds by themselves)"
        )
    y = single_labels(source.labels, source.name)
    part = np.array([fold is not None for fold in groups]) & (y >= 0)
    names = sorted({str(fold) for fold, there in zip(groups, part, strict=True) if there})
    folds = np.array([str(fold) for fold in groups])
    result, kept = [], False
    base = encoder.encoder if isinstance(encoder, EncoderWithHead) else encoder
    for model in [encoder, *([baseline_of(base)] if isinstance(base, UtteranceEncoder) else [])]:
        reads = all_layers(model) if protocol == "weighted" else model
        with frozen(model):
            h = (cache or FeatureCache(None)).extract(
                reads, source, size, batch, device, preprocessing, resample, workers
            )
        rounds = []
        for name in names:
            present = part[h.index]
            fit, held = present & (folds[h.index] != name), present & (folds[h.index] == name)
            unseen = sorted(set(y[h.index[held]]) - set(y[h.index[fit]]))
            if unseen:
                word = source.classes[unseen[0]] if source.classes else unseen[0]
                raise UserError(f"--folds: the class {word} of the fold {name} is in no other fold: leave it out")
            arrays = h.h[fit], y[h.index[fit]], h.h[held], y[h.index[held]]
            if protocol == "knn":
                place = next(model.parameters(), torch.empty(0)).device
                rounds.append(evaluate_knn(*arrays, k, temperature, place).scores)
            elif protocol == "weighted":
                layers = h.h.shape[1] // model.feature_dim
                rounds.append(evaluate_weighted(*arrays, layers, seed).scores)
            else:
                rounds.append(evaluate_linear(*arrays, grid=grid, seed=seed).scores)
        result.append(tuple(rounds))
        kept = kept or h.kept
    text = f"{protocol}, leaving out each of {len(names)} folds in turn, scored once; {h.text}; encoder frozen"
    if kept:
        text += "; some features kept from an earlier evaluation"
    return FoldsResult(tuple(names), result[0], result[1] if len(result) > 1 else (), text)
