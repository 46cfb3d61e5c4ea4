"""Losses over several processes: the reference's replicas, and one process with the whole batch.

Against the reference (float32): 2e-6 as in one process. Against one process: float64, so that 1e-12 shows equality of
formulas and not of rounding.
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
from twofold import losses
from twofold.distributed import all_gather
from twofold.losses import blocks, nt_xent
from twofold.losses.diagnostics import cross_view_logits
from twofold.losses.nt_xent import l2_normalize

XREPLICA = "ntxent_xreplica.npz"
IMPLEMENTATIONS = ("dense", "blocks")
CASES = golden(XREPLICA).meta["cases"]


# ---- what the ranks run


def golden_replica(rank: int, cases: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """Each case's loss and gradients on this rank, as run.py of the reference computes them."""
    results = []
    for case in cases:
        data, key = golden(XREPLICA), case["id"]
        for implementation in IMPLEMENTATIONS:
            w = torch.tensor(data[f"{key}/w"], requires_grad=True)
            hidden = torch.tensor(data[f"{key}/x"][rank]) @ w
            hidden.retain_grad()
            loss = nt_xent(*hidden.chunk(2), case["T"], case["norm"], "simclr_sum2", implementation)  # type: ignore[arg-type]
            loss.backward()
            a, b = (l2_normalize(hidden.detach()) if case["norm"] else hidden.detach()).chunk(2)
            logits = cross_view_logits(a, all_gather(b), case["T"])
            results.append(
                {"loss": loss.detach().numpy(), "grad": hidden.grad.numpy(), "grad_w": w.grad.numpy()}
                | {"logits": logits.numpy()}
            )
    return results


def everything(a: Tensor, b: Tensor, weight: float) -> dict[str, Tensor]:
    """Every loss that compares views over ranks, with its gradients; `weight` multiplies this rank's loss."""
    functions = {
        "dense": lambda a, b: nt_xent(a, b, 0.3, implementation="dense"),
        "blocks": lambda a, b: nt_xent(a, b, 0.3, implementation="blocks"),
        "unnormalised": lambda a, b: nt_xent(a, b, 1.0, False, implementation="blocks"),
        "logistic": lambda a, b: losses.nt_logistic(a, b, 0.3),
        "logistic_hard": lambda a, b: losses.nt_logistic(a, b, 0.3, mining="semi_hard"),
        "triplet": lambda a, b: losses.margin_triplet(a, b, 0.4, negatives="sum"),
        "triplet_hard": lambda a, b: losses.margin_triplet(a, b, 0.4, mining="semi_hard"),
    }
    out = {}
    for name, function in functions.items():
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = function(x, y)
        out[name] = loss.detach()
        out[f"{name}/a"], out[f"{name}/b"] = torch.autograd.grad(weight * loss, (x, y))
    return out


def describe_all(a: Tensor, b: Tensor, images: int) -> dict[str, float]:
    metrics = losses.describe(a, b, torch.cat([a, b]), 0.3, images)
    metrics.pop("effective_rank")  # a mean over ranks, of each one's rows
    return metrics


def rank_part(rank: int, z: Tensor, world: int, weight: float) -> dict[str, Any]:
    if world == 3:  # blocks that do not fit the rows
        blocks.ONE_THREAD_BLOCK = 3
    a, b = (view.chunk(world)[rank] for view in z)
    return {
        "losses": everything(a, b, 1.0),
        "weighted": everything(a, b, weight * (1 - 2 * rank)),
        "metrics": describe_all(a, b, z.shape[1]),
    }


# ---- tests


@pytest.mark.parametrize("world", sorted({case["n_rep"] for case in CASES}))
def test_replicas_equal_the_reference(world: int) -> None:
    cases = [case for case in CASES if case["n_rep"] == world]
    ranks = run_processes(golden_replica, world, cases) if world > 1 else [golden_replica(0, cases)]
    for i in range(len(cases) * len(IMPLEMENTATIONS)):
        case = cases[i // len(IMPLEMENTATIONS)]
        data, key = golden(XREPLICA), case["id"]
        # views that are nearly equal leave gradients of 1e-5 of terms of 0.1 (see test_nt_xent_golden.py)
        bound = 1e-4 if case.get("kind") == "correlated" else 2e-6
        for rank, results in enumerate(ranks):  # all values first: one rank's wrong value spoils every gradient
            value = data[f"{key}/loss"][rank]
            agree("NT-Xent over replicas: value", results[i]["loss"], value, 1e-6, 1 + float(value))
        for rank, results in enumerate(ranks):
            got = results[i]
            expected = data[f"{key}/logits_ab"][rank]
            np.testing.assert_allclose(got["logits"], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
            # the gradient of the sum of all replicas' losses: what a differentiable gather gives
            expected = data[f"{key}/grad_hidden_local_tape"][rank]
            agree("NT-Xent over replicas: gradients", got["grad"], expected, bound, "largest")
        mean = np.mean([results[i]["grad_w"] for results in ranks], axis=0)  # what DistributedDataParallel does
        expected = data[f"{key}/grad_w_train"]
        # a product of these gradients with x, in which they cancel further
        agree("NT-Xent over replicas: gradients", mean, expected, 2 * bound, "largest")
        # labels: the partner of row i of rank r is column r*n + i
        if f"{key}/labels" in data:
            positions = data[f"{key}/labels"].argmax(-1)
            np.testing.assert_array_equal(positions, np.arange(world * case["N"]).reshape(world, case["N"]))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world: int) -> None:
    z = torch.randn(2, 5 * world, 6, generator=torch.Generator().manual_seed(world), dtype=torch.float64)
    z[1] += z[0]
    ranks = run_processes(rank_part, world, z, world, 0.7)
    whole = everything(*z, weight=1.0)
    for name, expected in whole.items():
        parts = [result["losses"][name] for result in ranks]
        # Each rank's gradient is that of the sum of the losses; the global loss is their mean.
        got = torch.stack(parts).mean() if expected.ndim == 0 else torch.cat(parts) / world
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    for result in ranks:
        metrics = describe_all(*z, images=z.shape[1])
        assert result["metrics"] == pytest.approx(metrics, rel=1e-10)
        # Where ranks' losses count unequally (here 0.7, -0.7, -2.1), the hand-written backward still equals the
        # gradient through the differentiable gather.
        got = result["weighted"]
        for view in "ab":
            torch.testing.assert_close(got[f"blocks/{view}"], got[f"dense/{view}"], rtol=1e-11, atol=1e-13)
