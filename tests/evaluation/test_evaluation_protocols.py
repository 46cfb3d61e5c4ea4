"""Whole evaluations: from an encoder and images to JSON, with the freeze proved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_doubles import LazySource, Means

from twofold.data import ArraySource
from twofold.errors import UserError
from twofold.evaluation.frozen import NotFrozenError, digest
from twofold.evaluation.logistic import PAPER_GRID
from twofold.evaluation.parts import labelled_parts
from twofold.evaluation.protocols.base import PROTOCOLS, EvaluationConfig
from twofold.evaluation.protocols.classifier import Evaluation
from twofold.evaluation.splits import stratified_split
from twofold.options import OptionsParser


def evaluate(
    encoder: Means, train: Any, test: Any = None, protocol: str = "linear", progress: Any = None, **options: Any
) -> Evaluation:
    """A protocol by its name and options, on sources."""
    config = OptionsParser(EvaluationConfig).build({"protocol": protocol, **options})
    found = PROTOCOLS[protocol](config).evaluate(encoder, train, test, progress=progress)
    assert isinstance(found, Evaluation)
    return found


def stripes(n: int, classes: int = 4, seed: int = 0, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one bright row of cells that tells the class."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 120, (n, side, side, 1)), np.arange(n) % classes
    for image, label in zip(images, labels, strict=True):
        image[label * side // 4 : (label + 1) * side // 4] += 60
    return images.astype(np.uint8), labels.astype(np.int64)


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_an_evaluation_tells_all_and_survives_json(protocol: Any, tmp_path: Path) -> None:
    encoder = Means()
    before = digest(encoder)
    told: list[tuple[str, int, int]] = []
    got = evaluate(
        encoder,
        ArraySource(*stripes(80)),
        ArraySource(*stripes(40, seed=1)),
        protocol,
        progress=lambda *a: told.append(a),
    )
    assert got.scores.top1 > 0.9
    assert got.digest == before == digest(encoder)
    assert (got.train.images, got.test.images, got.feature_dim) == (80, 40, 16)
    assert got.train.fingerprint != got.test.fingerprint
    assert told[:2] == [("training features", 80, 80), ("test features", 40, 40)]
    assert "test set as given" in got.words
    assert got.metrics == {name: getattr(got.scores, name) for name in ("top1", "mean_per_class", "macro_f1")}
    path = got.write(tmp_path / "sub" / "evaluation.json")
    assert Evaluation.from_json(path.read_text()) == got
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(UserError, match="not an evaluation"):
        Evaluation.from_json('{"protocol": "linear"}')
    with pytest.raises(UserError, match="not an evaluation"):
        Evaluation.from_json(path.read_text()[:50])


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_an_encoder_that_changes_itself_is_caught(protocol: Any) -> None:
    class Restless(Means):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            self.norm.running_mean += 1e-3
            return super().features(x)

    with pytest.raises(NotFrozenError, match=r"changed: norm\.running_mean$"):
        evaluate(Restless(), ArraySource(*stripes(40)), ArraySource(*stripes(20)), protocol)


def test_without_a_test_set_a_share_of_each_class_is_held_out() -> None:
    got = evaluate(Means(), ArraySource(*stripes(100)), seed=3)
    assert (got.train.images, got.test.images) == (80, 20)
    assert got.train.fingerprint == got.test.fingerprint
    assert "20% of each class held out for the score (seed 3)" in got.words
    assert got.scores.top1 > 0.9
    other = evaluate(Means(), ArraySource(*stripes(100)), seed=3)
    assert (other.scores, other.settings, other.words) == (got.scores, got.settings, got.words)
    assert evaluate(Means(), ArraySource(*stripes(100)), held_out=0.4).test.images == 40


def test_folders_that_number_their_classes_differently_agree_by_name() -> None:
    images, labels = stripes(80)
    train = LazySource(list(images), labels.tolist(), ["a", "b", "c", "d"])
    test_images, test_labels = stripes(40, seed=1)
    some = np.isin(test_labels, [1, 3])
    test = LazySource(list(test_images[some]), (test_labels[some] // 2).tolist(), ["b", "d"])
    assert evaluate(Means(), train, test, "linear").scores.top1 > 0.9
    assert evaluate(Means(), train, test, "knn").scores.top1 > 0.9


def test_unlabelled_and_broken_images_are_left_out_and_counted() -> None:
    images, labels = stripes(80)
    holes = [None if i in (5, 6) else image for i, image in enumerate(images)]
    labels[10:15] = -1
    got = evaluate(Means(), LazySource(holes, labels.tolist()), ArraySource(*stripes(40, seed=1)), "linear")
    assert (got.train.images, got.train.skipped, got.train.unlabelled) == (73, 2, 5)


def test_the_published_grid_and_plain_votes_can_be_asked_for() -> None:
    got = evaluate(Means(), ArraySource(*stripes(80)), grid="paper")
    assert got.settings["l2"] in PAPER_GRID
    assert "among 45 values from 1e-06 to 1e+05" in got.words
    assert "one vote each" in evaluate(Means(), ArraySource(*stripes(80)), protocol="knn", temperature=None).words


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_a_class_of_one_image_is_trained_on_and_told(protocol: str) -> None:
    """A newcomer's first fifty labels have some; the others are scored all the same."""
    images, labels = stripes(40)
    labels[0] = 9
    told = evaluate(Means(), ArraySource(images, labels), protocol=protocol)
    assert "class 9 has 1 labelled image, which is trained on and leaves none to score" in told.words
    assert told.test.images == len(stratified_split(labels, lone=True)[1])
    assert told.metrics["top1"] > 0.9
    train, test = labelled_parts(ArraySource(images, labels), None)
    assert train.labels is not None
    assert 9 in train.labels
    assert test.labels is not None
    assert 9 not in test.labels


