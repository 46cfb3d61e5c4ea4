"""NT-Xent against loops over Algorithm 1, closed forms, its invariances; blocks against dense."""

from __future__ import annotations

import math

import loss_oracles as oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.losses import chance_level, nt_xent
from twofold.losses.blocks import block_nt_xent
from twofold.losses.nt_xent import BLOCKS_FROM, dense_nt_xent, l2_normalize

IMPLEMENTATIONS = ["dense", "blocks"]
# float32: both are sums of 2N terms of size 1/tau, rounded to 2^-24 each; float64: the same with 2^-53
CLOSE = {torch.float32: {"rtol": 3e-6, "atol": 3e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}


def pair(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return z[0].requires_grad_(), z[1].requires_grad_()


# ---- oracle


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 1), (3, 8), (17, 5), (40, 32)])
@pytest.mark.parametrize(("temperature", "normalize"), [(0.05, True), (0.5, True), (2.0, False)])
def test_equals_the_loops_of_algorithm_1(
    n: int, d: int, temperature: float, normalize: bool, dtype: torch.dtype, implementation: str
) -> None:
    a, b = pair(n, d, seed=n, dtype=dtype)
    loss = nt_xent(a, b, temperature, normalize, implementation=implementation)
    expected = oracle.nt_xent(a.detach().double().numpy(), b.detach().double().numpy(), temperature, normalize)
    # bfloat16 and float16 inputs are computed with in float32: they are no less exact than float32 ones
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.item(), expected, **CLOSE[loss.dtype])


# ---- closed forms (each is the mean over anchors)


