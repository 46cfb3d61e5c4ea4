"""The losses of Speech SimCLR against athena's (golden athena.npz) and against loops.

Tolerance: the reference is float32; 1e-6 relative for values and 2e-6 of the largest entry for gradients, as for
NT-Xent (test_nt_xent_golden.py). Loops, float64: 1e-13.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fidelity import agree
from golden_data import golden
from processes import run_processes
from twofold.distributed import all_gather
from twofold.errors import UserError
from twofold.losses import contrastive_metrics, masked_reconstruction, nt_xent
from twofold.losses.diagnostics import cross_view_logits
from twofold.losses.nt_xent import l2_normalize

META = golden("athena.npz").meta
CONTRASTIVE, RECONSTRUCTION = "Speech: contrastive loss", "Speech: reconstruction and total loss"


def leaf(key: str) -> Tensor:
    return torch.tensor(golden("athena.npz")[key], requires_grad=True)


def contrastive(hidden: Tensor, case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    a, b = hidden.chunk(2)
    temperature, normalize = case["temperature"], case.get("normalization", True)
    own, others = (l2_normalize(z.detach()) if normalize else z.detach() for z in (a, b))
    logits = cross_view_logits(own, all_gather(others), temperature)
    return nt_xent(a, b, temperature, normalize, "simclr_sum2"), logits


@pytest.mark.parametrize("case", META["contrastive"], ids=lambda case: case["id"])
def test_the_contrastive_part_is_nt_xent(case: dict[str, Any]) -> None:
    data, key = golden("athena.npz"), case["id"]
    hidden = leaf(f"{key}/hidden")
    loss, logits = contrastive(hidden, case)
    loss.backward()
    agree(CONTRASTIVE, loss, data[f"{key}/loss"], 1e-6, "largest")
    agree(CONTRASTIVE, logits, data[f"{key}/logits_ab"], 1e-6, "largest")
    agree(CONTRASTIVE, hidden.grad, data[f"{key}/grad"], 2e-6, "largest")


def two_ranks(rank: int) -> list[tuple[Tensor, Tensor]]:
    return [
        contrastive(torch.tensor(golden("athena.npz")[f"{case['id']}/rep2/rank{rank}/hidden"]), case)
        for case in META["contrastive"]
    ]


def test_over_two_workers_too() -> None:
    data = golden("athena.npz")
    for rank, results in enumerate(run_processes(two_ranks, 2)):
        for case, (loss, logits) in zip(META["contrastive"], results, strict=True):
            key = f"{case['id']}/rep2/rank{rank}"
            agree(CONTRASTIVE, loss, data[f"{key}/loss"], 1e-6, "largest")
            agree(CONTRASTIVE, logits, data[f"{key}/logits_ab"], 1e-6, "largest")


@pytest.mark.parametrize("case", META["mpc"], ids=lambda case: case["id"])
def test_reconstruction_and_total_equal_the_reference(case: dict[str, Any]) -> None:
    data, key = golden("athena.npz"), case["id"]
    target = torch.tensor(data[f"{key}/output"][..., 0])
    hidden_from_it = torch.tensor(data[f"{key}/input"][..., 0] == 0)
    lengths = torch.tensor(data[f"{key}/input_length"])
    prediction, hidden = leaf(f"{key}/logits_mpc"), leaf(f"{key}/hidden")
    mpc = masked_reconstruction(prediction, target, hidden_from_it, lengths, "released").loss
    (grad,) = torch.autograd.grad(mpc, prediction, retain_graph=True)
    agree(RECONSTRUCTION, mpc, data[f"{key}/mpc_loss"], 1e-6, "largest")
    agree(RECONSTRUCTION, grad, data[f"{key}/grad_mpc"], 2e-6, "largest")
    total = 0.5 * mpc + 0.5 * contrastive(hidden, case)[0]
    total.backward()
    agree(RECONSTRUCTION, total, data[f"{key}/total_loss"], 1e-6, "largest")
    agree(RECONSTRUCTION, prediction.grad, data[f"{key}/grad_total_logits_mpc"], 2e-6, "largest")
    agree(RECONSTRUCTION, hidden.grad, data[f"{key}/grad_total_hidden"], 2e-6, "largest")
    metrics = contrastive_metrics(*hidden.detach().chunk(2), case["temperature"])
    assert metrics.accuracy.item() == pytest.approx(float(data[f"{key}/accuracy"]), abs=1e-7)


def by_loops(prediction: Tensor, target: Tensor, mask: Tensor, lengths: Tensor, scale: str) -> float:
    total, count = 0.0, 0
    n, frames, width = prediction.shape
    for i in range(n):
        for t in range(int(lengths[i])):
            for f in range(width):
                if mask[i, t] if mask.ndim == 2 else mask[i, t, f]:
                    total += abs(float(prediction[i, t, f]) - float(target[i, t, f]))
                    count += 1
    return total / (n * frames if scale == "released" else max(count, 1))


@pytest.mark.parametrize("scale", ["masked_mean", "released"])
@pytest.mark.parametrize("by_element", [False, True])
def test_equals_loops_and_does_not_see_the_padding(scale: Any, by_element: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    prediction, target = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 5, 4, generator=generator) < 0.4
    mask = mask if by_element else mask[:, :, 0]
    lengths = torch.tensor([5, 2, 0])
    expected = by_loops(prediction, target, mask, lengths, scale)
    target[1, 3:] = float("inf")
    prediction.requires_grad_()
    got = masked_reconstruction(prediction, target, mask, lengths, scale).loss
    assert got.item() == pytest.approx(expected, rel=1e-13)
    got.backward()
    assert prediction.grad is not None
    assert prediction.grad[1, 2:].abs().sum() == 0
    assert prediction.grad.isfinite().all()


def test_the_worked_example_of_both_scales() -> None:
    """One frame of four hidden, three long: an error of 4 over 4 frames, or over 2 elements."""
    target = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [0.0, 0.0]]])
    mask, lengths = torch.tensor([[False, True, False, False]]), torch.tensor([3])
    ones = torch.ones(1, 4, 2)
    assert masked_reconstruction(ones, target, mask, lengths, "released").loss.item() == 1.0
    assert masked_reconstruction(ones, target, mask, lengths).loss.item() == 2.0
    assert masked_reconstruction(ones, target, torch.zeros_like(mask), lengths).loss.item() == 0.0
    half = masked_reconstruction(ones.bfloat16(), target.bfloat16(), mask, lengths).loss
    assert half.dtype == torch.float32


def test_wrong_arguments_are_named() -> None:
    x, mask, lengths = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), torch.tensor([3, 1])
    with pytest.raises(UserError, match="scale"):
        masked_reconstruction(x, x, mask, lengths, "sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        masked_reconstruction(x, x[:1], mask, lengths)
    for wrong in (mask.float(), mask[:, :2], mask[:1]):
        with pytest.raises(ValueError, match="mask must be bool"):
            masked_reconstruction(x, x, wrong, lengths)
    with pytest.raises(ValueError, match="lengths"):
        masked_reconstruction(x, x, mask, lengths[:1])


def test_the_set_covers_true_zeros_and_zero_padding() -> None:
    assert any(case.get("accidental_zero") for case in META["mpc"])
    assert any(case.get("pad_zero") for case in META["mpc"])
    assert np.isin([True, False], [case["normalization"] for case in META["contrastive"]]).all()
