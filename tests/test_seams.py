"""Options reach what is built from them, each under its own name: methods, optimisers, schedules, the loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sound_files import RATE
from twofold.commands.pretrain import pretrain
from twofold.encoders import EncoderConfig, SpeechEncoder, build_encoder
from twofold.heads import HeadConfig
from twofold.methods import Method, MethodConfig, MoCo, SimCLR, SpeechSimCLR
from twofold.optim import OptimConfig, WarmupCosine, build_optimizer, build_schedule
from twofold.optim.other_schedules import Constant, EpochCosine, InverseSqrt, StepDecay
from twofold.training.loop import Training

HEAD = HeadConfig(kind="nonlinear", layers=3, out_dim=12, hidden_dim=20, norm=True)

# Options that no default equals, and where the method has each. What one method cannot have together has cases apart.
METHODS: list[tuple[MethodConfig, dict[str, str]]] = [
    (SimCLR.Config(temperature=0.37, normalize=False, scale="simclr_sum2"), {}),
    (SimCLR.Config(temperature=0.37, memory=48, memory_momentum=0.7, scale="simclr_sum2"),
     {"memory": "queue.size", "memory_momentum": "momentum"}),
    (SimCLR.Config(temperature=0.37, normalize=False, loss="nt_logistic", negatives="sum"), {"negatives": "reduction"}),
    (SimCLR.Config(temperature=0.37, normalize=False, loss="margin_triplet", margin=0.3, mining="semi_hard"), {}),
    (MoCo.Config(temperature=0.37, queue=48, momentum=0.7, symmetric=True, bn_splits=2, shuffle=False),
     {"queue": "queue.size"}),
    (SpeechSimCLR.Config(
        temperature=0.37, contrastive_weight=0.6, reconstruction_weight=0.4, mask_share=0.3, mask_span=5, time_mask=41,
        frequency_mask=0.11, mask_rule="released", reconstruction_scale="released", target="masked"), {}),
]  # fmt: skip


def build(config: MethodConfig, seed: int = 5) -> Method:
    if isinstance(config, SpeechSimCLR.Config):
        encoder = SpeechEncoder(sample_rate=RATE, mels=20, low_hz=60.0, width=32, layers=1, heads=4, hidden=64)
        return config.build(encoder, HEAD, seed)
    return config.build(build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar"), 16), HEAD, seed)


def given(config: Any) -> dict[str, Any]:
    """The options that are not at their default."""
    return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}


def at(thing: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), thing)


@pytest.mark.parametrize(("config", "names"), METHODS)
def test_every_option_of_a_method_reaches_it(config: MethodConfig, names: Mapping[str, str]) -> None:
    method = build(config)
    assert {name: at(method, names.get(name, name)) for name in given(config)} == given(config)
    head: Any = method.head
    assert head.config == HEAD
    assert head.widths[1:] == [20, 20, 12]


def test_no_option_of_a_method_is_left_out() -> None:
    tried = {type(config): set[str]() for config, _ in METHODS}
    for config, _ in METHODS:
        tried[type(config)] |= given(config).keys()
    for kind, names in tried.items():
        assert names >= {f.name for f in fields(kind)} - {"name"}, kind.__qualname__  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [METHODS[1][0], METHODS[4][0]])
def test_the_seed_of_a_run_reaches_the_queue(config: MethodConfig) -> None:
    one, again, other = (at(build(config, seed), "queue.keys") for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


BOTH = {"lr": 0.25, "weight_decay": 0.03}
OPTIMIZERS: list[tuple[OptimConfig, dict[str, Any]]] = [
    (OptimConfig("lars", 0.25, "none", 0.03, momentum=0.8, nesterov=True, eta=0.02),
     {**BOTH, "momentum": 0.8, "nesterov": True, "eta": 0.02, "adapt": True}),
    (OptimConfig("sgd", 0.25, "none", 0.03, momentum=0.8, nesterov=True), {**BOTH, "momentum": 0.8, "nesterov": True}),
    (OptimConfig("sgd", 0.25, "none", 0.03, momentum=0.8, nesterov=True, momentum_rule="keras"),
     {**BOTH, "momentum": 0.8, "nesterov": True, "adapt": False}),
    *((OptimConfig(name, 0.25, "none", 0.03, betas=(0.8, 0.95), eps=1e-4), {**BOTH, "betas": (0.8, 0.95), "eps": 1e-4})
      for name in ("adam", "adamw", "lamb")),
    (OptimConfig("lars", 0.25), {"lr": 0.25 * 64 / 256, "momentum": 0.9, "nesterov": False, "eta": 0.001,
                                 "weight_decay": 1e-6}),
    (OptimConfig("lamb", 0.25), {"lr": 0.25, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}),
    (OptimConfig("sgd", 0.25, "sqrt"), {"lr": 0.25 * 8, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), OPTIMIZERS)
def test_every_option_of_an_optimiser_reaches_it(config: OptimConfig, expected: dict[str, Any]) -> None:
    if config.name == "lamb":
        pytest.importorskip("timm")
    first, second = build_optimizer(config, nn.Linear(3, 2), 64).param_groups
    assert {name: first[name] for name in expected} == expected
    alike = expected.keys() - {"weight_decay", "adapt"}
    assert {name: second[name] for name in alike} == {name: expected[name] for name in alike}
    assert second["weight_decay"] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"warmup_epochs": 2.0}, WarmupCosine(0.25, 50, 130)),  # 1,600 images in batches of 64: 25 steps an epoch
        ({"warmup_steps": 7}, WarmupCosine(0.25, 7, 130)),
        ({}, WarmupCosine(0.25, 12, 130)),
        ({"schedule": "constant", "warmup_steps": 7}, Constant(0.25, 7)),
        ({"schedule": "constant"}, Constant(0.25, 0)),
        ({"schedule": "inverse_sqrt", "warmup_epochs": 2.0}, InverseSqrt(0.25, 50)),
        ({"schedule": "inverse_sqrt"}, InverseSqrt(0.25, 12)),
        ({"schedule": "step", "milestones": (2, 3), "factor": 0.3}, StepDecay(0.25, (2, 3), 25, 0.3)),
        ({"schedule": "step", "milestones": (2, 3)}, StepDecay(0.25, (2, 3), 25, 0.1)),
        ({"schedule": "cosine_epoch", "first_epoch": 1}, EpochCosine(0.25, 5.0, 25, 1)),
        ({"schedule": "cosine_epoch"}, EpochCosine(0.25, 5.0, 25, 0)),
    ],
)
def test_every_option_of_a_schedule_reaches_it(options: dict[str, Any], expected: Any) -> None:
    assert build_schedule(OptimConfig("sgd", 0.25, **options), 1600, 64, 5.0, 130) == expected


def test_without_a_number_of_steps_the_schedule_ends_as_the_references_does() -> None:
    assert build_schedule(OptimConfig("sgd", 0.25, warmup_steps=7), 1600, 64, 5.0) == WarmupCosine(0.25, 7, 126)


class Built(Exception):
    """A run is built, and not trained."""


RUN: dict[str, Any] = {
    "epochs": 4.0, "batch": 8, "seed": 3, "views": {"size": 12}, "monitor": {"every": 0}, "head": {"out_dim": 12},
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"},
    "optim": {"name": "sgd", "lr": 0.25, "warmup_steps": 3, "weight_decay": 0.03},
    "training": {"device": "cpu", "precision": "fp32", "keep": 5, "patience": 33.0, "checkpoint_minutes": 9.0,
                 "log_every": 2, "checkpoint_every": 7},
}  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3), dtype=np.uint8)


def test_every_option_of_a_run_reaches_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[Training[Any, Any]] = []

    def built(self: Training[Any, Any]) -> bool:
        loops.append(self)
        raise Built

    monkeypatch.setattr(Training, "fit", built)
    data = {"last_batch": "drop", "workers": 2}
    with pytest.raises(Built):
        pretrain(IMAGES, tmp_path / "run", report=False, data=data, bn_momentum=0.4, **RUN)
    loop = loops[0]
    expected = {
        "seed": 3, "batch": 8, "steps": 12, "steps_per_epoch": 3, "size": 12, "ends": [12], "log_every": 2,
        "checkpoint_every": 7, "keep": 5, "patience": 33.0, "checkpoint_minutes": 9.0,
        "schedule": WarmupCosine(0.25, 3, 12), "loader.seed": 3, "loader.order.seed": 3, "loader.order.batch": 8,
        "loader.order.rule": "drop", "loader.order.n": 24, "loader.workers": 2, "loader.views.config.size": 12,
        "method.head.out_dim": 12,
    }  # fmt: skip
    assert {name: at(loop, name) for name in expected} == expected
    assert {m.momentum for m in loop.method.modules() if hasattr(m, "running_mean")} == {0.4}
    assert loop.optimizer.param_groups[0]["weight_decay"] == 0.03
    weight: Any = next(p for p in loop.method.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_each_step_is_taken_at_its_own_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step k, from 0, at schedule(k); the row after it tells that rate."""
    used: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD, *args: Any, **more: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    options = {**RUN, "training": {**RUN["training"], "log_every": 1}}
    pretrain(IMAGES, tmp_path / "run", report=False, data={"last_batch": "drop", "workers": 1}, **options)
    planned = [WarmupCosine(0.25, 3, 12)(k) for k in range(12)]
    assert used == planned
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["lr"] for row in rows] == planned
