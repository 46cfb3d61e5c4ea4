"""What distillation was told reaches the student, its teacher, and the comparison of both."""

from __future__ import annotations

import dataclasses
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
    load_head,
    read_header,
    save_encoder,
)
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.label_subsets import label_positions
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.options import merge
from twofold.runs import distill as core
from twofold.runs import teacher as teachers
from twofold.runs.config import DistillConfig
from twofold.runs.distill import distill
from twofold.runs.teacher import TeacherSource, load_teacher
from twofold.training.inputs import CachedTeacher, OnlineTeacher
from twofold.training.loop import Training

SMALL = {"name": "resnet10", "width": 0.125, "stem": "cifar"}
RUN: dict[str, Any] = {
    "epochs": 1.0, "batch": 8, "seed": 5, "data": {"workers": 0}, "training": {"device": "cpu", "precision": "fp32"},
    "optim": {"name": "sgd", "lr": 0.25, "weight_decay": 0.03}, "encoder": SMALL,
}  # fmt: skip
TRAIN = ArraySource(*images(32, seed=1), name="shapes", classes=["bar", "disc"])
TEST = ArraySource(*images(12, seed=2), name="others", classes=["bar", "disc"])


class Built(Exception):
    """A run is built, and not trained."""


def teacher_file(path: Path, layer: int | None, **extra: Any) -> Path:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.of(**SMALL), 16)
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=3, hidden_dim=64, out_dim=12))
    classifier = Classifier(64, 2, "normal")
    save_encoder(path, encoder, head, extra, classifier, layer)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a head and a classifier on the head's second layer, as fine-tuning leaves it."""
    views = {"size": 16, "resample": "tf1", "flip": 0.25}
    path = tmp_path_factory.mktemp("teacher") / "encoder.safetensors"
    return teacher_file(path, 2, options={"views": views}, class_names=["bar", "disc"])


Build = Callable[..., Any]


