"""The distillation loss against add_kd_loss of the official notebooks, and its labelled form against loops.

Tolerance: 2e-6 of the largest entry in float32 (the reference is within 1e-6 of float64), 1e-12 in float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fidelity import agree
from golden_data import golden
from twofold.errors import UserError
from twofold.losses import distillation_loss

CASES = golden("distill.npz").meta["cases"]


@pytest.mark.parametrize("reference", ["tf1", "tf2", "np64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_equals_the_reference(case: dict[str, Any], reference: str) -> None:
    data, key = golden("distill.npz"), case["id"]
    exact = reference == "np64"
    dtype = torch.float64 if exact else torch.float32
    student = torch.tensor(data[f"{key}/student_logits"], dtype=dtype, requires_grad=True)
    teacher = torch.tensor(data[f"{key}/teacher_logits"], dtype=dtype, requires_grad=True)
    loss = distillation_loss(student, teacher, case["temperature"], squared_temperature=True)
    loss.backward()
    expected = data[f"{key}/grad_np64" if exact else f"{key}/grad_student_{reference}"]
    tolerance = 1e-12 if exact else 2e-6
    agree("Distillation", loss, data[f"{key}/loss_{reference}"], tolerance, "largest")
    agree("Distillation", student.grad, expected, tolerance, "largest")
    assert teacher.grad is None


def logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return student, teacher


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(map(math.exp, row)))
    return [x - total for x in row]


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0])
def test_the_papers_formula_has_no_squared_temperature(temperature: float, squared: bool) -> None:
    student, teacher = logits()
    expected = 0.0
    for s, t in zip((student / temperature).tolist(), (teacher / temperature).tolist(), strict=True):
        expected -= sum(math.exp(p) * q for p, q in zip(log_softmax(t), log_softmax(s), strict=True)) / len(student)
    got = distillation_loss(student, teacher, temperature, squared)
    assert got.item() == pytest.approx(expected * (temperature**2 if squared else 1), rel=1e-12)
    assert distillation_loss(student, teacher).item() == distillation_loss(student, teacher, 1.0, True).item()


@pytest.mark.parametrize("labels", [[0, -1, 3, -1, -1, 2], [1, 2, 3, 0, 1, 2], [-1] * 6])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_labels_are_mixed_in_by_alpha(labels: list[int], alpha: float) -> None:
    student, teacher = logits()
    terms = [-log_softmax(row)[y] for row, y in zip(student.tolist(), labels, strict=True) if y >= 0]
    supervised = sum(terms) / max(len(terms), 1)
    expected = (1 - alpha) * supervised + alpha * distillation_loss(student, teacher, 0.5).item()
    got = distillation_loss(student, teacher, 0.5, labels=torch.tensor(labels), alpha=alpha)
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_a_perfect_student_is_at_the_teachers_entropy_with_no_gradient() -> None:
    _, teacher = logits()
    student = (teacher + 5).requires_grad_()  # softmax does not see the shift
    loss = distillation_loss(student, teacher)
    loss.backward()
    p = torch.softmax(teacher, 1)
    assert loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0}, "temperature"),
        ({"alpha": 0.5}, "labels and alpha"),
        ({"labels": torch.zeros(6, dtype=torch.long)}, "labels and alpha"),
        ({"labels": torch.zeros(6, dtype=torch.long), "alpha": 1.5}, "alpha"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        distillation_loss(*logits(), **options)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[n, K\]"):
        distillation_loss(torch.zeros(3, 4), torch.zeros(3, 5))
