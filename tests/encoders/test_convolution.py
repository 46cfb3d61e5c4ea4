"""Convolutions of tiny maps as matrices: the same function, taken where it is meant to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.encoders import ResNet, convolution
from twofold.encoders.convolution import Conv2d, _AsMatrix, _taps


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