@pytest.fixture
def build(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds distillation with more options than `RUN` has; gives the loop of each."""
    loops: list[Any] = []

    def built(self: Training[Any, Any]) -> bool:
        loops.append(self)
        raise Built

    def loop(**more: Any) -> Any:
        with pytest.raises(Built):
            distill(teacher, TRAIN, tmp_path / f"run{len(loops)}", merge(RUN, more))
        return loops[-1]

    monkeypatch.setattr(Training, "fit", built)
    return loop


def test_every_option_of_distillation_reaches_the_student(
    build: Build, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build()
    method, inputs = plain.method, plain.make_inputs
    assert (method.temperature, method.squared_temperature, method.alpha, method.decay) == (0.1, False, None, 0.0)
    assert method.classifier.weight.shape == (2, 64)
    assert isinstance(inputs.teacher, OnlineTeacher)
    assert inputs.known is None
    told = build(temperature=0.7, squared_temperature=True, alpha=0.3, labels="6", targets="cached")
    method, inputs = told.method, told.make_inputs
    assert (method.temperature, method.squared_temperature, method.alpha) == (0.7, True, 0.3)
    known = np.full(32, -1)
    places = label_positions(TRAIN, "6", 5)
    known[places] = np.asarray(TRAIN.labels)[places]
    assert inputs.known.tolist() == known.tolist()
    assert isinstance(inputs.teacher, CachedTeacher)
    batch = next(iter(told.loader.iterate(0, 1)))
    given = inputs(batch)
    assert given.labels.tolist() == known[batch.index.numpy()].tolist()
    assert torch.equal(given.teacher_logits, inputs.teacher.logits[batch.index])
    net = load_teacher(teacher)
    torch.testing.assert_close(inputs.teacher.logits, torch.from_numpy(Extractor(16).extract(net, TRAIN).h))
    assert (build(alpha=0.3).make_inputs.known.numpy() == np.asarray(TRAIN.labels)).all()
    assert build(encoder={"width": 0.25}).method.temperature == 1.0
    assert build(optim={"name": "lars"}).method.decay == 0.03
    asked = Asked(monkeypatch)
    asked.of(core, "build_encoder")
    asked.of(core, "source_for", "seed", "fit")
    kernels = [loop.method.encoder.conv1.weight for loop in (plain, told, build(seed=6))]
    assert [given[1] for given in asked["build_encoder"]] == [16, 16]
    assert asked["source_for"] == [(6, True)]
    assert torch.equal(*kernels[:2])
    assert not torch.equal(*kernels[1:])


def test_a_run_is_compared_and_written_down_as_it_was_told(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = list[Any](), teachers.compare
    monkeypatch.setattr(core, "compare", lambda *given: asked.append(given) or real(*given))
    options = merge(RUN, {"views": {"resample": "antialias"}, "micro_batch": 4, "encoder": {"width": 0.25}})
    result = distill(teacher, TRAIN, tmp_path / "run", options, test=TEST)
    (((net, theirs), (student, ours), source, use_labels),) = asked
    assert (theirs.size, theirs.resample, ours.size, ours.resample, use_labels) == (16, "tf1", 16, "tf1", True)
    assert source is TEST
    assert (net.encoder.feature_dim, student.encoder.feature_dim) == (64, 128)
    assert (result.complete, result.steps, result.stopped_by, result.kind) == (True, 5, None, "image")
    assert result.test == core.labels_fingerprint(TEST)
    assert result.digest == core.digest(core.tensor_digests(net))
    assert result.scored_on == "others"
    assert result.comparison is not None
    assert result.comparison.teacher_parameters < result.comparison.student_parameters
    header = read_header(tmp_path / "run" / "encoder.safetensors")
    assert header["classifier"] == {"in_dim": 128, "classes": 2, "layer": 0}
    extra = header["extra"]
    assert (extra["steps"], extra["of"], extra["class_names"]) == (5, 5, ["bar", "disc"])
    same = Asked(monkeypatch)
    same.of(core, "check_same_data")
    again = distill(teacher, TRAIN, tmp_path / "run", merge(options, {"training.changed_data": "allow"}), test=TRAIN)
    assert [given[2] for given in same["check_same_data"]] == ["allow"]
    assert (again.scored_on, again.test) == ("shapes", core.labels_fingerprint(TRAIN))
    (net, _), (student, _), source, _ = asked[-1]
    assert (net.encoder.feature_dim, student.encoder.feature_dim) == (64, 128)
    plain = distill(teacher, TRAIN, tmp_path / "plain", merge(options, {"unlabelled": True}))
    assert plain.scored_on == "shapes, the images of training themselves"
    assert asked[-1][3] is False
    assert plain.comparison is not None
    assert plain.comparison.teacher_top1 is None
    assert read_header(tmp_path / "plain" / "encoder.safetensors")["extra"]["class_names"] == ["bar", "disc"]


def test_a_teacher_that_is_fitted_is_kept_with_what_its_file_said(build: Build, tmp_path: Path) -> None:
    build(teacher_labels="8/class")
    kept = read_header(tmp_path / "run0" / core.TEACHER)
    assert kept["classifier"] == {"in_dim": 64, "classes": 2, "layer": 0}
    assert kept["extra"]["class_names"] == ["bar", "disc"]
    assert kept["extra"]["options"]["views"]["resample"] == "tf1"
    build()
    assert not (tmp_path / "run1" / core.TEACHER).exists()


def test_labels_that_are_not_looked_at_are_not_told_of(tmp_path: Path) -> None:
    """By a teacher whose classes have no names, of data with an example of no class; scored anew on others."""
    bare = teacher_file(tmp_path / "bare.safetensors", 2, options={"views": {"size": 16}})
    pixels, labels = images(32, seed=1)
    some = ArraySource(pixels, np.where(np.arange(32) == 3, -1, labels), name="some", classes=["bar", "disc"])
    options = {name: value for name, value in RUN.items() if name != "encoder"}
    left_out = "; 1 image without a label left out of the accuracies"
    for unlabelled in (True, False):
        out = tmp_path / f"unlabelled {unlabelled}"
        result = distill(bare, some, out, merge(options, {"unlabelled": unlabelled}), student=Shallow())
        assert result.scored_on == "some, the images of training themselves" + left_out * (not unlabelled)
        names = read_header(out / "encoder.safetensors")["extra"]["class_names"]
        assert names == (None if unlabelled else ["bar", "disc"])
    anew = distill(bare, some, out, options, test=TEST, student=Shallow())
    assert (anew.scored_on, anew.test) == ("others", core.labels_fingerprint(TEST))


class Shallow(nn.Module):
    """A student of few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))  # type: ignore[no-any-return]


