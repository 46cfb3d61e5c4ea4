"""`twofold distill`: a student learns a fixed teacher's answers, alone or with labels, stopped anywhere and resumed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import as_arguments, images

import twofold
from twofold import cli
from twofold.commands.finetune import finetune
from twofold.commands.recipes import recipes
from twofold.data import ArraySource
from twofold.encoders import EncoderConfig, adapt, build_encoder, load_classifier, read_header, save_encoder
from twofold.errors import Stopped, UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.few_labels import fit_few
from twofold.evaluation.frozen import NotFrozenError
from twofold.heads import Classifier
from twofold.options import merge
from twofold.runs.config import DistillConfig
from twofold.runs.distill import TEACHER
from twofold.runs.teacher import TeacherSource, classifier_of, compare, load_teacher
from twofold.training.inputs import TaughtView
from twofold.training.loop import Training


def distill(*data, **options):
    """What comes of the command, without the folder."""
    return twofold.distill(*data, **options).result


SMALL = {"name": "resnet10", "width": 0.125, "stem": "cifar"}
LONG = {"epochs": 14}
OPTIONS = {
    "epochs": 6,
    "batch": 16,
    "seed": 3,
    "views": {"crop_area": [0.5, 1.0], "flip": 0.0},
    "encoder": SMALL,
    "optim": {"name": "adamw", "lr": 4e-3},
    "training": {"device": "cpu", "precision": "fp32", "log_every": 4, "checkpoint_every": 5},
}


@pytest.fixture(scope="module")
def frozen_run(tmp_path_factory):
    """A file with an encoder alone, as pretraining leaves it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "encoder.safetensors"
    config = EncoderConfig.of(name="resnet10", width=0.25, stem="cifar", channels=3)
    save_encoder(path, build_encoder(config, 16), extra={"options": {"views": {"size": 16, "flip": 0.0}}})
    return path


@pytest.fixture(scope="module")
def distilled(frozen_run, tmp_path_factory):
    """A student of a teacher whose classifier was fitted with the labels of 64 images."""
    out = tmp_path_factory.mktemp("runs") / "student"
    return distill(frozen_run, images(), out, teacher_labels="all", test=images(seed=1), **merge(OPTIONS, LONG)), out


def weights(run):
    return load_file(run / "encoder.safetensors")


