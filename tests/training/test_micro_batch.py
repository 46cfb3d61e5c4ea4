"""Chunks of the encoder against the whole batch: gradients, running averages, memory's error."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from commands.tiny import images
from processes import run_processes
from twofold.commands.pretrain import pretrain
from twofold.encoders import EncoderConfig, adapt, build_encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.losses import nt_xent
from twofold.methods import Inputs, Method, MoCo, SimCLR, SimCLRMemory
from twofold.training.micro_batch import fitting_micro_batch, run_in_chunks

HEAD = HeadConfig(out_dim=8)


def plain_net() -> nn.Module:
    """A net without batch statistics, with dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, bias=False),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Dropout(0.0),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )


def resnet() -> nn.Module:
    return build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="small", zero_init_residual=False))


def step(method: Method, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(3)
    method.train()
    output = method(Inputs(a, b))
    output.loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return gradients | {"loss": output.loss.detach()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
        assert error <= relative, f"{name}: {error:.1e}"


# Float32 sums in another order: 1e-5 of the largest entry.
@pytest.mark.parametrize("micro_batch", [1, 2, 6, 12])
def test_gradients_equal_the_whole_batch_without_batch_norm(micro_batch: int) -> None:
    a, b = torch.rand(2, 12, 3, 16, 16)
    whole = SimCLR(adapt(plain_net()), HEAD)
    chunked = copy.deepcopy(whole)
    run_in_chunks(chunked, 12, micro_batch)
    same(step(chunked, a, b), step(whole, a, b), 1e-5)


def test_dropout_is_recomputed_as_it_was_drawn() -> None:
    """The gradient must be of the loss that was returned: compare with the same chunks without recomputation."""
    net = plain_net()
    net[3] = nn.Dropout(0.5)
    method = SimCLR(adapt(net), HEAD)
    a, b = torch.rand(2, 4, 3, 16, 16)
    oracle, chunked = copy.deepcopy(method), method
    torch.manual_seed(3)
    hs = [oracle.encoder(torch.cat([a[i : i + 2], b[i : i + 2]])).chunk(2) for i in (0, 2)]
    z_a, z_b = oracle.head(torch.cat([h[0] for h in hs] + [h[1] for h in hs])).chunk(2)
    nt_xent(z_a, z_b, oracle.temperature).backward()
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    run_in_chunks(chunked, 4, 2)
    found = step(chunked, a, b)
    found.pop("loss")
    same(found, expected, 1e-5)


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "torch's"])
def test_batch_norm_takes_ghost_statistics_and_moves_its_averages_once(foreign: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = SimCLR(adapt(net) if foreign else resnet(), HEAD)  # type: ignore[arg-type]
    a, b = torch.rand(2, 6, 3, 16, 16)
    oracle = copy.deepcopy(method)
    run_in_chunks(method, 6, 2)
    found = step(method, a, b)

    start = copy.deepcopy(oracle.encoder.state_dict())
    hs, states = [], []
    for i in (0, 2, 4):
        encoder = copy.deepcopy(oracle.encoder)
        encoder.load_state_dict(start)
        for mine, its in zip(encoder.modules(), oracle.encoder.modules(), strict=True):
            mine._parameters = its._parameters  # one set of weights, buffers of its own
        hs.append(encoder(torch.cat([a[i : i + 2], b[i : i + 2]])).chunk(2))
        states.append(dict(encoder.named_buffers()))
    z_a, z_b = oracle.head(torch.cat([h[0] for h in hs] + [h[1] for h in hs])).chunk(2)
    loss = nt_xent(z_a, z_b, oracle.temperature)
    loss.backward()
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    same(found, expected | {"loss": loss.detach()}, 1e-5)
    for name, value in method.encoder.named_buffers():
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
        assert not (value.is_floating_point() and torch.equal(value, start[name]))


@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_with_splits_is_the_same_in_chunks(symmetric: bool) -> None:
    """Splits of batch norm are runs of rows, and so are chunks: nothing changes but the order of sums."""
    a, b = torch.rand(2, 8, 3, 16, 16)
    whole = MoCo(resnet(), HeadConfig(out_dim=8, norm=False), queue=32, bn_splits=4, symmetric=symmetric)  # type: ignore[arg-type]
    chunked = copy.deepcopy(whole)
    run_in_chunks(chunked, 8, 4)
    same(step(chunked, a, b), step(whole, a, b), 2e-5)
    for (name, value), expected in zip(chunked.state_dict().items(), whole.state_dict().values(), strict=True):
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_simclr_with_memory_is_the_same_in_chunks() -> None:
    """Two steps, so that the second meets the first one's keys: loss, gradients, both networks, memory."""
    whole = SimCLRMemory(adapt(plain_net()), HEAD, memory=32, momentum=0.9).double()
    chunked = copy.deepcopy(whole)
    run_in_chunks(chunked, 8, 2)
    for k in range(2):
        a, b = torch.rand(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(k)).double()
        same(step(chunked, a, b), step(whole, a, b), 1e-9)
        for net in (chunked, whole):
            with torch.no_grad():
                for p in (*net.encoder.parameters(), *net.head.parameters()):
                    p.sub_(0.1 * p.grad)  # type: ignore[operator]
                    p.grad = None
        for (name, value), expected in zip(chunked.state_dict().items(), whole.state_dict().values(), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


def test_memory_in_chunks_takes_ghost_statistics_in_both_networks() -> None:
    """What the second network's keys are: those of its own chunks, rows of both views together, averages moved once."""
    net = SimCLRMemory(resnet(), HEAD, memory=24, momentum=0.0).train()  # type: ignore[arg-type]
    a, b = torch.rand(2, 6, 3, 16, 16)
    slow = copy.deepcopy(net.momentum_encoder)
    start = copy.deepcopy(slow.state_dict())
    run_in_chunks(net, 6, 2)
    hs, means = [], []
    for i in (0, 2, 4):
        slow.load_state_dict(start)
        with torch.no_grad():
            hs.append(slow(torch.cat([a[i : i + 2], b[i : i + 2]])).chunk(2))
        means.append(copy.deepcopy(dict(slow.named_buffers())))
    h = torch.cat([torch.cat([part[0] for part in hs]), torch.cat([part[1] for part in hs])])
    head = copy.deepcopy(net.momentum_head)
    keys = nn.functional.normalize(head(h), dim=1)
    net(Inputs(a, b))
    torch.testing.assert_close(net.queue.keys.T[:12].sum(0), keys.sum(0), rtol=1e-4, atol=1e-5)
    for name, value in net.momentum_encoder.named_buffers():
        expected = torch.stack([mean[name].double() for mean in means]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def two_ranks(rank: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    method = SimCLR(adapt(plain_net()), HeadConfig(out_dim=8, norm=False))
    a, b = torch.rand(2, 8, 3, 16, 16)
    run_in_chunks(method, 8, 2)
    wrapped = nn.parallel.DistributedDataParallel(method)
    rows = slice(rank * 4, rank * 4 + 4)
    output = wrapped(Inputs(a[rows], b[rows]))
    output.loss.backward()
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def test_two_processes_in_chunks_equal_one_whole() -> None:
    torch.manual_seed(0)
    method = SimCLR(adapt(plain_net()), HeadConfig(out_dim=8, norm=False))
    expected = step(method, *torch.rand(2, 8, 3, 16, 16))
    expected.pop("loss")
    for found in run_processes(two_ranks, 2):
        same(found, expected, 1e-5)


def test_chunks_that_do_not_fit_are_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"--micro-batch 5 does not divide the 12 images .* 1, 2, 3, 4, 6, 12"):
        run_in_chunks(SimCLR(adapt(plain_net()), HEAD), 12, 5)
    moco = MoCo(resnet(), HeadConfig(out_dim=8, norm=False), queue=32, bn_splits=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"makes 3 chunks, which --method\.bn_splits 2"):
        run_in_chunks(moco, 12, 4)
    with pytest.raises(UserError, match="--micro-batch must be at least 1, got 0"):
        pretrain(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), "nowhere", micro_batch=0)


class Narrow(nn.Module):
    """Runs out of memory above so many images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.net, self.most = plain_net(), most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"no room for {len(x)} views")
        return self.net(x)


def test_out_of_memory_names_a_value_that_fits_and_that_value_works(tmp_path: Path) -> None:
    data = images(16)[0]
    options = {"batch": 16, "epochs": 1, "views.size": 16, "report": False}
    with pytest.raises(UserError, match=r"ran out with --batch 16; --micro-batch 4 fits"):
        pretrain(data, tmp_path / "a", encoder=Narrow(9), **options)
    run = pretrain(data, tmp_path / "b", encoder=Narrow(9), micro_batch=4, **options)
    assert run.encoder_file.exists()


def test_a_device_that_cannot_hold_one_image_is_said_to_be_too_small() -> None:
    method = SimCLR(adapt(narrow := Narrow(2)), HEAD).train()
    narrow.most = 1
    assert fitting_micro_batch(method, (3, 16, 16), 16, torch.enable_grad) is None


def test_the_probe_for_memory_leaves_no_trace() -> None:
    method = SimCLR(resnet(), HEAD).train()  # type: ignore[arg-type]
    before = copy.deepcopy(method.state_dict())
    assert fitting_micro_batch(method, (3, 16, 16), 16, torch.enable_grad) == 8
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
