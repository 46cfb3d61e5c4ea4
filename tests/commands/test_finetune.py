"""`twofold finetune` as a user runs it: from a tiny pretrained run to a scored run that can be stopped and resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import OPTIONS, images

import twofold
from twofold.cli import main
from twofold.commands.finetune import finetune
from twofold.data import Order
from twofold.encoders import read_header
from twofold.errors import Stopped, UserError
from twofold.evaluation.frozen import digest
from twofold.evaluation.protocols.imagenet import load_classified
from twofold.runs import finetune as core
from twofold.training.loop import Training

TINY = {"epochs": 2, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}}
TEST = images(40, seed=1)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    head = {"layers": 3, "out_dim": 16}
    options = OPTIONS | {"monitor": {"every": 0}, "head": head}
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **options).path


def weights(path):
    """Of the networks; what prediction knows of the data lies beside them."""
    tensors = load_file(path / "encoder.safetensors")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("prediction.")}


def test_a_few_labels_fine_tune_an_encoder_that_load_and_evaluate_understand(pretrained, tmp_path):
    before = weights(pretrained)
    report = finetune(pretrained, images(), tmp_path / "ft", test=TEST, labels="8/class", from_head=1, **TINY)
    assert report.result.complete
    assert report.result.labels == 16
    assert report.result.steps == 5  # 16 * 2 // 8, and the reference's one more
    saved = json.loads((tmp_path / "ft" / "result.json").read_text())
    assert saved["scores"]["top1"] == report.metrics["top1"]
    assert saved["scores"]["count"] == 40
    assert "output 1 of the projection head; 16 of 64 labels (8/class; seed 0, draw 0)" in saved["text"]
    header = read_header(tmp_path / "ft" / "encoder.safetensors")
    assert header["classifier"] == {"in_dim": 64, "classes": 2, "layer": 1}
    after = weights(tmp_path / "ft")
    assert not torch.equal(after["encoder.conv1.weight"], before["encoder.conv1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in weights(pretrained).items())
    net = load_classified(tmp_path / "ft" / "encoder.safetensors")
    x = torch.from_numpy(TEST[0]).permute(0, 3, 1, 2)
    assert (net(x).argmax(1).numpy() == TEST[1]).mean() == pytest.approx(report.metrics["top1"])
    assert twofold.load(tmp_path / "ft").feature_dim == 64
    assert 0 <= twofold.evaluate(tmp_path / "ft", images(), test=TEST).top1 <= 1
    views = header["extra"]["options"]["views"]
    assert (views["size"], views["color_strength"], views["blur"]) == (16, 0.0, 0.0)


def test_linear_evaluation_by_gradient_descent_leaves_the_encoder_alone(pretrained, tmp_path):
    options = TINY | {"optim": {"lr": 1.0}}
    report = finetune(pretrained, images(), tmp_path / "lin", test=TEST, freeze="encoder", **options)
    before, after = weights(pretrained), weights(tmp_path / "lin")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report.result.digest[0] == report.result.digest[1] == digest(twofold.load(pretrained))
    assert "frozen and in inference mode" in report.result.text


def test_without_augmentation_it_is_a_plain_logistic_regression_on_frozen_features(pretrained, tmp_path):
    """Against a slow loop: Nesterov by its formula, cosine, the run's order of images, features taken once."""
    views = {"crop_area": [1.0, 1.0], "crop_aspect": [1.0, 1.0], "flip": 0.0}
    optim = {"lr": 0.5, "lr_rule": "none", "weight_decay": 0.01, "decay": "all_but_norms"}
    finetune(pretrained, images(), tmp_path / "lin", test=TEST, freeze="encoder", views=views, optim=optim, **TINY)
    x, y = images()
    with torch.no_grad():
        h = twofold.load(pretrained)(torch.from_numpy(x).permute(0, 3, 1, 2)).double()
    h, y = torch.cat([h, torch.ones(64, 1)], dim=1), torch.from_numpy(y)
    w, v, order = torch.zeros(2, 65, dtype=torch.float64), 0.0, Order(64, 8, 0)
    for step in range(17):
        rows = order.indices(step)
        p = (h[rows] @ w.T).softmax(1) - torch.eye(2)[y[rows]]
        g = p.T @ h[rows] / 8 + 0.01 * w
        v = 0.9 * v + g
        w = w - 0.5 * 0.5 * (1 + np.cos(np.pi * step / 17)) * (g + 0.9 * v)
    found = weights(tmp_path / "lin")
    torch.testing.assert_close(found["classifier.weight"].double(), w[:, :64], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found["classifier.bias"].double(), w[:, 64], rtol=1e-3, atol=1e-5)


