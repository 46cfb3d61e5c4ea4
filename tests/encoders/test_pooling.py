"""Which tokens become features: the class token, or the mean of the patches' tokens and of no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import OPTIONS, images
from torch import Tensor, nn

import twofold
from twofold.encoders import EncoderConfig, adapt, build_encoder, build_encoder_from_spec, load_encoder, save_encoder
from twofold.errors import UserError
from twofold.options import merge


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig.of(name=name, **options), image_size=options.pop("side", None)).eval()


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch) -> str:
    """torchvision's vision transformer, small; its own class, which no name builds so small."""
    from torchvision.models import VisionTransformer, get_model

    def small(name: str, **options: Any) -> nn.Module:
        return VisionTransformer(224, 32, 1, 2, 16, 32) if name == "vit_b_32" else get_model(name, **options)

    monkeypatch.setattr("torchvision.models.get_model", small)
    return "torchvision:vit_b_32"


def test_torchvision(vit: str, tmp_path: Path) -> None:
    x = torch.rand(3, 3, 224, 224)
    auto, cls, mean = (built(vit, pooling=pooling) for pooling in ("auto", "cls", "mean"))
    model = auto.module
    tokens = model.encoder(torch.cat([model.class_token.expand(3, -1, -1), model._process_input(x)], 1))
    assert tokens.shape == (3, 50, 16)
    torch.testing.assert_close(auto(x), tokens[:, 0])
    assert torch.equal(cls(x), auto(x))
    torch.testing.assert_close(mean(x), tokens[:, 1:].mean(1))
    assert not torch.allclose(mean(x), tokens.mean(1), atol=1e-4), "the class token is no patch"
    assert "pooling" not in auto.spec(), "specifications of today stay as they are"
    save_encoder(tmp_path / "e.safetensors", mean)
    assert torch.equal(load_encoder(tmp_path / "e.safetensors")(x), mean(x))
    with pytest.raises(UserError, match=r"encoder.pooling mean: torchvision:resnet18 has no tokens: leave it out"):
        built("torchvision:resnet18", pooling="mean")
    with pytest.raises(UserError, match=r"--encoder.pooling pooler is an output of Hugging Face's models"):
        built(vit, pooling="pooler")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("test_vit", 1), ("test_vit2", 1), ("test_vit3", 1), ("test_vit4", 1), ("deit_tiny_distilled_patch16_224", 2),
     ("vit_wee_patch16_reg1_gap_256", 1), ("vit_little_patch16_reg4_gap_256", 4), ("eva02_tiny_patch14_224", 1)],
)  # fmt: skip
def test_timm(name: str, prefix: int) -> None:
    import timm

    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    mean = built(f"timm:{name}", pooling="mean")
    model, side = mean.module, mean.input.size or 64
    assert model.num_prefix_tokens == prefix
    x = torch.rand(2, 3, side, side)
    tokens = model.forward_features(x)
    expected = tokens[:, prefix:].mean(1)
    torch.testing.assert_close(mean(x), model.fc_norm(expected))
    again = build_encoder_from_spec(mean.spec()).eval()
    again.load_state_dict(mean.state_dict())
    assert torch.equal(again(x), mean(x))
    if model.cls_token is None:
        with pytest.raises(UserError, match=rf"encoder.pooling cls: timm:{name} has no class token: choose mean"):
            built(f"timm:{name}", pooling="cls")
    else:
        cls = built(f"timm:{name}", pooling="cls")
        assert torch.equal(cls(x), cls.module.fc_norm(cls.module.forward_features(x)[:, 0]))
    if "distilled" not in name and model.global_pool in ("avg", "token"):  # the model's own pooling is one of the two
        own = mean if model.global_pool == "avg" else built(f"timm:{name}", pooling="cls")
        torch.testing.assert_close(built(f"timm:{name}")(x), own(x))
    with pytest.raises(UserError, match=r"timm:test_resnet gives maps and no tokens"):
        built("timm:test_resnet", pooling="mean")


