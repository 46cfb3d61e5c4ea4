"""MoCo's own rules: symmetric loss, ring, split batch norm, state, options. Float64: 1e-12 is rounding alone."""

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np
import pytest
import torch
from moco_net import V1, V2, moco
from torch import Tensor, nn

import twofold.methods.moco as module
from twofold.distributed import BatchNorm, keep_batch_norm_local
from twofold.encoders import EncoderConfig, adapt, build_encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.methods import Inputs, MethodConfig, MoCo
from twofold.methods.queue import KeyQueue
from twofold.optim import OptimConfig, build_optimizer


def views(n: int = 8, step: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.rand(n, 3, 6, 6, generator=generator, dtype=dtype) for _ in "ab")  # type: ignore[return-value]


def train(method: MoCo, steps: range, n: int = 8) -> list[float]:
    """Steps of SGD without momentum; the losses."""
    dtype = method.queue.keys.dtype
    losses = []
    for step in steps:
        loss = method(Inputs(*views(n, step, dtype))).loss
        parameters = [p for part in method.trained() for p in part.parameters()]
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p -= 0.1 * g
        losses.append(loss.item())
    return losses


# ---- one step against loops that follow the demo


def loss_by_loops(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    total = q.new_zeros(())
    for i in range(len(q)):
        right = (q[i] @ k[i] / temperature).exp()
        others = sum((q[i] @ queue[:, j] / temperature).exp() for j in range(queue.shape[1]))
        total = total - (right / (right + others)).log()
    return total / len(q)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("version", [V1, V2])
def test_a_step_equals_loops(symmetric: bool, version: str) -> None:
    """Loss, gradients, key encoder and queue; the key encoder is moved once and before it is used."""
    torch.manual_seed(0)
    method = moco(version=version, symmetric=symmetric, queue=20, momentum=0.7).double()
    with torch.no_grad():  # apart from each other, as they are after a while
        for p in method.encoder.parameters():
            p += 0.3 * torch.randn_like(p)
    plain = copy.deepcopy(method)
    a, b = views()
    loss = method(Inputs(a, b)).loss
    loss.backward()

    pairs = [(plain.momentum_encoder, plain.encoder), (plain.momentum_head, plain.head)]
    with torch.no_grad():
        for slow, fast in pairs:
            for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                p.copy_(0.7 * p + 0.3 * q)

    def unit(z: Tensor) -> Tensor:
        return torch.stack([row / row.square().sum().sqrt() for row in z])

    def side(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        q = unit(plain.head(plain.encoder(x)))
        k = unit(plain.momentum_head(plain.momentum_encoder(y))).detach()
        return loss_by_loops(q, k, plain.queue.keys, 0.2), k

    expected, keys = side(a, b)
    if symmetric:
        swapped, more = side(b, a)
        expected, keys = expected + swapped, torch.cat([keys, more])
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for part, same in zip(method.trained(), plain.trained(), strict=True):
        for p, q in zip(part.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    for p, q in zip(method.key_parameters(), plain.key_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        assert p.grad is None
    queue = plain.queue.keys.clone()
    for column, key in enumerate(keys):
        queue[:, column] = key
    torch.testing.assert_close(method.queue.keys, queue, rtol=0, atol=1e-12)
    assert method.queue.pointer == len(keys) == (16 if symmetric else 8)
    for name, buffer in plain.named_buffers():  # each encoder has seen what it has seen: averages are not averaged
        if "running" in name:
            torch.testing.assert_close(method.get_buffer(name), buffer, rtol=1e-12, atol=1e-14)


# ---- the ring


@pytest.mark.parametrize(("size", "batch"), [(24, 8), (20, 8), (7, 3), (8, 8), (5, 4)])
def test_the_ring_closes_exactly(size: int, batch: int) -> None:
    """After each push the queue holds the latest keys, and of its start what is left, each in its column."""
    queue = KeyQueue(4, size).double()
    columns = [queue.keys[:, i].clone() for i in range(size)]
    place = 0
    for _ in range(3 * size):
        keys = torch.randn(batch, 4, dtype=torch.float64)
        queue.push(keys)
        for key in keys:
            columns[place] = key
            place = (place + 1) % size
        assert torch.equal(queue.keys, torch.stack(columns, 1))
        assert queue.pointer == place


def test_the_queue_starts_with_unit_vectors_that_all_ranks_draw() -> None:
    first, again, other = KeyQueue(16, 9, 1), KeyQueue(16, 9, 1), KeyQueue(16, 9, 2)
    torch.testing.assert_close(first.keys.norm(dim=0), torch.ones(9))
    assert torch.equal(first.keys, again.keys)
    assert not torch.equal(first.keys, other.keys)


def test_the_loss_of_strangers_is_the_level_of_chance() -> None:
    """Queries, keys and queue all alike: ln(K + 1), and twice that where two losses are added."""
    for symmetric in (False, True):
        method = moco(symmetric=symmetric, queue=40).double()
        same = torch.ones(5, dtype=torch.float64) / math.sqrt(5)
        method.queue.keys.copy_(same[:, None].expand(5, 40))
        for head in (method.head, method.momentum_head):
            nn.init.zeros_(head.layers[-1][0].weight)
            nn.init.ones_(head.layers[-1][0].bias)
        assert method(Inputs(*views())).loss.item() == pytest.approx(method.chance(8), rel=1e-12)
        assert method.chance(8) == pytest.approx((1 + symmetric) * math.log(41))
        assert method.negatives(8) == method.negatives(64) == 40


# ---- batch norm


@pytest.mark.parametrize("splits", [2, 4])
def test_split_batch_norm_equals_a_layer_a_split(splits: int) -> None:
    """Outputs, gradients and averages, ours and an adapted library's."""
    for layer in (BatchNorm(6), adapt(nn.Sequential(nn.BatchNorm2d(6)), 6)):
        layer = layer.double()
        x = torch.randn(8, 6, 3, 3, dtype=torch.float64, requires_grad=True)
        weigh = torch.randn(8, 6, dtype=torch.float64)
        runs = [copy.deepcopy(layer) for _ in range(splits)]
        keep_batch_norm_local(layer, splits)

        def reduce(y: Tensor) -> Tensor:
            return y.square().mean((2, 3)) if y.ndim == 4 else y

        y = layer(x)
        expected = torch.cat([run(part) for run, part in zip(runs, x.chunk(splits), strict=True)])
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        got, wanted = (torch.autograd.grad((reduce(v) * weigh).sum(), x)[0] for v in (y, expected))
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        for name, average in layer.named_buffers():
            if "running" in name:
                mean = torch.stack([run.get_buffer(name) for run in runs]).mean(0)
                torch.testing.assert_close(average, mean, rtol=1e-12, atol=1e-12)


def test_shuffling_decides_on_whose_statistics_keys_get_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    method = moco(bn_splits=2).double()
    plain = copy.deepcopy(method)
    a, b = views()
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    monkeypatch.setattr(module, "permutation", lambda *_: order)
    keys = method.keys(b, "shuffle")[0]
    halves = [_keys_of(plain, b[order[:4]]), _keys_of(plain, b[order[4:]])]
    torch.testing.assert_close(keys[order], torch.cat(halves), rtol=0, atol=1e-12)
    monkeypatch.undo()
    whole = moco(bn_splits=1).double()
    whole.load_state_dict(method.state_dict())
    assert not torch.allclose(whole.keys(b, "shuffle")[0], keys)
    assert torch.isfinite(method(Inputs(a, b)).loss)


def _keys_of(method: MoCo, images: Tensor) -> Tensor:
    keep_batch_norm_local(method, 1)
    return nn.functional.normalize(method.momentum_head(method.momentum_encoder(images)), dim=1).detach()


def test_the_shuffling_is_another_each_step_and_the_same_again() -> None:
    orders = [module.permutation(0, "shuffle", step, 16) for step in (0, 1, 0)]
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], orders[2])


# ---- state, modes, precision


def test_a_state_dict_goes_on_bit_for_bit() -> None:
    """Stopped where the ring is open and the shuffling in its middle."""
    torch.manual_seed(0)
    straight = moco(bn_splits=2, symmetric=True, queue=24)
    stopped = copy.deepcopy(straight)
    expected = train(straight, range(7))
    first = train(stopped, range(4))
    torch.manual_seed(1)
    resumed = moco(bn_splits=2, symmetric=True, queue=24)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert first + train(resumed, range(4, 7)) == expected
    for name, value in straight.state_dict().items():
        same = resumed.state_dict()[name]
        assert torch.equal(value, same) if isinstance(value, Tensor) else value == same


def test_only_queries_are_trained() -> None:
    method = moco()
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.1), method.trained(), 8)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for part in (method.encoder, method.head) for p in part.parameters()}
    assert not any(p.requires_grad or id(p) in trained for p in method.key_parameters())


