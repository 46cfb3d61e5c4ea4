"""The configuration: layers, names, types, and what is said when one is wrong."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from twofold import recipe as recipes
from twofold.errors import UserError
from twofold.evaluation.protocols.base import EvaluationConfig
from twofold.options import OptionsParser, flatten, leaves, merge, plain
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig, build, to_yaml


def test_later_layers_win_and_dots_are_paths():
    merged = merge({"epochs": 1, "optim": {"name": "lars", "lr": 1.0}}, {"optim.lr": 2.0}, {"optim": {"momentum": 0.8}})
    assert merged == {"epochs": 1, "optim": {"name": "lars", "lr": 2.0, "momentum": 0.8}}
    config = build(merged)
    assert (config.epochs, config.optim.lr, config.optim.momentum) == (1, 2.0, 0.8)


def test_yaml_round_trip_is_lossless():
    config = build({"views.crop_area": [0.2, 0.9], "encoder.name": "resnet34", "seed": 7})
    assert build(yaml.safe_load(to_yaml(config))) == config
    assert plain(config)["views"]["crop_area"] == [0.2, 0.9]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optim": {"lrr": 1}}, ["optim.lrr", "lr"]),
        ({"epoch": 3}, ["epoch", "epochs"]),
        ({"optim": 3}, ["optim", "group"]),
        ({"epochs": "ten"}, ["epochs", "ten"]),
        ({"views.crop_rule": "keras"}, ["views.crop_rule", "tf", "torchvision", "keras"]),
        ({"epochs": 0}, ["--epochs", "0"]),
        ({"batch": 1}, ["--batch", "1"]),
        ({"seed": -1}, ["--seed", "-1"]),
        ({"training.keep": 0}, ["--training.keep", "0"]),
        ({"method.temperature": -0.1}, ["--method.temperature", "-0.1"]),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_a_remedy(options, words):
    with pytest.raises(UserError) as caught:
        build(options)
    for word in words:
        assert word in str(caught.value)


def test_every_option_is_explained():
    for cls in (RunConfig, FinetuneConfig, DistillConfig):
        options = list(leaves(cls))
        assert len(options) > 60
        assert [leaf.path for leaf in options if not leaf.help] == []


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_builds_and_says_what_it_promises(name):
    recipe = recipes.load(name)
    if recipe.command == "finetune":
        config = OptionsParser(FinetuneConfig).build(recipe.options, origin=name)
        assert config.optim.lr
    elif recipe.command == "distill":
        config = OptionsParser(DistillConfig).build(recipe.options, origin=name)
        assert config.optim.lr
        assert config.temperature
    elif recipe.command == "evaluate":
        parts = {"test", "validation"}  # of the data, not of the protocol
        config = OptionsParser(EvaluationConfig).build(
            {key: value for key, value in recipe.options.items() if key not in parts}, origin=name
        )
        assert config.protocol == recipe.options["protocol"]
    else:
        config = build(recipe.options, origin=name)
        assert config.method.temperature
    assert recipe.command == "evaluate" or (config.epochs and config.batch)
    assert recipe.result
    assert recipe.source
    assert recipe.run
    assert flatten(recipe.options)


def test_an_unknown_recipe_is_refused_with_the_near_ones():
    with pytest.raises(UserError, match="simclr-imagenet-100"):
        recipes.load("simclr-imagenet-10")


def test_the_published_distillations_are_those_of_the_paper():
    """arXiv 2006.10029: LARS as in pretraining, 400 epochs, temperature 0.1 for a student like its teacher, else 1."""
    own, small = (OptionsParser(DistillConfig).build(recipes.load(f"simclr2-distill-{n}").options)
                  for n in ("self", "small"))  # fmt: skip
    assert own.optim.lr * own.batch**0.5 == pytest.approx(6.4)
    assert (own.epochs, own.optim.warmup_epochs / own.epochs, own.optim.weight_decay) == (400, 0.05, 1e-4)
    assert (own.temperature, small.temperature, small.encoder.name) == (0.1, 1.0, "resnet50")
    assert own.encoder.name is None, "built as its teacher"
    assert (own.views.color_strength, own.views.grayscale, own.views.blur, own.alpha) == (0, 0, 0, None)
    assert small == dataclasses.replace(own, temperature=1.0, encoder=small.encoder)


def test_a_base_lies_below_the_recipes_own_options():
    recipe = recipes.load("simclr-imagenet-1000-4x")
    encoder = {"name": "resnet50", "width": 4.0, "stem": "imagenet", "channels": 3, "zero_init_residual": True}
    assert recipe.options["encoder"] == encoder
    assert recipe.options["epochs"] == 1000
    assert (Path(recipes.__file__).parent / "recipes" / "simclr-imagenet-1000-4x.yaml").exists()