def huggingface(kind: str) -> tuple[nn.Module, int]:
    """A tiny model made from its configuration, and how many of its tokens are no patches."""
    transformers = pytest.importorskip("transformers", reason="Hugging Face's models are theirs (transformers)")
    small = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**small, num_register_tokens=4)
        return transformers.Dinov2WithRegistersModel(config).eval(), 5
    if kind == "distilled":
        return transformers.DeiTModel(transformers.DeiTConfig(**small), add_pooling_layer=False).eval(), 2
    return transformers.ViTModel(transformers.ViTConfig(**small)).eval(), 1


@pytest.mark.parametrize("kind", ["vit", "registers", "distilled"])
def test_hugging_face(kind: str, tmp_path: Path) -> None:
    module, prefix = huggingface(kind)
    x = torch.rand(3, 3, 32, 32)
    output = module(x)
    tokens = output.last_hidden_state
    assert tokens.shape == (3, prefix + 16, 16)
    cls, mean = (adapt(module, size=32, pooling=pooling).eval() for pooling in ("cls", "mean"))  # type: ignore[arg-type]
    torch.testing.assert_close(cls(x), tokens[:, 0])
    torch.testing.assert_close(mean(x), tokens[:, prefix:].mean(1))
    if kind == "vit":
        torch.testing.assert_close(adapt(module, size=32, pooling="pooler").eval()(x), output.pooler_output)
    if kind == "distilled":
        with pytest.raises(UserError, match="pooling pooler: DeiTModel gives no pooler_output"):
            adapt(module, size=32, pooling="pooler")
    with pytest.raises(UserError, match=r"gives a hidden state .* say how they are pooled with encoder.pooling"):
        adapt(module, size=32)
    save_encoder(tmp_path / "e.safetensors", mean)
    assert torch.equal(load_encoder(tmp_path / "e.safetensors", module)(x), mean(x))


class Tokens(nn.Module):
    """Somebody's own: a token of its own, then one a pixel of a coarse map."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.own = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.full((1, 1, 6), 5.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.own.expand(len(x), -1, -1), self.body(x).flatten(2).mT], 1)


def test_own_modules() -> None:
    module, x = Tokens(), torch.rand(2, 3, 32, 32)
    mean = adapt(module, pooling="mean", prefix_tokens=1)
    torch.testing.assert_close(mean(x), module.body(x).mean((2, 3)))
    torch.testing.assert_close(adapt(module, pooling="cls")(x), torch.full((2, 6), 5.0))
    with pytest.raises(UserError, match=r"does not say which are patches: give encoder.prefix_tokens"):
        adapt(module, pooling="mean")
    with pytest.raises(UserError, match=r"say how they are pooled with encoder.pooling"):
        adapt(module)
    with pytest.raises(UserError, match=r"encoder.pooling cls: Conv2d gives .*, which are no tokens: leave it out"):
        adapt(nn.Conv2d(3, 4, 3), pooling="cls")
    maps = SimpleNamespace(last_hidden_state=torch.rand(2, 4, 3, 3))
    net = nn.Conv2d(3, 4, 1)
    net.forward = lambda _: maps  # type: ignore[assignment, method-assign]
    torch.testing.assert_close(adapt(net, pooling="mean").features(x), maps.last_hidden_state.mean((2, 3)))


def test_a_run_keeps_the_pooling(tmp_path: Path) -> None:
    module, _ = huggingface("vit")
    options: dict[str, Any] = merge({k: v for k, v in OPTIONS.items() if k != "encoder"}, {"epochs": 0.5})
    options = merge(options, {"views": {"size": 32}})
    run = twofold.pretrain(
        images(side=32), tmp_path / "run", encoder=module, report=False, **options, **{"encoder.pooling": "mean"}
    )
    x = torch.rand(2, 3, 32, 32)
    loaded = twofold.load(run.path, module)
    torch.testing.assert_close(loaded(x), module.eval()(x).last_hidden_state[:, 1:].mean(1))
    with pytest.raises(UserError, match=r"encoder.prefix_tokens 1 has no effect with --encoder.pooling auto"):
        twofold.pretrain(
            images(), tmp_path / "no", encoder=Tokens(), report=False, **options, **{"encoder.prefix_tokens": 1}
        )
