"""`twofold export` of any encoder: ONNX files, programs, timm's layout and folders for the hub, without Twofold."""

import json
import stat
import sys
import types

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import OPTIONS, images
from torch import nn

import twofold
from twofold.cli import main
from twofold.commands.export import export
from twofold.encoders import ResNet, build_encoder, load_classifier, load_head, read_header, save_encoder
from twofold.encoders.adapters import TimmEncoder, TorchvisionEncoder, adapt
from twofold.encoders.audio.encoder import SpeechEncoder
from twofold.encoders.build import EncoderConfig
from twofold.encoders.resnet import BLOCKS
from twofold.errors import UserError
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.interop import hub_folder, onnx_files
from twofold.options import merge
from twofold.waves import Waves

onnxruntime = pytest.importorskip("onnxruntime")
SPEECH = {"sample_rate": 8000, "mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "stack": 3}


def randomise(encoder, seed=0):
    """Weights and averages of which none is zero, as a trained net has them."""
    torch.manual_seed(seed)
    for name, tensor in encoder.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return encoder.eval()


def saved(folder, encoder, classes=0, layer=0, **options):
    file = folder / "encoder.safetensors"
    head = ProjectionHead(encoder.feature_dim, HeadConfig(out_dim=8)).eval() if layer else None
    classifier = Classifier(head.widths[layer] if layer else encoder.feature_dim, classes) if classes else None
    names = {"class_names": [f"kind {k}" for k in range(classes)]} if classes else {}
    save_encoder(
        file, randomise(encoder), head, {"options": {"views": options}, **names}, classifier, layer if classes else 0
    )
    return file


def run_onnx(file, *inputs):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: np.asarray(value) for name, value in zip(names, inputs, strict=True)})


def test_the_defaults_encoder_becomes_an_onnx_file(tmp_path, capsys):
    """The net that `twofold pretrain` chooses on a CPU, at any batch and size; nothing but the file is left."""
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.5, stem="small"))
    file, out = saved(tmp_path, encoder, size=64, resample="tf2"), tmp_path / "made" / "x.onnx"
    assert main(["export", str(file), "--format", "onnx", "--out", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "images [n, 3, H, W] in [0, 1]; gives [n, 256]" in told
    loaded = twofold.load(file)
    for shape in ((1, 3, 32, 32), (3, 3, 9, 70), (7, 3, 65, 33)):
        x = torch.rand(shape)
        with torch.no_grad():
            h = loaded(x).numpy()
        np.testing.assert_allclose(run_onnx(out, x)[0], h, rtol=0, atol=1e-4 * np.abs(h).max())
    session = onnxruntime.InferenceSession(str(out))
    assert [each.name for each in (*session.get_inputs(), *session.get_outputs())] == ["images", "features"]
    facts = session.get_modelmeta().custom_metadata_map
    known = json.loads(facts["twofold.preprocessing"])
    assert (known["size"], known["crop"], known["resample"]) == (64, 0.875, "tf2")
    assert json.loads(facts["twofold.encoder"]) == encoder.spec()
    assert [path.name for path in out.parent.iterdir()] == ["x.onnx"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet(18, 0.125, "imagenet"),
        lambda: ResNet(50, 0.125, "imagenet", sk_ratio=0.0625),
        pytest.param(lambda: ResNet(50, 0.125, "imagenet", sk_ratio=0.0625), marks=pytest.mark.slow),
        lambda: ResNet(10, 0.125, "cifar", channels=5),
        lambda: TorchvisionEncoder("resnet18", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.2]),
        lambda: TimmEncoder("test_vit", size=160),
        lambda: TimmEncoder("test_convnext"),
    ],
    ids=["resnet18", "sk", "sk of all its blocks", "bands", "torchvision", "vit", "convnext"],
)
def test_any_encoder_of_images_in_both_forms(tmp_path, monkeypatch, request, build):
    if request.node.callspec.id == "sk":
        monkeypatch.setitem(BLOCKS, 50, (1, 1, 1, 1))  # each kind of block once: a minute less
    encoder = build()
    file, side = saved(tmp_path, encoder), encoder.input.size
    done = export(file, tmp_path / "x.onnx", format="onnx")
    assert done.metrics["difference"] <= 1e-4
    told = export(file, tmp_path / "x.pt2", format="torch_export").note
    assert ("check_guards=False" in told) == ("convnext" in str(encoder.spec()))
    module = torch.export.load(tmp_path / "x.pt2").module(check_guards="check_guards=False" not in told)
    for n, height, width in ((1, 47, 32), (3, 64, 81)):
        x = torch.rand(n, encoder.input.channels, side or height, side or width)
        with torch.no_grad():
            h = twofold.load(file)(x)
            torch.testing.assert_close(module(x), h, rtol=0, atol=1e-5 * float(h.abs().max()))
        np.testing.assert_allclose(run_onnx(tmp_path / "x.onnx", x)[0], h, rtol=0, atol=1e-4 * float(h.abs().max()))


