"""What fine-tuning was told reaches what it builds, trains, scores and writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import images
from torch import nn

from asked import Asked
from sound_files import RATE, speech_folder
from twofold.data import ArraySource, DataConfig, open_source
from twofold.encoders import (
    EncoderConfig,
    SpeechEncoder,
    adapt,
    build_encoder,
    load_classifier,
    load_encoder,
    load_head,
    read_header,
    save_encoder,
)
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.label_subsets import label_positions
from twofold.heads import HeadConfig, ProjectionHead
from twofold.runs import finetune as core
from twofold.runs.finetune import finetune
from twofold.training.loop import Training
from twofold.views.audio.views import WavesConfig


class Built(Exception):
    """A run is built, and not trained."""


RUN: dict[str, Any] = {
    "epochs": 1.0, "batch": 8, "seed": 5, "data": {"workers": 0}, "training": {"device": "cpu", "precision": "fp32"},
    "optim": {"name": "sgd", "lr": 0.25, "weight_decay": 0.03},
}  # fmt: skip
TRAIN = ArraySource(*images(32, seed=1), name="shapes", classes=["bar", "disc"])
# Nine bars and three discs, the classes in another order than in training.
_UNEVEN = np.array([*range(0, 18, 2), 1, 9, 17])
_PIXELS, _KINDS = (part[_UNEVEN] for part in images(18, seed=2))
TEST = ArraySource(_PIXELS, 1 - _KINDS, name="others", classes=["disc", "bar"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a head of three layers, as pretraining leaves it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base") / "encoder.safetensors"
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar"), 16)
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=3, hidden_dim=20, out_dim=12))
    save_encoder(path, encoder, head, extra={"options": {"views": {"size": 16, "resample": "tf1", "flip": 0.25}}})
    return path


Build = Callable[..., Any]


def changed(options: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The options with others in their place, `group__name=value`."""
    new = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    for name, value in change.items():
        group, _, key = name.partition("__")
        new[group] = {**new.get(group, {}), key: value} if key else value
    return new


