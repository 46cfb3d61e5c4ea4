"""`--start_from`: pretraining from weights of a run, a converted checkpoint, or a backbone that others trained."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from test_pretrain import learned, same_weights
from test_pretrain_speech import TINY
from tiny import OPTIONS, as_arguments, images
from torch import nn

import twofold
from sound_files import speech_folder
from twofold import cli
from twofold.encoders import read_header
from twofold.encoders.weights import sealed
from twofold.errors import Stopped, UserError
from twofold.evaluation.frozen import digest
from twofold.options import merge
from twofold.runs.pretrain import RunConfig
from twofold.training.loop import Training
from twofold.training.rundir import RunDirectory

PLAIN = {name: value for name, value in OPTIONS.items() if name != "encoder"}
"""Options that say nothing of an encoder."""


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return twofold.pretrain(images(), tmp_path_factory.mktemp("first") / "run", report=False, **OPTIONS)


@pytest.fixture
def at_the_start(monkeypatch):
    """What a run has before its first step; it is stopped there."""
    seen = {}

    def look(self):
        seen["encoder"] = {name: tensor.clone() for name, tensor in self.method.encoder.state_dict().items()}
        seen["method"] = self.method
        raise KeyboardInterrupt

    real = Training.fit
    monkeypatch.setattr(Training, "fit", look)
    yield seen
    monkeypatch.setattr(Training, "fit", real)


def begin(seen, *args, **options):
    with pytest.raises(KeyboardInterrupt):
        twofold.pretrain(*args, **options)
    return seen["encoder"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_a_run_starts_with_the_weights_of_another(first, tmp_path, at_the_start, form, method):
    where = first.path if form == "folder" else first.encoder_file
    more = {"method": {"name": "moco", "queue": 40}} if method == "moco" else {}
    begun = begin(at_the_start, images(seed=5), tmp_path / "run", start_from=where, **merge(PLAIN, more))
    assert same(begun, twofold.load(first.path).state_dict())
    if method == "moco":
        assert same(begun, at_the_start["method"].momentum_encoder.state_dict())
    document = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert document["options"]["encoder"]["width"] == 0.125
    assert document["options"]["start_from"] == str(where)
    assert document["run"]["start"] == {"from": str(where), "digest": digest(twofold.load(first.path))}


def test_it_learns_from_there_and_resumes_without_the_file(first, tmp_path, monkeypatch):
    copy = shutil.copytree(first.path, tmp_path / "copy")
    whole = twofold.pretrain(images(seed=5), tmp_path / "whole", start_from=copy, report=False, **PLAIN)
    scratch = twofold.pretrain(images(seed=5), tmp_path / "scratch", report=False, **OPTIONS)
    assert not same_weights(whole, scratch)
    assert whole.rows()[0]["loss"] < scratch.rows()[0]["loss"]
    real = Training.agree
    for stop in (1, 6):
        monkeypatch.setattr(Training, "agree", lambda self, asked, stop=stop: self.step == stop or real(self, asked))
        with pytest.raises(Stopped):
            twofold.pretrain(images(seed=5), tmp_path / f"stopped{stop}", start_from=copy, report=False, **PLAIN)
    monkeypatch.setattr(Training, "agree", real)
    monkeypatch.setattr(Training, "fit", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # before the first step
        twofold.pretrain(images(seed=5), tmp_path / "stopped0", start_from=copy, report=False, **PLAIN)
    monkeypatch.undo()
    shutil.rmtree(copy)
    for stop in (0, 1, 6):
        again = twofold.pretrain(
            images(seed=5), tmp_path / f"stopped{stop}", start_from=copy, resume=True, report=False, **PLAIN
        )
        assert same_weights(whole, again)
        assert learned(whole) == learned(again)


def test_killed_before_anything_was_kept_the_same_weights_are_needed(first, tmp_path, at_the_start):
    copy = shutil.copytree(first.path, tmp_path / "copy")
    begun = begin(at_the_start, images(), tmp_path / "run", start_from=copy, **PLAIN)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert same(begin(at_the_start, images(), tmp_path / "run", resume=True), begun)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    tensors = load_file(copy / "encoder.safetensors")
    tensors["encoder.conv1.weight"] += 1
    header = json.dumps(read_header(copy / "encoder.safetensors"))
    save_file(tensors, copy / "encoder.safetensors", metadata=sealed(header, tensors))
    with pytest.raises(UserError, match=r"holds other weights than those that the run in .* began with"):
        twofold.pretrain(images(), tmp_path / "run", resume=True)
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="there is no run or encoder at"):
        twofold.pretrain(images(), tmp_path / "run", resume=True)


def test_how_pixels_were_read_comes_with_the_weights(tmp_path, capsys):
    folder = tmp_path / "drawings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = np.full((16, 16, 4), 255, np.uint8)
        pixels[..., 3] = rng.integers(0, 2, (16, 16)) * 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
    reading = {"data": {"background": "black", "channels": 1, "workers": 0}}
    options = merge(OPTIONS, {"epochs": 1, "batch": 8, "views.size": 16})
    run = twofold.pretrain(folder, tmp_path / "run", report=False, **merge(options, reading))
    plain = {name: value for name, value in options.items() if name != "encoder"}
    on = twofold.pretrain(folder, tmp_path / "on", start_from=run.path, report=False, **plain, **{"data.workers": 0})
    data = on.read(RunConfig)[0].data
    assert (data.background, data.channels) == ("black", 1)
    assert "images are read with data.background black, data.channels 1" in " ".join(capsys.readouterr().out.split())
    other = merge(plain, {"data": {"background": "red", "workers": 0}})
    asked = twofold.pretrain(folder, tmp_path / "other", start_from=run.path, report=False, **other)
    assert asked.read(RunConfig)[0].data.background == "red"


def test_speech_starts_with_the_statistics_of_its_front_end(tmp_path):
    clips, others = speech_folder(tmp_path / "clips", 3, 12), speech_folder(tmp_path / "others", 2, 12)
    run = twofold.pretrain(clips, tmp_path / "run", report=False, **merge(TINY, {"epochs": 1}))
    plain = {name: value for name, value in TINY.items() if name != "encoder"} | {"epochs": 1}
    more = twofold.pretrain(others, tmp_path / "more", start_from=run.path, report=False, **plain)
    ours, theirs = twofold.load(more.path), twofold.load(run.path)
    assert ours.spec() == theirs.spec()
    assert same(dict(ours.frontend.named_buffers()), dict(theirs.frontend.named_buffers()))
    assert not same(ours.transformer.state_dict(), theirs.transformer.state_dict())
    with pytest.raises(UserError, match=r"holds an encoder of recordings, and the data are images"):
        twofold.pretrain(images(), tmp_path / "no", start_from=run.path, epochs=1)


def small_resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_backbone_of_torchvision(tmp_path, at_the_start, suffix, capsys):
    state = {f"module.backbone.{name}": tensor for name, tensor in small_resnet().state_dict().items()}
    path = tmp_path / f"x{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state, "epoch": 3}, path)
    begun = begin(at_the_start, images(), tmp_path / "run", start_from=path, **PLAIN)
    told = " ".join(capsys.readouterr().out.split())
    assert "torchvision:resnet18 from names with module.backbone.; images are normalised with mean [0.485" in told
    wanted = {f"module.{name}": tensor for name, tensor in small_resnet().state_dict().items() if "fc." not in name}
    assert same(begun, wanted)
    encoder = RunDirectory(tmp_path / "run").read(RunConfig)[0].encoder
    assert (encoder.name, encoder.channels, encoder.mean[0]) == ("torchvision:resnet18", 3, 0.485)


def test_the_prefix_and_what_the_file_does_not_say_are_options(tmp_path, at_the_start, capsys):
    one, two = small_resnet(), small_resnet()
    nn.init.ones_(two.conv1.weight)
    torch.save({"student": one.state_dict(), "teacher": two.state_dict()}, tmp_path / "x.ckpt")
    np.savez(tmp_path / "data.npz", images=images()[0])
    words = [
        "pretrain",
        str(tmp_path / "data.npz"),
        "--out",
        str(tmp_path / "run"),
        "--start_from",
        str(tmp_path / "x.ckpt"),
    ]
    words += as_arguments(merge(PLAIN, {"monitor": {"every": 0}}))
    assert cli.main(words) == 2
    assert "holds 2 such networks, under student. and teacher.: say which" in capsys.readouterr().err
    more = ["--start-prefix", "teacher.=", "--encoder.mean", "[0,0,0]", "--encoder.std", "[1,1,1]"]
    assert cli.main([*words, *more]) == 130
    assert bool((at_the_start["encoder"]["module.conv1.weight"] == 1).all())
    assert at_the_start["method"].encoder.mean.flatten().tolist() == [0, 0, 0]
    capsys.readouterr()
    assert cli.main([*words, *more, "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["encoder"]["name"], shown["start_prefix"]) == ("torchvision:resnet18", "teacher.=")


def test_a_converted_checkpoint_and_a_module_of_your_own(tmp_path, at_the_start):
    torch.save(small_resnet().state_dict(), tmp_path / "x.pth")
    converted = twofold.convert(tmp_path / "x.pth", tmp_path / "converted")
    begun = begin(at_the_start, images(), tmp_path / "run", start_from=tmp_path / "converted", **PLAIN)
    assert same(begun, twofold.load(converted.file).state_dict())
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    trained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    torch.save(
        {"state_dict": {f"f.{name}": tensor for name, tensor in trained.state_dict().items()}}, tmp_path / "own.pt"
    )
    begun = begin(at_the_start, images(), tmp_path / "own", start_from=tmp_path / "own.pt", encoder=own, **PLAIN)
    assert same(begun, {f"module.{name}": tensor for name, tensor in trained.state_dict().items()})
    wider = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    with pytest.raises(UserError, match=r"does not fit .*1 missing: 2\.weight"):
        twofold.pretrain(images(), tmp_path / "no", start_from=tmp_path / "own.pt", encoder=wider, **PLAIN)


def test_weights_of_a_module_of_your_own_go_on(tmp_path):
    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    run = twofold.pretrain(images(), tmp_path / "run", encoder=net(), report=False, **PLAIN)
    with pytest.raises(UserError, match="a module of your own"):
        twofold.pretrain(images(), tmp_path / "no", start_from=run.path, **PLAIN)
    more = twofold.pretrain(images(), tmp_path / "more", encoder=net(), start_from=run.path, report=False, **PLAIN)
    assert more.rows()[0]["loss"] < run.rows()[0]["loss"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"encoder.width": 0.25}, r"--encoder\.width 0\.25 contradicts --start_from .*, whose encoder has 0\.125"),
        (
            {"encoder.name": "resnet18"},
            r"--encoder\.name resnet18 contradicts --start_from .*, whose encoder has resnet10",
        ),
        ({"encoder.stem": "small"}, r"--encoder\.stem small contradicts"),
        ({"data.channels": 1}, r"the encoder takes 3 channels and the images have 1"),
        ({"start_prefix": "module."}, r"--start_prefix module\.: .* is an encoder of Twofold's own"),
    ],
)
def test_what_contradicts_the_weights_is_refused(first, tmp_path, more, words):
    with pytest.raises(UserError, match=words):
        twofold.pretrain(images(), tmp_path / "run", start_from=first.path, **PLAIN, **more)
    assert not (tmp_path / "run").exists()


def test_what_agrees_may_be_repeated_and_a_recipe_gives_way(first, tmp_path, at_the_start):
    begin(at_the_start, images(), tmp_path / "run", start_from=first.path, **OPTIONS)
    options = {"batch": 16, "epochs": 1, "views.size": 16, "optim.warmup_epochs": 0, "training.device": "cpu"}
    begin(at_the_start, images(), tmp_path / "r", start_from=first.path, recipe="simclr-imagenet-100", **options)
    assert RunDirectory(tmp_path / "r").read(RunConfig)[0].encoder.name == "resnet10"


def test_what_is_no_encoder_is_refused_with_what_to_do(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "x.pth")
    (tmp_path / "empty").mkdir()
    for start, more, words in (
        (tmp_path / "none", {}, "there is no run or encoder at"),
        (tmp_path / "empty", {}, r"holds no encoder\.safetensors: give a run's folder"),
        (
            tmp_path / "x.pth",
            {"encoder.name": "torchvision:resnet50"},
            r"does not fit torchvision:resnet50; \d+ missing",
        ),
        (tmp_path / "x.pth", {"start_prefix": "module."}, r"--prefix module\.: no tensor of .* begins so"),
        (tmp_path / "x.pth", {"encoder.pretrained": True}, r"--encoder\.pretrained true is about other weights"),
    ):
        with pytest.raises(UserError, match=words):
            twofold.pretrain(images(), tmp_path / "run", start_from=start, **PLAIN, **more)
    with pytest.raises(UserError, match=r"--start_prefix module\. has no effect without --start_from"):
        twofold.pretrain(images(), tmp_path / "run", start_prefix="module.", **OPTIONS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "embed", "finetune", "distill", "load"])
def test_other_commands_tell_how_a_backbone_becomes_an_encoder(tmp_path, command):
    torch.save(small_resnet().state_dict(), tmp_path / "x.pth")
    save_file(small_resnet().state_dict(), tmp_path / "x.safetensors")
    calls = {
        "evaluate": lambda path: twofold.evaluate(path, images()),
        "embed": lambda path: twofold.embed(path, images(), tmp_path / "f.npz"),
        "finetune": lambda path: twofold.finetune(path, images(), tmp_path / "out"),
        "distill": lambda path: twofold.distill(path, images(), tmp_path / "out"),
        "load": twofold.load,
    }
    for name in ("x.pth", "x.safetensors"):
        with pytest.raises(UserError, match=rf"twofold convert {tmp_path / name} --out FOLDER, and give that folder"):
            calls[command](tmp_path / name)


def test_a_converted_backbone_is_evaluated_tuned_and_teaches(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": torchvision.models.resnet18(num_classes=2).state_dict()}, tmp_path / "x.pth")
    where = twofold.convert(tmp_path / "x.pth", tmp_path / "converted", classifier_layer=0).file.parent
    short = {"epochs": 1, "batch": 16, "views.size": 16, "training": {"device": "cpu"}}
    assert 0 <= twofold.evaluate(where, images(), size=16).metrics["top1"] <= 1
    assert 0 <= twofold.finetune(where, images(), tmp_path / "tuned", **short).metrics["top1"] <= 1
    student = {"name": "resnet10", "width": 0.125, "stem": "cifar"}
    taught = twofold.distill(where, images(), tmp_path / "student", encoder=student, **short)
    assert 0 <= taught.metrics["agreement"] <= 1
