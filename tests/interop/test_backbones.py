"""Backbones that others trained: files as the usual codes leave them, found, renamed, and refused by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from test_moco_checkpoint import MEAN, STD, official_net, official_state
from test_moco_checkpoint import write as write_moco_file
from torch import Tensor, nn

import twofold
from twofold import cli
from twofold.commands.convert import convert
from twofold.encoders import TimmEncoder, load_classifier, load_encoder, load_head, read_header
from twofold.encoders.adapters import TorchvisionEncoder
from twofold.errors import UserError
from twofold.interop.backbones import read_backbone

State = dict[str, Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def net(name: str = "resnet18", seed: int = 1, **more: Any) -> nn.Module:
    """A network of torchvision whose averages are not those of a fresh one."""
    torch.manual_seed(seed)
    model: nn.Module = torchvision.models.get_model(name, **more)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model.eval()


def features(model: nn.Module, x: Tensor, normalised: bool = True) -> Tensor:
    """What its own library gives below the classifier."""
    model.fc = nn.Identity()
    with torch.no_grad():
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        result: Tensor = model((x - mean) / std if normalised else x)
        return result


X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, "="),
    "imagenet example": (lambda s: {"arch": "resnet18", "epoch": 3, "state_dict": prefixed(s, "module.")}, "module.="),
    "lightning": (
        lambda s: {"state_dict": prefixed(s, "encoder."), "epoch": 3, "optimizer_states": [{"state": {0: {}}}]},
        "encoder.=",
    ),
    "with options": (
        lambda s: {"model": prefixed(s, "backbone."), "args": argparse.Namespace(lr=1.0), "optimizer": {"state": {}}},
        "backbone.=",
    ),
    "one of two": (
        lambda s: {
            "student": prefixed({n: t + 1 for n, t in s.items() if n != "conv1.weight"}, "module."),
            "teacher": prefixed(s, "module."),
        },
        "teacher.module.=",
    ),
    "without counters": (lambda s: {n: t for n, t in s.items() if "num_batches" not in n}, "="),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_files_are_read_and_give_the_same_features(tmp_path: Path, layout: str) -> None:
    make, prefix = LAYOUTS[layout]
    model = net()
    torch.save(make(model.state_dict()), tmp_path / "x.pth")
    found = read_backbone(tmp_path / "x.pth")
    assert isinstance(found.encoder, TorchvisionEncoder)
    assert (found.encoder.name, found.prefix) == ("resnet18", prefix)
    with torch.no_grad():
        torch.testing.assert_close(found.encoder(X), features(model, X), rtol=1e-5, atol=1e-5)
    assert any("normalised with mean [0.485, 0.456, 0.406]" in remark for remark in found.remarks)
    assert found.remarks[0].startswith("torchvision:resnet18 from ")


@pytest.mark.parametrize("name", ["resnet34", "wide_resnet50_2", "resnext50_32x4d"])
def test_a_resnet_is_known_by_names_and_shapes(tmp_path: Path, name: str) -> None:
    save_file(prefixed(net(name).state_dict(), "model."), tmp_path / "x.safetensors")
    found = read_backbone(tmp_path / "x.safetensors")
    assert isinstance(found.encoder, TorchvisionEncoder)
    assert found.encoder.name == name


def test_channels_and_a_small_stem_are_those_of_the_first_convolution(tmp_path: Path) -> None:
    model = net()
    model.conv1, model.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
    torch.save(model.state_dict(), tmp_path / "x.pt")
    options = {"mean": (0.0,), "std": (1.0,)}
    found = read_backbone(tmp_path / "x.pt", None, options)
    assert (found.options["channels"], found.options["stem"]) == (1, "cifar")
    with torch.no_grad():
        torch.testing.assert_close(found.encoder(X[:, :1]), features(model, X[:, :1], normalised=False))


def test_a_model_of_timm_has_to_be_named_and_has_its_own_statistics(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"holds no ResNet of torchvision.*begin with blocks\.0\..*--encoder.name timm:vit_small"
    ):
        read_backbone(tmp_path / "x.pth")
    found = read_backbone(tmp_path / "x.pth", None, {"name": "timm:vit_tiny_patch16_224"}, classifier=True)
    assert isinstance(found.encoder, TimmEncoder)
    assert found.options["mean"] == (0.5, 0.5, 0.5)
    assert found.classifier is not None
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(found.classifier(found.encoder(x)), model((x - 0.5) / 0.5), rtol=1e-4, atol=1e-5)


def test_a_prefix_need_not_name_the_key_that_tensors_are_kept_under(tmp_path: Path) -> None:
    """Where another tensor lies beside that key, as the best score so far does."""
    content = {"state_dict": prefixed(net().state_dict(), "module."), "best": torch.tensor(3.0)}
    torch.save(content, tmp_path / "x.pth")
    assert read_backbone(tmp_path / "x.pth").prefix == "state_dict.module.="
    for prefix in ("module.", "state_dict.module."):
        found = read_backbone(tmp_path / "x.pth", prefix)
        assert torch.equal(found.encoder.state_dict()["module.conv1.weight"], net().state_dict()["conv1.weight"])
        assert found.ignored["elsewhere in the file"] == ["best"]


def test_a_map_renames_what_others_have_numbered(tmp_path: Path) -> None:
    """As of a Sequential of a ResNet's children, which several libraries train."""
    model = net()
    children = nn.Sequential(*list(model.children())[:-1])
    torch.save({"state_dict": prefixed(children.state_dict(), "backbone.")}, tmp_path / "x.ckpt")
    rules = ["0.=conv1.", "1.=bn1.", *(f"{i + 3}.=layer{i}." for i in range(1, 5))]
    found = read_backbone(tmp_path / "x.ckpt", ",".join(f"backbone.{rule}" for rule in rules))
    with torch.no_grad():
        torch.testing.assert_close(found.encoder(X), features(model, X), rtol=1e-5, atol=1e-5)