def test_recordings_of_any_length(tmp_path):
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, randomise(SpeechEncoder(**SPEECH)))
    done = export(file, tmp_path / "x.onnx", format="onnx")
    assert "8,000 Hz" in done.note
    encoder = twofold.load(file)
    for sizes in ([6000], [3000, 9000, 1200]):
        waves = Waves.of([0.1 * torch.randn(size) for size in sizes])
        with torch.no_grad():
            h = encoder(waves)
        got = run_onnx(tmp_path / "x.onnx", waves.samples, waves.lengths)[0]
        np.testing.assert_allclose(got, h, rtol=0, atol=1e-4 * float(h.abs().max()))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_classifier_comes_along(tmp_path, layer):
    """Features and logits, and the names of the classes."""
    encoder = ResNet(10, 0.125, "cifar")
    file = saved(tmp_path, encoder, classes=3, layer=layer)
    x, net = torch.rand(2, 3, 32, 32), twofold.load(file)
    classifier, at = load_classifier(file)
    with torch.no_grad():
        h = net(x)
        logits = classifier(load_head(file).outputs(h)[at] if layer else h)
    done = export(file, tmp_path / "x.onnx", format="onnx")
    assert "features [n, 64] and logits [n, 3]" in done.note
    for got, wanted in zip(run_onnx(tmp_path / "x.onnx", x), (h, logits), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    facts = onnxruntime.InferenceSession(str(tmp_path / "x.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(facts["twofold.classes"]) == ["kind 0", "kind 1", "kind 2"]
    export(file, tmp_path / "x.pt2", format="torch_export")
    for got, wanted in zip(torch.export.load(tmp_path / "x.pt2").module()(x), (h, logits), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_file_that_gives_other_features_is_not_left(tmp_path, monkeypatch):
    file = saved(tmp_path, ResNet(10, 0.125, "cifar"))
    made = torch.onnx.export

    def spoiled(*arguments, **more):
        model = made(*arguments, **more)
        weight = next(w for n, w in model.model.graph.initializers.items() if n.endswith("conv1.weight"))
        weight.const_value = type(weight.const_value)(weight.const_value.raw * 1.001, name=weight.name)
        return model

    monkeypatch.setattr(torch.onnx, "export", spoiled)
    with pytest.raises(UserError, match="differ from PyTorch's"):
        export(file, tmp_path / "x.onnx", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_weights_that_one_file_cannot_hold_lie_beside_it(tmp_path, monkeypatch):
    file = saved(tmp_path, ResNet(10, 0.125, "cifar"))
    monkeypatch.setattr(onnx_files, "ONE_FILE", 1000)
    done = export(file, tmp_path / "x.onnx", format="onnx")
    assert "x.onnx.data, which belongs beside it" in done.note
    x = torch.rand(2, 3, 20, 20)
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(tmp_path / "x.onnx", x)[0], twofold.load(file)(x), rtol=1e-4, atol=1e-4)


def test_int8_and_what_it_costs(tmp_path):
    """Weights of a quarter of the size; the cost is of images that the ranges were not taken from."""
    file = saved(tmp_path, ResNet(18, 0.25, "cifar"), size=16)
    x, y = images(48)
    np.savez(tmp_path / "images.npz", images=x, labels=y)
    done = export(file, tmp_path / "x.onnx", format="onnx", int8=str(tmp_path / "images.npz"))
    export(file, tmp_path / "whole.onnx", format="onnx")
    assert "ranges from 24 images; on 24 others" in done.note
    assert (tmp_path / "x.onnx").stat().st_size < 0.45 * (tmp_path / "whole.onnx").stat().st_size
    given = twofold.load(file).preprocess(x)
    whole, small = (run_onnx(tmp_path / name, given)[0] for name in ("whole.onnx", "x.onnx"))
    whole, small = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in (whole, small))
    cosine = (whole * small).sum(1)
    assert 0.9 < done.metrics["cosine"] < 1
    assert done.metrics["cosine"] == pytest.approx(cosine.mean(), abs=0.02)
    assert {"accuracy", "accuracy_int8", "neighbour"} <= done.metrics.keys()
    facts = onnxruntime.InferenceSession(str(tmp_path / "x.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(facts["twofold.preprocessing"])["size"] == 16
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"encoder.safetensors", "images.npz", "whole.onnx", "x.onnx"}
    with pytest.raises(UserError, match="8 or more"):
        export(file, tmp_path / "y.onnx", format="onnx", int8=x[:4])


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: ResNet(50), "resnet50"),
        (lambda: TorchvisionEncoder("resnet18", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.2]), "resnet18"),
        (lambda: TimmEncoder("test_vit", size=160), "test_vit"),
    ],
    ids=["ours", "torchvision", "timm"],
)
def test_timm_loads_it_strictly(tmp_path, build, name):
    timm = pytest.importorskip("timm")
    encoder = build()
    file = saved(tmp_path, encoder)
    done = export(file, tmp_path / "x.pth", format="timm")
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True)
    x = torch.rand(2, 3, encoder.input.size or 65, encoder.input.size or 65)  # at odd sides the poolings agree
    spec = encoder.spec()
    mean, std = (torch.tensor(spec.get(k) or [v] * 3).view(3, 1, 1) for k, v in (("mean", 0.0), ("std", 1.0)))
    with torch.no_grad():
        h = twofold.load(file)(x)
        torch.testing.assert_close(model((x - mean) / std), h, rtol=1e-4, atol=1e-4 * float(h.abs().max()))
    assert ("timm's max-pooling" in done.note) == (name == "resnet50")