def test_an_encoder_that_moves_under_freeze_is_an_error(pretrained, tmp_path, monkeypatch):
    """The proof can fail: here the encoder's averages move in spite of --freeze encoder."""
    monkeypatch.setattr(core.Supervised, "train", lambda self, mode=True: torch.nn.Module.train(self, mode))
    with pytest.raises(Exception, match="had to stay frozen"):
        finetune(pretrained, images(), tmp_path / "lin", test=TEST, freeze="encoder", **TINY)


def test_from_scratch_forgets_the_weights_and_is_the_same_for_a_seed(pretrained, tmp_path):
    few = TINY | {"epochs": 1, "labels": "4/class"}
    for name in ("a", "b"):
        finetune(pretrained, images(), tmp_path / name, test=TEST, from_scratch=True, **few)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (a["encoder.conv1.weight"] - weights(pretrained)["encoder.conv1.weight"]).abs().max() > 0.1


def test_a_stopped_run_goes_on_bit_for_bit(pretrained, tmp_path, monkeypatch):
    options = TINY | {"from_head": 1, "layer_decay": 0.8, "training": TINY["training"] | {"checkpoint_every": 3}}
    whole = finetune(pretrained, images(), tmp_path / "whole", test=TEST, **options)
    agree = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: agree(self, asked or self.step == 7))
    with pytest.raises(Stopped, match="stopped at step 7"):
        finetune(pretrained, images(), tmp_path / "cut", test=TEST, **options)
    assert not (tmp_path / "cut" / "result.json").exists()
    monkeypatch.undo()
    cut = finetune(pretrained, images(), tmp_path / "cut", test=TEST, resume=True, **options)
    assert cut.result.scores == whole.result.scores
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(a[name], b[name]) for name in a)
    monkeypatch.setattr(Training, "fit", lambda _: pytest.fail("a run that is done is not trained again"))
    again = finetune(pretrained, images(), tmp_path / "cut", test=TEST, resume=True, **options)
    assert again.result == cut.result
    with pytest.raises(UserError, match=r"--from_head is 0, but the run in .* was started with 1"):
        finetune(pretrained, images(), tmp_path / "cut", test=TEST, resume=True, **(options | {"from_head": 0}))
    with pytest.raises(UserError, match="the data has changed"):
        finetune(pretrained, images(seed=5), tmp_path / "cut", test=TEST, resume=True, **options)


def test_a_run_that_is_done_is_scored_anew_on_other_test_images(pretrained, tmp_path, monkeypatch):
    """The old score is not passed off as theirs; nor for the same images with other labels."""
    options = TINY | {"from_head": 1}
    first = finetune(pretrained, images(), tmp_path / "ft", test=TEST, **options).result
    monkeypatch.setattr(Training, "fit", lambda _: pytest.fail("a run that is done is not trained again"))
    x, y = images(30, seed=7)
    net = load_classified(tmp_path / "ft" / "encoder.safetensors")
    right = net(torch.from_numpy(x).permute(0, 3, 1, 2)).argmax(1).numpy() == y
    other = finetune(pretrained, images(), tmp_path / "ft", test=(x, y), resume=True, **options).result
    assert other.scores.count == 30
    assert other.scores.top1 == pytest.approx(right.mean())
    assert core.FinetuneResult.read(core.RunDirectory(tmp_path / "ft")) == other
    wrong = finetune(pretrained, images(), tmp_path / "ft", test=(x, 1 - y), resume=True, **options).result
    assert wrong.scores.top1 == pytest.approx(1 - right.mean())
    assert finetune(pretrained, images(), tmp_path / "ft", test=TEST, resume=True, **options).result == first