def test_inference_changes_nothing() -> None:
    method = moco().eval()
    before = copy.deepcopy(method.state_dict())
    method(Inputs(*views(dtype=torch.float32)))
    assert all(torch.equal(v, before[n]) for n, v in method.state_dict().items() if isinstance(v, Tensor))
    assert method.steps == 0


def test_mixed_precision_keeps_keys_and_averages_whole() -> None:
    """bf16 has 8 bits: the loss agrees to 2 %, and what is kept is float32 of unit length."""
    torch.manual_seed(0)
    method = moco(width=32, dim=16)
    full = copy.deepcopy(method)
    a, b = views(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = method(Inputs(a, b))
    out.loss.backward()
    assert out.loss.item() == pytest.approx(full(Inputs(a, b)).loss.item(), rel=0.02)
    assert method.queue.keys.dtype == out.loss.dtype == torch.float32
    torch.testing.assert_close(method.queue.keys.norm(dim=0), torch.ones(24))
    for p, q in zip(method.key_parameters(), full.key_parameters(), strict=True):
        assert torch.equal(p, q)


def test_our_resnets_are_kept_local_too() -> None:
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar"))
    method = MoCo(encoder, HeadConfig(norm=True, out_dim=8), queue=16, bn_splits=2)
    layers = [part for part in method.modules() if isinstance(part, BatchNorm)]
    assert len(layers) > 20
    assert {(part.synchronized, part.splits) for part in layers} == {(False, 2)}
    assert method(Inputs(*views(dtype=torch.float32))).h.shape == (8, encoder.feature_dim)


def test_the_head_has_no_batch_norm_unless_it_is_asked_for() -> None:
    """MoCo v1: one linear layer; v2: two, with biases (moco/builder.py). SimCLR's head keeps its batch norm."""

    def layers(config: HeadConfig, name: Literal["moco", "simclr"]) -> list[type]:
        encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar"))
        head = MethodConfig.of(name=name, temperature=0.2).build(encoder, config).head
        return [type(part) for part in head.modules() if not list(part.children())]

    assert layers(HeadConfig(), "moco") == [nn.Linear, nn.ReLU, nn.Linear]
    assert layers(HeadConfig("linear"), "moco") == [nn.Linear]
    assert layers(HeadConfig(norm=True), "moco") == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm]
    assert layers(HeadConfig(), "simclr") == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm]
    assert layers(HeadConfig(norm=False), "simclr") == [nn.Linear, nn.ReLU, nn.Linear]


