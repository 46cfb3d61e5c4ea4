"""What the kernels of NT-Xent have to equal, on any device (on a CPU by Triton's interpreter)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import run_processes
from twofold.losses.kernels import Config, kernel_nt_xent
from twofold.losses.nt_xent import dense_nt_xent, l2_normalize, nt_xent


def same_loss(rows: int, dim: int, temperature: float, device: str, config: Config | None = None) -> None:
    """Value and gradient equal those of the dense form in float64.

    To 3e-6 of the gradient's norm; near agreement, where next to nothing is left of it, to what 1 / temperature rounds.
    """
    z = l2_normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)))
    found, truth = z.to(device, copy=True).requires_grad_(), z.double().requires_grad_()
    loss, expected = kernel_nt_xent(found, temperature, config), dense_nt_xent(truth, temperature)
    (1.7 * loss).backward()
    (1.7 * expected).backward()
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-6, atol=1e-6)
    assert found.grad is not None
    assert truth.grad is not None
    error = (found.grad.double().cpu() - truth.grad).norm()
    assert error < 3e-6 * truth.grad.norm() + 1e-6 / temperature, (rows, dim, temperature, float(error))


def of_one_rank(rank: int, world: int) -> Any:
    """The loss of this rank's rows, and its gradient."""
    a, b = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = slice(rank * 6 // world, (rank + 1) * 6 // world)
    leaves = a[rows].detach().requires_grad_(), b[rows].detach().requires_grad_()
    loss = nt_xent(*leaves, 0.2, implementation="kernel")
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def main() -> None:
    """On a CPU, under the interpreter."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    for rows, dim, temperature in ((2, 3, 1.0), (6, 8, 0.1), (70, 20, 0.5), (100, 64, 0.05)):
        same_loss(rows, dim, temperature, "cpu", (32, 16, 4, 1, "ieee"))
    whole, (grad_a, grad_b) = run_processes(of_one_rank, 1, 1)[0]
    parts = run_processes(of_one_rank, 2, 2)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole)
    torch.testing.assert_close(torch.cat([part[1][0] for part in parts]) / 2, grad_a)
    torch.testing.assert_close(torch.cat([part[1][1] for part in parts]) / 2, grad_b)
    print("all equal")


if __name__ == "__main__":
    main()
