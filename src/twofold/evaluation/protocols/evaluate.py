"""One evaluation from encoder to number: features, classifier, and the proof that the encoder stayed frozen."""

from __future__ import annotations

import dataclasses
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
from twofold.encoders.composed import all_layers
from twofold.errors import UserError
from twofold.evaluation.feature_cache import NOTHING_KEPT, FeatureCache
from twofold.evaluation.features import Features, Preprocessing
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.logistic import GRID
from twofold.evaluation.protocols.knn import KnnResult, evaluate_knn
from twofold.evaluation.protocols.linear import LinearResult, evaluate_linear
from twofold.evaluation.protocols.weighted import evaluate_weighted
from twofold.evaluation.scores import Scores
from twofold.evaluation.splits import check_cover, match_classes, single_labels, stratified_split
from twofold.files import write_atomically
from twofold.views.resample import Resample

Protocol = Literal["linear", "knn", "weighted"]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DataUsed:
    """One part of the data: where from, how many images took part, what was left out, and a hash of the source.

    `kept` says that its features are those of an earlier evaluation of the same encoder (see `FeatureCache`).
    """

    name: str
    images: int
    skipped: int
    unlabelled: int
    fingerprint: str
    kept: bool = False


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
        validation: what settings were chosen on, where the data have a part for that.
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
    validation: DataUsed | None = None

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
            parts = {name: DataUsed(**values[name]) for name in ("train", "test", "validation") if values.get(name)}
            return cls(**{**values, **parts})
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
    validation: Source | None = None,
    cache: FeatureCache = NOTHING_KEPT,
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
        progress: called with ("training features", "validation features" or "test features", images done, in all).
        validation: labelled images that "linear" chooses its penalty on, and then fits on, too; without it a fifth of
            each class of `train` is what the penalty is chosen on.
        cache: where features are kept and looked for.

    Raises:
        UserError: no labels, several labels an image, one class only, a class with too few images, test or validation
            classes that training does not know, a validation part without one of its classes; see also `extract`.
        NotFrozenError: the encoder changed.
    """
    if protocol not in get_args(Protocol):
        raise UserError(f"unknown protocol '{protocol}'; choose one of {', '.join(get_args(Protocol))}")
    if validation is not None and protocol != "linear":
        raise UserError(
            f"validation data have no use in the protocol '{protocol}', which chooses nothing: leave them out"
        )
    check_labels(train, test, seed, held_out, validation)
    before = tensor_digests(encoder)
    reads = all_layers(encoder) if protocol == "weighted" else encoder
    begun = time.monotonic()

    def features(source: Source, what: str) -> Features:
        report = (lambda done, total: progress(what, done, total)) if progress else None
        return cache.extract(reads, source, size, batch, device, preprocessing, resample, workers, report)

    bank = features(train, "training features")
    choice = features(validation, "validation features") if validation is not None else None
    queries = features(test, "test features") if test is not None else None
    x, y, x_test, y_test, split = _split(train, bank, test, queries, seed, held_out)
    extracted, parts = time.monotonic(), None
    result: LinearResult | KnnResult
    if protocol == "linear":
        x, y, parts = _with_validation(x, y, train, validation, choice)
        result = evaluate_linear(x, y, x_test, y_test, seed=seed, grid=grid, split=parts)
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
        train=_used(train, bank, len(y) - (len(parts[1]) if parts else 0)),
        test=_used(source, queries or bank, len(y_test)),
        digest_before=digest(before),
        digest_after=digest(after),
        feature_dim=x.shape[1],
        seconds=seconds,
        seed=seed,
        validation=_used(validation, choice, len(parts[1])) if validation and choice and parts else None,
    )


_Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], str]


def check_labels(
    train: Source, test: Source | None, seed: int = 0, held_out: float = 0.2, validation: Source | None = None
) -> None:
    """Find what is wrong with the labels before minutes go into features (a UserError, see `evaluate`)."""
    y = single_labels(train.labels, train.name)
    if test is None:
        stratified_split(y[y >= 0], held_out, seed)
    else:
        y_test = single_labels(test.labels, test.name, least=1)
        match_classes(y[y >= 0], train.classes, y_test[y_test >= 0], test.classes)
    if validation is not None:
        y_val = single_labels(validation.labels, validation.name, least=1)
        match_classes(y[y >= 0], train.classes, y_val[y_val >= 0], validation.classes, "validation")
        check_cover(train, validation, "--validation")


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
    y_test = match_classes(y, train.classes, y_test, test.classes)
    present, known = len(np.unique(y_test)), len(np.unique(y))
    words = "test set as given" + (f", which has images of {present} of the {known} classes" if present < known else "")
    return x, y, x_test, y_test, words


def _with_validation(
    x: NDArray[np.float32], y: NDArray[np.int64], train: Source, validation: Source | None, found: Features | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]] | None]:
    """Training and validation images together, and the positions of either; nothing changes without the latter."""
    if validation is None or found is None:
        return x, y, None
    x_val, y_val = _labelled(validation, found)
    y_val = match_classes(y, train.classes, y_val, validation.classes, "validation")
    places = np.arange(len(y) + len(y_val))
    return np.concatenate([x, x_val]), np.concatenate([y, y_val]), (places[: len(y)], places[len(y) :])


def _labelled(source: Source, features: Features) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    y = single_labels(features.labels, source.name, least=1)
    return features.h[y >= 0], y[y >= 0]


def _used(source: Source, features: Features, images: int) -> DataUsed:
    unlabelled = int((cast(Any, features.labels) < 0).sum())
    return DataUsed(source.name, images, len(features.skipped), unlabelled, source.fingerprint(), features.kept)


@dataclass(frozen=True)
class AudioEvaluation(Evaluation):
    """What `Evaluation` says, of recordings.

    Attributes:
        baseline: scores of the filterbank alone (mean and deviation over time), by the same protocol.
    """

    baseline: Scores | None = None

    @classmethod
    def from_json(cls, text: str) -> AudioEvaluation:
        """Read what `to_json` wrote; UserError for anything else."""
        result = cast(AudioEvaluation, super().from_json(text))
        baseline = cast(Any, result.baseline)
        return dataclasses.replace(result, baseline=Scores(**baseline) if isinstance(baseline, dict) else baseline)


def beside_baseline(found: Evaluation, baseline: Evaluation) -> AudioEvaluation:
    """An encoder's evaluation and the filterbank's as one, in words that fit recordings."""
    scores = baseline.scores
    message = f"top-1 {scores.top1:.2%}, mean per class {scores.mean_per_class:.2%}"
    message += f", macro F1 {scores.macro_f1:.2%}" if scores.macro_f1 is not None else ""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    values["text"] = f"the filterbank alone (mean and deviation) reaches {message}; {_of_recordings(found.text)}"
    values["result"] = dataclasses.replace(found.result, text=_of_recordings(found.result.text))
    return AudioEvaluation(**values, baseline=scores)


def _of_recordings(text: str) -> str:
    """What the protocols say of images, said of recordings."""
    return text.replace("images", "recordings").replace("image", "recording")
