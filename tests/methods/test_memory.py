"""SimCLR with memory: against slow loops, on two processes, and what moves when."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tiny import OPTIONS, images
from torch import Tensor

import twofold
from processes import run_processes
from twofold.encoders import ResNet
from twofold.errors import Stopped, UserError
from twofold.heads import HeadConfig
from twofold.methods import Inputs, MethodConfig, SimCLR, SimCLRMemory
from twofold.training.loop import Training


def method(memory: int = 24, **options: Any) -> SimCLRMemory:
    torch.manual_seed(0)
    return SimCLRMemory(ResNet(10, 0.125, "cifar"), HeadConfig(out_dim=8), 0.3, memory=memory, **options).train()


def views(n: int = 6, step: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.rand(n, 3, 8, 8, generator=generator)


def by_loops(z: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The loss of anchors z [2n, k] with keys [2n, k] of the same views, one candidate at a time."""
    n = len(z) // 2
    total = torch.zeros(())
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        candidates = [keys[j] for j in range(2 * n) if j != i] + list(queue.T)
        scores = torch.stack([(z[i] * c).sum() / temperature for c in candidates])
        total = total + torch.logsumexp(scores, 0) - (z[i] * keys[partner]).sum() / temperature
    return total / (2 * n)


def test_two_steps_equal_slow_loops() -> None:
    """Loss, gradients, moving network and queue; the keys of step 1 are among the negatives of step 2."""
    net = method(momentum=0.9).double()  # two steps of a young net multiply what float32 rounds
    fast, slow, queue = copy.deepcopy(net), copy.deepcopy(net), net.queue.keys.clone()
    for step in range(2):
        pairs = list(zip(slow.parameters(), fast.parameters(), strict=True))
        with torch.no_grad():
            for mine, theirs in pairs:
                mine.copy_(0.9 * mine + 0.1 * theirs)
            both = torch.cat(views(step=step)).double()
            keys = torch.nn.functional.normalize(slow.head(slow.encoder(both)), dim=1)
        z = torch.nn.functional.normalize(fast.head(fast.encoder(both)), dim=1)
        expected = by_loops(z, keys, queue, 0.3)
        output = net(Inputs(*both.chunk(2)))
        torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=1e-9)
        output.loss.backward()
        expected.backward()
        queue = torch.cat([queue[:, 12:], keys.T], 1)  # the oldest go
        assert sorted(net.queue.keys.sum(0).tolist()) == pytest.approx(sorted(queue.sum(0).tolist()), abs=1e-9)
        for a, b in ((net.encoder, fast.encoder), (net.head, fast.head)):
            for mine, theirs in zip(a.parameters(), b.parameters(), strict=True):
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
                with torch.no_grad():
                    for p in (mine, theirs):
                        p.sub_(0.5 * p.grad)
                        p.grad = None
    assert all(p.grad is None for p in [*net.momentum_encoder.parameters(), *net.momentum_head.parameters()])


def test_inference_changes_nothing() -> None:
    net = method().eval()
    before = copy.deepcopy(net.state_dict())
    net(Inputs(*views()))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_scale_of_the_released_code_is_twice_as_large() -> None:
    one, two = method().eval(), method(scale="simclr_sum2").eval()
    torch.testing.assert_close(two(Inputs(*views())).loss, 2 * one(Inputs(*views())).loss)
    assert one.negatives(6) == 10 + 24
    assert one.chance(6) == pytest.approx(math.log(11 + 24))
    assert two.chance(6) == pytest.approx(2 * math.log(11 + 24))


def two_steps(rank: int, world: int) -> dict[str, Tensor]:
    net = method()
    parallel = torch.nn.parallel.DistributedDataParallel(net) if world > 1 else net
    share = 6 // world
    losses = []
    for step in range(2):
        a, b = (v[rank * share : (rank + 1) * share] for v in views(step=step))
        loss = parallel(Inputs(a, b)).loss
        loss.backward()
        losses.append(loss.detach())
        with torch.no_grad():
            for p in [*net.encoder.parameters(), *net.head.parameters()]:
                p.sub_(0.1 * p.grad)
                p.grad = None
    return {"losses": torch.stack(losses)} | {name: value.clone() for name, value in net.state_dict().items()}


def test_two_processes_equal_one() -> None:
    """Losses, weights, both networks' averages, queue, after two steps."""
    alone, ranks = two_steps(0, 1), run_processes(two_steps, 2, 2)
    torch.testing.assert_close((ranks[0]["losses"] + ranks[1]["losses"]) / 2, alone["losses"], rtol=1e-4, atol=1e-5)
    for name, value in alone.items():
        if name != "losses":
            for found in ranks:
                torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_run_with_memory_resumes_bit_for_bit(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = OPTIONS | {"epochs": 2, "monitor": {"every": 0}, "method": {"memory": 64, "memory_momentum": 0.9}}
    whole = twofold.pretrain(images(), tmp_path / "whole", report=False, **options)
    agree = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: agree(self, asked or self.step == 5))
    with pytest.raises(Stopped):
        twofold.pretrain(images(), tmp_path / "cut", report=False, **options)
    monkeypatch.undo()
    cut = twofold.pretrain(images(), tmp_path / "cut", report=False, resume=True, **options)
    a, b = (torch.load(run.latest(), weights_only=True)["method"] for run in (whole, cut))
    assert "queue.keys" in a
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.rows()[-1]["negatives"] == 30 + 64


def test_options_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"without --method\.memory"):
        MethodConfig.of(memory_momentum=0.9)
    with pytest.raises(UserError, match=r"--method\.memory 64 has no effect with --method.name moco"):
        MethodConfig.of(name="moco", memory=64)
    with pytest.raises(UserError, match=r"--method\.memory 30 holds fewer keys than the 32 of one step"):
        SimCLR.Config(memory=30).check_batch(16)
    with pytest.raises(UserError, match="unit length"):
        method(normalize=False)
    built = SimCLR.Config(temperature=0.1, memory=64).build(ResNet(10, 0.125), HeadConfig(out_dim=8))
    assert isinstance(built, SimCLRMemory)
    assert built.momentum == 0.999
