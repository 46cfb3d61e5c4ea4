"""SimCLR on 2 and 3 processes equals one process: loss, projections, gradients, parameters and running averages.

Float64, so that 1e-9 after five steps shows equality of what is computed; float32 would show rounding, which batch norm
of a young net multiplies at each update.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from processes import run_processes
from twofold.encoders import ResNet
from twofold.heads import HeadConfig
from twofold.methods import Inputs, SimCLR

BATCH, STEPS = 12, 5


def steps(rank: int, world: int) -> list[dict[str, Tensor]]:
    """Five steps of SGD with momentum on this rank's rows."""
    torch.manual_seed(0)
    head = HeadConfig("nonlinear", layers=2, out_dim=6)
    method = SimCLR(ResNet(10, width=0.0625, stem="cifar"), head, 0.2).double()
    model = DistributedDataParallel(method) if world > 1 else method
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9)
    own, seen = slice(rank * BATCH // world, (rank + 1) * BATCH // world), []
    for step in range(STEPS):
        a, b = torch.rand(2, BATCH, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        out = model(Inputs(a[own], b[own]))
        optimizer.zero_grad()
        out.loss.backward()
        gradients = {f"gradient of {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        state = {n: v.clone() for n, v in method.state_dict().items() if isinstance(v, Tensor)}
        seen.append({"loss": out.loss.detach(), "z_a": out.z_a.detach(), **gradients, **state})
    return seen


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world: int) -> None:
    ranks = run_processes(steps, world, world, timeout=300)
    for step, expected in enumerate(steps(0, 1)):
        seen = [rank[step] for rank in ranks]
        mean = torch.stack([one["loss"] for one in seen]).mean()
        torch.testing.assert_close(mean, expected["loss"], rtol=1e-9, atol=0)
        torch.testing.assert_close(torch.cat([one["z_a"] for one in seen]), expected["z_a"], rtol=0, atol=1e-9)
        for one in seen:
            for name in expected.keys() - {"loss", "z_a"}:
                torch.testing.assert_close(one[name], expected[name], rtol=1e-8, atol=1e-9, msg=f"{name}, step {step}")
