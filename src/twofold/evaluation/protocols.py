"""One evaluation from encoder to number: features, classifier, and the proof that the encoder stayed frozen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.data import Source
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.features import Features, Preprocessing, extract
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.knn import KnnResult, evaluate_knn
from twofold.evaluation.linear import LinearResult, evaluate_linear
from twofold.evaluation.logistic import GRID
from twofold.evaluation.scores import Scores
from twofold.evaluation.splits import match_classes, single_labels, stratified_split
from twofold.evaluation.weighted import all_layers, evaluate_weighted
from twofold.training.checkpoint import write_atomically
from twofold.views.resample import Resample

Protocol = Literal["linear", "knn", "weighted"]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DataUsed:
    """One part of the data: where from, how many images took part, what was left out, and a hash of the source."""

    name: str
    images: int
    skipped: int
    unlabelled: int
    fingerprint: str


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one evaluation; everything in it is plain data.

    Attributes:
        protocol: "linear", "weighted" or "knn".
        result: scores, the chosen settings and the classifier's protocol in words.
        text: preprocessing, split and freeze in words.
        train, test: the data.
        digest_before, digest_after: SHA-256 over every tensor of the encoder; equal, or the evaluation would have
            failed.
        feature_dim: d.
        seconds: time for features and for the classifier.
        seed: of the split and of the validation part.
    """

    protocol: Protocol
    result: LinearResult | KnnResult
    text: str
    train: DataUsed
    test: DataUsed
    digest_before: str
    digest_after: str
    feature_dim: int
    seconds: dict[str, float]
    seed: int

    @property
    def scores(self) -> Scores:
        """Test accuracies."""
        return self.result.scores

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)

    def to_json(self) -> str:
        """As a JSON document."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what `to_json` wrote; UserError for anything else."""
        try:
            values = json.loads(text)
            kinds: dict[str, Any] = {"linear": LinearResult, "weighted": LinearResult, "knn": KnnResult}
            result = values["result"]
            values["result"] = kinds[values["protocol"]](**{**result, "scores": Scores(**result["scores"])})
            return cls(**{**values, "train": DataUsed(**values["train"]), "test": DataUsed(**values["test"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is not an evaluation's JSON: {error!r}") from error

    def write(self, path: str | Path) -> Path:
        """Write the JSON document to `path`, whole or not at all; UserError if the disk refuses."""
        path = Path(path)
        write_atomically(path, lambda file: file.write(self.to_json().encode()))
        return path


def evaluate(
    encoder: Encoder,
    train: Source,
    test: Source | None = None,
    protocol: Protocol = "linear",
    *,
    size: int | None = None,
    batch: int = 256,
    device: torch.device | str | None = None,
    preprocessing: Preprocessing = "auto",
    resample: Resample = "antialias",
    seed: int = 0,
    held_out: float = 0.2,
    k: int = 200,
    temperature: float | None = 0.1,
    grid: tuple[float, ...] = GRID,
    workers: int | None = None,
    progress: Report | None = None,
) -> Evaluation:
    """Score an encoder's features on labelled images; the encoder stays as it is, which is proved by hashes.

    Args:
        encoder: what is evaluated.
        train: labelled images for the classifier; images with a label below 0 are left out.
        test: labelled images for the score; without it a stratified share `held_out` of `train` is kept for the score.
        protocol: "linear" (see `evaluate_linear`), "knn" (see `evaluate_knn`), or, of speech, "weighted" (see
            `evaluate_weighted`).
        size, batch, device, preprocessing, resample, workers: see `extract`.
        seed: fixes the split, if one has to be made, and the validation part of "linear".
        held_out: share of each class kept for the score if `test` is None.
        k, temperature: of "knn".
        grid: penalties that "linear" tries.
        progress: called with ("training features" or "test features", images done, images in all).

    Raises:
        UserError: no labels, several labels an image, one class only, a class with too few images, test classes that
            training does not know; see also `extract`.
        NotFrozenError: the encoder changed.
    """
    if protocol not in get_args(Protocol):
        raise UserError(f"unknown protocol '{protocol}'; choose one of {', '.join(get_args(Protocol))}")
    check_labels(train, test, seed, held_out)
    before = tensor_digests(encoder)
    reads = all_layers(encoder) if protocol == "weighted" else encoder
    begun = time.monotonic()

    def features(source: Source, what: str) -> Features:
        report = (lambda done, total: progress(what, done, total)) if progress else None
        return extract(reads, source, size, batch, device, preprocessing, resample, workers, report)

    bank = features(train, "training features")
    queries = features(test, "test features") if test is not None else None
    x, y, x_test, y_test, split = _split(train, bank, test, queries, seed, held_out)
    extracted = time.monotonic()
    result: LinearResult | KnnResult
    if protocol == "linear":
        result = evaluate_linear(x, y, x_test, y_test, seed=seed, grid=grid)
    elif protocol == "weighted":
        result = evaluate_weighted(x, y, x_test, y_test, x.shape[1] // encoder.feature_dim, seed)
    else:
        result = evaluate_knn(x, y, x_test, y_test, k, temperature, next(encoder.parameters(), torch.empty(0)).device)
    seconds = {"features": round(extracted - begun, 3), "classifier": round(time.monotonic() - extracted, 3)}
    after = tensor_digests(encoder)
    assert_frozen(before, after)
    source = test if test is not None else train
    return Evaluation(
        protocol=protocol,
        result=result,
        text=f"{bank.text}; {split}; encoder frozen and in evaluation mode, every tensor hashed before and after",
        train=_used(train, bank, len(y)),
        test=_used(source, queries or bank, len(y_test)),
        digest_before=digest(before),
        digest_after=digest(after),
        feature_dim=x.shape[1],
        seconds=seconds,
        seed=seed,
    )


_Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], str]


def check_labels(train: Source, test: Source | None, seed: int = 0, held_out: float = 0.2) -> None:
    """Find what is wrong with the labels before minutes go into features (a UserError, see `evaluate`)."""
    y = single_labels(train.labels, train.name)
    if test is None:
        stratified_split(y[y >= 0], held_out, seed)
    else:
        y_test = single_labels(test.labels, test.name, least=1)
        match_classes(y[y >= 0], train.classes, y_test[y_test >= 0], test.classes)


def _split(
    train: Source, bank: Features, test: Source | None, queries: Features | None, seed: int, held_out: float
) -> _Arrays:
    """Features and labels to fit on and to score on, in one numbering of classes, and the split in words."""
    x, y = _labelled(train, bank)
    if test is None or queries is None:
        first, second = stratified_split(y, held_out, seed)
        words = f"no test set given: {held_out:.0%} of each class held out for the score (seed {seed})"
        return x[first], y[first], x[second], y[second], words
    x_test, y_test = _labelled(test, queries)
    return x, y, x_test, match_classes(y, train.classes, y_test, test.classes), "test set as given"


def _labelled(source: Source, features: Features) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    y = single_labels(features.labels, source.name, least=1)
    return features.h[y >= 0], y[y >= 0]


def _used(source: Source, features: Features, images: int) -> DataUsed:
    unlabelled = int((cast(Any, features.labels) < 0).sum())
    return DataUsed(source.name, images, len(features.skipped), unlabelled, source.fingerprint())