def orthogonal(count: int) -> Tensor:
    return torch.linalg.qr(torch.randn(2 * count, 2 * count, generator=torch.Generator().manual_seed(3)).double())[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_closed_forms(n: int, temperature: float, implementation: str) -> None:
    def value(a: Tensor, b: Tensor) -> float:
        return nt_xent(a, b, temperature, implementation=implementation).item()

    basis, same = orthogonal(n), torch.ones(n, 3, dtype=torch.float64)
    near = 1e-12
    assert value(same, same) == pytest.approx(math.log(2 * n - 1), abs=near)
    assert value(basis[:n], 5 * basis[:n]) == pytest.approx(
        math.log1p(2 * (n - 1) * math.exp(-1 / temperature)), abs=near
    )
    assert value(basis[:n], basis[n:]) == pytest.approx(chance_level(n), abs=near)
    assert value(basis[:n], -basis[:n]) == pytest.approx(math.log1p(2 * (n - 1) * math.exp(1 / temperature)), abs=near)


def test_published_example() -> None:
    """Spec of Speech SimCLR, 1.14."""
    a = torch.eye(3, dtype=torch.float64)
    b = torch.tensor([[0.8, 0.6, 0], [0, 0.6, 0.8], [0.6, 0, 0.8]], dtype=torch.float64)
    assert nt_xent(a, b, 0.1).item() == pytest.approx(0.718676, abs=1e-6)
    assert nt_xent(a, b, 0.5, scale="simclr_sum2").item() == pytest.approx(2.174469, abs=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_image_has_nothing_to_learn(implementation: str) -> None:
    a, b = pair(1, 8, dtype=torch.float64)
    loss = nt_xent(a, b, implementation=implementation)
    loss.backward()
    assert abs(loss.item()) < 1e-13
    torch.testing.assert_close(a.grad, torch.zeros_like(a), rtol=0, atol=1e-13)


# ---- invariances


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 12),
    d=st.integers(1, 9),
    seed=st.integers(0, 2**20),
    temperature=st.floats(0.05, 5.0),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_order_views_and_lengths_do_not_matter(
    n: int, d: int, seed: int, temperature: float, implementation: str
) -> None:
    a, b = (z.detach() for z in pair(n, d, seed, torch.float64))
    generator = torch.Generator().manual_seed(seed)

    def value(a: Tensor, b: Tensor) -> float:
        return nt_xent(a, b, temperature, implementation=implementation).item()  # type: ignore[arg-type]

    expected = pytest.approx(value(a, b), rel=1e-10, abs=1e-10)
    order = torch.randperm(n, generator=generator)
    assert value(a[order], b[order]) == expected
    assert value(b, a) == expected
    assert value(a * torch.rand(n, 1, generator=generator).add(0.1), b * 7) == expected


def test_gradient_is_orthogonal_to_a_normalised_projection() -> None:
    a, b = pair(10, 6, dtype=torch.float64)
    nt_xent(a, b).backward()
    assert a.grad is not None
    torch.testing.assert_close((a.grad * a).sum(1), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-14)


def test_scales_differ_by_two() -> None:
    a, b = pair(5, 6)
    assert nt_xent(a, b, scale="simclr_sum2").item() == pytest.approx(2 * nt_xent(a, b).item())


def test_rows_below_the_epsilon_are_divided_by_it() -> None:
    z = torch.tensor([[3e-7, 4e-7], [3e-5, 4e-5], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(l2_normalize(z), expected)


# ---- blocks against dense


@pytest.mark.parametrize("block", [1, 3, 8, 14, 15, 64])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_any_block_size_gives_the_dense_loss_and_gradient(n: int, block: int) -> None:
    results = []
    for function in (lambda z: dense_nt_xent(z, 0.3), lambda z: block_nt_xent(z, 0.3, block)):
        z = torch.cat(pair(n, 5, dtype=torch.float64)).detach().requires_grad_()
        loss = function(z)
        (3 * loss).backward()  # a factor, so that the incoming gradient counts
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("temperature", "normalize"), [(0.05, True), (0.5, True), (1.0, False)])
def test_blocks_equal_dense_over_several_default_blocks(
    dtype: torch.dtype, temperature: float, normalize: bool
) -> None:
    results = []
    for implementation in IMPLEMENTATIONS:
        a, b = pair(700, 32, dtype=dtype)
        loss = nt_xent(a, b, temperature, normalize, implementation=implementation)  # type: ignore[arg-type]
        results.append((loss.detach(), *torch.autograd.grad(loss, (a, b))))
    dense, blocks = results
    torch.testing.assert_close(blocks[0], dense[0], rtol=1e-6, atol=0)
    # float32: sums of 1400 terms in another order. bfloat16: both round the same float32 gradient, to 8 bits
    bound = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    for got, expected in zip(blocks[1:], dense[1:], strict=True):
        assert got.dtype == dtype
        assert (got - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_bfloat16_inputs_cost_no_more_than_their_rounding(implementation: str, temperature: float) -> None:
    a, b = (z.detach() for z in pair(200, 64))
    exact = nt_xent(a, b, temperature, implementation=implementation)  # type: ignore[arg-type]
    rounded = nt_xent(a.bfloat16(), b.bfloat16(), temperature, implementation=implementation)  # type: ignore[arg-type]
    # Rounding turns each vector by at most 2^-9, so a logit by 2 * 2^-9 / tau, and the loss, a difference of two, by
    # 2^-7 / tau at most.
    assert abs(exact - rounded) <= 2**-7 / temperature


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_of_blocks(normalize: bool) -> None:
    a, b = pair(6, 4, dtype=torch.float64)

    def function(a: Tensor, b: Tensor) -> Tensor:
        z = torch.cat([a, b])
        return block_nt_xent(l2_normalize(z) if normalize else z, 0.4, 5)

    assert torch.autograd.gradcheck(function, (a, b))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_large_and_small_logits_stay_finite(implementation: str) -> None:
    """Inner products of 1e4 at temperature 0.01: exp overflows unless every row is shifted by its own maximum."""
    a, b = pair(6, 4)
    loss = nt_xent(100 * a, 100 * b, 0.01, False, implementation=implementation)  # type: ignore[arg-type]
    loss.backward()
    assert a.grad is not None
    assert loss.isfinite()
    assert a.grad.isfinite().all()
    expected = oracle.nt_xent(100 * a.detach().double().numpy(), 100 * b.detach().double().numpy(), 0.01, False)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_does_not_reach_the_logits(implementation: str) -> None:
    a, b = pair(100, 32)
    plain = nt_xent(a, b, 0.05, implementation=implementation)  # type: ignore[arg-type]
    plain_grad = torch.autograd.grad(plain, a)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = nt_xent(a, b, 0.05, implementation=implementation)  # type: ignore[arg-type]
    torch.testing.assert_close(cast, plain, rtol=1e-7, atol=0)
    torch.testing.assert_close(torch.autograd.grad(cast, a)[0], plain_grad, rtol=1e-6, atol=1e-9)


def test_auto_takes_blocks_where_the_matrix_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["twofold.losses.nt_xent"]
    calls: list[str] = []
    monkeypatch.setattr(module, "dense_nt_xent", lambda z, _: calls.append("dense") or z.sum())
    monkeypatch.setattr(module, "large_nt_xent", lambda z, *_: calls.append("blocks") or z.sum())
    for n in (BLOCKS_FROM // 2 - 1, BLOCKS_FROM // 2):
        nt_xent(*pair(n, 2))
    assert calls == ["dense", "blocks"]


# ---- refusals


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"scale": "sum"}, "scale"),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        nt_xent(*pair(3, 4), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((4,), (4,)), ((0, 4), (0, 4))])
def test_wrong_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        nt_xent(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_epsilon_differs_from_torch_normalize() -> None:
    """Why `F.normalize` would not do: it takes a row of norm 1e-8 to the sphere, the reference leaves it at 0.01."""
    z = torch.full((1, 1), 1e-8, dtype=torch.float64)
    np.testing.assert_allclose([l2_normalize(z).item(), F.normalize(z).item()], [0.01, 1.0])
