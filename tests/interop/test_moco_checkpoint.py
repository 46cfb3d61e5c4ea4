"""MoCo's `.pth.tar`: built with the official list of names, read, written, and damaged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from simclr_files import listed, report
from torch import nn

from twofold.commands.convert import convert
from twofold.encoders import ResNet, load_classifier, load_encoder, load_head, read_header
from twofold.encoders.adapters import TorchvisionEncoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.interop.moco import read_moco, write_moco

# ImageNet's statistics, as main_moco.py and main_lincls.py write them out.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def official_net(arch: str, mlp: bool, seed: int, dim: int = 128) -> nn.Module:
    """What moco/builder.py trains: torchvision's net, its classifier replaced by the head."""
    torch.manual_seed(seed)
    net = torchvision.models.get_model(arch, num_classes=dim)
    if mlp:
        width = net.fc.weight.shape[1]
        net.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), net.fc)
    for name, buffer in net.named_buffers():  # averages that are not those of a fresh net
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return net.eval()


def official_state(arch: str, mlp: bool) -> dict[str, torch.Tensor]:
    """The state of main_moco.py's model under DistributedDataParallel."""
    query, key = official_net(arch, mlp, 1), official_net(arch, mlp, 2)
    state = {"module.queue": F.normalize(torch.randn(128, 64), dim=0), "module.queue_ptr": torch.zeros(1).long()}
    state |= {f"module.encoder_q.{name}": tensor for name, tensor in query.state_dict().items()}
    return state | {f"module.encoder_k.{name}": tensor for name, tensor in key.state_dict().items()}


