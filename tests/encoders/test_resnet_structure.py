"""Sizes, starting values and conventions of the ResNets, against published figures and slow loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from twofold.distributed import BatchNorm
from twofold.encoders import EncoderConfig, ResNet, build_encoder, build_encoder_from_spec
from twofold.encoders.reference_names import encoder_pairs
from twofold.encoders.resnet import Bottleneck, SamePool, filters, shortcut
from twofold.encoders.selective_kernel import ShortcutPool
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead

# The 13 nets of SimCLR v2: depth, width, selective kernels, million numbers, convolutions, norms (the
# official table counts moving averages as parameters).
NETS = [
    (50, 1, False, 24, 53, 53),
    (50, 1, True, 35, 87, 71),
    (50, 2, False, 94, 53, 53),
    (50, 2, True, 140, 87, 71),
    (101, 1, False, 43, 104, 104),
    (101, 1, True, 65, 172, 139),
    (101, 2, False, 170, 104, 104),
    (101, 2, True, 257, 172, 139),
    (152, 1, False, 58, 155, 155),
    (152, 1, True, 89, 257, 207),
    (152, 2, False, 233, 155, 155),
    (152, 2, True, 354, 257, 207),
    (152, 3, True, 795, 257, 207),
]


def on_meta(*args: object, **kwargs: object) -> ResNet:
    with torch.device("meta"):
        return ResNet(*args, **kwargs)  # type: ignore[arg-type]


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in module.modules())


def million(module: nn.Module) -> float:
    return sum(t.numel() for t in module.state_dict().values()) / 1e6


@pytest.mark.parametrize(("depth", "width", "sk", "size", "convs", "norms"), NETS)
def test_published_nets(depth: int, width: int, sk: bool, size: int, convs: int, norms: int) -> None:
    """Every net of SimCLR v2 has the published number of parameters, convolutions and norms."""
    net = on_meta(depth, width, sk_ratio=0.0625 if sk else 0.0)
    assert round(million(net)) == size
    assert (count(net, nn.Conv2d), count(net, BatchNorm)) == (convs, norms)
    assert net.feature_dim == 2048 * width
    pairs = list(encoder_pairs(net))
    assert {pair.name for pair in pairs} == set(net.state_dict())
    assert len({pair.reference for pair in pairs}) == len(pairs) == convs + 4 * norms


@pytest.mark.parametrize(("width", "size"), [(1, 23.6), (2, 94.0), (4, 375.6)])
def test_v1_sizes(width: int, size: float) -> None:
    """ResNet-50 of SimCLR v1, to three digits or more."""
    assert round(million(on_meta(50, width)), 1) == size


@pytest.mark.parametrize(
    ("depth", "convs"), [(10, 13), (18, 21), (34, 37), (50, 53), (101, 104), (152, 155), (200, 203)]
)
def test_layers(depth: int, convs: int) -> None:
    """Convolutions of each depth (resnet10 is ours: a stem, 4 shortcuts, 8 in blocks)."""
    assert count(on_meta(depth), nn.Conv2d) == convs


@pytest.mark.parametrize(
    ("width", "layers", "size"), [(1, 2, 4.46), (1, 3, 8.66), (2, 2, 17.3), (2, 3, 34.1), (4, 2, 68.2), (4, 3, 135.3)]
)
def test_head_sizes(width: int, layers: int, size: float) -> None:
    """Heads of ResNet-50 (million parameters)."""
    with torch.device("meta"):
        head = ProjectionHead(2048 * width, HeadConfig(layers=layers))
    digits = 2 if width == 1 else 1
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, digits) == size


def test_widths() -> None:
    """Published widths are exact; fractions give multiples of 8."""
    assert [filters(w, 3) for w in (1, 2, 3, 4)] == [512, 1024, 1536, 2048]
    assert [filters(0.25, s) for s in range(4)] == [16, 32, 64, 128]
    assert all(filters(w / 100, s) % 8 == 0 and filters(w / 100, s) >= 8 for w in range(1, 300, 7) for s in range(4))


def test_starting_values() -> None:
    """Kernels: normal numbers cut at two deviations, of variance 1/fan_in; last scale of each branch 0."""
    torch.manual_seed(0)
    net = ResNet(18, zero_init_residual=True)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            w, sigma = module.weight.detach().double(), math.sqrt(1 / module.weight[0].numel())
            spread = 5 / math.sqrt(w.numel())  # the deviation of n normal numbers is known to sigma/sqrt(2n)
            assert abs(float(w.std()) / sigma - 1) < spread
            assert abs(float(w.mean())) / sigma < spread
            assert float(w.abs().max()) <= 2 * sigma / 0.8796 + 1e-6
    assert at_zero(net) == [f"layer{i}.{j}.bn2" for i in range(1, 5) for j in range(2)]
    assert at_zero(ResNet(18, 0.125, zero_init_residual=False)) == []
    assert at_zero(ResNet(50, 0.125)) == [f"layer{i + 1}.{j}.bn3" for i, n in enumerate((3, 4, 6, 3)) for j in range(n)]


def at_zero(net: ResNet) -> list[str]:
    return [name for name, part in net.named_modules() if isinstance(part, BatchNorm) and not part.weight.any()]


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's 'SAME': outputs, and what it pads before (tf.nn docs)."""
    outputs = -(-size // stride)
    return outputs, max((outputs - 1) * stride + window - size, 0) // 2


def slow_pool(x: Tensor, window: int, stride: int, how: str) -> Tensor:
    """Pooling by loops, windows cut off at the borders."""
    (rows, top), (columns, left) = (same_padding(s, window, stride) for s in x.shape[2:])
    out = x.new_empty(*x.shape[:2], rows, columns)
    for i in range(rows):
        for j in range(columns):
            r, c = i * stride - top, j * stride - left
            part = x[:, :, max(r, 0) : r + window, max(c, 0) : c + window]
            if how == "max":
                out[:, :, i, j] = part.amax((2, 3))
            else:
                inside = part.numel() / part.shape[0] / part.shape[1]
                out[:, :, i, j] = part.sum((2, 3)) / (inside if how == "mean" else window**2)
    return out


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (7, 10), (2, 3), (1, 1)])
def test_pools_pad_as_tensorflow(shape: tuple[int, int]) -> None:
    """Max-pooling of the stem and the average pooling of ResNet-D's shortcuts, odd sizes too."""
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    assert torch.equal(SamePool()(x), slow_pool(x, 3, 2, "max"))
    # 1e-15: sums of four numbers in another order
    torch.testing.assert_close(ShortcutPool(1)(x), slow_pool(x, 2, 1, "mean"), rtol=0, atol=1e-15)
    torch.testing.assert_close(ShortcutPool(2)(x), slow_pool(x, 2, 2, "mean with zeros"), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 16), ("cifar", 64), ("small", 32)])
