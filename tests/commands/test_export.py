"""`twofold export`: files that torchvision, MoCo's scripts and detectron2 read, from runs and converted encoders."""

import pickle
import re

import pytest
import torch
import torchvision
from tiny import OPTIONS, images

import twofold
from twofold.cli import main
from twofold.commands.export import export
from twofold.encoders import ResNet, load_head, save_encoder
from twofold.encoders.adapters import TorchvisionEncoder
from twofold.encoders.resnet import SamePool
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.interop.moco import read_moco
from twofold.options import merge

# As main_moco.py and main_lincls.py write them out.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of MoCo v2 on torchvision's ResNet-18, one epoch of four steps of 16 into a queue of 40."""
    options = {key: value for key, value in OPTIONS.items() if key != "encoder"}
    encoder = {"name": "torchvision:resnet18", "stem": "imagenet", "mean": MEAN, "std": STD}
    more = {
        "epochs": 1,
        "encoder": encoder,
        "method": {"name": "moco", "queue": 40, "momentum": 0.99},
        "views.size": 32,
    }
    where = tmp_path_factory.mktemp("export") / "run"
    return twofold.pretrain(images(), where, report=False, **merge(options, more, {"monitor.every": 0}))


@pytest.fixture
def x():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def normalised(x):
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def randomise(encoder):
    """Weights and averages that are not those of a fresh net, some of which are zero."""
    torch.manual_seed(1)
    for name, tensor in encoder.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.add_(0.02 * torch.randn_like(tensor))
    return encoder.eval()


def test_mocos_layout_has_every_name_and_main_lincls_would_load_it(run, tmp_path, x):
    """Its rule: take what begins with module.encoder_q and is no fc; then only fc may be missing."""
    assert main(["export", str(run.path), "--format", "moco", "--out", str(tmp_path / "x.pth.tar")]) == 0
    content = torch.load(tmp_path / "x.pth.tar", weights_only=True)
    state = content["state_dict"]
    official = torchvision.models.resnet18(num_classes=16).state_dict().keys() - {"fc.weight", "fc.bias"}
    official |= {f"fc.{layer}.{leaf}" for layer in (0, 2) for leaf in ("weight", "bias")}
    names = {f"module.encoder_{side}.{name}" for side in "qk" for name in official}
    assert state.keys() == names | {"module.queue", "module.queue_ptr"}
    assert (content["arch"], content["epoch"]) == ("resnet18", 1)
    assert state["module.queue"].shape == (16, 40)
    assert state["module.queue_ptr"].tolist() == [run.rows()[-1]["step"] * 16 % 40]
    prefix = "module.encoder_q."
    body = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix) and ".fc." not in n}
    net = torchvision.models.resnet18()
    loaded = net.load_state_dict(body, strict=False)
    assert (set(loaded.missing_keys), loaded.unexpected_keys) == ({"fc.weight", "fc.bias"}, [])
    net.fc = torch.nn.Identity()
    with torch.no_grad():  # subtraction and division in the same order: 1e-6 is rounding
        torch.testing.assert_close(net.eval()(normalised(x)), twofold.load(run.path)(x), rtol=1e-6, atol=1e-6)


def test_mocos_layout_comes_back_whole(run, tmp_path):
    """Query and key side through our own reader, bit for bit; the queue is the checkpoint's."""
    export(run.path, tmp_path / "x.pth.tar", format="moco")
    saved = torch.load(run.latest(), weights_only=True)["method"]
    for weights, part in (("base", ""), ("ema", "momentum_")):
        found = read_moco(tmp_path / "x.pth.tar", weights)
        for module, name in ((found.encoder, "encoder"), (found.head, "head")):
            for key, tensor in module.state_dict().items():
                assert torch.equal(tensor, saved[f"{part}{name}.{key}"]), key
    queue = torch.load(tmp_path / "x.pth.tar", weights_only=True)["state_dict"]["module.queue"]
    assert torch.equal(queue, saved["queue.keys"])
    query, key = (read_moco(tmp_path / "x.pth.tar", w).encoder.module.conv1.weight for w in ("base", "ema"))
    assert not torch.equal(query, key)


def test_torchvisions_resnet18_loads_ours(run, tmp_path, x):
    done = export(run.path, tmp_path / "x.pth")
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    net = torchvision.models.resnet18()
    net.fc = torch.nn.Identity()
    net.load_state_dict(state, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(normalised(x)), twofold.load(run.path)(x), rtol=1e-6, atol=1e-6)
    assert "minus [0.485" in done.text()
    assert "features differ" not in done.text()