def test_a_list_of_labels_without_a_test_set_trains_on_what_it_names(pretrained, tmp_path):
    """Positions are those of the data as given, not of what is left once some are held out."""
    (tmp_path / "list.txt").write_text("".join(f"{i}\n" for i in range(20, 36)))
    x, y = images()
    options = TINY | {"epochs": 1, "labels": str(tmp_path / "list.txt")}
    found = finetune(pretrained, (x, y), tmp_path / "ft", **options)
    assert (found.result.labels, found.result.scores.count) == (16, 12)
    finetune(pretrained, (x[20:36], y[20:36]), tmp_path / "same", test=TEST, **(options | {"labels": "all"}))
    a, b = weights(tmp_path / "ft"), weights(tmp_path / "same")
    assert all(torch.equal(a[name], b[name]) for name in a)
    listed = twofold.evaluate(pretrained, (x, y), labels=str(tmp_path / "list.txt"))
    assert (listed.train.images, listed.test.images) == (16, 12)


def test_a_mistake_leaves_no_folder_that_stands_in_the_way_of_its_correction(pretrained, tmp_path):
    options = TINY | {"epochs": 1, "labels": "4/class"}
    with pytest.raises(UserError, match="--from_head 7"):
        finetune(pretrained, images(), tmp_path / "ft", test=TEST, from_head=7, **options)
    assert not (tmp_path / "ft").exists()
    assert finetune(pretrained, images(), tmp_path / "ft", test=TEST, from_head=1, **options).result.complete


def test_images_of_many_labels_are_scored_by_mean_average_precision(pretrained, tmp_path):
    rng = np.random.default_rng(0)
    x, y = images()
    many = np.stack([y == 0, y == 1, rng.random(64) < 0.5], axis=1).astype(int)
    x_test, y_test = TEST
    many_test = np.stack([y_test == 0, y_test == 1, rng.random(40) < 0.5], axis=1).astype(int)
    report = finetune(pretrained, (x, many), tmp_path / "voc", test=(x_test, many_test), **(TINY | {"epochs": 10}))
    assert report.result.scores.per_class[0] > 0.6
    assert "mean average precision" in report.text()
    assert core.FinetuneResult.read(core.RunDirectory(tmp_path / "voc")) == report.result


@pytest.mark.parametrize(
    ("data", "test", "options", "told"),
    [
        (images(), (TEST[0], TEST[1] + 1), {}, "classes without a training image: 2"),
        (images(), TEST, {"labels": "1"}, "at least one for each of the 2 classes"),
        (images(), TEST, {"labels": "8", "batch": 16}, "--batch 16: 8 images have a label"),
        (images(), TEST, {"from_head": 4}, "--from_head 4: the run's projection head has 3 layers"),
        (images(), TEST, {"from_scratch": True, "freeze": "encoder"}, "--from_scratch has nothing to keep"),
        (images(), TEST, {"draw": 1}, "--draw 1 has no effect with --labels all"),
        (images(), TEST, {"draw": 1, "labels": "list.txt"}, "--draw 1 has no effect with --labels list.txt"),
        (images(), TEST, {"layer_decay": 1.5}, r"--layer_decay must lie in \(0, 1\]"),
        (images()[0], TEST, {}, "has no labels"),
        ((TEST[0], np.eye(40, dtype=int)), TEST, {}, r"the labels of array have the shape \(40, 40\)"),
        (images(), TEST, {"recipe": "simclr-imagenet-100"}, "is for `twofold pretrain`, not for `twofold finetune`"),
    ],
)
def test_bad_input_is_told_plainly(pretrained, tmp_path, data, test, options, told):
    with pytest.raises(UserError, match=told):
        finetune(pretrained, data, tmp_path / "bad", test=test, **(TINY | options))


def test_a_class_without_a_positive_image_has_no_average_precision(pretrained, tmp_path):
    many = np.stack([TEST[1], np.zeros(40, int)], axis=1)
    with pytest.raises(UserError, match="has no image of 1: average precision"):
        finetune(pretrained, (TEST[0], many), tmp_path / "bad", test=(TEST[0], many), **TINY)


def test_from_the_shell(pretrained, tmp_path, capsys):
    x, y = images()
    np.savez(tmp_path / "data.npz", images=x, labels=y)
    words = [
        "finetune",
        str(pretrained),
        str(tmp_path / "data.npz"),
        "--epochs",
        "1",
        "--batch",
        "8",
        "--from-head",
        "1",
    ]
    assert main(words) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "cli"), "--labels", "50%"]) == 0
    assert "26 labels" in (out := capsys.readouterr().out)  # half of 52: a fifth of each class is held out
    assert "12 test images" in out
