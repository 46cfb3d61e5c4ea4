"""NT-Xent against what tf2/objective.py and tf2/metrics.py of google-research/simclr return.

Tolerances. Losses: 1e-6 relative; the reference's own float32 error is below 3e-7. Gradients: 2e-6 of the largest
entry (reference below 7e-7), but 1e-4 where views are nearly equal: there, gradients of 1e-5 are what is left of terms
of 0.1, and the reference is off by 1e-5 itself. In float64 against the float64 recomputation: 1e-12.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fidelity import agree
from golden_data import golden
from twofold.losses import contrastive_metrics, nt_xent
from twofold.losses.diagnostics import cross_view_logits
from twofold.losses.nt_xent import l2_normalize

CASES = golden("ntxent.npz").meta["cases"]
IMPLEMENTATIONS = ["dense", "blocks"]


def views(case: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.tensor(golden("ntxent.npz")[f"{case['id']}/hidden"], dtype=dtype, requires_grad=True)
    return hidden, *hidden.chunk(2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case.get('kind', '')}")
def test_value_and_gradient_equal_the_reference(case: dict[str, Any], implementation: str) -> None:
    hidden, a, b = views(case)
    loss = nt_xent(a, b, case["temperature"], case["hidden_norm"], "simclr_sum2", implementation)
    loss.backward()
    data = golden("ntxent.npz")
    value = data[f"{case['id']}/loss"]
    agree("NT-Xent: value", loss, value, 1e-6, 1 + float(value))
    expected = data[f"{case['id']}/grad"]
    if case["N"] == 1:  # nothing to contrast with: zero up to the cancellation of two equal float32 numbers
        np.testing.assert_allclose(hidden.grad, expected, atol=1e-6)
    else:
        agree("NT-Xent: gradient", hidden.grad, expected, 1e-4 if case.get("kind") == "correlated" else 2e-6, "largest")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_float64_equals_the_float64_recomputation(case: dict[str, Any], implementation: str) -> None:
    hidden, a, b = views(case, torch.float64)
    loss = nt_xent(a, b, case["temperature"], case["hidden_norm"], "simclr_sum2", implementation)
    loss.backward()
    data = golden("ntxent.npz")
    np.testing.assert_allclose(loss.item(), data[f"{case['id']}/loss_np64"], rtol=1e-12, atol=1e-12)
    expected = data[f"{case['id']}/grad_np64"]
    agree("NT-Xent: gradient in float64", hidden.grad, expected, 1e-12, max(np.abs(expected).max(), 1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_logits_accuracy_and_entropy_equal_the_reference(case: dict[str, Any]) -> None:
    _, a, b = views(case)
    data, key = golden("ntxent.npz"), case["id"]
    compared = [l2_normalize(z.detach()) if case["hidden_norm"] else z.detach() for z in (a, b)]
    logits = cross_view_logits(*compared, case["temperature"])
    expected = data[f"{key}/logits_ab"]
    agree("NT-Xent: logits", logits, expected, 1e-6, "largest")
    metrics = contrastive_metrics(a.detach(), b.detach(), case["temperature"], case["hidden_norm"])
    agree("Contrastive accuracy and entropy", metrics.accuracy, data[f"{key}/contrast_acc"], 1e-7)
    # the reference adds 1e-8 to each of N probabilities inside the logarithm, and rounds in float32
    entropy = data[f"{key}/contrast_entropy"]
    agree("Contrastive accuracy and entropy", metrics.entropy, entropy, 2e-6, 1 + float(entropy))


def test_the_set_covers_every_kind_of_input() -> None:
    kinds = {case.get("kind") for case in CASES}
    assert {"correlated", "identical", "zero_row", "small", "below_eps", None} <= kinds
    assert {case["hidden_norm"] for case in CASES} == {True, False}