def test_what_timm_has_not_is_refused(tmp_path):
    for encoder in (ResNet(10, 0.5, "small"), TorchvisionEncoder("mobilenet_v2")):
        with pytest.raises(UserError, match=r"--format (onnx|torchvision)"):
            export(saved(tmp_path, encoder), tmp_path / "x", format="timm")


def test_options_and_libraries_are_told_before_the_work(tmp_path, monkeypatch):
    file = saved(tmp_path, ResNet(10, 0.125, "cifar"))
    monkeypatch.setattr("twofold.commands.export.load", lambda *_: pytest.fail("the encoder was loaded"))
    for options, said in (
        ({"format": "timm", "int8": "photos"}, "--int8 is for --format onnx"),
        ({"format": "onnx", "push": "me/net"}, "--push is for --format huggingface"),
        ({"format": "huggingface", "push": "net"}, "OWNER/NAME"),
        ({"format": "tflite"}, "choose one of torchvision, timm"),
    ):
        with pytest.raises(UserError, match=said):
            export(file, tmp_path / "x", **options)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=rf"needs {name}: pip install 'twofold\[onnx\]'"):
                export(file, tmp_path / "x", format="onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run that was pretrained, evaluated and fine-tuned: the folders of both."""
    where, (x, y) = tmp_path_factory.mktemp("hub"), images()
    options = merge(OPTIONS, {"epochs": 1, "monitor.every": 0, "views.size": 16})
    twofold.pretrain((x, y), where / "run", report=False, **options)
    twofold.evaluate(where / "run", (x, y), protocol="knn")
    twofold.finetune(where / "run", (x, y), where / "tuned", epochs=1, batch=16, training={"device": "cpu"})
    return where


def test_every_run_leaves_a_file_for_safetensors_alone(run):
    """Names and shapes of the net as PyTorch tells them, its description as JSON; readable by whom umask lets."""
    file, encoder = run / "run" / "encoder.safetensors", twofold.load(run / "run")
    with safe_open(file, "np") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        facts = json.loads(content.metadata()["twofold"])
    mine = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    assert mine.keys() == encoder.state_dict().keys()
    assert all(np.array_equal(mine[name], value.numpy()) for name, value in encoder.state_dict().items())
    assert (facts["spec"]["depth"], facts["extra"]["options"]["views"]["size"]) == (10, 16)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (run / "run").iterdir() if path.is_file()}
    probe = run / "probe"
    probe.touch()
    assert set(modes.values()) == {stat.S_IMODE(probe.stat().st_mode)}, modes


