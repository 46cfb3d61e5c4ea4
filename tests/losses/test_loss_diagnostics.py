"""Diagnostics against loops and closed forms. Accuracy and entropy are tested in test_nt_xent_golden.py too."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold import losses
from twofold.losses import diagnostics


def views(n: int = 9, d: int = 4) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return a, b


def unit(z: Tensor) -> np.ndarray:
    return (z / z.norm(dim=1, keepdim=True)).numpy()


def test_chance_level_is_the_loss_of_an_embedding_that_tells_nothing_apart() -> None:
    same = torch.ones(5, 3)
    assert losses.nt_xent(same, same).item() == pytest.approx(losses.chance_level(5), abs=1e-6)
    assert losses.chance_level(1) == 0
    assert losses.negatives_per_anchor(8192) == 16382  # section 2 of the paper


def test_accuracy_and_entropy_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "ROWS", 4)  # several chunks
    a, b = views()
    s = unit(a) @ unit(b).T / 0.2
    entropy, hits = 0.0, 0
    for i, row in enumerate(s):
        p = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        entropy -= sum(x * math.log(x) for x in p) / len(s)
        hits += max(range(len(row)), key=row.__getitem__) == i
    metrics = losses.contrastive_metrics(a, b, 0.2)
    assert metrics.entropy.item() == pytest.approx(entropy, rel=1e-12)
    assert metrics.accuracy.item() == pytest.approx(hits / len(s))


def test_accuracy_and_entropy_at_the_ends() -> None:
    same, basis = torch.ones(6, 3), torch.eye(6)
    assert losses.contrastive_metrics(same, same).entropy.item() == pytest.approx(math.log(6), abs=1e-6)
    sure = losses.contrastive_metrics(basis, basis, 0.01)
    assert sure.accuracy == 1
    assert sure.entropy.item() == pytest.approx(0, abs=1e-6)
    # inner products of 1e3 at temperature 0.1 underflow every probability but one
    far = losses.contrastive_metrics(1e3 * basis, 1e3 * basis, 0.1, normalize=False)
    assert far.entropy == 0


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_alignment_by_loops(power: float) -> None:
    a, b = views()
    expected = np.mean([np.linalg.norm(u - v) ** power for u, v in zip(unit(a), unit(b), strict=True)])
    assert losses.alignment(a, b, power).item() == pytest.approx(expected, rel=1e-12)
    assert losses.alignment(a, 3 * a).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("t", [1.0, 2.0])
def test_uniformity_by_loops(t: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "ROWS", 4)
    a, _ = views()
    pairs = [math.exp(-t * float(np.sum((u - v) ** 2))) for u, v in itertools.combinations(unit(a), 2)]
    assert losses.uniformity(a, t).item() == pytest.approx(math.log(np.mean(pairs)), rel=1e-12)
    assert losses.uniformity(torch.ones(5, 3)).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        losses.uniformity(torch.ones(1, 3))


def test_effective_rank() -> None:
    basis = torch.linalg.qr(torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).double())[0]
    assert losses.effective_rank(3 * basis).item() == pytest.approx(7)
    assert losses.effective_rank(basis[:, :1] @ basis[:1, :]).item() == pytest.approx(1)
    values = torch.tensor([4.0, 2, 1, 1, 0, 0, 0], dtype=torch.float64)  # shares 1/2, 1/4, 1/8, 1/8
    assert losses.effective_rank(basis * values).item() == pytest.approx(2**1.75)
    assert losses.effective_rank(torch.zeros(4, 3)).item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_describe_gathers_them(dtype: torch.dtype) -> None:
    a, b = (z.to(dtype).requires_grad_() for z in views())
    row = losses.describe(a, b, torch.cat([a, b]), 0.2, 9)
    assert set(row) == {
        "chance",
        "contrastive_top1",
        "contrastive_entropy",
        "alignment",
        "uniformity",
        "effective_rank",
    }
    assert all(isinstance(value, float) and math.isfinite(value) for value in row.values())
    assert row["chance"] == math.log(17)


@pytest.mark.parametrize("normalize", [True, False])
def test_retrieval_auc_counts_what_a_loop_counts(normalize: bool) -> None:
    a, b = views()
    b[3] = b[2]  # a tie
    b = b + 0.4 * a
    b[3] = b[2]
    p, q = (z / z.norm(dim=1, keepdim=True) if normalize else z for z in (a, b))
    won = 0.0
    for i, j in itertools.permutations(range(len(a)), 2):
        own, other = float(p[i] @ q[i]), float(p[i] @ q[j])
        won += 0.5 if math.isclose(own, other, rel_tol=1e-12) else own > other
    expected = won / (len(a) * (len(a) - 1))
    assert 0.5 < expected < 1
    assert float(diagnostics.retrieval_auc(a, b, normalize)) == pytest.approx(expected, abs=1e-12)
