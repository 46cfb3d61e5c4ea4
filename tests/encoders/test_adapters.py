"""timm's and torchvision's models and the user's own modules as encoders."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from twofold.encoders import Encoder, EncoderConfig, adapt, build_encoder, build_encoder_from_spec
from twofold.encoders.adapters import spread
from twofold.encoders.surgery import adapt_first_convolution
from twofold.errors import UserError


class Own(nn.Module):
    """Somebody's own net: maps of 6 channels, batch norm, no pooling."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("name", "dim"), [("timm:test_resnet", 96), ("torchvision:resnet18", 512)])
def test_library_models(name: str, dim: int, channels: int) -> None:
    """Pooled features of any number of channels; rebuilt from the specification."""
    encoder = build_encoder(EncoderConfig.of(name=name, channels=channels), image_size=32).eval()
    x = torch.rand(2, channels, 32, 32)
    assert encoder.feature_dim == dim
    assert encoder(x).shape == (2, dim)
    assert not [n for n, m in encoder.named_modules() if isinstance(m, nn.Linear)], "the classifier is still there"
    again = build_encoder_from_spec(encoder.spec()).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(x), encoder(x))
    with pytest.raises(UserError, match=rf"\[N, {channels}, H, W\]"):
        encoder(torch.rand(2, channels + 1, 32, 32))


def test_features_of_torchvision_are_its_own() -> None:
    """resnet18 without its last layer, with and without normalisation; converted norms change nothing."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.of(name="torchvision:resnet18"))
    theirs = resnet18()
    theirs.load_state_dict(encoder.module.state_dict() | {k: v for k, v in theirs.state_dict().items() if "fc" in k})
    theirs.fc = nn.Identity()  # type: ignore[assignment]
    x = torch.rand(4, 3, 32, 32)
    # 1e-4: torch's norm and ours round the running variance at different points
    torch.testing.assert_close(encoder.train()(x), theirs.train()(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(encoder.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    scaled = adapt(theirs, mean=mean, std=std).eval()
    by_hand = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(scaled(x), theirs(by_hand))


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet"])
def test_torchvision_families(name: str) -> None:
    """Classifiers of other shapes come off too."""
    encoder = build_encoder(EncoderConfig.of(name=f"torchvision:{name}")).eval()
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.feature_dim)
    assert encoder.feature_dim != 1000


def test_models_of_one_size() -> None:
    """Vision transformers: timm's are built for the size asked for; torchvision's state theirs."""
    encoder = build_encoder(EncoderConfig.of(name="timm:test_vit"), image_size=64).eval()
    assert encoder.input.size == 64
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, encoder.feature_dim)
    assert build_encoder_from_spec(encoder.spec()).input.size == 64
    with pytest.raises(UserError, match=r"\[N, 3, 64, 64\] only"):
        encoder(torch.rand(1, 3, 80, 80))
    with pytest.raises(UserError, match="224 px only"):
        build_encoder(EncoderConfig.of(name="torchvision:vit_b_16"), image_size=32)


def test_own_module() -> None:
    """Maps are averaged; batch norm keeps torch's conventions; the dry run leaves no trace."""
    module = Own(2)
    module.body[1].eval()
    before = copy.deepcopy(module.state_dict())
    encoder = adapt(module, channels=2)
    assert encoder.feature_dim == 6
    assert module.training
    assert not module.body[1].training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    x = torch.rand(4, 2, 20, 20)
    plain = Own(2)
    plain.load_state_dict(before)
    torch.testing.assert_close(encoder.train()(x), plain.train()(x).mean((2, 3)))
    for name, value in plain.named_buffers():
        if "batches" not in name:
            torch.testing.assert_close(module.get_buffer(name), value)
    assert adapt(encoder, channels=2) is encoder
    twin = copy.deepcopy(encoder)
    twin.train()(x + 1)
    assert not torch.equal(twin.module.body[1].running_mean, module.body[1].running_mean)


def test_own_module_is_asked_for_again() -> None:
    """A specification cannot hold the module itself."""
    encoder = adapt(Own(), mean=[0.5] * 3, std=[0.25] * 3, size=16).eval()
    with pytest.raises(UserError, match=r"module of your own \(.*Own\)"):
        build_encoder_from_spec(encoder.spec())
    again = build_encoder_from_spec(encoder.spec(), Own()).eval()
    again.load_state_dict(encoder.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(x), encoder(x))
    assert again.spec() == encoder.spec()


