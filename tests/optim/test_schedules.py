"""Learning rates against tf2/model.py of the reference and against their formulas.

Tolerance: the reference computes in float32, 1e-6 of the peak; against its float64 recomputation 1e-12.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fidelity import agree
from golden_data import golden, golden_path
from twofold.errors import UserError
from twofold.optim import (
    Constant,
    EpochCosine,
    InverseSqrt,
    OptimConfig,
    StepDecay,
    WarmupCosine,
    build_schedule,
    scaled_lr,
    train_steps,
    warmup_steps,
)

CASES = golden("schedule.npz").meta["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_warmup_cosine_equals_the_reference(case: dict[str, Any]) -> None:
    data, key, flags = golden("schedule.npz"), case["id"], case["flags"]
    images, batch = case["num_examples"], flags["train_batch_size"]
    config = OptimConfig(
        name="lars",
        lr=flags["learning_rate"],
        lr_rule=flags["learning_rate_scaling"],
        warmup_epochs=flags["warmup_epochs"],
    )
    schedule = build_schedule(config, images, batch, flags["train_epochs"], flags["train_steps"] or None)
    assert schedule == WarmupCosine(pytest.approx(case["scaled_lr"]), case["warmup_steps"], case["get_train_steps"])  # type: ignore[arg-type]
    got = np.array([schedule(int(step)) for step in data[f"{key}/step"]])
    agree("Learning rate and step counts", got, data[f"{key}/lr"], 1e-6, case["scaled_lr"])
    agree("Learning rate and step counts", got, data[f"{key}/lr_np64"], 1e-12, case["scaled_lr"])


def test_train_steps_equal_the_reference() -> None:
    for images, epochs, batch, flag, expected in golden("schedule.npz")["train_steps_grid"].tolist():
        assert (flag or train_steps(images, batch, epochs)) == expected
        assert (flag or train_steps(images, batch, float(epochs))) == expected


def test_published_counts() -> None:
    assert train_steps(1_281_167, 4096, 100) == 31_279
    assert train_steps(50_000, 512, 1000) == 97_657
    assert warmup_steps(1_281_167, 4096, 10) == 3127


@pytest.mark.parametrize(
    ("base", "batch", "rule", "expected"),
    [
        (0.3, 4096, "linear", 4.8),
        (0.3, 256, "linear", 0.3),
        (0.075, 4096, "sqrt", 4.8),
        (0.1, 4096, "sqrt", 6.4),
        (0.075, 512, "sqrt", 1.697056),
        (0.03, 64, "none", 0.03),
    ],
)
def test_scaled_lr(base: float, batch: int, rule: Any, expected: float) -> None:
    assert scaled_lr(base, batch, rule) == pytest.approx(expected, rel=1e-6)


def test_warmup_cosine_at_its_corners() -> None:
    schedule = WarmupCosine(2.0, 10, 110)
    assert [schedule(step) for step in (0, 5, 10, 60, 110, 500)] == pytest.approx([0, 1, 2, 1, 0, 0])
    assert WarmupCosine(2.0, 0, 100)(0) == 2.0
    with pytest.raises(UserError, match="warmup_epochs"):
        WarmupCosine(1.0, 10, 10)


@pytest.mark.parametrize("first", [0, 1])
def test_epoch_cosine(first: int) -> None:
    schedule = EpochCosine(0.06, 5, 3, first)
    expected = [0.06 * 0.5 * (1 + math.cos(math.pi * (epoch + first) / 5)) for epoch in range(5) for _ in range(3)]
    assert [schedule(step) for step in range(15)] == pytest.approx(expected)
    assert (schedule(14) == pytest.approx(0, abs=1e-15)) == (first == 1)
    assert schedule(100) == pytest.approx(0, abs=1e-15)  # and does not rise again


@pytest.mark.skipif(not golden_path("moco.npz").exists(), reason="neither the whole golden set nor moco.npz is here")
def test_epoch_schedules_equal_moco() -> None:
    """adjust_learning_rate of main_moco.py, float64: equal to 1e-12."""
    data = golden("moco.npz")
    for i, case in enumerate(data.meta["extra"]["lr"]):
        expected = data[f"extra/lr{i:02d}"]
        schedule = (
            EpochCosine(case["lr"], case["epochs"], 7)
            if case["cos"]
            else StepDecay(case["lr"], tuple(case["schedule"]), 7)
        )
        got = [schedule(7 * epoch) for epoch in range(len(expected))]
        agree("MoCo: learning rates", got, expected, 1e-12, "largest")


def test_step_decay() -> None:
    schedule = StepDecay(30.0, (2, 3), 4)
    assert [schedule(step) for step in range(0, 20, 2)] == pytest.approx([30] * 4 + [3] * 2 + [0.3] * 4)


def test_constant() -> None:
    assert [Constant(0.5)(step) for step in (0, 7)] == [0.5, 0.5]
    assert [Constant(0.5, 4)(step) for step in range(6)] == [0, 0.125, 0.25, 0.375, 0.5, 0.5]


def test_inverse_sqrt_has_the_published_values() -> None:
    """Spec of Speech SimCLR 1.10: width 768, 8,000 warm-up steps; its steps count from 1."""
    schedule = InverseSqrt(1 / math.sqrt(768 * 8000), 8000)
    got = [schedule(step - 1) for step in (1, 8000, 32_000, 200_000)]
    assert got == pytest.approx([5.04e-8, 4.034e-4, 2.017e-4, 8.07e-5], rel=1e-3)
    with pytest.raises(UserError, match="warm-up"):
        InverseSqrt(1.0, 0)