def write(path: Path, state: dict[str, torch.Tensor], arch: str | None = "resnet18", **options: Any) -> Path:
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    content = {"epoch": 200, "state_dict": state, "optimizer": optimizer}
    torch.save(content if arch is None else {**content, "arch": arch}, path, **options)
    return path


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def official_outputs(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and head output as main_moco.py and main_lincls.py compute them: normalise, then the net."""
    with torch.no_grad():
        x = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        z = net(x)
        net.fc = nn.Identity()
        return net(x), z


def test_the_names_are_the_official_ones() -> None:
    """The golden list, made by main_moco.py, is what the tests below build."""
    names = listed("moco_r18_mlp/keys.txt")
    state = official_state("resnet18", mlp=True)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == names


@pytest.mark.parametrize(("weights", "seed"), [("auto", 1), ("base", 1), ("ema", 2)])
@pytest.mark.parametrize("mlp", [False, True])
def test_outputs(tmp_path: Path, images: torch.Tensor, mlp: bool, weights: Any, seed: int) -> None:
    """Bit for bit, but for the order of subtraction and division (1e-6 of values around 1)."""
    source = write(tmp_path / "checkpoint_0199.pth.tar", official_state("resnet18", mlp))
    result = convert(source, tmp_path / "out", weights=weights)
    file = result.file
    encoder, head = load_encoder(file), load_head(file)
    assert head is not None
    h, z = official_outputs(official_net("resnet18", mlp, seed), images)
    with torch.no_grad():
        assert torch.allclose(encoder(images), h, rtol=1e-6, atol=1e-6)
        assert torch.allclose(head(encoder(images)), z, rtol=1e-6, atol=1e-6)
    told = report(file)
    assert told["found"]["layout"] == f"MoCo v{2 if mlp else 1}"
    assert told["found"]["epoch"] == 200
    assert told["counts"]["tensors"] == (124 if mlp else 122)
    assert {rule: len(names) for rule, names in told["ignored"].items()} == {
        f"the other encoder (encoder_{'q' if weights == 'ema' else 'k'}.*)": 124 if mlp else 122,
        "the queue": 2,
        "the optimizer": 1,
    }
    assert load_classifier(file) is None
    assert read_header(file)["extra"]["options"]["views"]["size"] == 224
    assert "resnet18 of torchvision" in result.text()


@pytest.mark.parametrize(("arch", "named"), [("resnet50", True), ("wide_resnet50_2", False), ("resnet34", False)])
def test_the_net_is_found(tmp_path: Path, arch: str, named: bool) -> None:
    """By its name, or by names and shapes of its tensors; wide_resnet50_2 has the names of resnet50."""
    state = official_net(arch, mlp=True, seed=1).state_dict()
    query = {f"module.encoder_q.{name}": tensor for name, tensor in state.items()}
    found = read_moco(write(tmp_path / "x.pth.tar", query, arch if named else None))
    assert found.encoder.name == arch
    assert found.head.config.out_dim == 128
    assert found.head.config.layers == 2


def test_files_of_old_versions_of_pytorch(tmp_path: Path) -> None:
    state = official_state("resnet18", mlp=False)
    path = write(tmp_path / "x.pth.tar", state, _use_new_zipfile_serialization=False)
    assert read_moco(path).tensors == 122


@pytest.mark.parametrize("mlp", [False, True])
def test_written_and_read_back(tmp_path: Path, mlp: bool) -> None:
    state = official_state("resnet18", mlp)
    network = read_moco(write(tmp_path / "x.pth.tar", state))
    write_moco(tmp_path / "y.pth.tar", network.encoder, network.head, epoch=7)
    content = torch.load(tmp_path / "y.pth.tar", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if ".encoder_q." in name}
    assert content["state_dict"].keys() == kept.keys()
    assert all(torch.equal(content["state_dict"][name], tensor) for name, tensor in kept.items())
    assert (content["arch"], content["epoch"]) == ("resnet18", 7)
    assert read_moco(tmp_path / "y.pth.tar").epoch == 7
    with pytest.raises(UserError, match="exists already"):
        write_moco(tmp_path / "y.pth.tar", network.encoder, network.head)


def test_main_lincls_would_load_it(tmp_path: Path) -> None:
    """Its rule: take what begins with module.encoder_q and is no fc; then only fc may be missing."""
    network = read_moco(write(tmp_path / "x.pth.tar", official_state("resnet18", mlp=True)))
    write_moco(tmp_path / "y.pth.tar", network.encoder, network.head)
    state = torch.load(tmp_path / "y.pth.tar", weights_only=True)["state_dict"]
    prefix = "module.encoder_q."
    body = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix) and ".fc." not in n}
    missing = torchvision.models.resnet18().load_state_dict(body, strict=False)
    assert set(missing.missing_keys) == {"fc.weight", "fc.bias"}
    assert not missing.unexpected_keys


def test_what_cannot_be_written(tmp_path: Path) -> None:
    encoder = TorchvisionEncoder("resnet18", mean=MEAN, std=STD)
    head = ProjectionHead(512, HeadConfig("linear", norm=False))
    with pytest.raises(UserError, match="MoCo's layout holds torchvision's"):
        write_moco(tmp_path / "x", ResNet(18, 0.125, "cifar"), head)
    with pytest.raises(UserError, match="normalise with mean"):
        write_moco(tmp_path / "x", TorchvisionEncoder("resnet18"), head)
    for config in (HeadConfig("linear"), HeadConfig("none"), HeadConfig(layers=3, norm=False)):
        with pytest.raises(UserError, match=r"MoCo's head is linear.*pretrain with --head\.norm false"):
            write_moco(tmp_path / "x", encoder, ProjectionHead(512, config))
    assert not (tmp_path / "x").exists()


class TestDamage:
    """UserErrors that name what is wrong."""

    @pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var", "fc.2.bias", "fc.0.weight"])
    def test_missing(self, tmp_path: Path, name: str) -> None:
        state = official_state("resnet18", mlp=True)
        del state[f"module.encoder_q.{name}"]
        with pytest.raises(UserError, match=f"1 missing: {name}"):
            read_moco(write(tmp_path / "x.pth.tar", state))

    @pytest.mark.parametrize(
        "name", ["encoder_q.layer5.weight", "encoder_q.fc.4.weight", "projector.weight", "queue_2"]
    )
    def test_left_over(self, tmp_path: Path, name: str) -> None:
        state = {**official_state("resnet18", mlp=True), f"module.{name}": torch.ones(2)}
        with pytest.raises(UserError, match=rf"(left over|no MoCo has): {name.removeprefix('encoder_q.')}"):
            read_moco(write(tmp_path / "x.pth.tar", state))

    def test_another_shape(self, tmp_path: Path) -> None:
        state = {**official_state("resnet18", mlp=True), "module.encoder_q.conv1.weight": torch.ones(64, 4, 7, 7)}
        with pytest.raises(UserError, match=r"conv1.weight \[64, 4, 7, 7\] instead of \[64, 3, 7, 7\]"):
            read_moco(write(tmp_path / "x.pth.tar", state))

    def test_a_net_that_its_name_denies(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="not a whole resnet34 of torchvision"):
            read_moco(write(tmp_path / "x.pth.tar", official_state("resnet18", mlp=True), "resnet34"))

    def test_no_head(self, tmp_path: Path) -> None:
        state = {name: tensor for name, tensor in official_state("resnet18", True).items() if ".fc." not in name}
        with pytest.raises(UserError, match="has no head of MoCo"):
            read_moco(write(tmp_path / "x.pth.tar", state))

    def test_not_finite(self, tmp_path: Path) -> None:
        state = official_state("resnet18", mlp=True)
        state["module.encoder_q.conv1.weight"][0, 0, 0, 0] = torch.nan
        with pytest.raises(UserError, match=r"not finite, in module.encoder_q.conv1.weight"):
            read_moco(write(tmp_path / "x.pth.tar", state))

    def test_another_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no checkpoint of MoCo: it has no tensors encoder_q\.\*"):
            read_moco(write(tmp_path / "x.pth.tar", torchvision.models.resnet18().state_dict()))
        torch.save({"model": {}}, tmp_path / "y.pth")
        with pytest.raises(UserError, match="no 'state_dict'"):
            read_moco(tmp_path / "y.pth")
        with pytest.raises(UserError, match="holds no tensors by name"):
            convert(tmp_path / "y.pth", tmp_path / "out")
        torch.save([1, 2], tmp_path / "z.pth")
        with pytest.raises(UserError, match="no 'state_dict'"):
            read_moco(tmp_path / "z.pth")

    @pytest.mark.parametrize("keep", [0, 100, -100, -20_000_000])
    def test_cut_short(self, tmp_path: Path, keep: int) -> None:
        path = write(tmp_path / "x.pth.tar", official_state("resnet18", mlp=True))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match="no whole PyTorch checkpoint"):
            convert(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_nothing_is_executed(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "touched",)

        path = tmp_path / "x.pth.tar"
        path.write_bytes(pickle.dumps({"state_dict": {"module.encoder_q.conv1.weight": Evil()}}, protocol=2))
        with pytest.raises(UserError, match="no whole PyTorch checkpoint of plain tensors"):
            read_moco(path)
        torch.save({"state_dict": {"module.encoder_q.conv1.weight": Evil()}}, path)
        with pytest.raises(UserError, match="no whole PyTorch checkpoint of plain tensors"):
            read_moco(path)
        assert not (tmp_path / "touched").exists()

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            read_moco(tmp_path / "x.pth.tar")

    def test_a_classifier_that_it_cannot_have(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.pth.tar", official_state("resnet18", mlp=True))
        with pytest.raises(UserError, match="--classifier_layer: checkpoints of MoCo hold no classifier"):
            convert(path, tmp_path / "out", classifier_layer=0)
