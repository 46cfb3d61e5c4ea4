"""NT-Xent on a GPU: dense, in blocks, in Triton kernels, and the losses of inf-cl and pytorch-metric-learning.

    pip install inf-cl pytorch-metric-learning
    python benchmarks/loss_gpu.py                 # 2N = 1024 to 65536, d = 128

Value and gradient of all 2N views with their negatives, in one process, the forms in turn; median of repeats. Memory is
the most that torch held beside the projections. The error is that of the gradient against float64, |g - g64| / |g64|.
inf-cl contrasts every row with every row, itself included, and multiplies in TF32: as much work, another function.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import describe_machine
from torch import Tensor

from twofold.losses.blocks import block_nt_xent
from twofold.losses.nt_xent import dense_nt_xent, l2_normalize

TEMPERATURE = 0.1
MOST = {"dense": 32768, "pytorch-metric-learning": 16384}  # rows: beyond these they need more than 20 GB


def forms(given: argparse.Namespace) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each form as a function of normalised projections [2N, d]."""
    results: dict[str, Callable[[Tensor], Tensor]] = {"dense": lambda z: dense_nt_xent(z, TEMPERATURE)}
    for block in given.blocks:
        results[f"blocks {block}"] = functools.partial(block_nt_xent, temperature=TEMPERATURE, block=block)
    compiled = torch.compile(dense_nt_xent)
    results["dense, compiled"] = lambda z: compiled(z, TEMPERATURE)
    try:
        from twofold.losses.kernels import kernel_nt_xent

        for config in given.kernels:
            *numbers, precision = config.split(",")
            options = (*map(int, numbers), precision)
            results[f"kernel {config}"] = functools.partial(kernel_nt_xent, temperature=TEMPERATURE, config=options)
    except ImportError:
        print("no kernels here")
    try:
        from inf_cl import cal_flash_loss

        results["inf-cl"] = lambda z: cal_flash_loss(
            z, z, torch.arange(len(z), device=z.device), 1 / TEMPERATURE, z.shape[1]
        ).mean()
    except ImportError:
        print("inf-cl is not installed")
    try:
        from pytorch_metric_learning.losses import NTXentLoss

        loss = NTXentLoss(TEMPERATURE)
        results["pytorch-metric-learning"] = lambda z: loss(z, torch.arange(len(z), device=z.device) % (len(z) // 2))
    except ImportError:
        print("pytorch-metric-learning is not installed")
    return results


def measure(form: Callable[[Tensor], Tensor], z: Tensor, repeats: int) -> tuple[list[float], float, Tensor]:
    """Milliseconds of each repeat, MB held beside z, and the gradient."""
    times, gradient = [], torch.empty(0)
    for i in range(repeats + 2):
        leaf = z.clone().requires_grad_()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        form(leaf).backward()
        end.record()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
        gradient = leaf.grad if leaf.grad is not None else torch.empty(0)
    return times, (torch.cuda.max_memory_allocated() - before) / 2**20, gradient


def compare(rows: int, dim: int, repeats: int, tried: dict[str, Callable[[Tensor], Tensor]]) -> list[dict[str, Any]]:
    """A row of figures for each form at one size."""
    z = l2_normalize(torch.randn(rows, dim, device="cuda"))
    truth = None
    if rows <= 8192:
        exact = z.double().requires_grad_()
        dense_nt_xent(exact, TEMPERATURE).backward()
        truth = exact.grad
    results = []
    for name, form in tried.items():
        if rows > MOST.get(name.partition(",")[0], rows):
            continue
        try:
            times, mb, gradient = measure(form, z, repeats)
        except Exception as error:  # a form that does not run here is a result, too
            print(f"{rows:>7,}  {name:<26} {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
            continue
        error = float((gradient - truth).norm() / truth.norm()) if truth is not None else float("nan")
        results.append({"rows": rows, "form": name, "ms": median(times), "least": min(times), "most": max(times),
                      "mb": mb, "error": error})  # fmt: skip
        print(f"{rows:>7,}  {name:<26} {median(times):9.3f} ms [{min(times):.3f}..{max(times):.3f}] {mb:9.1f} MB  "
              f"error {error:.1e}", flush=True)  # fmt: skip
    return results


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 2048, 8192, 16384, 65536], help="2N")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2048, 4096, 8192], help="sides of a block")
    parser.add_argument(
        "--kernels", nargs="+", default=["64,64,4,3,tf32x3"], help="rows,columns,warps,stages,precision"
    )
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a GPU; benchmarks/loss.py measures on a CPU")
    print(f"{describe_machine()}; d = {given.dim}, float32, median [least..most] of n = {given.repeats}")
    tried, results = forms(given), []
    for rows in given.rows:
        results += compare(rows, given.dim, given.repeats, tried)
    if given.json:
        given.json.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