@pytest.fixture
def build(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds fine-tuning with other options than `RUN` has; gives the loop of each."""
    loops: list[Any] = []

    def built(self: Training[Any, Any]) -> bool:
        loops.append(self)
        raise Built

    def loop(train: ArraySource = TRAIN, test: ArraySource = TEST, **change: Any) -> Any:
        with pytest.raises(Built):
            finetune(base, train, test, tmp_path / f"run{len(loops)}", changed(RUN, change))
        return loops[-1]

    monkeypatch.setattr(Training, "fit", built)
    return loop


def test_every_option_of_a_classifier_s_run_reaches_it(build: Build, base: Path) -> None:
    plain = build(epochs=3.0)
    method = plain.method
    assert (method.from_head, method.freeze, method.decay, method.many) == (0, "nothing", 0.0, False)
    assert (method.weights, method._resting, plain.loader.order._drawn) == (None, [], None)
    assert (plain.batch, plain.seed, plain.steps, plain.size) == (8, 5, 13, 16)
    assert method.classifier.weight.shape == (2, 64)
    assert not method.classifier.weight.any()
    assert {group.get("lr_scale") for group in plain.optimizer.param_groups} == {None}
    assert {group["weight_decay"] for group in plain.optimizer.param_groups} == {0.03, 0.0}
    whole = load_encoder(base).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in method.encoder.state_dict().items())
    told = build(from_head=2, init="normal", class_weights=(1.0, 3.0), sampling="balanced", layer_decay=0.5)
    method = told.method
    assert method.from_head == 2
    assert method.classifier.weight.any()
    torch.testing.assert_close(method.weights, torch.tensor([0.5, 1.5]))
    assert {group["lr_scale"] for group in told.optimizer.param_groups} >= {1.0, 0.5, 0.25}
    labels = np.asarray(TRAIN.labels)
    other = build(sampling="balanced", seed=6)
    for loop in (told, other):
        drawn = core.BalancedDraws(labels, loop.seed).entries(0, 8)
        assert (loop.loader.order.indices(0) == drawn).all()
    assert not torch.equal(method.classifier.weight, build(init="normal", from_head=2, seed=6).method.classifier.weight)
    lars = build(optim={"name": "lars", "lr": 0.3, "weight_decay": 0.2})
    assert lars.method.decay == 0.2


def test_what_is_kept_of_the_net_is_what_was_asked_for(
    build: Build, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = build(freeze="encoder", optim={"name": "sgd"})
    assert frozen.method.freeze == "encoder"
    assert len(frozen.method._resting) == 2
    assert frozen.optimizer.param_groups[0]["lr"] == 0.1 * 8 / 256
    assert build(freeze="encoder", frozen_mode="training").method._resting == []
    part = build(after_block=1, frozen_mode="inference", optim={"name": "sgd"})
    assert part.optimizer.param_groups[0]["lr"] == 0.05 * 8 / 256
    names = {name.split(".")[0] for name, p in part.method.encoder.named_parameters() if not p.requires_grad}
    assert names
    assert part.method._resting
    asked = Asked(monkeypatch)
    asked.of(core, "source_for", "seed", "fit")
    fresh, again = (build(from_scratch=True, seed=seed, optim={"name": "sgd"}) for seed in (5, 6))
    assert fresh.optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * 8 / 256)
    assert fresh.method.head.config == load_head(base).config  # type: ignore[union-attr]
    assert asked["source_for"] == [(5, True), (6, True)]
    kernels = [x.method.encoder.conv1.weight for x in (fresh, again)]
    assert not torch.equal(*kernels)
    assert all(not torch.equal(kernel, load_encoder(base).conv1.weight) for kernel in kernels)  # type: ignore[arg-type]


def test_the_labels_of_a_run_are_those_that_were_asked_for(build: Build) -> None:
    told = build(labels="6/class", draw=2)
    places = label_positions(TRAIN, "6/class", 5, 2)
    assert (told.loader.source.labels == np.asarray(TRAIN.labels)[places]).all()
    assert np.array_equal(told.loader.source.read(0), TRAIN.read(int(places[0])))
    with pytest.raises(UserError, match="class_weights"):
        build(class_weights=(1.0, 2.0, 3.0))


def several(source: ArraySource) -> ArraySource:
    """The same with a column a class."""
    many = np.eye(2, dtype=np.int64)[np.asarray(source.labels)]
    return ArraySource(source.images, many, name=source.name)


def test_of_several_labels_an_image_each_class_is_judged_apart(build: Build) -> None:
    assert build(several(TRAIN), several(TEST)).method.many
    for name, value in {"sampling": "balanced", "class_weights": "balanced"}.items():
        with pytest.raises(UserError, match=f"--{name} balanced is for one class an image"):
            build(several(TRAIN), several(TEST), **{name: value})


def test_a_run_is_scored_and_written_down_as_it_was_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()
    monkeypatch.setattr(core, "Extractor", lambda *given: asked.append(given) or Extractor(*given))
    told_of = Asked(monkeypatch)
    told_of.of(core, "_about_the_data", "part", "test")
    told_of.of(core, "source_for", "seed", "fit")
    told_of.of(core, "train_or_advise", "micro_batch")
    told_of.of(core, "check_class_weights")
    chosen = list[Any]()
    monkeypatch.setattr(core, "choose_device", lambda name: chosen.append(name) or torch.device("cpu"))
    run = tmp_path / "run"
    told = {"from_head": 1, "preprocessing": "crop", "labels": "8/class", "init": "normal", "freeze": "head"}
    result = finetune(base, TRAIN, TEST, run, changed(RUN, told | {"class_weights": (1.0, 3.0), "micro_batch": 4}))
    assert (result.complete, result.labels, result.steps, result.stopped_by) == (True, 16, 3, None)
    assert result.test == core.labels_fingerprint(TEST)
    assert result.digest[0] != result.digest[1]
    texts = (
        "encoder and classifier fine-tuned, the head's layers kept, classifier on output 1 of the projection head; "
        "16 of 32 labels (8/class; seed 5, draw 0); ", "lr 0.25 (none), weight decay 0.03, cosine, 1 epoch, batch 8; ",
        "flip 0.25; seed 5; ", core.class_weights_in_words((1.0, 3.0)),
    )  # fmt: skip
    for text in texts:
        assert text in result.text
    file = run / "encoder.safetensors"
    header = read_header(file)
    assert header["classifier"] == {"in_dim": 20, "classes": 2, "layer": 1}
    assert header["head"] == read_header(base)["head"]
    extra = header["extra"]
    assert (extra["steps"], extra["of"], extra["class_names"]) == (3, 3, ["bar", "disc"])
    assert extra["options"]["from_head"] == 1
    assert header["parts"]["prediction"]["classes"] == ["bar", "disc"]
    assert "the head's layers kept" in json.dumps(header["parts"]["prediction"])
    scores, index = core.outputs(run, TEST)
    assert set(asked) == {(16, "crop", "tf1")}
    assert chosen == ["cpu"]
    assert len(index) == 12
    found = load_classifier(file)
    assert found is not None
    net = EncoderWithClassifier(load_encoder(file), found[0], load_head(file), 1).eval()
    own = Extractor(16, "crop", "tf1").extract(net, TEST).h
    np.testing.assert_allclose(scores, own, rtol=1e-5, atol=1e-6)
    assert result.scores == core.score(own, np.arange(2), 1 - np.asarray(TEST.labels)).named(["bar", "disc"])
    ((part, test),) = told_of["_about_the_data"]
    assert (len(part), test) == (16, TEST)
    assert told_of["source_for"] == [(5, False)]
    assert told_of["train_or_advise"] == [4]
    assert ((1.0, 3.0), 2, ["bar", "disc"]) in told_of["check_class_weights"]
    other = ArraySource(*images(10, seed=9), name="thirds", classes=["bar", "disc"])
    same = Asked(monkeypatch)
    same.of(core, "check_same_data")
    told |= {"class_weights": (1.0, 3.0), "micro_batch": 4, "training__changed_data": "allow"}
    anew = finetune(base, TRAIN, other, run, changed(RUN, told))
    assert [given[2] for given in same["check_same_data"]] == ["allow"]
    assert (anew.test, anew.steps) == (core.labels_fingerprint(other), 3)
    assert anew.scores is not None
    assert anew.scores.count == 10


def test_recordings_of_each_class_are_drawn_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder(RATE, 13, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    save_encoder(tmp_path / "base.safetensors", encoder)
    clips = open_source(speech_folder(tmp_path / "clips", 2, 8), DataConfig())
    loops = list[Any]()
    monkeypatch.setattr(core, "train_or_advise", lambda training, _: loops.append(training) or training.fit())
    result = finetune(
        tmp_path / "base.safetensors", clips, clips, tmp_path / "run", changed(RUN, {"sampling": "balanced"})
    )
    assert result.complete
    assert loops[0].loader.order._drawn is not None
    assert "as many examples of each class drawn" in result.text


class Own(nn.Module):
    """Features of few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_module_of_one_s_own_is_trained_and_a_stop_is_told(
    from_scratch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, own = tmp_path / "own.safetensors", Own()
    save_encoder(file, adapt(own), extra={"options": {"views": {"size": 16}}})
    real, options = Training.agree, changed(RUN, {"from_scratch": from_scratch})
    monkeypatch.setattr(Training, "agree", lambda self, number: 7 * (self.step == 2) or real(self, number))
    result = finetune(file, TRAIN, TEST, tmp_path / "run", options, module=own)
    assert (result.complete, result.steps, result.stopped_by, result.test) == (False, 2, 7, "")
    monkeypatch.setattr(Training, "agree", real)
    done = finetune(file, TRAIN, TEST, tmp_path / "run", options, module=Own())
    assert (done.complete, done.steps) == (True, 5)
    scores, _ = core.outputs(tmp_path / "run", TEST, Own())
    assert scores.shape == (12, 2)


def test_what_is_told_of_the_data_is_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(core, "groups_in_words")
    config = core.FinetuneConfig(data=DataConfig(group="x_(.)"))
    header = {"spec": {"kind": "speech"}, "extra": {}}
    told = core._about_the_data(header, config, TRAIN, TEST, np.array([0, -1, 1]))
    assert any("recording" in words for words in told)
    assert [given[0] for given in asked["groups_in_words"]] == ["x_(.)"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "the whole net fine-tuned"),
        ({"from_scratch": True}, "the same net trained from scratch"),
        ({"freeze": "encoder"}, "all below frozen and in inference mode"),
        ({"freeze": "encoder", "frozen_mode": "training"}, "all below frozen and in training mode"),
        ({"after_block": 0}, "all above the stem fine-tuned, the stem frozen and in training mode"),
        ({"after_block": 2, "frozen_mode": "inference"}, "the stem and 2 blocks frozen and in inference mode"),
        ({"after_block": 2, "freeze": "head"}, "the stem and 2 blocks fine-tuned, the head's layers kept, the stem"),
    ],
)
def test_what_was_trained_is_told(options: dict[str, Any], words: str) -> None:
    assert words in core._trained(core.FinetuneConfig(**options))


def test_what_is_left_open_and_what_is_told_of_a_run() -> None:
    config = core.resolve(core.FinetuneConfig(seed=5), 100)
    assert (config.batch, config.epochs) == (64, 320.0)
    config = core.resolve(dataclasses.replace(config, batch=10, epochs=7.0), 100)
    assert (config.batch, config.epochs) == (10, 7.0)
    told = dataclasses.replace(config, sampling="balanced", from_head=0, waves=WavesConfig(chain=0.25))
    text = core._text(told, "words", "audio")
    assert "changed with probability 0.25; seed 5" in text
    assert "as many examples of each class drawn" in text
    assert "classifier on the encoder's features" in text
    assert "7 epochs, batch 10" in text
