"""NT-Logistic and margin triplet against loops and against the gradients of Table 2 (arXiv 2002.05709)."""

from __future__ import annotations

import math

import loss_oracles as oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import UserError
from twofold.losses import info_nce, margin_triplet, nt_logistic
from twofold.losses.studies import semi_hard_negative

CLOSE = {"rtol": 1e-11, "atol": 1e-12}  # float64: sums of a few dozen terms of order 1


def views(n: int = 8, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a, a + 0.8 * torch.randn(n, d, generator=generator, dtype=torch.float64)


# ---- values


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("negatives", ["mean", "sum"])
def test_nt_logistic_by_loops(n: int, temperature: float, negatives: str) -> None:
    a, b = views(n)
    expected = oracle.pairwise(
        a.numpy(),
        b.numpy(),
        attract=lambda s: -math.log(oracle.sigmoid(s / temperature)),
        repel=lambda s, _: -math.log(oracle.sigmoid(-s / temperature)),
        select=lambda others, _: others,
        mean=negatives == "mean",
    )
    assert nt_logistic(a, b, temperature, negatives=negatives).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("margin", [0.0, 0.4, 1.6])
@pytest.mark.parametrize("negatives", ["mean", "sum"])
def test_margin_triplet_by_loops(n: int, margin: float, negatives: str) -> None:
    a, b = views(n)
    expected = oracle.pairwise(
        a.numpy(),
        b.numpy(),
        attract=lambda _: 0.0,
        repel=lambda s, positive: max(s - positive + margin, 0),
        select=lambda others, _: others,
        mean=negatives == "mean",
    )
    assert margin_triplet(a, b, margin, negatives=negatives).item() == pytest.approx(expected, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_semi_hard_mining_by_loops(seed: int) -> None:
    a, b = views(12, seed=seed)
    logistic = oracle.pairwise(
        a.numpy(),
        b.numpy(),
        attract=lambda s: -math.log(oracle.sigmoid(s / 0.5)),
        repel=lambda s, _: -math.log(oracle.sigmoid(-s / 0.5)),
        select=lambda others, positive: oracle.nearest_below(others, positive, math.inf),
        mean=False,
    )
    assert nt_logistic(a, b, 0.5, mining="semi_hard").item() == pytest.approx(logistic, rel=1e-11)
    for margin in (0.1, 0.8):
        triplet = oracle.pairwise(
            a.numpy(),
            b.numpy(),
            attract=lambda _: 0.0,
            repel=lambda s, positive, margin=margin: max(s - positive + margin, 0),
            select=lambda others, positive, margin=margin: oracle.nearest_below(others, positive, margin),
            mean=False,
        )
        got = margin_triplet(a, b, margin, mining="semi_hard").item()
        assert got == pytest.approx(triplet, rel=1e-11, abs=1e-13)


def test_semi_hard_rule() -> None:
    positive = torch.tensor([0.5, 0.5, 0.5, 0.5])
    others = torch.tensor([[0.9, 0.4, 0.2], [0.9, 0.8, 0.7], [0.1, 0.0, -1.0], [0.5, 0.45, 0.3]])
    is_negative = torch.tensor([[True, True, True]] * 3 + [[True, False, True]])
    value, found = semi_hard_negative(positive, others, is_negative, margin=0.3)
    np.testing.assert_allclose(value, [0.4, 0, 0, 0.3])  # nearest below; all above; none within; the partner is none
    assert found.tolist() == [True, False, False, True]


def test_anchors_without_a_semi_hard_negative_give_no_gradient_and_no_nan() -> None:
    a = torch.eye(4, dtype=torch.float64).requires_grad_()
    b = -torch.eye(4, dtype=torch.float64)  # every negative is nearer than the partner
    loss = margin_triplet(a, b, 0.4, mining="semi_hard")
    loss.backward()
    assert loss == 0
    assert a.grad is not None
    assert (a.grad == 0).all()


# ---- gradients with respect to the anchor, Table 2; candidates are constants and nothing is normalised


def table_2(u: Tensor, positive: Tensor, others: Tensor, name: str) -> Tensor:
    tau, margin = 0.5, 0.8

    def sigmoid(x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))

    if name == "logistic":
        pull = sigmoid(-u @ positive / tau) / tau * positive
        return pull * len(others) - sum(sigmoid(u @ v / tau) / tau * v for v in others)
    if name == "triplet":
        return sum((positive - v) for v in others if u @ positive - u @ v < margin) + torch.zeros_like(u)
    weights = [torch.exp(u @ v / tau) for v in [positive, *others]]
    z = sum(weights)
    return (1 - weights[0] / z) / tau * positive - sum(
        w / z / tau * v for w, v in zip(weights[1:], others, strict=True)
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["logistic", "triplet", "nt_xent"])
def test_gradients_of_table_2(name: str, seed: int) -> None:
    a, b = views(6, seed=seed)
    a.requires_grad_()
    if name == "logistic":  # per negative, as the table has it: the positive's term once for each of them
        n = len(a)
        loss = (nt_logistic(a, b, 0.5, False, negatives="sum")) * n
        loss = loss - (n - 2) * F.logsigmoid((a * b).sum(1) / 0.5).sum()
    elif name == "triplet":
        loss = margin_triplet(a, b, 0.8, False, negatives="sum") * len(a)
    else:  # the anchor's own term of NT-Xent: its negatives in a queue
        loss = torch.stack(
            [info_nce(a[i : i + 1], b[i : i + 1], b[torch.arange(len(b)) != i].T, 0.5)[0] for i in range(len(a))]
        ).sum()
    loss.backward()
    for i in range(len(a)):
        others = b[torch.arange(len(b)) != i]
        # the table maximises
        expected = -table_2(a[i].detach(), b[i], others, name)
        torch.testing.assert_close(a.grad[i], expected, **CLOSE)


@pytest.mark.parametrize("mining", ["none", "semi_hard"])
def test_gradcheck(mining: str) -> None:
    a, b = (z.requires_grad_() for z in (z.detach() for z in views(5, 3)))
    assert torch.autograd.gradcheck(lambda a, b: nt_logistic(a, b, 0.5, mining=mining), (a, b))
    assert torch.autograd.gradcheck(lambda a, b: margin_triplet(a, b, 0.4, mining=mining), (a, b))


def test_bfloat16_inputs_are_computed_with_in_float32() -> None:
    a, b = (z.bfloat16() for z in views())
    with torch.autocast("cpu", torch.bfloat16):
        for function in (nt_logistic, margin_triplet):
            assert function(a, b).item() == pytest.approx(function(a.double(), b.double()).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda a, b: nt_logistic(a, b, 0), "temperature"),
        (lambda a, b: nt_logistic(a, b, mining="hard"), "mining"),
        (lambda a, b: nt_logistic(a, b, negatives="max"), "negatives"),
        (lambda a, b: nt_logistic(a, b, mining="semi_hard", negatives="sum"), "negatives"),
        (lambda a, b: margin_triplet(a, b, -1), "margin"),
        (lambda a, b: margin_triplet(a, b, 0, mining="semi_hard"), "margin"),
    ],
)
def test_wrong_options_are_named(call, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=named):
        call(*views())
