"""What an evaluation was told reaches the division of its data, its classifier, and what is written of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from asked import Asked
from sound_files import RATE, speech_folder
from twofold.data import ArraySource, DataConfig, open_source
from twofold.encoders import SpeechEncoder, adapt, save_encoder
from twofold.encoders.composed import EncoderWithHead
from twofold.errors import UserError
from twofold.evaluation.class_weights import class_weights_in_words
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.features import Extractor
from twofold.evaluation.parts import Parts
from twofold.evaluation.protocols import base, beside, classifier, knn, linear, verification, weighted
from twofold.evaluation.protocols.classifier import ClassifierProtocol, FitInputs, Outcome
from twofold.evaluation.scores import score
from twofold.evaluation.splits import stratified_split
from twofold.heads import HeadConfig, ProjectionHead

Linear, Knn, Weighted, Verification = linear.Linear, knn.Knn, weighted.Weighted, verification.SpeakerVerification


class Shades(nn.Module):
    """Means over quarters of an image: twelve features."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x * self.scale, 2).flatten(1)


ENCODER = adapt(Shades())
CLASSES = ["ape", "bee", "cat"]


def pictures(n: int, seed: int, unlabelled: int = 0, name: str = "pictures") -> ArraySource:
    """Images of three classes of other shades; the last few without a label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = np.clip(rng.normal(60 + 50 * labels[:, None, None, None], 40, (n, 8, 8, 3)), 0, 255).astype(np.uint8)
    labels = np.where(np.arange(n) < n - unlabelled, labels, -1)
    return ArraySource(x, labels, name=name, classes=CLASSES)


TRAIN, TEST, CHOICE = pictures(36, 1, 3), pictures(15, 2, 1, "test"), pictures(12, 3, 2, "choice")


class Spy(ClassifierProtocol):
    """Notes what it is to fit on, and answers at random."""

    name = "spy"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.given: list[FitInputs] = []

    def fit(self, inputs: FitInputs) -> Outcome:
        self.given.append(inputs)
        guesses = np.random.default_rng(0).random((len(inputs.y_test), 3))
        affine = np.zeros((3, inputs.x.shape[1])), np.zeros(3)
        return Outcome(score(guesses, np.arange(3), inputs.y_test), {"k": 7}, "guessed", affine, np.arange(3))


def test_a_part_is_divided_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(classifier, "labelled_parts")
    asked.of(classifier, "labelled_part", "wanted", "seed", "draw")
    asked.of(classifier, "check_labels")
    asked.of(classifier, "check_class_weights")
    asked.of(classifier, "stratified_split", "classes")
    spy = Spy(Linear.Config(labels="6/class", seed=5, draw=2, held_out=0.3, baselines=False, class_weights=(1, 2, 3)))
    spy.evaluate(ENCODER, TRAIN)
    assert asked["check_class_weights"] == [((1, 2, 3), 3, CLASSES)]
    assert [given[2:] for given in asked["labelled_parts"]] == [(5, 0.3, "6/class")]
    assert asked["labelled_part"] == [("6/class", 5, 2)]
    assert [given[2:] for given in asked["check_labels"]] == [(5, 0.3, None)]
    assert len(spy.given[0].y) == 18
    whole = Spy(Linear.Config(seed=5, held_out=0.3, baselines=False))
    found: Any = whole.evaluate(ENCODER, TRAIN)
    features = Extractor().extract(ENCODER, TRAIN)
    y = np.asarray(TRAIN.labels)[:33]
    first, second = stratified_split(y, 0.3, 5, groups=None, classes=CLASSES)
    assert asked["stratified_split"] == [CLASSES]
    (inputs,) = whole.given
    for own, expected in zip(
        (inputs.x, inputs.y, inputs.x_test, inputs.y_test),
        (features.h[:33][first], y[first], features.h[:33][second], y[second]), strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(own, expected)
    assert (inputs.split, inputs.groups, inputs.example, inputs.encoder) == (None, None, "image", ENCODER)
    assert (found.seed, found.feature_dim, found.validation, found.baselines) == (5, 12, None, {})
    assert found.train == base.DataUsed("pictures", len(first), 0, 3, TRAIN.fingerprint())
    assert found.test == dataclasses.replace(found.train, images=len(second))
    assert "30% of each class held out for the score (seed 5)" in found.words
    assert "3 training images without a label left out" in found.words


def test_parts_as_given_are_used_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(classifier, "check_labels", "validation")
    spy = Spy(Linear.Config(seed=5, keep_classifier=True))
    found: Any = spy.evaluate(ENCODER, TRAIN, TEST, validation=CHOICE, seed=3)
    assert asked["check_labels"] == [CHOICE]
    inputs = spy.given[0]
    assert (len(inputs.y), len(inputs.y_test)) == (33 + 10, 14)
    assert inputs.split is not None
    assert [part.tolist() for part in inputs.split] == [[*range(33)], [*range(33, 43)]]
    used = {name: (part.name, part.images, part.skipped, part.unlabelled, part.fingerprint, part.kept)
            for name, part in (("train", found.train), ("test", found.test), ("choice", found.validation))}  # fmt: skip
    assert used == {
        "train": ("pictures", 33, 0, 3, TRAIN.fingerprint(), False),
        "test": ("test", 14, 0, 1, TEST.fingerprint(), False),
        "choice": ("choice", 10, 0, 2, CHOICE.fingerprint(), False),
    }  # fmt: skip
    expected = beside.majority(inputs.y, inputs.y_test).named(CLASSES)
    assert found.baselines["majority"] == expected
    assert {"majority", "pixels"} == found.baselines.keys()  # an own module has no untrained like
    fitted: Any = spy.fitted
    assert (fitted.words, fitted.source, fitted.classes, fitted.reads) == ("guessed", TRAIN, ("ape", "bee", "cat"), "h")
    assert fitted.extractor is not None
    assert fitted.classifier.weight.shape == (3, 12)
    assert fitted.novelty is not None
    unknown = ArraySource(TEST.images, np.where(np.arange(15) < 9, 0, 1), name="two", classes=CLASSES)
    few: Any = spy.evaluate(ENCODER, TRAIN, unknown)
    assert "which has images of 2 of the 3 classes" in few.words


GROUPS = np.arange(36) // 3 % 6


def grouped() -> ArraySource:
    """Images in six groups of all classes."""
    plain = pictures(36, 1)
    pixels = plain.images.permute(0, 2, 3, 1).numpy()
    return ArraySource(pixels, plain.labels, name="grouped", classes=CLASSES, groups=[f"g{k}" for k in GROUPS])


def test_groups_and_folds_are_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    source = grouped()
    spy = Spy(Linear.Config(seed=5, held_out=0.3, baselines=False, data=DataConfig(group="x_(.)")))
    found: Any = spy.evaluate(ENCODER, source)
    (inputs,) = spy.given
    first, _ = stratified_split(np.asarray(source.labels), 0.3, 5, groups=GROUPS, classes=CLASSES)
    assert inputs.groups is not None
    assert inputs.groups.tolist() == GROUPS[first].tolist()
    assert "x_(.)" in found.words
    asked = Asked(monkeypatch)
    asked.of(classifier, "folds_of", "wanted", "seed")
    asked.of(classifier, "folds_in_words")
    asked.of(classifier, "fold_names", "read")
    told = list[tuple[str, int, int]]()
    spy = Spy(Knn.Config(folds=3, seed=5, baselines=True, data=DataConfig(group="x_(.)")))
    over: Any = spy.evaluate(ENCODER, source, progress=lambda *given: told.append(given))
    assert ("features", 36, 36) in told
    first_read, second_read, *_ = asked["fold_names"]
    assert first_read is None
    assert second_read.tolist() == [*range(36)]
    assert set(asked["folds_of"]) == {(3, 5)}
    assert [given[2] for given in asked["folds_in_words"]] == ["x_(.)"] * len(asked["folds_in_words"])
    folds = np.array([str(fold) for fold in classifier.folds_of(source, 3, 5)])
    features = Extractor().extract(ENCODER, source)
    for inputs, name, guess in zip(spy.given[:3], over.folds, over.baselines["majority"], strict=True):
        fit = folds != name
        np.testing.assert_array_equal(inputs.x, features.h[fit])
        np.testing.assert_array_equal(inputs.x_test, features.h[~fit])
        assert inputs.groups is not None
        assert inputs.groups.tolist() == GROUPS[fit].tolist()
        assert (inputs.example, inputs.split, inputs.encoder) == ("image", None, ENCODER)
        assert guess == beside.majority(inputs.y, inputs.y_test).named(CLASSES)
    assert "made for it (seed 5)" in over.words
    assert over.features_kept is False


def test_recordings_are_called_recordings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder(RATE, 13, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    clips = open_source(speech_folder(tmp_path / "clips", 2, 8), DataConfig())
    some = clips.with_labels([None, *[f"word{i // 8}" for i in range(1, 16)]])  # type: ignore[attr-defined]
    spy, over = Spy(Linear.Config(baselines=False)), Spy(Knn.Config(folds=3, baselines=False))
    assert "1 training recording without a label left out" in spy.evaluate(encoder, some).words
    assert "1 recording without a label left out" in over.evaluate(encoder, some).words
    assert {inputs.example for inputs in [*spy.given, *over.given]} == {"recording"}


def test_features_of_an_earlier_evaluation_are_told_of(tmp_path: Path) -> None:
    for i, image in enumerate(TRAIN.images[:33]):
        path = tmp_path / "photos" / CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    photos, told = open_source(tmp_path / "photos", DataConfig()), list[str]()
    extractor = Extractor(cache=FeatureCache(tmp_path / "features", told.append))
    for config in (Linear.Config(baselines=False), Knn.Config(folds=3, baselines=False)):
        first = Spy(config).evaluate(ENCODER, photos, extractor=extractor)
        again: Any = Spy(config).evaluate(ENCODER, photos, extractor=extractor)
        assert again.kept
        assert first.kept is (config.folds == 3)  # the first has left them for the second
        if not config.folds:
            assert again.train.kept


def test_what_features_show_of_images_is_told(tmp_path: Path) -> None:
    long = ArraySource(np.zeros((5, 8, 20, 3), np.uint8))
    assert Extractor(8, "crop").extract(ENCODER, long).cut == (5, 5)
    assert Extractor(8, "letterbox").extract(ENCODER, long).cut == (0, 5)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(TRAIN.images[:4]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-40])
    source = open_source(folder, DataConfig(max_skipped=0.5))
    found = Extractor().extract(ENCODER, source)
    assert found.index.tolist() == [0, 1, 3]
    ((path, reason),) = found.skipped
    assert Path(path).name == "2.png"
    assert list(source.skipped) == [(path, reason)]


def test_weights_of_classes_are_checked_against_the_data() -> None:
    with pytest.raises(UserError, match="class_weights"):
        Spy(Linear.Config(class_weights=(1.0, 2.0))).evaluate(ENCODER, TRAIN)
    named = ArraySource(TRAIN.images, np.minimum(np.asarray(TRAIN.labels), 1), classes=CLASSES)
    Spy(Linear.Config(class_weights=(1.0, 2.0, 3.0), baselines=False)).evaluate(ENCODER, named)


def inputs_of(n: int = 40, d: int = 6) -> FitInputs:
    rng = np.random.default_rng(4)
    y, y_test = np.arange(n) % 2, np.arange(16) % 2
    x, x_test = (rng.normal(0, 1, (len(of), d)) + of[:, None] for of in (y, y_test))
    split = np.arange(30), np.arange(30, n)
    groups = np.arange(n) // 4
    return FitInputs(x.astype(np.float32), y, x_test.astype(np.float32), y_test, split, "recording", ENCODER, groups)


def test_each_protocol_hands_on_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    told = list[Any]()
    monkeypatch.setattr(linear, "evaluate_linear", lambda *given, **more: told.append((given[4:], more)))
    asked.of(knn, "evaluate_knn", "k", "temperature", "device", "example")
    asked.of(weighted, "evaluate_weighted", "layers", "seed", "groups", "class_weights")
    inputs = inputs_of()
    Linear(Linear.Config(grid="paper", seed=5, class_weights="balanced")).fit(inputs)
    more = {"grid": linear.PAPER_GRID, "split": inputs.split, "example": "recording", "groups": inputs.groups}
    assert told == [((5,), more | {"class_weights": "balanced"})]
    Knn(Knn.Config(k=3, temperature=0.3)).fit(inputs)
    elsewhere = SimpleNamespace(parameters=lambda: iter([torch.empty(0, device="meta")]))
    assert asked["evaluate_knn"] == [(3, 0.3, torch.device("cpu"), "recording")]
    with pytest.raises(NotImplementedError, match="meta"):
        Knn().fit(dataclasses.replace(inputs, encoder=elsewhere))  # type: ignore[arg-type]
    whole = dataclasses.replace(inputs, encoder=SimpleNamespace(feature_dim=2))  # type: ignore[arg-type]
    Weighted(Weighted.Config(seed=5, class_weights=(1.0, 2.0))).fit(whole)
    assert asked["evaluate_weighted"] == [(3, 5, inputs.groups, (1.0, 2.0))]


@pytest.mark.parametrize("module", [linear, weighted])
def test_a_penalty_is_chosen_and_a_classifier_fitted_as_it_was_told(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, asked = inputs_of(), Asked(monkeypatch)
    asked.of(module, "stratified_split", "held_out", "seed", "groups")
    more = (2,) if module is weighted else ()
    fit = weighted.evaluate_weighted if module is weighted else linear.evaluate_linear
    asked.of(module, "Mixture" if module is weighted else "fit_linear")
    asked.of(module, "accuracy" if module is weighted else "choose_l2")
    arrays = given.x, given.y, given.x_test, given.y_test
    out = fit(*arrays, *more, seed=5, validation=0.3, grid=(0.1, 1.0), groups=given.groups, class_weights=(1.0, 3.0))
    assert asked["stratified_split"] == [(0.3, 5, given.groups)]
    assert class_weights_in_words((1.0, 3.0)) in out.words
    assert "seed 5" in out.words
    for name in ("Mixture", "fit_linear", "accuracy", "choose_l2"):
        assert {call[-1] for call in asked.get(name, [])} <= {(1.0, 3.0)}
    assert {"validation_weighted_top1", "l2", "train"} == out.settings.keys()
    assert out.affine is not None
    assert out.classes is not None
    assert out.classes.tolist() == [0, 1]
    weight, bias = out.affine
    guesses = given.x_test @ weight.T + bias
    assert out.scores == score(guesses, out.classes, given.y_test)
    _, val = stratified_split(given.y, 0.3, 5, "validation split", groups=given.groups, lone=True)
    assert f"{len(val)} validation {'recordings' if module is weighted else 'images'}" in out.words


def test_neighbours_vote_as_they_were_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given, asked = inputs_of(), Asked(monkeypatch)
    asked.of(knn, "knn_votes", "k", "temperature", "classes")
    arrays = given.x, given.y, given.x_test, given.y_test
    accuracy = knn.knn_accuracy(*arrays, 3, 0.3)
    out = knn.evaluate_knn(*arrays, 3, 0.3, example="recording")
    assert asked["knn_votes"] == [(3, 0.3, 2)] * 2
    assert out.scores.top1 == accuracy
    assert out.settings == {"k": 3, "temperature": 0.3, "bank": 40}
    assert "40 training recordings vote" in out.words
    knn.evaluate_knn(*arrays)
    knn.knn_accuracy(*arrays)
    assert asked["knn_votes"][2:] == [(20, 0.1, 2)] * 2
    asked.of(knn, "nearest")
    knn.knn_votes(torch.rand(9, 4), torch.arange(9) % 3, torch.rand(5, 4), 2, block=2)
    assert asked["nearest"][0][2:] == (2, 2)


def test_an_evaluation_opens_and_reads_as_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, ENCODER, extra={"options": {"views": {"size": 8, "resample": "tf1"}, "seed": 9}})
    asked = Asked(monkeypatch)
    asked.of(base, "open_parts")
    data = DataConfig(workers=3)
    protocol = Linear(Linear.Config(data=data, size=6, preprocessing="resize", batch=5, keep_features=False))
    extractor = protocol.extractor(file)
    assert (extractor.size, extractor.resample, extractor.preprocessing) == (6, "tf1", "resize")
    assert (extractor.batch, extractor.workers) == (5, 3)
    arrays = [(source.images.permute(0, 2, 3, 1).numpy(), source.labels) for source in (TRAIN, TEST, CHOICE)]
    protocol.open(ENCODER, *arrays)
    ((*given, reading),) = [call[:4] for call in asked["open_parts"]]
    assert all(one is other for one, other in zip(given, arrays, strict=True))
    assert reading == dataclasses.replace(data, channels=3)
    told = list[Any]()

    def opened(*given: Any, **more: Any) -> Parts:
        told.append(more | {"channels": given[3].channels})
        return Parts(TRAIN, None, None)

    monkeypatch.setattr(base, "open_parts", opened)
    protocol.open(ENCODER, arrays[0], None, None)
    Linear(Linear.Config(labels="10%")).open(ENCODER, arrays[0], None, None)
    Knn(Knn.Config(folds=3, data=DataConfig(channels=1))).open(ENCODER, arrays[0], None, None)
    Verification().open(ENCODER, arrays[0], None, None)
    assert told == [
        {"whole": False, "same_classes": True, "choose": True, "channels": 3},
        {"whole": False, "same_classes": True, "choose": False, "channels": 3},
        {"whole": 3, "same_classes": True, "choose": False, "channels": 1},
        {"whole": False, "same_classes": False, "choose": False, "channels": 3},
    ]


def test_an_encoder_is_compared_with_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(beside, "untrained", "seed")
    asked.of(beside, "pixels_of")
    tall = ArraySource(np.zeros((30, 10, 6, 3), np.uint8), np.arange(30) % 3)
    told = list[tuple[str, int, int]]()
    Spy(Linear.Config(preprocessing="none")).evaluate(
        ENCODER, tall, seed=4, extractor=Extractor(preprocessing="none"), progress=lambda *given: told.append(given)
    )
    assert asked["untrained"] == [4]
    assert asked["pixels_of"] == [(3, 10, 6)]
    assert ("training features", 30, 30) in told
    assert any(what.endswith(": training features") for what, *_ in told)
    head = ProjectionHead(12, HeadConfig(out_dim=5))
    z: Any = Spy(Linear.Config(baselines=False)).evaluate(EncoderWithHead(ENCODER, head, 5), TRAIN)
    assert z.feature_dim == 5
