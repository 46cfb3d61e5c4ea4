"""An encoder with a random start, and training it with labels alone."""

import numpy as np
import pytest
import torch
from tiny import images

import twofold
from twofold import cli
from twofold.encoders import load_encoder, read_header
from twofold.errors import UserError
from twofold.evaluation.frozen import digest
from twofold.recipe import cells, load

NET = {"encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar", "channels": 3}, "size": 16}


def test_weights_are_a_function_of_the_seed(tmp_path):
    torch.manual_seed(5)
    first = twofold.fresh(tmp_path / "a", **NET)
    second, other = twofold.fresh(tmp_path / "b", **NET), twofold.fresh(tmp_path / "c", seed=1, **NET)
    assert first.digest == second.digest != other.digest
    loaded = load_encoder(first.file)
    assert digest(loaded) == first.digest
    assert first.parameters == sum(p.numel() for p in loaded.parameters())
    assert read_header(first.file)["extra"]["options"]["views"]["size"] == 16
    assert first.to_dict()["file"] == str(first.file)


def test_a_recipe_gives_the_encoder_and_the_side(tmp_path):
    name = "simclr2-imagenet:net=r50-1x-sk"
    made = twofold.fresh(tmp_path / "a", recipe=name, encoder={"width": 0.0625})
    spec = read_header(made.file)["spec"]
    assert (spec["kind"], spec["depth"], spec["sk_ratio"], spec["width"]) == ("resnet", 50, 0.0625, 0.0625)
    assert read_header(made.file)["extra"]["options"]["views"]["size"] == 224


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16}, "--encoder.name is missing"),
        ({"encoder": {"name": "resnet10"}}, "--size is missing"),
        ({"encoder": {"name": "resnet10"}, "size": 0}, "--size must be at least 1, got 0"),
        (NET | {"seed": -1}, "--seed must lie in"),
        ({"recipe": "simclr-finetune-1pct"}, "name a recipe of `twofold pretrain`"),
        ({"recipe": "simclr2-imagenet"}, "name a recipe of `twofold pretrain`"),
        ({"encoder": {"name": "speech:small"}, "size": 16}, "recordings are no images"),
    ],
)
def test_what_cannot_be(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        twofold.fresh(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_it_is_trained_with_labels_alone_and_goes_on(tmp_path, capsys):
    x, y = images(32)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    words = ["fresh", "--encoder.name", "resnet10", "--encoder.width", "0.125", "--encoder.stem", "cifar",
             "--encoder.channels", "3", "--size", "16", "--out", str(tmp_path / "start")]  # fmt: skip
    assert cli.main(words) == 0
    assert "--from-scratch" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "exists and is no empty folder" in capsys.readouterr().err
    tune = ["finetune", str(tmp_path / "start"), str(tmp_path / "d.npz"), "--recipe", "supervised-imagenet:net=r50-1x",
            "--epochs", "2", "--batch", "8", "--views.size", "16", "--training.device", "cpu",
            "--preprocessing", "auto", "--out", str(tmp_path / "run")]  # fmt: skip
    assert cli.main(tune) == 0
    told = capsys.readouterr().out
    assert (
        "published: 76.6 % top-1 trained with labels (simclr2/supervised; recipe supervised-imagenet:net=r50-1x)"
        in told
    )
    assert "trained from scratch" in told
    assert cli.main([*tune, "--resume"]) == 0


def test_the_supervised_recipes_are_the_baselines():
    """Issue 10 of google-research/simclr: SGD, base rate 0.1 by the linear rule, weight decay 1e-4, cosine."""
    assert len(cells("supervised-imagenet")) == 13
    options = load("supervised-imagenet:net=r152-3x-sk").options
    optim = options["optim"]
    assert (optim["name"], optim["lr"], optim["lr_rule"], optim["weight_decay"]) == ("sgd", 0.1, "linear", 1e-4)
    assert (options["epochs"], options["batch"], options["from_scratch"], options["init"]) == (90, 4096, True, "normal")
    assert load("supervised-imagenet:net=r152-3x-sk").result == "80.5 % top-1 trained with labels"
