"""Sums of metrics between two rows: in checkpoints, and in those of versions that summed less."""

import pytest
import torch
from tiny import images

import twofold
from twofold.errors import Stopped
from twofold.training import checkpoint
from twofold.training.loop import Training

OPTIONS = {
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"}, "batch": 16, "epochs": 2,
    "views": {"size": 16}, "monitor": {"every": 0}, "data": {"workers": 0},
    "training": {"device": "cpu", "precision": "fp32", "log_every": 4},
}  # fmt: skip


def test_a_checkpoint_with_fewer_sums_goes_on_without_the_mean_that_it_cannot_know(tmp_path, monkeypatch):
    """Divided by all steps of the row, a sum that began later would be too small a mean: a false alarm."""
    whole = twofold.pretrain(images(96), tmp_path / "whole", report=False, **OPTIONS)
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, number: 2 if self.step == 6 else real(self, number))
    with pytest.raises(Stopped):
        twofold.pretrain(images(96), tmp_path / "run", report=False, **OPTIONS)
    monkeypatch.setattr(Training, "agree", real)
    file = tmp_path / "run" / "checkpoints" / "step-000000006.pt"
    state = torch.load(file, weights_only=True)
    assert state["sums"].keys() == {"loss", "steps", "retrieval_auc"}
    del state["sums"]["retrieval_auc"]
    torch.save(state, file)
    assert checkpoint.load_checkpoint(file)["sums"].keys() == {"loss", "steps"}
    run = twofold.pretrain(images(96), tmp_path / "run", report=False, resume=True, **OPTIONS)
    rows, wanted = ([{k: v for k, v in row.items() if k != "seconds"} for row in r.rows()] for r in (run, whole))
    assert "retrieval_auc" in wanted[1]
    assert rows == [{k: v for k, v in row.items() if i != 1 or k != "retrieval_auc"} for i, row in enumerate(wanted)]
