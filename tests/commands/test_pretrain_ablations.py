"""The paper's ablations through `pretrain`: losses, heads and operators are chosen by options and train."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_pretrain_distributed import on_processes
from tiny import OPTIONS, images

import twofold
from twofold.encoders import build_encoder
from twofold.errors import Stopped, UserError
from twofold.heads import HeadConfig
from twofold.losses import margin_triplet, nt_logistic, nt_xent
from twofold.methods import Inputs, SimCLR
from twofold.options import merge
from twofold.runs.config import RunConfig, build
from twofold.training.loop import Training

SHORT = merge(OPTIONS, {"epochs": 2, "monitor.every": 0})
OPERATORS = ["crop", "color", {"name": "noise", "sigma": [0.0, 0.2]}, "cutout"]
FIGURE_5 = {"views": {"operators": OPERATORS, "operators_on": "first", "shared_crop": True, "color_strength": 0.0,
                      "blur": 0.0}}  # fmt: skip

LOSSES: dict[str, tuple[dict[str, Any], Any, float]] = {
    "logistic": ({"loss": "nt_logistic"}, lambda a, b: nt_logistic(a, b, 0.3), 2 * math.log(2)),
    "logistic, sum": (
        {"loss": "nt_logistic", "negatives": "sum"},
        lambda a, b: nt_logistic(a, b, 0.3, negatives="sum"),
        6 * math.log(2),
    ),
    "logistic, semi-hard": (
        {"loss": "nt_logistic", "mining": "semi_hard"},
        lambda a, b: nt_logistic(a, b, 0.3, mining="semi_hard"),
        2 * math.log(2),
    ),
    "triplet": ({"loss": "margin_triplet"}, lambda a, b: margin_triplet(a, b, 0.8), 0.8),
    "triplet, semi-hard": (
        {"loss": "margin_triplet", "mining": "semi_hard", "margin": 0.4},
        lambda a, b: margin_triplet(a, b, 0.4, mining="semi_hard"),
        0.4,
    ),
    "triplet by inner product": (
        {"loss": "margin_triplet", "normalize": False, "margin": 1.6, "negatives": "sum"},
        lambda a, b: margin_triplet(a, b, 1.6, False, negatives="sum"),
        8.0,
    ),
    "NT-Xent by inner product": (
        {"normalize": False},
        lambda a, b: nt_xent(a, b, 0.3, False),
        math.log(11),
    ),
    "NT-Xent, the code's scale": (
        {"scale": "simclr_sum2"},
        lambda a, b: 2 * nt_xent(a, b, 0.3),
        2 * math.log(11),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_options_choose_the_loss(name: str) -> None:
    options, loss, chance = LOSSES[name]
    config = build({"encoder": {**OPTIONS["encoder"], "channels": 3}})
    torch.manual_seed(0)
    method = SimCLR.Config(temperature=0.3, **options).build(build_encoder(config.encoder, 16), HeadConfig())
    output = method(Inputs(torch.rand(6, 3, 16, 16), torch.rand(6, 3, 16, 16)))
    torch.testing.assert_close(output.loss.detach(), loss(output.z_a, output.z_b), rtol=1e-6, atol=1e-6)
    assert method.chance(6) == pytest.approx(chance)
    assert method.negatives(6) == (10 if name.startswith("NT-Xent") else 5)
    output.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"method": {"loss": "nt_logistic", "mining": "semi_hard"}},
        {"method": {"loss": "margin_triplet", "margin": 0.4}, "head": {"kind": "none"}},
        {"head": {"kind": "linear", "out_dim": 32}},
        {"views": {"brightness_rule": "additive"}, "method": {"scale": "simclr_sum2", "normalize": False}},
    ],
    ids=["semi-hard logistic", "triplet, no head", "linear head", "additive brightness, other scale"],
)
def test_it_trains(tmp_path: Path, options: dict[str, Any]) -> None:
    run = twofold.pretrain(images(), tmp_path / "run", report=False, **merge(SHORT, options))
    rows = run.rows()
    assert rows[-1]["step"] == 9
    assert all(np.isfinite(row["loss"]) for row in rows)
    kept = load_file(run.encoder_file)
    size = options.get("head", {}).get("out_dim", 16)
    heads = [tensor for name, tensor in kept.items() if "head" in name and tensor.ndim == 2]
    assert (not heads) if options.get("head", {}).get("kind") == "none" else heads[-1].shape[0] == size


def test_a_study_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = merge(SHORT, FIGURE_5)
    whole = twofold.pretrain(images(), tmp_path / "whole", **options)
    assert whole.read(RunConfig)[0].views.operators == tuple(OPERATORS)
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, _asked: self.step == 5)
    with pytest.raises(Stopped):
        twofold.pretrain(images(), tmp_path / "run", report=False, **options)
    monkeypatch.setattr(Training, "agree", real)
    run = twofold.pretrain(images(), tmp_path / "run", report=False, resume=True, **options)
    a, b = load_file(whole.encoder_file), load_file(run.encoder_file)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [row["loss"] for row in whole.rows()] == [row["loss"] for row in run.rows()]


def test_two_processes_see_the_draws_of_one(tmp_path: Path) -> None:
    words = ["--views.operators", "[crop, color, {name: noise, sigma: [0, 0.2]}]", "--views.operators_on", "first",
             "--views.shared_crop", "true", "--views.color_strength", "0", "--views.blur", "0"]  # fmt: skip
    one, two = on_processes(tmp_path, [*words, "--method.loss", "nt_logistic", "--monitor.every", "0"])
    for mine, theirs in zip(one.rows(), two.rows(), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    a, b = load_file(one.encoder_file), load_file(two.encoder_file)
    assert max(float((a[key].float() - b[key].float()).abs().max()) for key in a) < 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mining": "semi_hard"}, ["mining", "nt_xent"]),
        ({"margin": 0.4}, ["margin", "nt_xent"]),
        ({"negatives": "sum"}, ["negatives", "nt_xent"]),
        ({"loss": "nt_logistic", "margin": 0.4}, ["margin", "margin_triplet"]),
        ({"loss": "nt_logistic", "scale": "simclr_sum2"}, ["scale", "nt_logistic"]),
        ({"loss": "margin_triplet", "margin": -1.0}, ["margin", "-1"]),
        ({"loss": "margin_triplet", "margin": 0.0, "mining": "semi_hard"}, ["margin", "above 0"]),
        ({"loss": "margin_triplet", "negatives": "sum", "mining": "semi_hard"}, ["negatives", "semi_hard"]),
        ({"name": "moco", "loss": "nt_logistic"}, ["loss", "moco", "simclr"]),
        ({"loss": "infonce"}, ["loss", "infonce", "margin_triplet"]),
    ],
)
def test_what_would_have_no_effect_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build({"method": options})
    assert all(word in str(caught.value) for word in words), caught.value
