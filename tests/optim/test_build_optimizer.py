"""From options to optimisers and schedules; options that would do nothing are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from twofold.errors import UserError
from twofold.heads import Classifier
from twofold.optim import LARS, OptimConfig, WarmupCosine, build_optimizer, build_schedule


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), Classifier(4, 3))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """Steps along given gradients (a bias before batch norm has none but rounding, which Adam would blow up)."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize(
    ("config", "kind", "group"),
    [
        (OptimConfig("lars", 0.3), LARS, {"lr": 4.8, "momentum": 0.9, "eta": 0.001, "nesterov": False}),
        (OptimConfig("lars", 0.075, "sqrt"), LARS, {"lr": 4.8, "weight_decay": 1e-6}),
        (OptimConfig("lars", 1.0, "none", eta=0.02, momentum=0.8, nesterov=True), LARS, {"eta": 0.02, "momentum": 0.8}),
        (OptimConfig("sgd", 0.03), torch.optim.SGD, {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4}),
        (OptimConfig("sgd", 0.1, "linear", momentum=0.0), torch.optim.SGD, {"lr": 1.6, "momentum": 0.0}),
        (OptimConfig("sgd", 0.1, momentum_rule="torch"), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (OptimConfig("sgd", 0.1, momentum_rule="keras"), LARS, {"lr": 0.1, "adapt": False, "weight_decay": 1e-4}),
        (OptimConfig("adam", 1e-3), torch.optim.Adam, {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-4}),
        (OptimConfig("adamw", 1e-3), torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}),
        (OptimConfig("adamw", 1e-3, betas=(0.8, 0.95), eps=1e-6), torch.optim.AdamW, {"betas": (0.8, 0.95)}),
    ],
)
def test_options_reach_the_optimiser(config: OptimConfig, kind: type, group: dict[str, Any]) -> None:
    module = net()
    optimizer = build_optimizer(config, module, batch=4096)
    assert type(optimizer) is kind
    for name, value in group.items():
        assert optimizer.param_groups[0][name] == pytest.approx(value)
    step(module, optimizer)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_momentum_rules_part_where_the_rate_changes(nesterov: bool) -> None:
    """keras: v = m v - lr g, and w += v, or w += m v - lr g with Nesterov; torch: v = m v + g, and w -= lr v."""
    rates, m, ends = (0.1, 0.1, 0.01), 0.9, {}
    for rule in ("keras", "torch"):
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        config = OptimConfig("sgd", 0.1, weight_decay=0.0, nesterov=nesterov, momentum_rule=rule)
        optimizer = build_optimizer(config, module, 256)
        w, v = module.weight.detach().clone(), torch.zeros(2, 3)
        generator = torch.Generator().manual_seed(1)
        for lr in rates:
            module.weight.grad = g = torch.randn(2, 3, generator=generator)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            if rule == "keras":
                v = m * v - lr * g
                w = w + (m * v - lr * g if nesterov else v)
            else:
                v = m * v + g
                w = w - lr * (m * v + g if nesterov else v)
        torch.testing.assert_close(module.weight.detach(), w)
        ends[rule] = w
    assert (ends["keras"] - ends["torch"]).abs().max() > 0.01


def test_adam_adds_the_decay_to_the_gradient_and_adamw_does_not() -> None:
    """With no other gradient Adam's step is lr whatever the decay is, AdamW's is lr * decay * w."""
    for name, expected in (("adam", lambda w: w - 0.1 * w.sign()), ("adamw", lambda w: w - 0.1 * 0.5 * w)):
        module = nn.Linear(3, 2, bias=False)
        before = module.weight.detach().clone()
        optimizer = build_optimizer(OptimConfig(name, 0.1, weight_decay=0.5), module, 256)  # type: ignore[arg-type]
        module.weight.grad = torch.zeros(2, 3)
        optimizer.step()
        torch.testing.assert_close(module.weight.detach(), expected(before), rtol=1e-5, atol=1e-6)


def test_kernels_alone_are_decayed_by_default() -> None:
    for name, classifier in (("sgd", 0.5), ("adamw", 0.5), ("lars", 0.0)):
        module = net()
        groups = build_optimizer(OptimConfig(name, 0.1, weight_decay=0.5), module, 256).param_groups  # type: ignore[arg-type]
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        got = [decays[id(p)] for p in module.parameters()]
        assert got == [0.5, 0, 0, 0, classifier, 0], name


def test_moco_decays_everything() -> None:
    groups = build_optimizer(OptimConfig("sgd", 0.03, decay="all"), net(), 256).param_groups
    assert {group["weight_decay"] for group in groups} == {1e-4}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_kernels_equal_plain_ones(name: str) -> None:
    fused, plain = net(), net()
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    optimizer = build_optimizer(OptimConfig(name, 0.01, weight_decay=0.1), fused, 256)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["fused"]
    options = {"momentum": 0.9} if name == "sgd" else {}
    kernels = [p for p in plain.parameters() if p.ndim > 1]
    rest = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    step(fused, optimizer, 5)
    step(plain, kind(groups, lr=0.01, foreach=False, **options), 5)
    for got, expected in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # float32, five steps


