"""N processes compute what one process computes: values, gradients, running statistics.

float64 throughout, so that 1e-12 shows equality of formulas and not of rounding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from processes import run_processes
from twofold import distributed
from twofold.distributed import BatchNorm, all_gather, all_reduce_mean, all_reduce_sum
from twofold.encoders import ResNet, adapt
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
ROWS = {2: (5, 3), 3: (4, 0, 3)}  # rows of each rank: unequal, and none on one


def data(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(x: Tensor, rows: tuple[int, ...], rank: int) -> Tensor:
    return x.split(rows)[rank].clone().requires_grad_()


# ---- what the ranks run


def gather_and_reduce(rank: int, world: int) -> dict[str, Tensor]:
    x = part(data((2 * world, 3), 1), (2,) * world, rank)
    # A loss that differs from rank to rank, so that a gradient which is not summed over ranks shows.
    weights = data((world, 2 * world, 3), 2)
    gathered = all_gather(x)
    (gathered.square() * weights[rank]).sum().backward()
    y = part(data((world, 4), 3), (1,) * world, rank)
    total = all_reduce_sum(y)
    (total.square() * (rank + 1)).sum().backward()
    mean_input = y.detach().clone().requires_grad_()
    mean = all_reduce_mean(mean_input)
    (mean * (rank + 1)).sum().backward()
    return {
        "gathered": gathered.detach(),
        "grad": x.grad,
        "total": total.detach(),
        "total_grad": y.grad,
        "mean": mean.detach(),
        "mean_grad": mean_input.grad,
        "place": torch.tensor([distributed.rank(), distributed.world_size(), distributed.is_distributed()]),
    }


def normalize(rank: int, rows: tuple[int, ...], shape: tuple[int, ...], bias: bool, unbiased: bool) -> dict[str, Any]:
    norm = BatchNorm(shape[0], bias=bias, unbiased=unbiased).double()
    with torch.no_grad():
        norm.weight.copy_(data((shape[0],), 5))
    x = part(data((sum(rows), *shape), 4) + 3, rows, rank)
    y = norm(x)
    (y * part(data((sum(rows), *shape), 6), rows, rank).detach()).sum().backward()
    return {
        "y": y.detach(),
        "x_grad": x.grad,
        "w_grad": norm.weight.grad,
        "b_grad": norm.bias.grad if bias else torch.zeros(1),
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


class Plain(nn.Module):
    """Somebody's own net with torch's batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def whole_net(rank: int, rows: tuple[int, ...], own: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    encoder = (adapt(Plain()) if own else ResNet(10, 0.25, "small", zero_init_residual=False)).double()
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=2, out_dim=8)).double()
    x = part(data((sum(rows), 3, 16, 16), 7), rows, rank).detach()
    z = head(encoder(x))
    (z * part(data((sum(rows), 8), 8), rows, rank).detach()).sum().backward()
    modules = nn.ModuleList([encoder, head])
    grads = {name: p.grad for name, p in modules.named_parameters()}
    return {"z": z.detach(), **grads, **{name: b for name, b in modules.named_buffers() if "batches" not in name}}


def local_norm(rank: int, world: int) -> Tensor:
    return BatchNorm(3, synchronized=False).double()(data((world, 4, 3), 9)[rank]).detach()


def compiled(rank: int) -> dict[str, Tensor]:
    norm, x = BatchNorm(3).double(), data((2, 4, 3), 10)[rank].requires_grad_()
    y = torch.compile(norm, backend="aot_eager")(x)
    y.square().mul(data((2, 4, 3), 11)[rank]).sum().backward()
    return {"y": y.detach(), "grad": x.grad, "var": norm.running_var}


def all_checks(rank: int, world: int) -> dict[str, Any]:
    """Everything in one start of the processes: starting them takes longer than the checks."""
    rows = ROWS[world]
    return {
        "collectives": gather_and_reduce(rank, world),
        "norm2d": normalize(rank, rows, (6,), True, False),
        "norm4d": normalize(rank, rows, (4, 3, 2), True, True),
        "unbiased_head": normalize(rank, rows, (6,), False, True),
        "net": whole_net(rank, (3, 5, 4)[:world], False),
        "own_net": whole_net(rank, (3, 5, 4)[:world], True),
        "local": local_norm(rank, world),
    }