def test_a_folder_for_the_hub(run, tmp_path, capsys):
    out = tmp_path / "net"
    assert main(["export", str(run / "run"), "--format", "huggingface", "--out", str(out)]) == 0
    assert "nothing was pushed" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in out.iterdir()} == {
        "encoder.safetensors", "config.json", "preprocessor_config.json", "README.md",
    }  # fmt: skip
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(twofold.load(out)(x), twofold.load(run / "run")(x))
    config = json.loads((out / "config.json").read_text())
    assert config["encoder"] == read_header(out / "encoder.safetensors")["spec"]
    assert config["preprocessing"]["size"] == 16
    card = (out / "README.md").read_text()
    for words in (
        "library_name: twofold",
        "Trained on 64 images (array)",
        "steps: 5 of 5",
        "top1",
        "encoder.preprocess",
    ):
        assert words in card, words
    assert str(run) not in card


def test_the_classifier_is_in_the_folder(run, tmp_path):
    export(run / "tuned", tmp_path / "net", format="huggingface")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["num_classes"] == 2
    card = (tmp_path / "net" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "a classifier of 2 classes" in card
    assert "top1" in card


def test_timm_makes_the_model_of_a_folder(tmp_path):
    """With the classifier, its names, and the transform that timm makes of the folder's facts."""
    timm = pytest.importorskip("timm")
    encoder = TorchvisionEncoder("resnet18", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.2])
    file = saved(tmp_path, encoder, classes=3, size=64)
    done = export(file, tmp_path / "net", format="huggingface")
    assert "timm and Twofold load it" in done.note
    model = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    x = torch.rand(2, 3, 64, 64)
    given = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.2]).view(3, 1, 1)
    with torch.no_grad():
        h = twofold.load(file)(x)
        torch.testing.assert_close(model.forward_head(model.forward_features(given), pre_logits=True), h)
        torch.testing.assert_close(model(given), load_classifier(file)[0](h), rtol=1e-4, atol=1e-4)
    known = timm.data.resolve_data_config(model=model)
    assert (tuple(known["input_size"]), known["crop_pct"]) == ((3, 64, 64), 0.875)
    assert known["mean"] == pytest.approx([0.4, 0.5, 0.6])


def test_transformers_reads_the_preprocessing(tmp_path):
    """Its order of steps differs from ours: on a smooth picture that is less than two levels of 255 on average."""
    transformers = pytest.importorskip("transformers")
    file = saved(tmp_path, ResNet(10, 0.125), size=64)
    export(file, tmp_path / "net", format="huggingface")
    process = transformers.AutoImageProcessor.from_pretrained(tmp_path / "net")
    y, x = np.mgrid[:200, :150] / 40
    picture = np.stack([np.sin(x) + np.cos(y), np.cos(x * y / 4), np.sin(y)], -1)
    picture = (127 + 60 * picture).clip(0, 255).astype(np.uint8)
    theirs = torch.as_tensor(np.asarray(process(picture, return_tensors="np")["pixel_values"]))
    ours = twofold.load(file).preprocess(picture)
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().mean() < 2 / 255


def test_it_is_pushed_only_when_asked(run, tmp_path, monkeypatch):
    calls = []

    class HfApi:
        def create_repo(self, name, **options):
            calls.append(("create", name, options))

        def upload_folder(self, **options):
            calls.append(("upload", options))
            if options["repo_id"] == "me/full":
                raise OSError("no room")
            return "https://hub/me/net"

    monkeypatch.setattr(hub_folder, "require_hub", lambda: types.SimpleNamespace(HfApi=HfApi))
    export(run / "run", tmp_path / "a", format="huggingface")
    assert calls == []
    done = export(run / "run", tmp_path / "b", format="huggingface", push="me/net")
    assert "pushed to https://hub/me/net" in done.note
    assert calls[0] == ("create", "me/net", {"repo_type": "model", "private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == str(tmp_path / "b")
    with pytest.raises(UserError, match=r"no room.*push it later"):
        export(run / "run", tmp_path / "c", format="huggingface", push="me/full")
    assert (tmp_path / "c" / "README.md").exists()


def test_a_module_of_ones_own_that_onnx_holds_for_one_size_alone(tmp_path):
    """Pooling to 3 x 3 is no operator of ONNX where the size is open: then the size of training is taken, and told."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5))
    file = saved(tmp_path, adapt(net), size=20)
    with pytest.raises(UserError, match="as `encoder`"):
        export(file, tmp_path / "x.onnx", format="onnx")
    done = export(file, tmp_path / "x.onnx", format="onnx", encoder=net)
    assert "images [n, 3, 20, 20] in [0, 1] (one size alone:" in done.note
    x = torch.rand(4, 3, 20, 20)
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(tmp_path / "x.onnx", x)[0], net(x), rtol=1e-4, atol=1e-5)