def test_lamb_equals_its_rule() -> None:
    """Spec of Speech SimCLR 1.10, first step: m / sqrt(v) = sign(g); plain for what is not adapted; no clipping."""
    pytest.importorskip("timm")
    module = net()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer(OptimConfig("lamb", 0.1, weight_decay=0.0), module, 256)
    for p in module.parameters():
        p.grad = torch.full_like(p, 100.0)
    optimizer.step()
    for p, w in zip(module.parameters(), before, strict=True):
        trust = w.norm() / torch.ones_like(w).norm() if w.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), w - 0.1 * trust, rtol=1e-4, atol=1e-5)


def test_lamb_without_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm.optim.lamb", None)
    with pytest.raises(UserError, match=r"twofold\[timm\]"):
        build_optimizer(OptimConfig("lamb", 0.1), net(), 256)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "adamw", "momentum": 0.9}, "momentum"),
        ({"name": "lamb", "nesterov": True}, "nesterov"),
        ({"name": "sgd", "eta": 0.1}, "eta"),
        ({"name": "lars", "momentum_rule": "keras"}, "momentum_rule"),
        ({"name": "adam", "momentum": 0.9}, "momentum"),
        ({"name": "sgd", "momentum": 0.0, "momentum_rule": "keras"}, "momentum_rule"),
        ({"name": "lars", "betas": (0.9, 0.99)}, "betas"),
        ({"name": "sgd", "eps": 1e-6}, "eps"),
        ({"schedule": "cosine_epoch", "warmup_epochs": 3}, "warmup_epochs"),
        ({"schedule": "step", "milestones": (3,), "warmup_steps": 3}, "warmup_steps"),
        ({"schedule": "cosine", "milestones": (3,)}, "milestones"),
        ({"schedule": "constant", "factor": 0.5}, "factor"),
        ({"schedule": "cosine", "first_epoch": 1}, "first_epoch"),
        ({"schedule": "step"}, "milestones"),
        ({"warmup_epochs": 1, "warmup_steps": 10}, "warmup_steps"),
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"name": "sgd", "momentum": 1.0}, "momentum"),
        ({"name": "adamw", "betas": (0.9, 1.5)}, "betas"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, "nesterov"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=f"--optim.{named}"):
        OptimConfig(**options)


def test_every_option_has_its_line_of_help() -> None:
    import inspect

    source = inspect.getsource(OptimConfig)
    for field in dataclasses.fields(OptimConfig):
        line = next(i for i, text in enumerate(source.splitlines()) if text.strip().startswith(f"{field.name}:"))
        assert source.splitlines()[line + 1].strip().startswith('"""'), field.name


def test_an_unset_rate_is_an_error() -> None:
    for config in (OptimConfig(), OptimConfig("sgd"), OptimConfig(lr=0.1)):
        with pytest.raises(UserError, match=r"--optim\.(name|lr) is not set"):
            build_optimizer(config, net(), 256)
        with pytest.raises(UserError, match=r"--optim\.(name|lr) is not set"):
            build_schedule(config, 1000, 10, 10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 1000 images in batches of 10: 100 steps an epoch, 20 epochs, 2001 steps
        ({}, {0: 0, 100: 0.5, 200: 1, 2001: 0}),  # a tenth of the run is warm-up
        ({"warmup_epochs": 4.0}, {200: 0.5, 400: 1}),
        ({"warmup_steps": 50}, {25: 0.5, 50: 1}),
        ({"warmup_epochs": 0.0}, {0: 1, 2001: 0}),
        ({"schedule": "cosine_epoch"}, {0: 1, 99: 1, 1000: 0.5, 1099: 0.5}),
        ({"schedule": "cosine_epoch", "first_epoch": 1}, {900: 0.5, 1999: 0}),
        ({"schedule": "step", "milestones": (5, 10)}, {499: 1, 500: 0.1, 1000: 0.01}),
        ({"schedule": "step", "milestones": (5,), "factor": 0.5}, {500: 0.5}),
        ({"schedule": "constant"}, {0: 1, 5000: 1}),
        ({"schedule": "constant", "warmup_epochs": 1.0}, {0: 0, 50: 0.5, 100: 1, 5000: 1}),
        ({"schedule": "inverse_sqrt"}, {99: 0.5, 199: 1, 799: 0.5}),
        ({"schedule": "inverse_sqrt", "warmup_steps": 50}, {49: 1, 199: 0.5}),
    ],
)
def test_options_reach_the_schedule(options: dict[str, Any], expected: dict[int, float]) -> None:
    schedule = build_schedule(OptimConfig("adamw", 1.0, **options), images=1000, batch=10, epochs=20)
    assert {step: schedule(step) for step in expected} == pytest.approx(expected, abs=1e-12)


def test_steps_set_the_end_of_the_cosine() -> None:
    config = OptimConfig("lars", 0.3, warmup_epochs=0.0)
    assert build_schedule(config, 1000, 256, 20.0, steps=77) == WarmupCosine(0.3, 0, 77)


def test_a_warmup_longer_than_the_run_is_an_error() -> None:
    with pytest.raises(UserError, match="warmup_epochs"):
        build_schedule(OptimConfig("lars", 0.3, warmup_epochs=30.0), 1000, 10, 20)
