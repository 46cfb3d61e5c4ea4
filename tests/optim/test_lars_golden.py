"""LARS against the trajectories of tf2/lars_optimizer.py, every variant and step, and against a slow loop.

Tolerance: 2e-6 of a tensor's largest entry after 10 steps in float32 (the reference is within 5e-7 of float64).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fidelity import agree
from golden_data import golden
from twofold.optim import LARS

CASES = golden("lars.npz").meta["cases"]


def excluded(name: str, patterns: list[str] | None) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or [])


def groups_of(case: dict[str, Any], params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """A group for each variable, flagged by the reference's rule: regular expressions on names."""
    cfg = case["cfg"]
    # lars_optimizer.py: without a list of its own, layer adaptation leaves out what weight decay leaves out
    no_adaptation = cfg["exclude_from_layer_adaptation"] or cfg["exclude_from_weight_decay"]
    return [
        {
            "params": [p],
            "weight_decay": 0.0 if excluded(name, cfg["exclude_from_weight_decay"]) else cfg["weight_decay"],
            "adapt": not excluded(name, no_adaptation),
        }
        for name, p in zip(case["var_names"], params, strict=True)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['name']}")
def test_every_step_equals_the_reference(case: dict[str, Any]) -> None:
    data, key, cfg = golden("lars.npz"), case["id"], case["cfg"]
    count = len(case["var_names"])
    params = [nn.Parameter(torch.tensor(data[f"{key}/param/{j}"][0])) for j in range(count)]
    optimizer = LARS(
        groups_of(case, params),
        lr=math.nan,  # the schedule sets it before each step
        momentum=cfg["momentum"],
        eta=cfg["eeta"],
        nesterov=cfg["use_nesterov"],
        classic_momentum=cfg["classic_momentum"],
    )
    for step in range(case["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = float(data[f"{key}/lr"][step])
        for j, p in enumerate(params):
            p.grad = torch.tensor(data[f"{key}/grad/{j}"][step])
        optimizer.step()
        for j, p in enumerate(params):
            for got, name in ((p.detach(), "param"), (optimizer.state[p]["momentum_buffer"], "momentum")):
                expected = data[f"{key}/{name}/{j}"][step + 1]
                scale = max(np.abs(expected).max(), 1e-12)
                note = f"{name} of {case['var_names'][j]}, step {step}"
                agree("LARS, every variant", got, expected, 2e-6, float(scale), note=note)


def test_the_set_covers_every_variant() -> None:
    cfgs = [case["cfg"] for case in CASES]
    assert {(c["classic_momentum"], c["use_nesterov"]) for c in cfgs} == {
        (classic, nesterov) for classic in (True, False) for nesterov in (True, False)
    }
    assert any(case["zero_params"] for case in CASES)
    assert any(case["zero_grads"] for case in CASES)
    assert any(case["flags"] for case in CASES)  # with warm-up and cosine, so that lr changes


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("classic", [False, True])
def test_equals_the_rule_written_out(classic: bool, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # A large tensor, whose trust is above 1: LARS has no cap, unlike LARC
    params = [nn.Parameter(300 * normal(4, 3)), nn.Parameter(normal(3))]
    flags = [(True, 0.01), (False, 0.0)]
    expected = [p.detach().clone() for p in params]
    velocity = [torch.zeros_like(p) for p in expected]
    optimizer = LARS(
        [{"params": [p], "adapt": a, "weight_decay": wd} for p, (a, wd) in zip(params, flags, strict=True)],
        lr=0.0,
        eta=0.02,
        nesterov=nesterov,
        classic_momentum=classic,
    )
    for lr in (0.0, 0.5, 4.8, 0.3):
        for j, p in enumerate(params):
            p.grad = normal(*p.shape)
            w, v, (adapt, wd) = expected[j], velocity[j], flags[j]
            g = p.grad + wd * w
            if classic:
                rate = lr * (0.02 * w.norm() / g.norm() if adapt else 1)
                v = 0.9 * v + rate * g
                update = 0.9 * v + rate * g if nesterov else v
            else:
                v = 0.9 * v + g
                update = 0.9 * v + g if nesterov else v
                update = lr * (0.02 * w.norm() / update.norm() if adapt else 1) * update
            expected[j], velocity[j] = w - update, v
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    for p, w in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-14)


def test_parameters_without_gradient_stay_and_state_survives_a_checkpoint() -> None:
    def build() -> tuple[list[nn.Parameter], LARS]:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(3, 3)) for _ in range(2)]
        return params, LARS(params, lr=0.5, weight_decay=1e-4)

    def step(params: list[nn.Parameter], optimizer: LARS, seed: int) -> None:
        params[0].grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    params, optimizer = build()
    for seed in range(4):
        step(params, optimizer, seed)
    assert params[1] not in optimizer.state
    again, resumed = build()
    assert torch.equal(params[1], again[1])
    for seed in range(2):
        step(again, resumed, seed)
    third, loaded = build()
    third[0].data.copy_(again[0].data)
    loaded.load_state_dict(resumed.state_dict())
    for seed in range(2, 4):
        step(third, loaded, seed)
    assert torch.equal(third[0], params[0])


def test_closure_is_called_with_gradients_on() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = LARS([p], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert (p < 1).all()
