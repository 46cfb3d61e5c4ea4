"""Classes with few examples in fine-tuning and linear evaluation: drawn as often, or counted as much, as others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import OPTIONS, images

import twofold
from sound_files import speech_folder
from twofold.cli import main
from twofold.commands.finetune import finetune
from twofold.data.batches.balanced import BalancedDraws
from twofold.encoders import SpeechEncoder, save_encoder
from twofold.errors import Stopped, UserError
from twofold.training.loop import Training

TINY = {"epochs": 2, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}}
PLAIN = {"views": {"crop_area": [1.0, 1.0], "crop_aspect": [1.0, 1.0], "flip": 0.0}}


def uneven(seed=0):
    """48 bars and 8 discs."""
    x, y = images(96, seed=seed)
    kept = np.sort(np.r_[np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:8]])
    return x[kept], y[kept]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    options = OPTIONS | {"monitor": {"every": 0}}
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **options).path


def classifier(path):
    return load_file(path / "encoder.safetensors")["classifier.weight"].double()


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"sampling": "balanced"}, [1.0, 1.0]),
        ({"class_weights": "balanced"}, [56 / 96, 56 / 16]),
        ({"class_weights": [1.0, 4.0]}, [56 / 80, 4 * 56 / 80]),
        ({"sampling": "balanced", "class_weights": [1.0, 4.0]}, [56 / 80, 4 * 56 / 80]),
    ],
)
def test_it_is_the_logistic_regression_that_is_asked_for(run, tmp_path, options, weights):
    """Against a slow loop: features taken once, Nesterov by its formula, weights and order by theirs."""
    x, y = uneven()
    optim = {"lr": 0.5, "lr_rule": "none", "weight_decay": 0.01, "decay": "all_but_norms"}
    report = finetune(
        run,
        (x, y),
        tmp_path / "lin",
        test=images(24, seed=1),
        freeze="encoder",
        optim=optim,
        **PLAIN,
        **TINY,
        **options,
    )
    with torch.no_grad():
        h = twofold.load(run)(torch.from_numpy(x).permute(0, 3, 1, 2)).double()
    h, y = torch.cat([h, torch.ones(56, 1)], dim=1), torch.from_numpy(y)
    order = BalancedDraws(y.numpy(), 0) if "sampling" in options else None
    w, v, each = torch.zeros(2, 65, dtype=torch.float64), 0.0, torch.tensor(weights).double()
    for step in range(15):
        plain = twofold.data.Order(56, 8, 0).indices(step)
        rows = plain if order is None else order.entries(8 * step, 8 * step + 8)
        p = (h[rows] @ w.T).softmax(1) - torch.eye(2)[y[rows]]
        g = (each[y[rows], None] * p).T @ h[rows] / 8 + 0.01 * w
        v = 0.9 * v + g
        w = w - 0.5 * 0.5 * (1 + np.cos(np.pi * step / 15)) * (g + 0.9 * v)
    torch.testing.assert_close(classifier(tmp_path / "lin"), w[:, :64], rtol=1e-3, atol=1e-5)
    assert ("as many examples of each class drawn" in report.result.text) == ("sampling" in options)
    assert ("classes weighted" in report.result.text) == ("class_weights" in options)


def test_a_stopped_run_goes_on_bit_for_bit(run, tmp_path, monkeypatch):
    options = TINY | {"sampling": "balanced", "class_weights": [1.0, 2.0]}
    options |= {"training": TINY["training"] | {"checkpoint_every": 3}}
    finetune(run, uneven(), tmp_path / "whole", test=uneven(1), **options)
    agree = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: agree(self, asked or self.step == 7))
    with pytest.raises(Stopped):
        finetune(run, uneven(), tmp_path / "cut", test=uneven(1), **options)
    monkeypatch.undo()
    finetune(run, uneven(), tmp_path / "cut", test=uneven(1), resume=True, **options)
    a, b = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(UserError, match=r"--sampling is 'uniform', but the run in .* was started with 'balanced'"):
        finetune(run, uneven(), tmp_path / "cut", test=uneven(1), resume=True, **options | {"sampling": "uniform"})


def test_results_tell_recalls_where_classes_are_uneven(run, tmp_path, capsys):
    x, y = uneven(1)
    np.savez(tmp_path / "a.npz", x_train=uneven()[0], y_train=uneven()[1], x_test=x, y_test=y)
    words = [str(run), str(tmp_path / "a.npz")]
    assert main(["evaluate", *words, "--class-weights", "balanced"]) == 0
    said = capsys.readouterr().out
    assert "balanced accuracy (mean per class)" in said
    assert "recall of each class: " in said
    assert "classes weighted inversely to their numbers" in said
    report = twofold.evaluate(*words, class_weights=[1.0, 6.0])
    assert set(report.scores.recall) == {"0", "1"}
    assert type(report).from_json(report.to_json()).scores.recall == report.scores.recall
    assert report.scores.mean_per_class == pytest.approx(np.mean(list(report.scores.recall.values())))
    more = ["--out", str(tmp_path / "ft"), "--class_weights", "[1, 6]", "--epochs", "1", "--training.device", "cpu"]
    assert main(["finetune", *words, *more]) == 0
    assert "recall of each class: " in capsys.readouterr().out
    saved = json.loads((tmp_path / "ft" / "result.json").read_text())["scores"]
    assert saved["support"] == {"0": 48, "1": 8}
    again = finetune(
        *words, tmp_path / "ft", resume=True, class_weights=[1.0, 6.0], epochs=1.0, training={"device": "cpu"}
    )
    assert again.result.scores.recall == saved["recall"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sampling": "balanced", "class_weights": "balanced"}, "--class_weights balanced with --sampling balanced"),
        ({"class_weights": [1.0, 2.0, 3.0]}, r"has 3 weights, and the data have 2 classes: give one for each"),
        ({"class_weights": [1.0, 0.0]}, r"--class_weights \[1.0, 0.0\]: give balanced, or a number above 0"),
        ({"class_weights": "even"}, "class_weights"),
        ({"sampling": "sometimes"}, "sampling"),
    ],
)
def test_what_cannot_be_asked_of_fine_tuning(run, tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        finetune(run, uneven(), tmp_path / "ft", test=uneven(1), **TINY, **options)
    assert not (tmp_path / "ft").exists()


@pytest.mark.parametrize("option", [{"sampling": "balanced"}, {"class_weights": "balanced"}, {"class_weights": [1, 2]}])
def test_several_labels_an_image_have_no_classes_to_balance(run, tmp_path, option):
    x, y = images()
    many = x, np.stack([y, 1 - y], axis=1)
    name = next(iter(option))
    with pytest.raises(UserError, match=rf"--{name} .* is for one class an image, and array has several labels"):
        finetune(run, many, tmp_path / "ft", test=many, **TINY, **option)


@pytest.mark.parametrize("protocol", ["knn", "ctc", "verification", "imagenet"])
def test_protocols_without_a_weighted_loss_refuse_weights(run, protocol):
    with pytest.raises(UserError, match=rf"--class_weights balanced has no effect with --protocol {protocol}"):
        twofold.evaluate(run, uneven(), protocol=protocol, class_weights="balanced")


def test_evaluation_refuses_another_number_of_weights(run):
    with pytest.raises(UserError, match=r"--class_weights \[1.0\] has 1 weight, and the data have 2 classes"):
        twofold.evaluate(run, uneven(), class_weights=[1.0])


def test_recordings(tmp_path):
    data = speech_folder(tmp_path / "clips", 2, 10)
    for i in range(6):
        (data / "word1" / f"{i}.wav").unlink()
    encoder = tmp_path / "encoder.safetensors"
    save_encoder(encoder, SpeechEncoder(8000, 20, 60.0, width=16, layers=1, heads=2, hidden=32))
    for options in ({"sampling": "balanced"}, {"class_weights": "balanced"}):
        path = tmp_path / next(iter(options))
        report = finetune(encoder, data, path, test=data, **TINY | {"batch": 4}, **options)
        assert report.result.complete
        assert set(report.result.scores.recall) == {"word0", "word1"}
    for protocol in ("linear", "weighted"):
        found = twofold.evaluate(encoder, data, test=data, protocol=protocol, class_weights="balanced")
        assert "classes weighted inversely to their numbers" in found.words