def test_one_image_of_each_class_leaves_no_penalty_to_choose() -> None:
    images, labels = stripes(40)
    each = np.unique(labels, return_index=True)[1]
    told = evaluate(Means(), ArraySource(images[each], labels[each]), ArraySource(*stripes(40, seed=1)))
    assert told.settings == {"l2": 1.0, "train": len(each)}
    assert "l2 1 given, as no class has 2 training images to choose it by" in told.words


def test_what_cannot_be_evaluated_is_a_user_error_before_any_image_is_read() -> None:
    images, labels = stripes(40)
    several = ArraySource(images, np.eye(4, dtype=np.int64)[labels])
    train = ArraySource(images, labels)
    cases = [
        (ArraySource(images), None, "no labels"),
        (several, None, "several labels"),
        (ArraySource(images, labels * 0), None, "at least 2"),
        (ArraySource(images[:4], np.arange(4)), None, "no class has 2 labelled images"),
        (train, ArraySource(images), "no labels"),
        (train, ArraySource(images, labels + 2), "without a training image: 4, 5"),
    ]
    for source, test, message in cases:
        encoder = Means()
        with pytest.raises(UserError, match=message):
            evaluate(encoder, source, test)
        assert encoder.seen == []
    with pytest.raises(UserError, match=r"--protocol expects one of .*'knn', 'linear'.* got svm"):
        evaluate(Means(), train, None, "svm")


def test_what_was_written_before_is_still_read() -> None:
    """Documents of the time when scores lay in `result`, the baseline in `floor`, and the words in two places."""
    scores = {"top1": 0.75, "top5": None, "mean_per_class": 0.7, "count": 8, "macro_f1": 0.6}
    part = {"name": "x", "images": 8, "skipped": 0, "unlabelled": 1, "fingerprint": "f", "kept": False}
    old = {
        "protocol": "linear", "text": "images as they are", "train": part, "test": part, "validation": None,
        "result": {"scores": scores, "l2": 0.1, "validation_top1": 0.5, "train": 8, "text": "by L-BFGS"},
        "digest_before": "d", "digest_after": "d", "feature_dim": 4, "seconds": {"features": 1.0}, "seed": 2,
    }  # fmt: skip
    read = Evaluation.from_json(json.dumps(old))
    assert (read.top1, read.settings["l2"], read.words) == (0.75, 0.1, "by L-BFGS; images as they are")
    assert (read.digest, read.train.unlabelled, read.baselines, read.kind) == ("d", 1, {}, "image")
    speech = Evaluation.from_json(json.dumps(old | {"floor": scores | {"top1": 0.5}}))
    assert (speech.baselines["filterbank"].top1, speech.kind) == (0.5, "audio")