# ---- what is checked


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(all_checks, request.param, request.param)


def test_collectives(ranks: list[dict[str, Any]]) -> None:
    """all_gather and the reductions, with gradients summed over the ranks' different losses."""
    world = len(ranks)
    x, weights, y = data((2 * world, 3), 1), data((world, 2 * world, 3), 2), data((world, 4), 3)
    grad = 2 * x * weights.sum(0)
    losses = sum(range(1, world + 1))
    for rank, got in enumerate(r["collectives"] for r in ranks):
        torch.testing.assert_close(got["gathered"], x, rtol=0, atol=0)
        torch.testing.assert_close(got["grad"], grad[2 * rank : 2 * rank + 2], **CLOSE)
        torch.testing.assert_close(got["total"], y.sum(0, keepdim=True), **CLOSE)
        torch.testing.assert_close(got["total_grad"], 2 * y.sum(0, keepdim=True) * losses, **CLOSE)
        torch.testing.assert_close(got["mean"], y.mean(0, keepdim=True), **CLOSE)
        torch.testing.assert_close(got["mean_grad"], torch.full((1, 4), losses / world, dtype=torch.float64), **CLOSE)
        assert got["place"].tolist() == [rank, world, 1]


@pytest.mark.parametrize(
    ("name", "shape", "bias", "unbiased"),
    [("norm2d", (6,), True, False), ("norm4d", (4, 3, 2), True, True), ("unbiased_head", (6,), False, True)],
)
def test_batch_norm(ranks: list[dict[str, Any]], name: str, shape: tuple[int, ...], bias: bool, unbiased: bool) -> None:
    """Unequal parts of a batch are normalised as the whole batch is in one process."""
    rows = ROWS[len(ranks)]
    want = normalize(0, (sum(rows),), shape, bias, unbiased)
    got = [r[name] for r in ranks]
    for key in ("y", "x_grad"):
        torch.testing.assert_close(torch.cat([g[key] for g in got]), want[key], **CLOSE)
    for key in ("w_grad", "b_grad"):
        torch.testing.assert_close(sum(g[key] for g in got), want[key], **CLOSE)
    for g in got:
        torch.testing.assert_close(g["mean"], want["mean"], **CLOSE)
        torch.testing.assert_close(g["var"], want["var"], **CLOSE)


