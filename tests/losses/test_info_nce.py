"""MoCo's loss against loops, closed forms and, where at hand, moco/builder.py itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from golden_data import golden, golden_path
from twofold.errors import UserError
from twofold.losses import info_nce

HAS_MOCO = golden_path("moco.npz").exists()


def inputs(n: int = 5, d: int = 8, size: int = 11, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    shapes = ((n, d), (n, d), (size, d))
    q, k, queue = (F.normalize(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes)
    return [q.to(dtype), k.to(dtype), queue.T.to(dtype)]


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_loops(temperature: float, dtype: torch.dtype) -> None:
    q, k, queue = inputs(dtype=dtype)
    q.requires_grad_(), k.requires_grad_(), queue.requires_grad_()
    loss, logits = info_nce(q, k, queue, temperature)
    expected = 0.0
    with torch.no_grad():
        similarities = torch.cat([(q.double() * k.double()).sum(1, True), q.double() @ queue.double()], 1) / temperature
    for s in similarities.tolist():
        expected -= math.log(math.exp(s[0]) / sum(map(math.exp, s))) / len(q)
    # bfloat16 inputs are computed with in float32
    assert loss.item() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 2e-6)
    assert logits.shape == (5, 12)
    loss.backward()
    assert q.grad is not None
    assert q.grad.abs().max() > 0
    assert k.grad is None
    assert queue.grad is None


def test_closed_form() -> None:
    basis = torch.eye(10, dtype=torch.float64)
    loss, _ = info_nce(basis[:2], basis[:2], basis[2:].T, 0.2)
    assert loss.item() == pytest.approx(math.log1p(8 * math.exp(-5)), rel=1e-12)


@pytest.mark.skipif(not HAS_MOCO, reason="neither the whole golden set nor a slice of moco.npz is here")
def test_equals_the_reference() -> None:
    """Every step of every run and rank. float32 against float32: 1e-5 (README, section 11)."""
    data = golden("moco.npz")
    cases = 0
    for run in data.meta["runs"]:
        for key in [
            k.removesuffix("/logits") for k in data.arrays if k.startswith(run["id"]) and k.endswith("/logits")
        ]:
            q = torch.tensor(data[f"{key}/q"], requires_grad=True)
            k, queue = torch.tensor(data[f"{key}/k"]), torch.tensor(data[f"{key}/queue_before"])
            loss, logits = info_nce(q, k, queue, run["T"])
            loss.backward()
            np.testing.assert_allclose(loss.item(), data[f"{key}/loss"], rtol=1e-5)
            np.testing.assert_allclose(logits.detach(), data[f"{key}/logits"], rtol=1e-5, atol=1e-5)
            expected = data[f"{key}/grad_q"]
            np.testing.assert_allclose(q.grad, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
            cases += 1
    assert cases > 0


def test_autocast_does_not_reach_the_logits() -> None:
    q, k, queue = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = info_nce(q, k, queue)[1]
    torch.testing.assert_close(cast, info_nce(q, k, queue)[1], rtol=0, atol=0)


def test_refusals() -> None:
    q, k, queue = inputs()
    with pytest.raises(UserError, match="temperature"):
        info_nce(q, k, queue, 0.0)
    with pytest.raises(ValueError, match=r"\[d, K\]"):
        info_nce(q, k, queue.T)