def test_lazy_layers_and_flattened_features() -> None:
    """The dry run fills lazy layers; features whose number hangs on the size are told."""
    lazy = adapt(nn.Sequential(nn.Flatten(), nn.LazyLinear(7)), size=8)
    assert lazy(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    flat = adapt(nn.Flatten())
    with pytest.raises(UserError, match="`size`"):
        flat(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Own(), {"channels": 1}, "does not run on images of 1 channel"),
        (Own(), {"mean": [0.5]}, "mean has 1 values for 3 channel"),
        (nn.Identity(), {"std": [0.5] * 4}, "std has 4 values"),
        (nn.Flatten(0), {}, r"gives \(24576,\)"),
        (nn.Conv2d(3, 4, 999), {}, "at 28 px"),
    ],
)
def test_modules_that_are_no_encoders(module: nn.Module, options: dict[str, object], message: str) -> None:
    """Each says what is wrong and what to do."""
    with pytest.raises(UserError, match=message):
        adapt(module, **options)  # type: ignore[arg-type]


def test_an_encoder_is_not_adapted_twice() -> None:
    """Options that would do nothing are refused."""
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125))
    with pytest.raises(UserError, match="an encoder already"):
        adapt(encoder, mean=[0.5] * 3)


def test_unknown_names() -> None:
    """Close names are suggested."""
    with pytest.raises(UserError, match="timm:convnext_tiny"):
        build_encoder(EncoderConfig.of(name="timm:convnext_tinny"))
    with pytest.raises(UserError, match="torchvision:resnet50"):
        build_encoder(EncoderConfig.of(name="torchvision:resnet5"))


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is a line to paste."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'twofold\[timm\]'"):
        build_encoder(EncoderConfig.of(name="timm:resnet18"))


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:resnet18"])
def test_pretrained_models_normalise_inside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained weights come with their statistics, which the specification keeps (the download is replaced)."""
    library, _, model = name.partition(":")
    asked: list[bool] = []
    if library == "timm":
        import timm

        create = timm.create_model

        def without_download(name: str, pretrained: bool, **options: object) -> nn.Module:
            asked.append(pretrained)
            return create(name, False, **options)

        monkeypatch.setattr(timm, "create_model", without_download)
        facts = timm.get_pretrained_cfg(model)
        mean, std = facts.mean, facts.std
    else:
        from torchvision import models

        get, enum = models.get_model, models.get_model_weights(model)

        def get_without_download(name: str, weights: object) -> nn.Module:
            asked.append(weights is enum.DEFAULT)
            return get(name, weights=None)

        monkeypatch.setattr(models, "get_model", get_without_download)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    encoder = build_encoder(EncoderConfig.of(name=name, pretrained=True))
    assert asked == [True]
    assert encoder.spec()["mean"] == pytest.approx(list(mean))
    assert encoder.spec()["std"] == pytest.approx(list(std))
    monkeypatch.undo()
    again = build_encoder_from_spec(encoder.spec())
    again.load_state_dict(encoder.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(again.eval()(x), encoder.eval()(x))


def test_weights_for_other_channels() -> None:
    """A grey image gives what its RGB copy gave; statistics are spread like the weights."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    x = torch.rand(2, 1, 8, 8)
    rgb = net(x.expand(-1, 3, -1, -1))
    six = copy.deepcopy(net)
    adapt_first_convolution(net, 1)
    torch.testing.assert_close(net(x), rgb)
    adapt_first_convolution(six, 6)
    torch.testing.assert_close(six(x.expand(-1, 6, -1, -1)), rgb)
    assert spread([1.0, 2.0, 3.0], 1) == [2.0]
    assert spread([1.0, 2.0, 3.0], 5) == [1.0, 2.0, 3.0, 1.0, 2.0]


def test_download_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: one error that names the encoder."""
    from torchvision import models

    def refuse(*_args: object, **_options: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(models, "get_model", refuse)
    with pytest.raises(UserError, match="torchvision cannot build 'resnet18': no route"):
        build_encoder(EncoderConfig.of(name="torchvision:resnet18", pretrained=True))


def test_features_only() -> None:
    """An encoder that says nothing of its features is told apart from one that does."""
    with pytest.raises(NotImplementedError):
        Encoder(SimpleNamespace(channels=3, size=None), 4)(torch.rand(1, 3, 4, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_what_becomes_of_pretrained_weights_of_other_channels_is_told(name: str) -> None:
    def reasons(channels: int, pretrained: bool) -> list[str]:
        return EncoderConfig.of(name=name, pretrained=pretrained).chosen(9, channels, None, 64, False)[1]

    assert reasons(13, True) == [
        "encoder.channels 13: the pretrained weights of the first layer, which are for RGB, are repeated over 13 "
        "channels and scaled"
    ]
    assert reasons(1, True)[0].endswith("which are for RGB, are summed")
    assert reasons(3, True) == reasons(13, False) == []
