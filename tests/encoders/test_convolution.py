"""Convolutions of tiny maps as matrices: the same function, taken where it is meant to be."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.encoders import EncoderConfig, ResNet, build_encoder, convolution
from twofold.encoders.convolution import Conv2d, _AsMatrix, _taps
from twofold.encoders.surgery import guard_tiny_maps


@pytest.mark.parametrize("height", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 1, 0), (2, 2, 0), (5, 2, 2)])
def test_the_matrix_is_the_convolution(height: int, width: int, kernel: int, stride: int, padding: int) -> None:
    if min(height, width) + 2 * padding < kernel:
        pytest.skip("no output")
    x = torch.randn(3, 4, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, stride=stride, padding=padding)
    taps = _taps((height, width), (kernel,) * 2, (stride,) * 2, (padding,) * 2)
    y = _AsMatrix.apply(x.permute(0, 2, 3, 1).flatten(1), weight, taps)
    y = y.view(3, *expected.shape[2:], 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(y, expected)
    gradient = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, (x, weight), gradient) for out in (y, expected))
    torch.testing.assert_close(ours, theirs)


def passes(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    y.backward(torch.ones_like(y) / y.numel())
    assert conv.weight.grad is not None
    assert x.grad is not None
    return y.detach(), conv.weight.grad, x.grad


@pytest.mark.parametrize(("side", "stride"), [(2, 1), (4, 2)])
def test_a_layer_in_bfloat16_equals_torchs(side: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what bfloat16 rounds (2^-8), in layout and type, too; and the matrix is what was used."""
    used: list[int] = []
    apply = _AsMatrix.apply
    monkeypatch.setattr(convolution._AsMatrix, "apply", lambda *a: used.append(1) or apply(*a))
    ours, theirs = Conv2d(16, 24, 3, stride, 1, bias=False), nn.Conv2d(16, 24, 3, stride, 1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(64, 16, side, side).contiguous(memory_format=torch.channels_last)
    for a, b in zip(passes(ours, x), passes(theirs, x), strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).norm() < 1e-2 * b.float().norm()
    assert passes(ours, x)[0].is_contiguous(memory_format=torch.channels_last)
    assert len(used) == 2


def test_elsewhere_it_is_torchs_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, of few images, of larger maps, of one tap: to the bit."""
    monkeypatch.setattr(convolution._AsMatrix, "apply", lambda *_: pytest.fail("the matrix was used"))
    ours = Conv2d(8, 8, 3, 1, 1, bias=False)
    for x, enabled in (
        (torch.rand(64, 8, 2, 2), False),
        (torch.rand(63, 8, 2, 2), True),
        (torch.rand(64, 8, 3, 3), True),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert torch.equal(ours(x), F.conv2d(x, ours.weight, padding=1))
    one = Conv2d(8, 8, 1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert one(torch.rand(64, 8, 2, 2)).shape == (64, 8, 2, 2)


def test_a_resnet_takes_it() -> None:
    assert all(isinstance(m, Conv2d) for m in ResNet(18).modules() if isinstance(m, nn.Conv2d))


def poison() -> None:
    """Leave infinities in the memory that is given out next."""
    sizes = (10, 100, 1000, 5000, 20_000, 100_000, 300_000, 600_000, 1_200_000, 2_400_000, 5_000_000)
    filled = [torch.full((size,), torch.inf) for size in sizes for _ in range(6)]
    del filled


def gradients(net: nn.Module, x: Tensor, lowered: bool) -> dict[str, Tensor]:
    net.zero_grad()
    poison()
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        y = net(x)
    poison()
    y.float().square().mean().backward()
    return {name: parameter.grad.double() for name, parameter in net.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(3, 2, 1), (3, 1, 1), (5, 2, 1), (7, 1, 2), (3, 1, 2), (7, 2, 1)]
)
@pytest.mark.parametrize("ours", [True, False])
def test_taps_that_see_no_pixel_learn_nothing(ours: bool, kernel: int, stride: int, side: int, last: bool) -> None:
    """Whatever was in memory: with oneDNN it would be their gradient."""
    torch.manual_seed(0)
    made = Conv2d if ours else nn.Conv2d
    net: nn.Module = made(256, 512, kernel, stride, kernel // 2, bias=not ours)
    if not ours:
        guard_tiny_maps(net)
    net = net.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    x = torch.randn(16, 256, side, side)
    found, wanted = gradients(net, x, lowered=True), gradients(net, x, lowered=False)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 0.02, name


def test_networks_of_libraries_learn_from_tiny_images() -> None:
    """Copies, too: MoCo's second encoder is one."""
    torch.manual_seed(0)
    net = build_encoder(EncoderConfig.of(name="torchvision:resnet18"), 16)
    for each in (net, copy.deepcopy(net)):
        found = gradients(each.train(), torch.rand(16, 3, 16, 16), lowered=True)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
        assert float(found["module.layer4.0.conv1.weight"][:, :, 0, 0].abs().max()) == 0, "it sees padding alone"


def test_what_is_exported_leaves_the_batch_open():
    """A look at len(x) before the one at the compiler would fix the number of images in a program."""
    layer = Conv2d(3, 4, 3, padding=1, bias=False).eval().requires_grad_(False)
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(layer, (torch.rand(2, 3, 8, 8),), dynamic_shapes=free)
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), layer(x))