def test_of_mocos_two_encoders_the_query_unless_the_prefix_says_otherwise(tmp_path: Path) -> None:
    path = write_moco_file(tmp_path / "x.pth.tar", official_state("resnet18", mlp=True))
    for prefix, seed, name in ((None, 1, "q"), ("module.encoder_k.", 2, "k"), ("module.encoder_k.=", 2, "k")):
        found = read_backbone(path, prefix)
        assert found.prefix == f"module.encoder_{name}.="
        with torch.no_grad():
            want = features(official_net("resnet18", True, seed), X)
            torch.testing.assert_close(found.encoder(X), want, rtol=1e-5, atol=1e-5)
        assert "fc.0.weight" in found.ignored["beside the encoder"]
        assert "module.queue" in found.ignored["elsewhere in the file"]


def test_our_own_names_can_be_asked_for(tmp_path: Path) -> None:
    own = twofold.encoders.build_encoder(twofold.encoders.EncoderConfig.of(name="resnet10", width=0.125, stem="cifar"))
    torch.save({"net": prefixed(own.state_dict(), "f.")}, tmp_path / "x.pth")
    found = read_backbone(tmp_path / "x.pth", None, {"name": "resnet10", "width": 0.125, "stem": "cifar"})
    assert found.prefix == "f.="
    assert torch.equal(found.encoder(X[:, :, :16, :16]), own.eval()(X[:, :, :16, :16]))


