"""`twofold pretrain` with MoCo: metrics against their own level of chance, and resumed bit for bit with the queue."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import learned, same_weights
from tiny import OPTIONS, images

import twofold
from twofold import recipe as recipes
from twofold.commands.finetune import finetune
from twofold.encoders import load_head, save_encoder
from twofold.encoders.composed import EncoderWithHead
from twofold.errors import Stopped, UserError
from twofold.evaluation import monitors
from twofold.evaluation.frozen import digest
from twofold.evaluation.protocols.knn import knn_accuracy
from twofold.optim import build_schedule
from twofold.options import OptionsParser, merge
from twofold.runs.config import FinetuneConfig, RunConfig
from twofold.training.loop import Training

MOCO = merge(
    OPTIONS,
    {
        "method": {"name": "moco", "queue": 40, "momentum": 0.9, "bn_splits": 2, "symmetric": True},
    },
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run trained without a stop: a queue of 40 at 32 keys a step is gone round in steps of no whole number."""
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "whole", **MOCO)


def checkpoint(run):
    return torch.load(run.latest(), weights_only=True)["method"]


def test_metrics_know_the_queue(whole):
    row = whole.rows()[-1]
    assert row["negatives"] == 40
    assert row["chance"] == pytest.approx(2 * np.log(41))
    assert {"knn_top1", "probe_top1"} <= row.keys()
    assert twofold.load(whole.path).feature_dim > 0


def test_the_level_of_chance_and_the_rise_are_told(tmp_path, capsys):
    options = merge(MOCO, {"epochs": 1, "monitor.every": 0, "method.symmetric": False})
    run = twofold.pretrain(images(), tmp_path / "run", **options)
    assert "the loss of chance is ln(K + 1) = 3.71 (K = 40 keys); a run starts below it and rises first" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert "3.71 = ln(K + 1), K = 40; the loss rises first" in (run.path / "report.html").read_text()


@pytest.mark.parametrize(("features", "probe"), [("h", False), ("z", True), ("z", False)])
def test_neighbours_are_compared_by_what_was_asked(whole, tmp_path, monkeypatch, features, probe):
    """The monitor's last look sees the very h or z of the weights that were saved (1e-5: other batches)."""
    looks = []

    def watched(*told):
        looks.append(told)
        return knn_accuracy(*told)

    monkeypatch.setattr(monitors, "knn_accuracy", watched)
    wanted = {"knn_features": features, "knn_k": 9, "knn_temperature": 0.3, "probe": probe, "every": 4}
    run = twofold.pretrain(images(), tmp_path / "run", report=False, **merge(MOCO, {"monitor": wanted}))
    assert same_weights(run, whole)
    x, labels = images()
    bank, queries = monitors.hold_out(labels, MOCO["seed"], 0.1, 5000)
    with torch.no_grad():
        f = twofold.load(run.path)(torch.as_tensor(x).permute(0, 3, 1, 2))
        f = load_head(run.encoder_file)(f) if features == "z" else f
    for found, expected in zip(looks[-1][:4], (f[bank], labels[bank], f[queries], labels[queries]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert looks[-1][4:] == (9, 0.3)
    assert ("probe_top1" in run.rows()[-1]) == probe


def test_mocos_linear_evaluation_is_main_lincls(whole, tmp_path):
    """lr 30, a tenth of it from epochs 60 and 80 on, batch 256, no decay; the encoder stays as it is, bit for bit."""
    options = OptionsParser(FinetuneConfig).build(recipes.load("linear-moco").options)
    optim = options.optim
    assert (options.batch, options.epochs, options.freeze, options.init) == (256, 100, "encoder", "normal")
    assert (optim.name, optim.momentum, optim.nesterov, optim.weight_decay) == ("sgd", 0.9, False, 0)
    schedule = build_schedule(optim, images=2560, batch=256, epochs=100)
    assert [schedule(10 * epoch) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx([30, 30, 3, 3, 0.3, 0.3])
    small = {"epochs": 2, "batch": 16, "views.size": 16, "preprocessing": "none"}
    done = finetune(whole.path, images(), tmp_path / "out", recipe="linear-moco", **merge(small))
    before, after = load_file(whole.encoder_file), load_file(done.path / "encoder.safetensors")
    body = [name for name in before if name.startswith("encoder.")]
    assert len(body) > 40
    assert all(torch.equal(before[name], after[name]) for name in body)
    assert any(name.startswith("classifier.") for name in after)


def test_evaluate_takes_the_head_where_asked(whole):
    x, y = images(40, seed=1)
    found = twofold.evaluate(whole.path, images(), test=(x, y), protocol="knn", k=9, features="z")
    head = load_head(whole.encoder_file)
    assert found.feature_dim == head.out_dim == 16
    assert "features are z" in found.words
    assert found.digest == digest(EncoderWithHead(twofold.load(whole.path), head, head.out_dim))
    assert twofold.evaluate(whole.path, images(), test=(x, y), protocol="knn", k=9).feature_dim == 512 // 8
    bare = whole.path / "bare.safetensors"
    save_encoder(bare, twofold.load(whole.path))
    with pytest.raises(UserError, match=r"--features z: .* holds no projection head"):
        twofold.evaluate(bare, images(), protocol="knn", features="z")


@pytest.mark.parametrize("stop_at", [1, 7])
def test_stopped_and_resumed_it_is_the_same_run(whole, tmp_path, monkeypatch, stop_at):
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: self.step == stop_at or real(self, asked))
    with pytest.raises(Stopped, match="--resume"):
        twofold.pretrain(images(), tmp_path / "run", **MOCO)
    monkeypatch.setattr(Training, "agree", real)
    run = twofold.pretrain(images(), tmp_path / "run", resume=True, **MOCO)
    assert same_weights(whole, run)
    assert learned(whole) == learned(run)
    first, second = checkpoint(whole), checkpoint(run)
    assert first["_extra_state"] == second["_extra_state"] == {"steps": 17}
    for name in first.keys() - {"_extra_state"}:
        assert torch.equal(first[name], second[name]), name


def test_the_asymmetric_loss_is_watched_by_the_view_that_was_encoded(tmp_path):
    options = merge(MOCO, {"method.symmetric": False, "epochs": 1})
    row = twofold.pretrain(images(), tmp_path / "run", report=False, **options).rows()[-1]
    assert row["chance"] == pytest.approx(np.log(41))
    assert "probe_top1" in row


def test_what_is_left_open_is_chosen_from_the_data(tmp_path):
    options = {key: value for key, value in MOCO.items() if key != "method"}
    run = twofold.pretrain(
        images(), tmp_path / "run", report=False, **merge(options, {"method.name": "moco", "epochs": 1})
    )
    config = run.read(RunConfig)[0]
    assert config.head.norm is True  # so short a run has a key encoder that follows fast
    method = config.method
    assert (method.queue, method.momentum, method.symmetric, method.bn_splits) == (64, 0.0, True, 1)


def test_a_queue_too_small_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"--method\.queue 20"):
        twofold.pretrain(images(), tmp_path / "run", **merge(MOCO, {"method.queue": 20}))
    assert not (tmp_path / "run" / "config.yaml").exists()
