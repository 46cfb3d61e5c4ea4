"""MoCo on several processes equals one process whose batch norm is split into as many runs: values, gradients, queue.

Float64, so that 1e-10 after five steps shows equality of what is computed; float32 would show rounding.
"""

from __future__ import annotations

import pytest
import torch
from moco_net import moco
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from processes import run_processes
from twofold.methods import Inputs

BATCH, STEPS = 12, 5


def steps(rank: int, world: int, symmetric: bool, splits: int = 1) -> list[dict[str, Tensor]]:
    """Five steps of SGD on this rank's rows; a queue of 31 is gone round, in no whole number of batches."""
    torch.manual_seed(0)
    method = moco(queue=31, symmetric=symmetric, bn_splits=splits, seed=5).double()
    model = DistributedDataParallel(method) if world > 1 else method
    optimizer = torch.optim.SGD([p for part in method.trained() for p in part.parameters()], 0.3, momentum=0.9)
    own, seen = slice(rank * BATCH // world, (rank + 1) * BATCH // world), []
    for step in range(STEPS):
        torch.manual_seed(100 + step)
        a, b = torch.rand(2, BATCH, 3, 6, 6, dtype=torch.float64)
        out = model(Inputs(a[own], b[own]))
        optimizer.zero_grad()
        out.loss.backward()
        gradients = {f"gradient of {n}": p.grad.clone() for n, p in method.named_parameters() if p.requires_grad}
        optimizer.step()
        state = {n: v.clone() for n, v in method.state_dict().items() if isinstance(v, Tensor) and "running" not in n}
        seen.append({"loss": out.loss.detach(), "q": out.z_a, "k": out.z_b, **gradients, **state})
    return seen


def both(rank: int, world: int) -> dict[bool, list[dict[str, Tensor]]]:
    """The asymmetric and the symmetric loss: starting processes takes longer than both."""
    return {symmetric: steps(rank, world, symmetric) for symmetric in (False, True)}


@pytest.mark.parametrize("world", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_splits(world: int) -> None:
    ranks = run_processes(both, world, world, timeout=300)
    for symmetric in (False, True):
        one = steps(0, 1, symmetric, splits=world)
        for step, expected in enumerate(one):
            compare([seen[symmetric][step] for seen in ranks], expected, step)


def compare(ranks: list[dict[str, Tensor]], expected: dict[str, Tensor], step: int) -> None:
    """One step of all ranks with that of the one process."""
    loss = torch.stack([seen["loss"] for seen in ranks]).mean()
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-10, atol=0)
    for name in ("q", "k"):
        rows = torch.cat([seen[name] for seen in ranks])
        torch.testing.assert_close(rows, expected[name], rtol=0, atol=1e-10)
    for seen in ranks:
        for name in expected.keys() - {"loss", "q", "k"}:
            torch.testing.assert_close(seen[name], expected[name], rtol=1e-9, atol=1e-10, msg=f"{name}, step {step}")