class TestRefused:
    """By name, with what to do."""

    def write(self, path: Path, state: Any) -> Path:
        torch.save(state, path / "x.pth")
        return path / "x.pth"

    @pytest.mark.parametrize("name", ["conv1.weight", "layer2.0.bn1.running_var", "layer4.1.bn2.bias"])
    def test_a_missing_tensor(self, tmp_path: Path, name: str) -> None:
        state = prefixed(net().state_dict(), "m.")
        del state[f"m.{name}"]
        with pytest.raises(
            UserError, match=rf"does not fit torchvision:resnet18; 1 missing: {name}\. The tensors were"
        ):
            read_backbone(self.write(tmp_path, state))

    def test_a_left_over_tensor_among_the_layers(self, tmp_path: Path) -> None:
        state = net().state_dict() | {"layer1.2.conv1.weight": torch.ones(2)}
        with pytest.raises(UserError, match=r"1 left over: layer1\.2\.conv1\.weight"):
            read_backbone(self.write(tmp_path, state))

    def test_another_shape(self, tmp_path: Path) -> None:
        state = net().state_dict() | {"layer1.0.conv1.weight": torch.ones(64, 64, 1, 1)}
        with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight \[64, 64, 1, 1\] instead of \[64, 64, 3, 3\]"):
            read_backbone(self.write(tmp_path, state))

    def test_another_architecture(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, net("resnet34").state_dict())
        with pytest.raises(UserError, match=r"torchvision:resnet18; \d+ left over: layer1\.2.*name the encoder"):
            read_backbone(path, None, {"name": "torchvision:resnet18"})
        with pytest.raises(UserError, match=r"does not fit torchvision:resnet50; \d+ missing"):
            read_backbone(path, None, {"name": "torchvision:resnet50"})

    def test_a_prefix_that_nothing_has(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, {"state_dict": prefixed(net().state_dict(), "module.encoder_q.")})
        with pytest.raises(
            UserError, match=r"--prefix backbone\.: no tensor of .*x\.pth begins so; .*module\.encoder_q"
        ):
            read_backbone(path, "backbone.")
        with pytest.raises(UserError, match=r"--prefix module\.encoder_k\.: no tensor"):
            read_backbone(path, "module.encoder_q.,module.encoder_k.=layer9.")

    def test_a_map_that_makes_one_of_two(self, tmp_path: Path) -> None:
        state = prefixed(net().state_dict(), "a.") | prefixed(net(seed=2).state_dict(), "b.")
        with pytest.raises(UserError, match=r"two tensors of .* would both be conv1\.weight"):
            read_backbone(self.write(tmp_path, state), "a.,b.")

    def test_several_networks(self, tmp_path: Path) -> None:
        state = {"student": net().state_dict(), "teacher": net(seed=2).state_dict()}
        with pytest.raises(UserError, match=r"holds 2 such networks, under student\. and teacher\.: say which"):
            read_backbone(self.write(tmp_path, state))
        assert read_backbone(self.write(tmp_path, state), "teacher.").prefix == "teacher.="

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        state = net().state_dict()
        state["bn1.bias"][0] = torch.nan
        with pytest.raises(UserError, match=r"not finite, in bn1\.bias"):
            read_backbone(self.write(tmp_path, state))

    @pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"model": {}}, torch.ones(2)], ids=str)
    def test_no_tensors_by_name(self, tmp_path: Path, content: Any) -> None:
        with pytest.raises(UserError, match="holds no tensors by name"):
            read_backbone(self.write(tmp_path, content))

    def test_a_whole_module_and_code_are_never_loaded(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "touched",)

        for content in (net(), {"state_dict": net().state_dict(), "hook": Evil()}):
            words = r"\(it calls [\w.]+, .*objects of Python, which are never loaded, save the tensors alone"
            with pytest.raises(UserError, match=words) as caught:
                read_backbone(self.write(tmp_path, content))
            assert "weights_only" not in str(caught.value)  # how to load it all the same
        assert not (tmp_path / "touched").exists()

    def test_weights_of_a_library_at_the_same_time(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, net().state_dict())
        with pytest.raises(UserError, match=r"--encoder\.pretrained asks for other weights"):
            read_backbone(path, None, {"name": "torchvision:resnet18", "pretrained": True})

    def test_no_classifier_to_keep(self, tmp_path: Path) -> None:
        state = {name: tensor for name, tensor in net().state_dict().items() if not name.startswith("fc.")}
        with pytest.raises(
            UserError, match=r"no linear layer on the 512 features of torchvision:resnet18 \(fc\.weight\)"
        ):
            read_backbone(self.write(tmp_path, state), classifier=True)


def test_convert_makes_an_encoder_that_all_commands_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": prefixed(net(num_classes=2).state_dict(), "module.")}, tmp_path / "x.pth")
    words = ["convert", str(tmp_path / "x.pth"), "--out"]
    assert cli.main([*words, str(tmp_path / "plain")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "torchvision:resnet18 from names with module." in told
    assert "fc (2 outputs) is left out; if it is a classifier, --classifier_layer 0 keeps it" in told
    assert load_classifier(tmp_path / "plain" / "encoder.safetensors") is None
    assert load_head(tmp_path / "plain" / "encoder.safetensors") is None
    named = ["--encoder.name", "torchvision:resnet18", "--prefix", "module.=", "--classifier_layer", "0"]
    assert cli.main([*words, str(tmp_path / "full"), *named]) == 0
    file = tmp_path / "full" / "encoder.safetensors"
    assert read_header(file)["extra"]["options"]["views"]["size"] == 224
    model = net(num_classes=2)
    classifier, layer = load_classifier(file) or (None, None)
    assert (layer, classifier is not None and torch.equal(classifier.weight, model.fc.weight)) == (0, True)
    with torch.no_grad():
        torch.testing.assert_close(load_encoder(file)(X), features(model, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"weights": "ema"}, "--weights ema is for checkpoints of SimCLR and MoCo: say which weights with --prefix"),
        ({"classifier_layer": 1}, "--classifier_layer 1: a backbone has no projection head"),
        ({"encoder": {"nam": "resnet18"}}, "nam"),
    ],
)
def test_convert_refuses_what_means_nothing_of_a_backbone(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    torch.save(net().state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=words):
        convert(tmp_path / "x.pth", tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_convert_leaves_encoders_of_its_own_as_they_are(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "x.pth")
    file = convert(tmp_path / "x.pth", tmp_path / "out").file
    with pytest.raises(UserError, match="is an encoder of Twofold's own: use it as it is"):
        convert(file, tmp_path / "again")
    with pytest.raises(UserError, match="--prefix is for files with the tensors of a backbone"):
        convert(tmp_path, tmp_path / "again", prefix="x.")
