"""The clock gives every second to the part that it was spent in."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from twofold.encoders import ResNet
from twofold.heads import HeadConfig, ProjectionHead
from twofold.methods import Inputs, MoCo, SimCLR
from twofold.training.clock import StepClock, describe_time, share


class Slow(torch.autograd.Function):
    """The identity, which sleeps forward and backward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds  # type: ignore[attr-defined]
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(2 * ctx.seconds)  # type: ignore[attr-defined]
        return gradients[0], None


class Method(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.heads = nn.ModuleList(ProjectionHead(4, HeadConfig(kind="linear", norm=False)) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        zs = [head(Slow.apply(self.encoder(x), 0.03)) for head in self.heads]
        return Slow.apply(sum(z.square().mean() for z in zs), 0.05)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_line_between_encoder_and_loss_is_drawn_in_both_passes(heads: int) -> None:
    method = Method(heads)
    clock = StepClock(method, torch.device("cpu"))
    time.sleep(0.2)  # before the clock starts: nobody's
    clock.mark("data")
    for _ in range(2):
        loss = method(torch.randn(3, 4))
        clock.backward()
        loss.backward()
        clock.mark("encoder")
    clock.collect()
    assert clock.seconds["data"] == 0
    # Sleeps are never shorter than asked; what they are longer by on a busy machine is no more in one than in another.
    assert clock.seconds["encoder"] >= 2 * 3 * 0.03 * heads
    assert clock.seconds["loss"] >= 2 * 3 * 0.05
    assert sum(clock.seconds.values()) < 5


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_the_line_is_drawn_in_a_real_method_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods ask their heads for what each layer gives, which hooks have to see as well."""
    encoder = ResNet(10, 0.125, stem="cifar")
    head = HeadConfig(out_dim=8)
    method = SimCLR(encoder, head) if name == "simclr" else MoCo(encoder, head, queue=16)
    clock, parts = StepClock(method, torch.device("cpu")), []
    monkeypatch.setattr(clock, "_count", parts.append)
    loss = method(Inputs(*torch.rand(2, 4, 3, 16, 16))).loss
    clock.backward()
    loss.backward()
    clock.mark("encoder")
    assert parts[0] == "encoder"
    assert parts[-3:] == ["loss", "loss", "encoder"]  # of the forward pass, of the backward pass down to the head


def test_the_sentence_names_what_took_time_and_nothing_else() -> None:
    seconds = {"data": 0.2, "views": 0.0, "encoder": 8.8, "loss": 0.0, "optimiser": 1.0}
    assert share(seconds) == pytest.approx(0.88)
    assert describe_time(seconds) == "time: 88.0 % encoder and head (the limit is 100 %); optimiser 10.0 %, data 2.0 %"


def test_stations_follow_the_step_and_not_what_monitors_do() -> None:
    method = nn.Sequential(ProjectionHead(4, HeadConfig(out_dim=2)))
    clock = StepClock(method, torch.device("cpu"))
    seen = [clock.doing]
    for part in ("data", "views"):
        clock.mark(part)
        seen.append(clock.doing)
    loss = method(torch.rand(8, 4)).sum()
    seen.append(clock.doing)
    clock.backward()
    loss.backward()
    seen.append(clock.doing)
    for part in ("encoder", "optimiser", "monitors"):
        clock.mark(part)
    clock.doing = "monitors"
    before = clock.marks
    method(torch.rand(8, 4))
    assert seen == ["starting", "views", "encoder", "loss", "backward"]
    assert clock.doing == "monitors"
    assert clock.marks == before + 1
