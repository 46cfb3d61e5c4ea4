"""`twofold pretrain` with MoCo: metrics against their own level of chance, and resumed bit for bit with the queue."""

import numpy as np
import pytest
import torch
from test_pretrain import learned, same_weights
from tiny import OPTIONS, images

import twofold
from twofold.commands.pretrain import Stopped
from twofold.errors import UserError
from twofold.training.config import merge
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
    row = whole.metrics()[-1]
    assert row["negatives"] == 40
    assert row["chance"] == pytest.approx(2 * np.log(41))
    assert {"knn_top1", "probe_top1"} <= row.keys()
    assert twofold.load(whole.path).feature_dim > 0


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
    row = twofold.pretrain(images(), tmp_path / "run", report=False, **options).metrics()[-1]
    assert row["chance"] == pytest.approx(np.log(41))
    assert "probe_top1" in row


def test_what_is_left_open_is_chosen_from_the_data(tmp_path):
    options = {key: value for key, value in MOCO.items() if key != "method"}
    run = twofold.pretrain(
        images(), tmp_path / "run", report=False, **merge(options, {"method.name": "moco", "epochs": 1})
    )
    assert run.read()[0].head.norm is False
    method = run.read()[0].method
    assert (method.queue, method.momentum, method.bn_splits) == (32, 0.99, 1)


def test_a_queue_too_small_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"--method\.queue 20"):
        twofold.pretrain(images(), tmp_path / "run", **merge(MOCO, {"method.queue": 20}))
    assert not (tmp_path / "run" / "config.yaml").exists()