SPEECH: dict[str, Any] = {"mels": 13, "width": 16, "layers": 1, "heads": 2, "hidden": 16}


def test_recordings_are_distilled_and_a_stop_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = SpeechEncoder(sample_rate=RATE, cmvn="none", dropout=0.0, **SPEECH)
    file = tmp_path / "teacher.safetensors"
    save_encoder(file, net, None, {}, Classifier(16, 2, "normal"), 0)
    labelled = speech_folder(tmp_path / "clips", 2, 8)
    clips = open_source(labelled, DataConfig())
    asked = Asked(monkeypatch)
    asked.of(core, "source_for", "seed", "fit")
    asked.of(core, "train_or_advise", "micro_batch")
    asked.of(core, "choose", "config")
    asked.of(teachers, "classifier_of", "kind")
    encoder = {"name": "speech:small", "speech": SPEECH | {"sample_rate": RATE}}
    options = {**RUN, "encoder": encoder, "micro_batch": 4}
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, number: 7 * (self.step == 1) or real(self, number))
    result = distill(file, clips, tmp_path / "run", options)
    assert (result.complete, result.comparison, result.stopped_by, result.kind) == (False, None, 7, "audio")
    assert result.scored_on == f"{clips.name}, the recordings of training themselves"
    assert asked["source_for"] == [(5, True)]
    assert asked["train_or_advise"] == [4]
    assert [config.method.kind for config in asked["choose"]] == ["audio"]
    monkeypatch.setattr(Training, "agree", real)
    some = open_source(labelled, DataConfig()).with_labels([None, *[f"word{i // 8}" for i in range(1, 16)]])
    done = distill(file, clips, tmp_path / "run", options, test=some)
    assert (done.complete, done.kind) == (True, "audio")
    assert "1 recording without a label left out of the accuracies" in done.scored_on
    assert "recordings (" in done.summary()
    lone = DistillConfig(teacher_labels="all")
    TeacherSource(file, clips).load(lone, 1, torch.device("cpu"))
    assert asked["classifier_of"] == ["audio"]
    slow = {**RUN, "encoder": {"name": "speech:small", "speech": SPEECH | {"sample_rate": 16000}}}
    with pytest.raises(UserError, match="teacher takes recordings at 8,000 Hz and the student at 16,000 Hz"):
        distill(file, clips, tmp_path / "other", slow)


def test_who_learned_from_whom_is_told(teacher: Path) -> None:
    config = DistillConfig(
        epochs=3.0, batch=24, seed=7, temperature=0.4, squared_temperature=True, alpha=0.3, labels="4/class",
        teacher_labels="20", targets="cached",
    )  # fmt: skip
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, name="sgd", lr=0.5))
    student = build_encoder(EncoderConfig.of(**SMALL), 16)
    text = core._text(config, TeacherSource(teacher), student, TRAIN)
    for words in (
        "classifier fitted on 20 labels; student ",
        "0.3 of cross entropy with the teacher's probabilities at temperature 0.4 times temperature^2, "
        "and 0.7 of that with 4/class labels; ",
        "targets cached; 3 epochs of batches of 24, sgd, lr 0.5; seed 7",
    ):
        assert words in text
    alone = dataclasses.replace(config, alpha=None, labels=None, teacher_labels=None, squared_temperature=False)
    text = core._text(alone, TeacherSource(teacher), student, TRAIN)
    assert "; cross entropy with the teacher's probabilities at temperature 0.4; targets" in text
    assert "fitted" not in text


