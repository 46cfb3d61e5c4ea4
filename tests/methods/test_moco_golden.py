"""MoCo against facebookresearch/moco (golden README, section 11): every step of every run on one and two processes.

Both are float32 and drift apart by rounding, step by step: values of size 1 by at most 1e-5 over six steps at the
highest learning rate (0.5), gradients by 2e-5 of the largest, or by 2e-7 where that is more: they are differences of
probabilities, of which float32 rounds each by 6e-8, over the temperature (0.07) and the batch (8). Queues and encoders
are our own throughout: only the initial state, the images and the order of the shuffling are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from moco_net import V1, V2, moco
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import twofold.methods.moco as module
from fidelity import agree
from golden_data import golden, golden_path
from processes import run_processes
from twofold.methods import Inputs

pytestmark = pytest.mark.skipif(not golden_path("moco.npz").exists(), reason="no golden set and no slice of moco.npz")
RUNS = golden("moco.npz").meta["runs"] if golden_path("moco.npz").exists() else []
EMA = golden("moco.npz").meta["ema"] if RUNS else []
# the reference's names: ours
BODY = {"conv1": "module.0", "bn1": "module.1"}
HEADS = {V1: {"fc": "layers.0.0"}, V2: {"fc.0": "layers.0.0", "fc.2": "layers.1.0"}}


def our_name(name: str, version: str, encoder: str = "encoder", head: str = "head") -> str:
    """conv1.weight -> encoder.module.0.weight, and so on."""
    layer, _, leaf = name.rpartition(".")
    return f"{encoder}.{BODY[layer]}.{leaf}" if layer in BODY else f"{head}.{HEADS[version][layer]}.{leaf}"


def load(method: module.MoCo, run: dict[str, Any], version: str) -> None:
    """Take up the reference's initial state, every tensor of it."""
    data, state = golden("moco.npz"), method.state_dict()
    start = f"{run['id']}/init/"
    for key in [key for key in data.arrays if key.startswith(start) and "num_batches" not in key]:
        name, value = key.removeprefix(start), torch.tensor(data[key])
        if name.startswith("queue"):
            state["queue.keys" if name == "queue" else "queue.pointer"] = value.squeeze()
        else:
            side, _, rest = name.partition(".")
            parts = ("encoder", "head") if side == "encoder_q" else ("momentum_encoder", "momentum_head")
            state[our_name(rest, version, *parts)] = value
    method.load_state_dict(state)


def play(rank: int, run: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The run's steps as main_moco.py makes them; what each gave, under the golden set's names."""
    data, seen, version = golden("moco.npz"), {}, V2 if run["mlp"] else V1
    method = moco(run["width"], run["dim"], version, queue=run["K"], momentum=run["m"], temperature=run["T"])
    load(method, run, version)
    model = DistributedDataParallel(method) if run["world"] > 1 else method
    parameters = [p for part in method.trained() for p in part.parameters()]
    optimizer = torch.optim.SGD(parameters, run["lr"], momentum=0.9, weight_decay=1e-4)
    info_nce, permutation = module.info_nce, module.permutation

    def watched(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        loss, logits = info_nce(q, k, queue, temperature)
        q.retain_grad()
        seen.update(q=q, k=k, logits=logits, queue_before=queue)
        return loss, logits

    steps = []
    try:
        module.info_nce = watched
        for step in range(run["steps"]):
            at = f"{run['id']}/rank{rank}/step{step:02d}"
            module.permutation = lambda *_, at=at: data[f"{at}/idx_shuffle"]
            seen.update(ptr_before=method.queue.pointer.clone())
            loss = model(Inputs(torch.tensor(data[f"{at}/im_q"]), torch.tensor(data[f"{at}/im_k"]))).loss
            optimizer.zero_grad()
            loss.backward()
            seen.update(loss=loss, grad_q=seen["q"].grad)
            seen.update(queue_after=method.queue.keys, ptr_after=method.queue.pointer)
            gradients = {f"grad/{n}": p.grad for n, p in method.named_parameters() if p.requires_grad}
            keys = {f"key/{n}": v for n, v in tensors(method).items() if n.startswith("momentum_")}
            optimizer.step()
            queries = {f"query/{n}": v for n, v in tensors(method).items() if not n.startswith("momentum_")}
            steps.append({n: v.detach().clone() for n, v in {**seen, **gradients, **keys, **queries}.items()})
    finally:
        module.info_nce, module.permutation = info_nce, permutation
    return steps


def tensors(method: module.MoCo) -> dict[str, Tensor]:
    return {name: value for name, value in method.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("run", RUNS, ids=[f"{run['id']}-world{run['world']}" for run in RUNS])
def test_steps_equal_the_reference(run: dict[str, Any]) -> None:
    world = run["world"]
    ranks = [play(0, run)] if world == 1 else run_processes(play, world, run)
    for rank, steps in enumerate(ranks):
        for step, got in enumerate(steps):
            compare(run, f"{run['id']}/rank{rank}/step{step:02d}/", got)
            for name in ("queue_after", "ptr_after"):
                assert torch.equal(got[name], ranks[0][step][name])


def compare(run: dict[str, Any], at: str, got: dict[str, Tensor]) -> None:
    """Every array of one step and rank that the golden set holds and a step of ours has."""
    data, version, compared = golden("moco.npz"), V2 if run["mlp"] else V1, 0
    for name in ("loss", "logits", "q", "k", "grad_q", "queue_before", "queue_after", "ptr_before", "ptr_after"):
        close(got[name], data[at + name], at + name)
    ours = {
        "grad_encoder_q/": ("grad/encoder", "grad/head"),
        "encoder_k_after_forward/": ("key/momentum_encoder", "key/momentum_head"),
        "encoder_q_after_step/": ("query/encoder", "query/head"),
    }
    for group, parts in ours.items():
        for key in [k for k in data.arrays if k.startswith(at + group) and "num_batches" not in k]:
            close(got[our_name(key.removeprefix(at + group), version, *parts)], data[key], key)
            compared += 1
    assert compared >= 3 * 5


def close(got: Tensor, expected: np.ndarray, name: str) -> None:
    largest = max(float(np.abs(expected).max()), 1e-2 if "grad" in name else 1.0)
    tolerance = 2e-5 if "grad" in name else 1e-5
    agree("MoCo: steps, gradients, queue", got, expected, tolerance, largest, note=name)


@pytest.mark.parametrize("case", EMA, ids=[case["id"] for case in EMA])
def test_the_key_encoder_follows_as_the_references(case: dict[str, Any]) -> None:
    """_momentum_update_key_encoder ten times, the query encoder being given; one rounding a step, 1e-6."""
    data = golden("moco.npz")
    method = moco(case["width"], case["dim"], V2, momentum=case["m"])
    queries = {name: method.get_parameter(our_name(name, V2)) for name in case["names"]}
    keys = {
        name: method.get_parameter(our_name(name, V2, "momentum_encoder", "momentum_head")) for name in case["names"]
    }
    with torch.no_grad():
        for name in case["names"]:
            keys[name].copy_(torch.tensor(data[f"{case['id']}/key/{name}"][0]))
        for step in range(case["steps"]):
            for name in case["names"]:
                queries[name].copy_(torch.tensor(data[f"{case['id']}/query/{name}"][step]))
            method.follow()
            for name in case["names"]:
                expected = data[f"{case['id']}/key/{name}"][step + 1]
                agree("MoCo: the key encoder's average", keys[name], expected, 1e-6, note=name)