@pytest.mark.parametrize("own", [False, True], ids=["resnet", "adapted"])
def test_whole_net(ranks: list[dict[str, Any]], own: bool) -> None:
    """Encoder and head: features, summed parameter gradients and running averages of N processes are one's."""
    rows = (3, 5, 4)[: len(ranks)]
    want = whole_net(0, (sum(rows),), own)
    got = [r["own_net" if own else "net"] for r in ranks]
    torch.testing.assert_close(torch.cat([g["z"] for g in got]), want["z"], rtol=1e-8, atol=1e-10)
    for name in want.keys() - {"z"}:
        value = got[0][name] if "running" in name else sum(g[name] for g in got)
        torch.testing.assert_close(value, want[name], rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_local_statistics_on_request(ranks: list[dict[str, Any]]) -> None:
    """synchronized=False is the reference's global_bn=False: each rank's own rows."""
    for x, r in zip(data((len(ranks), 4, 3), 9), ranks, strict=True):
        want = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(r["local"], want, **CLOSE)


@pytest.mark.slow
def test_compiled_over_ranks() -> None:
    """torch.compile changes nothing about statistics over two ranks."""
    ranks = run_processes(compiled, 2)
    norm, x = BatchNorm(3).double(), data((2, 4, 3), 10).flatten(0, 1).requires_grad_()
    y = norm(x)
    y.square().mul(data((2, 4, 3), 11).flatten(0, 1)).sum().backward()
    torch.testing.assert_close(torch.cat([r["y"] for r in ranks]), y.detach(), **CLOSE)
    torch.testing.assert_close(torch.cat([r["grad"] for r in ranks]), x.grad, **CLOSE)
    torch.testing.assert_close(ranks[0]["var"], norm.running_var, **CLOSE)


def fail(rank: int) -> None:
    if rank == 1:
        raise ValueError("on purpose")
    all_reduce_sum(torch.ones(1))  # waits for rank 1 in vain


def test_a_failing_rank_is_told() -> None:
    """The helper gives the failed rank's traceback instead of waiting for the others."""
    with pytest.raises(RuntimeError, match="on purpose"):
        run_processes(fail, 2)


# ---- one process


def test_without_a_process_group() -> None:
    """Every helper works where nothing was initialised."""
    assert (distributed.rank(), distributed.world_size(), distributed.is_distributed()) == (0, 1, False)
    x = torch.ones(2, 3)
    assert all_gather(x) is x
    assert all_reduce_sum(x) is x
    assert torch.equal(all_reduce_mean(x), x)


@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_single_process_batch_norm(shape: tuple[int, ...], bias: bool) -> None:
    """Against the formula, in float64: y, biased running variance; and torch's convention on request."""
    x = data(shape, 12) * 2 + 5
    dims = [0, *range(2, x.ndim)]
    mean, var = x.mean(dims), x.var(dims, correction=0)
    count = x.numel() // x.shape[1]
    for unbiased in (False, True):
        norm = BatchNorm(5, bias=bias, unbiased=unbiased).double()
        wide = [1, -1] + [1] * (x.ndim - 2)
        torch.testing.assert_close(norm(x), (x - mean.view(wide)) / (var.view(wide) + 1e-5).sqrt(), **CLOSE)
        kept = var * count / (count - 1) if unbiased else var
        torch.testing.assert_close(norm.running_mean, 0.1 * mean, **CLOSE)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * kept, **CLOSE)
        if unbiased and bias:
            torchs = (nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d)(5).double()
            torchs(x)
            torch.testing.assert_close(norm.running_var, torchs.running_var, **CLOSE)
            torch.testing.assert_close(norm.eval()(x), torchs.eval()(x), **CLOSE)


def test_one_row_is_an_error() -> None:
    """The variance of one value says nothing."""
    with pytest.raises(UserError, match="at least two values"):
        BatchNorm(3)(torch.ones(1, 3))
    assert BatchNorm(3).eval()(torch.ones(1, 3)).shape == (1, 3)


def test_bf16_keeps_float32_statistics() -> None:
    """Under autocast, statistics of bf16 inputs are taken and kept in float32, on both memory layouts."""
    x = (data((64, 8, 6, 6), 14) * 0.1 + 3).bfloat16()
    exact = x.double()
    for layout in (torch.contiguous_format, torch.channels_last):
        norm = BatchNorm(8)
        with torch.autocast("cpu", torch.bfloat16):
            y = norm(x.contiguous(memory_format=layout))
        assert y.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=layout)
        assert norm.running_var.dtype == torch.float32
        # 1e-5: float32 sums over 2,304 values; bf16 statistics would be off by up to 4e-3.
        want = exact.mean((0, 2, 3)) * 0.1
        torch.testing.assert_close(norm.running_mean.double(), want, rtol=1e-5, atol=0)
        want = 0.9 + 0.1 * exact.var((0, 2, 3), correction=0)
        torch.testing.assert_close(norm.running_var.double(), want, rtol=1e-5, atol=0)


def test_compiles_in_one_piece() -> None:
    """One process: no graph break, same values, gradients and running averages."""
    plain, whole = BatchNorm(4).double(), BatchNorm(4).double()
    x = data((6, 4, 3, 3), 15)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = plain(a)
    torch_y = torch.compile(whole, backend="aot_eager", fullgraph=True)(b)
    F.relu(y).square().sum().backward()
    F.relu(torch_y).square().sum().backward()
    torch.testing.assert_close(torch_y, y, **CLOSE)
    torch.testing.assert_close(b.grad, a.grad, **CLOSE)
    torch.testing.assert_close(whole.running_var, plain.running_var, **CLOSE)