def test_a_teacher_is_read_as_its_file_or_else_the_run_says(teacher: Path, tmp_path: Path) -> None:
    views = dataclasses.replace(DistillConfig().views, size=24, resample="tf2")
    config = dataclasses.replace(DistillConfig(), views=views)
    header = read_header(teacher)
    assert TeacherSource(teacher).extractor(config) == Extractor(size=16, resample="tf1", pixels=Pixels.of(header))
    bare = teacher_file(tmp_path / "bare.safetensors", None)
    found = TeacherSource(bare).extractor(config)
    assert (found.size, found.resample, found.pixels) == (24, "tf2", Pixels.of(read_header(bare)))
    assert TeacherSource(teacher).class_names(config) == ["bar", "disc"]
    fitted = dataclasses.replace(config, teacher_labels="all")
    assert TeacherSource(teacher, TEST).class_names(fitted) == ["bar", "disc"]
    assert TeacherSource(teacher).class_names(fitted) is None
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        classifier, stored = load_classifier(bare) or (None, None)
        assert classifier is not None
        assert stored is None
        head = load_head(bare)
        assert head is not None
        h = core.build_encoder(EncoderConfig.of(**SMALL), 16).eval()(x)
        for layer in (0, 1):
            net = TeacherSource(bare).load(dataclasses.replace(config, classifier_layer=layer), 3, torch.device("cpu"))
            h = net.encoder(x)  # type: ignore[operator]
            below = h if layer == 0 else head.eval().layers[0](h)
            torch.testing.assert_close(net(x), classifier(below))
    assert load_teacher(teacher).layer == 2


class Flat(nn.Module):
    """Two features of an image of one channel and 16 x 16 pixels, and of no other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def test_a_teacher_s_classifier_is_fitted_with_the_seed_and_labels_of_the_run(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = list[Any](), teachers.fit_few
    monkeypatch.setattr(teachers, "fit_few", lambda *given: asked.append(given) or real(*given))
    config = DistillConfig(teacher_labels="6/class", seed=7)
    config = dataclasses.replace(config, views=dataclasses.replace(config.views, size=16))
    TeacherSource(teacher, TRAIN).load(config, 3, torch.device("cpu"))
    x, y, seed, draw, _, groups = asked[0]
    assert (len(x), y.tolist(), seed, draw, groups) == (
        12, np.asarray(TRAIN.labels)[label_positions(TRAIN, "6/class", 7)].tolist(), 7, 0, None,
    )  # fmt: skip
    pixels, labels = images(32, seed=1)
    groups = np.arange(32) // 4
    grouped = ArraySource(pixels, np.where(groups == 2, -1, labels), groups=[f"g{k}" for k in groups])
    teachers.fit_classifier(load_teacher(teacher).encoder, grouped, Extractor(16), 9)  # type: ignore[arg-type]
    assert asked[1][2:4] == (9, 0)
    assert asked[1][5].tolist() == groups[groups != 2].tolist()
    gray = TeacherSource(Flat()).load(dataclasses.replace(config, teacher_labels=None), 1, torch.device("cpu"))
    assert (gray.input.channels, gray.input.size, gray.feature_dim) == (1, 16, 2)


def test_a_file_of_a_module_of_one_s_own_needs_the_module(tmp_path: Path) -> None:
    file, flat, config = tmp_path / "own.safetensors", Flat(), DistillConfig()
    save_encoder(file, adapt(flat, 1, size=16), None, {}, Classifier(2, 2, "normal"), 0)
    x, known = torch.rand(4, 1, 16, 16), ArraySource(*images(8, channels=1))
    for told in (config, dataclasses.replace(config, teacher_labels="all")):
        net = TeacherSource(file, known, Flat()).load(told, 1, torch.device("cpu"))
        torch.testing.assert_close(net.encoder(x), flat(x))  # type: ignore[operator]
