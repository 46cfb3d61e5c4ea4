"""Recipes: each builds, says what its file says, and is loaded to the values of the code or paper that it names."""

from importlib import resources

import pytest
import yaml

from twofold.evaluation.protocols.base import EvaluationConfig
from twofold.options import OptionsParser, flatten, merge, plain
from twofold.recipe import load, names
from twofold.runs.config import DistillConfig, FinetuneConfig, build

FILES = sorted((resources.files("twofold") / "recipes").iterdir(), key=lambda file: file.name)


def resolved(name):
    """Every option of a recipe, flat: those that it sets and what the others are then."""
    recipe = load(name)
    if recipe.command == "pretrain":
        return flatten(plain(build(recipe.options, name)))
    kind = {"finetune": FinetuneConfig, "distill": DistillConfig, "evaluate": EvaluationConfig}[recipe.command]
    return flatten(plain(OptionsParser(kind).build(merge(recipe.options), name)))


@pytest.mark.parametrize("name", names())
def test_every_recipe_builds(name):
    assert resolved(name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_a_file_says_of_itself_survives(file):
    """Unquoted, " #" begins a comment: two sources ended before the issue that they name."""
    text = file.read_text()
    about, inside = yaml.safe_load(text)["about"], False
    for line in text.splitlines():
        if not line.startswith("  "):
            inside = line.startswith("about:")
        elif inside:
            key, _, value = line.strip().partition(": ")
            if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
                value = value[1:-1]
            assert about[key] == value, f"{file.name}: {key} is cut off; quote it"


def test_the_issues_that_sources_name_are_there():
    assert load("simclr2-imagenet-800").source == "google-research/simclr, issue #77; settings of arXiv 2006.10029"
    assert load("simclr2-imagenet-800-memory").source.endswith("issues #77 and #115")


SIMCLR = {  # google-research/simclr at 383d414 and, for v1, 85e8552; arXiv 2002.05709 v3
    "batch": 4096, "epochs": 100, "views.size": 224, "views.crop_rule": "tf", "views.crop_area": [0.08, 1.0],
    "views.resample": "tf1", "views.color_strength": 1.0, "views.jitter": 0.8, "views.grayscale": 0.2,
    "views.jitter_ranges": [0.8, 0.8, 0.8, 0.2], "views.jitter_order": "random", "views.color_rule": "tf",
    "views.brightness_rule": "additive", "views.blur": 0.5, "views.blur_sigma": [0.1, 2.0],
    "views.blur_sigma_per": "batch", "views.blur_padding": "zero", "views.flip": 0.5,
    "encoder.name": "resnet50", "encoder.stem": "imagenet", "encoder.zero_init_residual": True,
    "head.kind": "nonlinear", "head.layers": 2, "head.out_dim": 128,
    "method.name": "simclr", "method.temperature": 0.1, "method.scale": "simclr_sum2",
    "optim.name": "lars", "optim.lr": 0.3, "optim.lr_rule": "linear", "optim.weight_decay": 1e-6,
    "optim.warmup_epochs": 10, "optim.schedule": "cosine",
}  # fmt: skip
SIMCLR2 = SIMCLR | {  # arXiv 2006.10029; issue #77
    "epochs": 800, "views.brightness_rule": "multiplicative", "head.layers": 3, "optim.lr": 0.1,
    "optim.lr_rule": "sqrt", "optim.weight_decay": 1e-4, "optim.warmup_epochs": 40,
}  # fmt: skip
CIFAR = SIMCLR | {  # README of google-research/simclr
    "batch": 512, "epochs": 1000, "views.size": 32, "views.color_strength": 0.5, "views.blur": 0.0,
    "views.brightness_rule": "multiplicative", "encoder.name": "resnet18", "encoder.stem": "cifar", "head.layers": 3,
    "method.temperature": 0.5, "optim.lr": 1.0, "optim.weight_decay": 1e-4,
}  # fmt: skip
del CIFAR["views.blur_sigma_per"]  # nothing is blurred
MOCO = {  # main_moco.py of facebookresearch/moco; torchvision resizes bilinearly unless told otherwise
    "batch": 256, "epochs": 200, "data.last_batch": "drop", "views.crop_area": [0.2, 1.0],
    "views.crop_rule": "torchvision", "views.resample": "bilinear", "views.jitter_ranges": [0.4, 0.4, 0.4, 0.1],
    "views.color_rule": "torchvision", "views.blur": 0.5, "views.blur_padding": "reflect",
    "encoder.name": "torchvision:resnet50", "head.kind": "nonlinear", "head.norm": False, "head.out_dim": 128,
    "method.name": "moco", "method.temperature": 0.2, "method.queue": 65536, "method.momentum": 0.999,
    "optim.name": "sgd", "optim.lr": 0.03, "optim.weight_decay": 1e-4, "optim.decay": "all",
    "optim.schedule": "cosine_epoch",
}  # fmt: skip
CROP_FLIP = {"views.crop_rule": "tf", "views.resample": "tf1", "views.flip": 0.5, "views.color_strength": 0.0,
             "views.grayscale": 0.0, "views.blur": 0.0}  # fmt: skip
TUNED = CROP_FLIP | {  # appendix B.5 of arXiv 2002.05709
    "labels": "1%", "epochs": 60, "batch": 4096, "from_head": 0, "freeze": "nothing", "init": "zero",
    "preprocessing": "crop", "optim.name": "sgd", "optim.nesterov": True, "optim.lr": 0.05, "optim.lr_rule": "linear",
    "optim.weight_decay": 0.0, "optim.schedule": "cosine", "optim.warmup_epochs": 0,
}  # fmt: skip
TUNED2 = TUNED | {  # fine-tuning command in the README of google-research/simclr
    "batch": 1024, "from_head": 1, "optim.name": "lars", "optim.nesterov": False, "optim.lr": 0.005,
    "optim.lr_rule": "sqrt",
}  # fmt: skip
PINNED = {
    "simclr-imagenet-100": SIMCLR,
    "simclr-imagenet-100-sqrt": SIMCLR | {"optim.lr": 0.075, "optim.lr_rule": "sqrt"},
    "simclr-imagenet-800": SIMCLR | {"epochs": 800},
    "simclr-imagenet-800-sqrt": SIMCLR | {"epochs": 800, "optim.lr": 0.075, "optim.lr_rule": "sqrt"},
    "simclr-imagenet-1000": SIMCLR | {"epochs": 1000},
    "simclr-imagenet-1000-2x": SIMCLR | {"epochs": 1000, "encoder.width": 2.0},
    "simclr-imagenet-1000-4x": SIMCLR | {"epochs": 1000, "encoder.width": 4.0},
    "simclr2-imagenet-800": SIMCLR2,
    "simclr2-imagenet-800-memory": SIMCLR2 | {"method.memory": 65536, "method.memory_momentum": 0.999},
    "simclr2-imagenet-800-sk": SIMCLR2 | {"encoder.sk_ratio": 0.0625, "method.memory": 65536},
    "simclr2-imagenet-800-r152-3x-sk": SIMCLR2 | {"encoder.name": "resnet152", "encoder.width": 3.0},
    "simclr-cifar10-resnet18": CIFAR,
    "simclr-cifar10-resnet50": CIFAR | {"encoder.name": "resnet50", "batch": 1024, "head.layers": 2,
                                        "views.brightness_rule": "additive", "optim.weight_decay": 1e-6},
    "simclr-cifar10-small-batch": CIFAR | {"batch": 256, "head.layers": 2, "head.out_dim": 64, "optim.lr": 0.2,
                                           "method.temperature": 0.2, "optim.lr_rule": "sqrt"},
    "simclr-finetune-1pct": TUNED,
    "simclr-finetune-10pct": TUNED | {"labels": "10%", "epochs": 30},
    "simclr-finetune-100pct": TUNED | {"labels": "all", "epochs": 30},
    "simclr2-finetune-1pct": TUNED2,
    "simclr2-finetune-10pct": TUNED2 | {"labels": "10%", "epochs": 30},
    "simclr2-finetune-100pct": TUNED2 | {"labels": "all", "epochs": 30, "from_head": 0},
    "linear-simclr-paper": TUNED | {"labels": "all", "epochs": 90, "freeze": "encoder", "optim.lr": 0.1},
    "simclr2-distill-self": CROP_FLIP | {"epochs": 400, "batch": 4096, "temperature": 0.1, "optim.lr": 0.1,
                                         "optim.lr_rule": "sqrt", "optim.warmup_epochs": 20},
    "simclr2-distill-small": CROP_FLIP | {"epochs": 400, "temperature": 1.0, "encoder.name": "resnet50"},
    "moco-v2-imagenet-200": MOCO,
    "moco-v2-imagenet-800": MOCO | {"epochs": 800},
    "moco-cifar10-asymmetric": {"views.resample": "bilinear", "method.queue": 4096, "method.momentum": 0.99,
                                "method.bn_splits": 8, "optim.lr": 0.06, "optim.first_epoch": 1},
    "linear-moco": {"views.resample": "bilinear", "optim.lr": 30.0, "optim.lr_rule": "none", "init": "normal",
                    "optim.milestones": [60, 80]},
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_a_recipe_is_loaded_to_the_values_of_its_source(name):
    found = resolved(name)
    differing = {key: (found.get(key), value) for key, value in PINNED[name].items() if found.get(key) != value}
    assert not differing


def test_all_pretraining_of_simclr_adds_both_directions():
    """simclr/objective.py returns the sum of two means over N; with LARS only normalisation and biases feel it."""
    for name in names():
        recipe = load(name)
        if name.startswith("simclr") and recipe.command == "pretrain":
            other = "loss" in recipe.options["method"]  # NT-Logistic and the triplets have no second direction
            assert recipe.options["method"]["scale"] == ("mean_2n" if other else "simclr_sum2"), name
            assert recipe.options["views"]["resample"] == "tf1", name