def same(first, second):
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def learned(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_student_learns_its_teachers_answers_without_labels(distilled):
    result, out = distilled
    found = result.comparison
    assert result.complete
    assert found.images == 64
    assert found.student_parameters < found.teacher_parameters / 3
    assert found.teacher_top1 > 0.7
    assert found.agreement > 0.7
    assert found.kept == pytest.approx(found.student_top1 / found.teacher_top1)
    rows = learned(out)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["loss"] > rows[-1]["teacher_entropy"] - 1e-3, "cross entropy is never below the entropy"
    assert json.loads((out / "distillation.json").read_text())["comparison"]["agreement"] == found.agreement
    for words in ("agreement", "teacher unchanged", "parameters"):
        assert words in result.summary()


def test_labels_of_the_data_are_not_learned_from(distilled, tmp_path):
    """Other labels in the data, the same teacher: the same student, bit for bit."""
    _, out = distilled
    x, y = images()
    distill(out / TEACHER, (x, 1 - y), tmp_path / "run", temperature=1.0, **merge(OPTIONS, LONG))
    assert same(out, tmp_path / "run")


def test_comparison_counts_by_hand(distilled):
    _, out = distilled
    teacher, student = load_teacher(out / TEACHER), load_teacher(out / "encoder.safetensors")
    x, y = images(seed=1)
    nets = (teacher, Extractor()), (student, Extractor())
    found = compare(*nets, ArraySource(x, y))
    batch = torch.as_tensor(x).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        saw, said = teacher.eval()(batch).argmax(1).numpy(), student.eval()(batch).argmax(1).numpy()
    assert found.agreement == np.mean(saw == said)
    assert (found.teacher_top1, found.student_top1) == (np.mean(saw == y), np.mean(said == y))
    assert found.teacher_parameters == sum(p.numel() for p in teacher.parameters())
    assert compare(*nets, ArraySource(x, y), use_labels=False).teacher_top1 is None


def test_the_student_can_be_loaded_evaluated_and_be_a_teacher(distilled, tmp_path):
    _, out = distilled
    classifier, layer = load_classifier(out / "encoder.safetensors")
    assert (twofold.load(out)(torch.rand(2, 3, 16, 16)).shape[1], 0) == (classifier.in_features, layer)
    again = distill(out, images(), tmp_path / "next", **merge(OPTIONS, {"epochs": 1}))
    assert again.comparison.teacher_parameters == distilled[0].comparison.student_parameters


def test_a_student_that_nothing_is_said_of_is_built_as_its_teacher(distilled, tmp_path, capsys):
    _, out = distilled
    rest = {name: value for name, value in OPTIONS.items() if name != "encoder"}
    found = distill(out, images(), tmp_path / "self", **merge(rest, {"epochs": 1}))
    assert found.comparison.teacher_parameters == found.comparison.student_parameters
    assert "temperature 0.1" in capsys.readouterr().out


def test_a_recipe_for_distillation_is_taken_and_another_is_not(distilled, tmp_path):
    short = {"epochs": 1, "batch": 16, "views.size": 16, "optim.warmup_epochs": 0, "training": OPTIONS["training"]}
    found = distill(distilled[1], images(), tmp_path / "run", recipe="simclr2-distill-self", **short)
    assert "temperature 0.1; " in found.text
    assert "lars, lr 0.1" in found.text
    with pytest.raises(UserError, match="is for `twofold pretrain`, not for `twofold distill`"):
        distill(distilled[1], images(), tmp_path / "other", recipe="simclr-imagenet-100", **short)
    assert (
        "twofold distill runs/mine imagenet --recipe simclr2-distill-small" in recipes("simclr2-distill-small").text()
    )


@pytest.mark.parametrize("stop_at", [1, 37])
def test_stopped_anywhere_and_resumed_it_is_the_same_run(distilled, frozen_run, tmp_path, monkeypatch, stop_at):
    real, options = Training.agree, merge(OPTIONS, LONG, {"teacher_labels": "all"})
    monkeypatch.setattr(Training, "agree", lambda self, asked: self.step == stop_at or real(self, asked))
    with pytest.raises(Stopped, match="--resume"):
        distill(frozen_run, images(), tmp_path / "run", test=images(seed=1), **options)
    monkeypatch.setattr(Training, "agree", real)
    result = distill(frozen_run, images(), tmp_path / "run", test=images(seed=1), resume=True, **options)
    assert same(distilled[1], tmp_path / "run")
    assert learned(distilled[1]) == learned(tmp_path / "run")
    assert result.comparison == distilled[0].comparison


def test_resume_refuses_another_teacher(distilled, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "agree", lambda self, _asked: self.step == 2)
    with pytest.raises(Stopped):
        distill(distilled[1] / TEACHER, images(), tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    other = load_teacher(distilled[1] / TEACHER)
    other.classifier.bias.data += 1
    save_encoder(tmp_path / "other.safetensors", other.encoder, classifier=other.classifier)
    with pytest.raises(UserError, match="another teacher"):
        distill(tmp_path / "other.safetensors", images(), tmp_path / "run", resume=True, **OPTIONS)


def test_cached_targets_are_the_teachers_at_test_time(distilled, tmp_path, monkeypatch):
    seen = []
    real = TaughtView.__call__

    def spy(self, batch):
        inputs = real(self, batch)
        seen.append((batch.index, inputs.teacher_logits, inputs.labels))
        return inputs

    monkeypatch.setattr(TaughtView, "__call__", spy)
    distill(distilled[1] / TEACHER, images(), tmp_path / "run", targets="cached", **merge(OPTIONS, {"epochs": 1}))
    with torch.no_grad():
        expected = load_teacher(distilled[1] / TEACHER)(torch.as_tensor(images()[0]).permute(0, 3, 1, 2).float() / 255)
    for index, logits, labels in seen:
        torch.testing.assert_close(logits, expected[index], rtol=1e-4, atol=1e-4)
        assert labels is None


def test_online_targets_are_those_of_the_view(distilled, tmp_path, monkeypatch):
    real, seen = TaughtView.__call__, []

    def spy(self, batch):
        out = real(self, batch)
        seen.append(out)
        return out

    monkeypatch.setattr(TaughtView, "__call__", spy)
    distill(distilled[1] / TEACHER, images(), tmp_path / "run", **merge(OPTIONS, {"epochs": 1}))
    teacher = load_teacher(distilled[1] / TEACHER)
    with torch.no_grad():
        for inputs in seen:
            torch.testing.assert_close(inputs.teacher_logits, teacher(inputs.a), rtol=1e-4, atol=1e-4)


def test_labels_are_those_asked_for_and_minus_one_elsewhere(distilled, tmp_path, monkeypatch):
    real, seen = TaughtView.__call__, {}

    def spy(self, batch):
        out = real(self, batch)
        seen.update(zip(batch.index.tolist(), out.labels.tolist(), strict=True))
        return out

    monkeypatch.setattr(TaughtView, "__call__", spy)
    options = merge(OPTIONS, {"epochs": 2, "alpha": 0.5, "labels": "6"})
    distill(distilled[1] / TEACHER, images(), tmp_path / "run", **options)
    assert len(seen) == 64
    assert sum(label >= 0 for label in seen.values()) == 6
    assert all(label in (-1, images()[1][index]) for index, label in seen.items())


def test_alpha_0_learns_the_labels_even_from_a_wrong_teacher(distilled, tmp_path):
    teacher = load_teacher(distilled[1] / TEACHER)
    teacher.classifier.weight.data *= -1
    teacher.classifier.bias.data *= -1
    save_encoder(tmp_path / "wrong.safetensors", teacher.encoder, classifier=teacher.classifier)
    wrong, long = tmp_path / "wrong.safetensors", merge(OPTIONS, LONG)
    found = distill(wrong, images(), tmp_path / "labels", alpha=0.0, test=images(seed=1), **long).comparison
    assert found.student_top1 > 0.8
    assert found.teacher_top1 < 0.3
    assert found.agreement < 0.4


def test_a_module_of_your_own_can_teach(tmp_path):
    class Bars(torch.nn.Module):
        def forward(self, x):
            middle = x[:, :, 4:12, 4:12].mean((1, 2, 3)) - x[:, :, 0].mean((1, 2))
            return torch.stack([-40 * middle + 10, 40 * middle - 10], 1)

    found = distill(Bars(), images(), tmp_path / "run", **merge(OPTIONS, LONG))
    assert found.comparison.agreement > 0.7
    with pytest.raises(UserError, match=r"no student can be built like: give --encoder\.name"):
        distill(Bars(), images(), tmp_path / "other", epochs=1.0)


class Bars(torch.nn.Module):
    """Features of few weights, whose last layer can be one of classes."""

    def __init__(self, out):
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Linear(4, out)

    def forward(self, x):
        return self.out(self.conv(x).relu().mean((2, 3)))


def test_a_run_of_a_module_of_your_own_can_teach_and_such_a_module_can_learn(tmp_path, monkeypatch):
    """The file holds the teacher's weights alone, so the module is given again; also where the run is resumed."""
    torch.manual_seed(0)
    save_encoder(tmp_path / "own.safetensors", adapt(Bars(8), 3), extra={"options": {"views": {"size": 16}}})
    options = {"epochs": 2, "batch": 16, "teacher_labels": "all", "training": OPTIONS["training"]}
    with pytest.raises(UserError, match=r"module of your own .*give it again, .*`module` to distill"):
        distill(tmp_path / "own.safetensors", images(), tmp_path / "run", encoder=Bars(5), **options)
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: self.step == 3 or real(self, asked))
    with pytest.raises(Stopped):
        distill(tmp_path / "own.safetensors", images(), tmp_path / "run", module=Bars(8), encoder=Bars(5), **options)
    monkeypatch.undo()
    again = {"module": Bars(8), "encoder": Bars(5), "resume": True}
    found = distill(tmp_path / "own.safetensors", images(), tmp_path / "run", **again, **options)
    assert found.complete
    assert found.comparison.student_parameters == sum(p.numel() for p in Bars(5).parameters()) + 2 * 5 + 2
    assert "student Bars;" in found.text
    assert twofold.load(tmp_path / "run", Bars(5)).feature_dim == 5
    teacher = Bars(2)
    with pytest.raises(UserError, match="weights of its teacher"):
        distill(teacher, images(), tmp_path / "other", encoder=teacher, epochs=1.0, batch=16)
    with pytest.raises(UserError, match="--classifier_layer 1 is for the head of a teacher's file"):
        distill(teacher, images(), tmp_path / "other", encoder=Bars(5), epochs=1.0, batch=16, classifier_layer=1)
    with pytest.raises(UserError, match="leave `module` out"):
        distill(teacher, images(), tmp_path / "other", encoder=Bars(5), module=Bars(2), epochs=1.0, batch=16)
    with pytest.raises(UserError, match="give it as `encoder` from Python"):
        distill(teacher, images(), tmp_path / "other", encoder={"name": "custom"}, epochs=1.0, batch=16)
    assert not (tmp_path / "other").exists()


def test_a_run_that_is_done_is_compared_anew_on_other_images(distilled, tmp_path, monkeypatch):
    options = merge(OPTIONS, {"epochs": 1})
    first = distill(distilled[1], images(), tmp_path / "run", test=images(seed=1), **options)
    monkeypatch.setattr(Training, "fit", lambda _: pytest.fail("a run that is done is not trained again"))
    x, y = images(30, seed=7)
    again = distill(distilled[1], images(), tmp_path / "run", test=(x, y), resume=True, **options)
    student, batch = load_teacher(tmp_path / "run" / "encoder.safetensors"), torch.as_tensor(x).permute(0, 3, 1, 2)
    assert again.comparison.images == 30
    assert again.comparison.student_top1 == pytest.approx((student(batch).argmax(1).numpy() == y).mean())
    assert json.loads((tmp_path / "run" / "distillation.json").read_text())["comparison"]["images"] == 30
    wrong = distill(distilled[1], images(), tmp_path / "run", test=(x, 1 - y), resume=True, **options).comparison
    assert wrong.student_top1 == pytest.approx(1 - again.comparison.student_top1)
    np.savez(tmp_path / "first.npz", images=images(seed=1)[0], labels=images(seed=1)[1])
    back = distill(distilled[1], images(), tmp_path / "run", test=tmp_path / "first.npz", resume=True, **options)
    assert back.comparison == first.comparison


def folder_of(path, names):
    """64 files in two folders, those of label k in the folder of the k-th name."""
    for i, (image, label) in enumerate(zip(*images(), strict=True)):
        (path / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / names[label] / f"{i}.png")
    return path


def test_classes_of_other_names_are_other_classes(frozen_run, distilled, tmp_path):
    """As many as the teacher's are not the same: what finetune and distill leave knows their names."""
    bars, cats = folder_of(tmp_path / "a", ("bar", "disc")), folder_of(tmp_path / "b", ("cat", "dog"))
    short = merge(OPTIONS, {"epochs": 1})
    distill(frozen_run, bars, tmp_path / "fitted", teacher_labels="all", **short)
    for name in ("fitted/encoder.safetensors", f"fitted/{TEACHER}"):
        assert read_header(tmp_path / name)["extra"]["class_names"] == ["bar", "disc"]
    finetune(frozen_run, bars, tmp_path / "tuned", epochs=1, batch=16, training=OPTIONS["training"])
    for teacher in ("fitted", "tuned"):
        with pytest.raises(UserError, match=r"the teacher's classes are bar, disc, those of .*b in their order cat, d"):
            distill(tmp_path / teacher, cats, tmp_path / "run", **short)
        with pytest.raises(UserError, match="in their order cat, dog"):
            distill(tmp_path / teacher, images()[0], tmp_path / "run", test=cats, **short)
    assert distill(tmp_path / "tuned", bars, tmp_path / "same", **short).comparison.teacher_top1 is not None
    assert distill(tmp_path / "tuned", cats, tmp_path / "other", unlabelled=True, **short).complete
    assert read_header(tmp_path / "other" / "encoder.safetensors")["extra"]["class_names"] == ["bar", "disc"]
    assert distill(distilled[1], cats, tmp_path / "unknown", **short).complete, "that teacher's names are not known"


def test_a_fitted_classifier_says_what_its_regression_says():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (rng.normal(5, 3, (60, 4)) + 4 * y[:, None] * np.array([1, -1, 0, 2])).astype(np.float32)
    model, _ = fit_few(x, y)
    logits = classifier_of(model, 3)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(logits, model.logits(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="no labelled image of class 3"):
        classifier_of(model, 4)


def test_a_teachers_classifier_is_fitted_on_the_device_of_the_training(frozen_run):
    given, config = TeacherSource(frozen_run, ArraySource(*images())), DistillConfig(teacher_labels="all")
    with pytest.raises(NotImplementedError, match="meta"):  # the encoder went where it was told
        given.load(config, 3, torch.device("meta"))
    assert given.load(config, 3, torch.device("cpu")).feature_dim == 2


def test_a_changed_teacher_is_an_error(distilled, tmp_path, monkeypatch):
    real = TaughtView.__call__

    def spoil(self, batch):
        self.teacher.net.classifier.bias.data += 1e-3
        return real(self, batch)

    monkeypatch.setattr(TaughtView, "__call__", spoil)
    with pytest.raises(NotFrozenError, match=r"classifier\.bias"):
        distill(distilled[1] / TEACHER, images(), tmp_path / "run", **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "holds no classifier"),
        ({"teacher_labels": "1"}, "label"),
        ({"teacher_labels": "20", "labels": "10"}, "--labels 10 needs --alpha"),
        ({"teacher_labels": "20", "alpha": 1.5}, r"alpha must lie in \[0, 1\]"),
        ({"teacher_labels": "20", "temperature": 0}, "temperature must be above 0"),
        ({"teacher_labels": "20", "alpha": 0.5, "labels": "1"}, "at least one for each of the 2 classes"),
        ({"teacher_labels": "20", "classifier_layer": 1}, "--classifier_layer 1 has no effect with --teacher_labels"),
        ({"teacher_labels": "20", "unlabelled": True, "alpha": 0.5}, "--unlabelled"),
        ({"teacher_labels": "20", "encoder.channels": 1}, "channels"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(frozen_run, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        distill(frozen_run, images(), tmp_path / "run", **merge(OPTIONS, options))
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes(distilled, tmp_path):
    x, y = images()
    three = (x, np.where(np.arange(64) < 6, 2, y))
    with pytest.raises(UserError, match="the teacher knows 2 classes, array has 3"):
        distill(distilled[1] / TEACHER, three, tmp_path / "run", **OPTIONS)
    options = merge(OPTIONS, {"unlabelled": True, "epochs": 1})
    found = distill(distilled[1] / TEACHER, three, tmp_path / "run", **options).comparison
    assert (found.teacher_top1, found.student_top1) == (None, None)


def test_a_teacher_of_other_channels_and_data_without_labels(distilled, frozen_run, tmp_path):
    with pytest.raises(UserError, match=r"teacher takes images of 3 channel\(s\), the data have 1"):
        distill(distilled[1] / TEACHER, images(channels=1), tmp_path / "run", **OPTIONS)
    with pytest.raises(UserError, match="the data have no labels to fit a classifier on"):
        distill(frozen_run, images()[0], tmp_path / "run", teacher_labels="20", **OPTIONS)
    found = distill(distilled[1] / TEACHER, images()[0], tmp_path / "run", **merge(OPTIONS, {"epochs": 1})).comparison
    assert found.teacher_top1 is None


def test_from_the_shell(distilled, tmp_path, capsys):
    x, y = images()
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    words = ["distill", str(distilled[1] / TEACHER), str(tmp_path / "data.npz"), "--out", str(tmp_path / "run")]
    words += as_arguments(merge(OPTIONS, {"epochs": 1}))
    assert cli.main(words) == 0
    assert "on 20 images" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*words[:3], "--temprature", "2"]) == 2
    assert "did you mean '--temperature'" in capsys.readouterr().err


def test_classifier_of_a_file_without_its_layer(frozen_run, tmp_path):
    encoder = twofold.load(frozen_run)
    save_encoder(tmp_path / "t.safetensors", encoder, None, None, Classifier(encoder.feature_dim, 2), None)
    with pytest.raises(UserError, match="--classifier_layer 0"):
        distill(tmp_path / "t.safetensors", images(), tmp_path / "run", **OPTIONS)
    options = merge(OPTIONS, {"epochs": 1, "classifier_layer": 0})
    assert distill(tmp_path / "t.safetensors", images(), tmp_path / "run", **options).complete