# ---- refusals


def test_options_of_another_method_are_refused() -> None:
    for option in ({"queue": 64}, {"momentum": 0.9}, {"symmetric": False}, {"bn_splits": 1}, {"shuffle": True}):
        with pytest.raises(UserError, match=rf"--method\.{next(iter(option))} .* simclr"):
            MethodConfig.of(**option)
    for option in ({"normalize": False}, {"scale": "simclr_sum2"}):
        with pytest.raises(UserError, match=rf"--method\.{next(iter(option))} .* moco"):
            MethodConfig.of(name="moco", **option)
    for option in ({"queue": 0}, {"bn_splits": 0}, {"momentum": 1.5}):
        with pytest.raises(UserError, match=rf"--method\.{next(iter(option))} must"):
            MethodConfig.of(name="moco", **option)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"--method\.queue 6 .* 8 of one step"):
        moco(queue=6)(Inputs(*views(dtype=torch.float32)))
    with pytest.raises(UserError, match="16"):
        MethodConfig.of(name="moco", queue=12, symmetric=True).check_batch(8)
    with pytest.raises(UserError, match=r"--method\.bn_splits 3"):
        MethodConfig.of(name="moco", bn_splits=3).check_batch(8)
    with pytest.raises(UserError, match="3 equal runs"):
        moco(bn_splits=3)(Inputs(*views(dtype=torch.float32)))
    without = adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 3)
    with pytest.raises(UserError, match="has none"):
        MoCo(without, HeadConfig("linear", norm=False), bn_splits=2)
    odd = adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)), 3)
    with pytest.raises(UserError, match=r"cannot be split in 0\.module\.1"):
        MoCo(odd, HeadConfig("linear", norm=False), bn_splits=2)


def test_built_from_its_options() -> None:
    encoder = build_encoder(
        EncoderConfig.of(name="torchvision:resnet18", stem="cifar", mean=(0.5,) * 3, std=(0.2,) * 3)
    )
    config = MethodConfig.of(
        name="moco", temperature=0.1, queue=32, momentum=0.99, symmetric=True, bn_splits=2, shuffle=False
    )
    method = config.build(encoder, HeadConfig("linear", norm=False, out_dim=8), seed=3)
    assert isinstance(method, MoCo)
    found = (method.temperature, method.negatives(8), method.momentum, method.symmetric, method.bn_splits)
    assert found == (0.1, 32, 0.99, True, 2)
    assert (method.shuffle, method.seed) == (False, 3)
    assert method.momentum_encoder.spec() == encoder.spec()
    assert encoder.spec()["stem"] == "cifar"
    assert encoder.module.conv1.stride == (1, 1)
    assert encoder.spec()["mean"] == pytest.approx([0.5] * 3)