def test_torchvisions_resnet50_loads_simclrs(tmp_path, x):
    """Equal features with SimCLR's pooling (float32 sums in another order: 1e-4); not with torchvision's own."""
    encoder = randomise(ResNet(50))
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    done = export(tmp_path / "encoder.safetensors", tmp_path / "x.pth")
    net = torchvision.models.resnet50()
    net.fc = torch.nn.Identity()
    net.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True)
    net.eval()
    with torch.no_grad():
        h, theirs = encoder(x), net(x)
        net.maxpool = SamePool()
        torch.testing.assert_close(net(x), h, rtol=1e-4, atol=1e-4 * float(h.abs().max()))
    assert (theirs - h).abs().max() > 0.01 * h.abs().max()
    assert "max-pooling pads all four sides" in done.text()


def test_detectron2s_pickle_is_that_of_mocos_script(run, tmp_path):
    """The script's rules, one replacement after the other, on the checkpoint in MoCo's layout; but for the head."""
    done = export(run.path, tmp_path / "x.pkl", format="detectron2")
    export(run.path, tmp_path / "x.pth.tar", format="moco")
    state = torch.load(tmp_path / "x.pth.tar", weights_only=True)["state_dict"]
    expected = {}
    for name, tensor in state.items():
        side, _, rest = name.partition("encoder_q.")
        if side == "module." and not rest.startswith("fc."):
            rest = rest if "layer" in rest else f"stem.{rest}"
            rest = re.sub(r"layer([1-4])", lambda found: f"res{int(found[1]) + 1}", rest)
            rest = re.sub(r"bn([1-3])", r"conv\1.norm", rest)
            rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            expected[rest] = tensor
    with (tmp_path / "x.pkl").open("rb") as file:
        content = pickle.load(file)
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    assert content["model"].keys() == expected.keys()
    assert {"stem.conv1.weight", "stem.conv1.norm.weight", "res3.0.shortcut.norm.bias"} <= expected.keys()
    assert all(torch.equal(torch.as_tensor(content["model"][name]), tensor) for name, tensor in expected.items())
    assert "PIXEL_MEAN [123.675, 116.28, 103.53]" in done.text()
    assert "PIXEL_STD [58.395, 57.12, 57.375]" in done.text()


@pytest.mark.parametrize(
    ("encoder", "formats", "said"),
    [
        (lambda: ResNet(18), ("torchvision", "detectron2"), "no projection"),
        (lambda: ResNet(10), ("torchvision",), "no such depth"),
        (lambda: ResNet(50, width=0.125), ("torchvision",), r"width 0\.125 \(not 1\.0\)"),
        (lambda: ResNet(50, width=0.125, sk_ratio=0.0625, stem="cifar"), ("detectron2",), "stem cifar .* sk_ratio"),
        (lambda: TorchvisionEncoder("resnet18", stem="cifar", mean=MEAN, std=STD), ("torchvision", "moco"), "7x7 stem"),
        (lambda: TorchvisionEncoder("resnet18", channels=1), ("torchvision",), "3 channels"),
        (lambda: TorchvisionEncoder("mobilenet_v2"), ("detectron2",), "holds ResNets"),
        (lambda: ResNet(10, 0.125, "cifar"), ("moco",), "MoCo's layout holds torchvision's"),
        (lambda: TorchvisionEncoder("resnet18"), ("moco",), "normalise with mean"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(tmp_path, encoder, formats, said):
    net = encoder()
    head = ProjectionHead(net.feature_dim, HeadConfig(norm=False, out_dim=8))
    save_encoder(tmp_path / "encoder.safetensors", net, head)
    assert load_head(tmp_path / "encoder.safetensors") is not None
    for name in formats:
        with pytest.raises(UserError, match=said):
            export(tmp_path / "encoder.safetensors", tmp_path / "x", format=name)
    assert not (tmp_path / "x").exists()


def test_files_and_heads_that_are_in_the_way(run, tmp_path, capsys):
    encoder = TorchvisionEncoder("resnet18", mean=MEAN, std=STD)
    save_encoder(tmp_path / "bare.safetensors", encoder)
    with pytest.raises(UserError, match="no projection head"):
        export(tmp_path / "bare.safetensors", tmp_path / "x", format="moco")
    save_encoder(tmp_path / "simclr.safetensors", encoder, ProjectionHead(512))
    with pytest.raises(UserError, match="without norm"):
        export(tmp_path / "simclr.safetensors", tmp_path / "x", format="moco")
    (tmp_path / "mine").write_text("mine")
    assert main(["export", str(run.path), "--out", str(tmp_path / "mine")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"
    assert main(["export", str(run.path)]) == 2
    assert "--out is missing" in capsys.readouterr().err