def test_stems(stem: str, side: int) -> None:
    """Sides of the stages' maps of a 64 px image; channel counts other than 3."""
    net = on_meta(10, 0.25, stem, channels=5)
    sides = []
    for name in ("pool", "layer1", "layer4"):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    assert net.eval()(torch.zeros(2, 5, 64, 64, device="meta")).shape == (2, 128)
    assert sides == [side, side, side // 8]


def test_uint8_is_divided_and_wrong_input_is_told() -> None:
    """The input contract: floats in [0, 1] or uint8, [N, C, H, W]."""
    net = ResNet(10, 0.125, "small").eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(net(images), net(images.float() / 255))
    assert torch.equal(net(images), net((images.double() / 255).float().double()))
    with pytest.raises(UserError, match=r"\[N, 3, H, W\], got \(2, 1, 16, 16\)"):
        net(images[:, :1])
    with pytest.raises(UserError, match="permute"):
        net(images.permute(0, 2, 3, 1))
    with pytest.raises(UserError, match="int64"):
        net(images.long())
    with pytest.raises(UserError, match="got"):
        net(images[0])


def nets() -> list[tuple[nn.Module, Tensor]]:
    """A small net, and a block with selective kernels and ResNet-D's shortcut, with inputs."""
    torch.manual_seed(0)
    block = Bottleneck(16, 8, 2, shortcut(16, 32, 2, True), 0.0625)
    return [
        (ResNet(10, 0.125, "imagenet", zero_init_residual=False), torch.rand(8, 3, 64, 64)),
        (block, torch.randn(8, 16, 8, 8)),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_compiles_in_one_piece(which: int) -> None:
    """One graph without a break in training mode; the same outputs, gradients and running averages."""
    net, x = nets()[which]
    other = copy.deepcopy(net)
    want, got = net(x), torch.compile(other, backend="aot_eager", fullgraph=True)(x)
    want.square().sum().backward()
    got.square().sum().backward()
    # 1e-4: float32 rounding, enlarged by batch statistics (golden tests: up to 2e-5 for ResNet-18)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for name, tensor in net.named_buffers():
        torch.testing.assert_close(other.get_buffer(name), tensor, rtol=1e-4, atol=1e-5)
    for name, tensor in net.named_parameters():
        scale = float(tensor.grad.abs().max())
        torch.testing.assert_close(other.get_parameter(name).grad, tensor.grad, rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize("which", [0, 1])
def test_channels_last_and_bf16(which: int) -> None:
    """The other memory layout changes rounding only and is kept; bf16 autocast stays within its precision."""
    net, x = nets()[which]
    with torch.no_grad():
        want = net(x)
        low = torch.autocast("cpu", torch.bfloat16)(net)(x).float()
        layout = torch.channels_last
        last = net.to(memory_format=layout)(x.to(memory_format=layout))
    assert last.ndim == 2 or last.is_contiguous(memory_format=layout)
    torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-4)
    # bf16 rounds to 0.4 %; ten layers of it and their norms leave a few percent
    assert float((low - want).norm() / want.norm()) < 0.05


def test_build_by_configuration() -> None:
    """Names, stems by size, options of other encoders refused, unknown names answered with close ones."""
    net = build_encoder(EncoderConfig.of(name="resnet18", width=0.25, channels=1), image_size=28)
    assert isinstance(net, ResNet)
    assert net.arguments()["stem"] == "cifar"
    assert net.input.channels == 1
    for given, side, stem in (("auto", 33, "imagenet"), ("small", 28, "small")):
        assert ResNet.Config("resnet10", stem=given, width=0.125).build(side).arguments()["stem"] == stem
    with pytest.raises(UserError, match="resnet50"):
        build_encoder(EncoderConfig.of(name="resnet5O"))
    with pytest.raises(UserError, match="torchvision:convnext_tiny"):
        build_encoder(EncoderConfig.of(name="convnext_tiny"))
    with pytest.raises(UserError, match=r"encoder\.name is not set"):
        build_encoder(EncoderConfig.of())
    with pytest.raises(
        UserError, match=r"--encoder\.pretrained true has no effect with --encoder\.name resnet18.*timm:NAME"
    ):
        build_encoder(EncoderConfig.of(name="resnet18", pretrained=True))
    with pytest.raises(UserError, match=r"--encoder\.sk_ratio 0\.0625 has no effect .* torchvision:resnet18"):
        build_encoder(EncoderConfig.of(name="torchvision:resnet18", sk_ratio=0.0625))
    for wrong in ({"depth": 19}, {"stem": "tiny"}, {"width": 0}, {"channels": 0}, {"sk_ratio": -1}):
        with pytest.raises(UserError, match="ResNet"):
            ResNet(**wrong)


@pytest.mark.parametrize("sk_ratio", [0.0, 0.0625])
def test_specification_rebuilds(sk_ratio: float) -> None:
    """The specification is JSON and gives the same tensors' names and shapes."""
    net = on_meta(50, 0.5, "small", 2, sk_ratio)
    with torch.device("meta"):
        again = build_encoder_from_spec(net.spec())
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert again.spec() == net.spec()
    with pytest.raises(UserError, match="unknown kind"):
        build_encoder_from_spec({"kind": "cnn"})
    with pytest.raises(UserError, match="builds no encoder"):
        build_encoder_from_spec({"kind": "resnet", "colour": 1})
    with pytest.raises(UserError, match="leave `module` out"):
        build_encoder_from_spec(net.spec(), nn.Identity())


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_poolings_are_exported_for_sides_of_either_parity(side):
    """'SAME' padding depends on whether a side is odd: a program that is traced with one must be right for both."""
    free = torch.export.Dim.DYNAMIC
    for pool in (SamePool(), ShortcutPool(2)):
        program = torch.export.export(pool, (torch.rand(2, 3, 9, 12),), dynamic_shapes=({0: free, 2: free, 3: free},))
        x = torch.rand(4, 3, side + 2, side + 5)
        torch.testing.assert_close(program.module()(x), pool(x), rtol=0, atol=0)
