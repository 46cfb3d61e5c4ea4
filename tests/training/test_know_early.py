"""Real runs, healthy and broken on purpose: the healthy ones are left in peace, each of the others gets its word."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny import images

import twofold
from sound_files import speech_folder, tone, write

IMAGES = {
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"}, "batch": 32, "epochs": 12, "seed": 3,
    "views": {"size": 16, "crop_rule": "torchvision", "crop_area": (0.4, 1.0)},
    "optim": {"name": "adamw", "lr": 2e-3}, "head": {"out_dim": 32},
    "training": {"device": "cpu", "precision": "fp32", "log_every": 4}, "data": {"workers": 0},
}  # fmt: skip
SOUNDS = {
    "encoder": {"name": "speech:small", "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32}},
    "batch": 16, "epochs": 20, "optim": {"name": "adamw", "lr": 2e-3}, "data": {"workers": 0},
    "training": {"device": "cpu", "precision": "fp32", "log_every": 2},
}  # fmt: skip


def told(data, folder, options, capsys, **change):
    """The warnings of a run, in one line each, and its rows."""
    nested = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    for name, value in change.items():
        group, _, key = name.partition("__")
        nested[group] = {**nested.get(group, {}), key: value} if key else value
    twofold.pretrain(data, folder, report=False, **nested)
    out = " ".join(capsys.readouterr().out.split())  # a log wraps nothing, a terminal does
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return re.findall(r"warning: .*?(?=warning: |step \d+/|$)", out), rows


BROKEN = {
    "temperature 10": ({"method__temperature": 10.0}, "give a lower one"),
    "temperature 1e-6": ({"method__temperature": 1e-6}, "Give a higher temperature"),
    "crops that share nothing": ({"views__crop_area": (0.003, 0.004)}, "larger --views.crop_area"),
    "frozen encoder": ({"optim__lr": 1e-12}, "have not moved"),
    "constant images": ({}, "nothing is being learned"),
    # ... of which nothing makes two views: what comes out of the encoder is one point, and that has a name
    "constant images under views that keep colours": ({"views__color_strength": 0.0}, "the embedding has collapsed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["healthy", *BROKEN])
def test_images(name, tmp_path, capsys):
    pictures, labels = images(384)
    if name.startswith("constant images"):
        pictures = np.full_like(pictures, 128)
    change, word = BROKEN.get(name, ({}, ""))
    warnings, rows = told((pictures, labels), tmp_path / "run", IMAGES, capsys, **change)
    assert word in " ".join(warnings), rows[-1]
    assert bool(warnings) == bool(word), warnings
    assert not any("recording" in text for text in warnings)


def digits16(count):
    """Digits of 16 px, and their classes."""
    digits = load_digits()
    pictures = (np.kron(digits.images[:count], np.ones((1, 2, 2))) * 15.9).astype(np.uint8)[..., None]
    return pictures, digits.target[:count]


HUNDREDFOLD = {
    "encoder": {"name": "resnet10", "width": 0.125}, "views": {"size": 16, "flip": 0.0}, "batch": 64, "epochs": 6,
    "training": {"device": "cpu", "log_every": 5}, "optim": {"lr": 0.6},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [False, True])
def test_the_default_rate_a_hundred_times(labelled, tmp_path, capsys):
    """Views are found all the while: the weights tell, and neighbours where there are labels."""
    data = digits16(1280)
    warnings, rows = told(data if labelled else data[0], tmp_path / "run", HUNDREDFOLD, capsys)
    assert rows[-1]["retrieval_auc"] > 0.6
    looks = [row["knn_top1"] for row in rows if "knn_top1" in row]
    better = len(looks) > 2 and np.mean(looks[-2:]) > looks[0]
    assert ["times as large" in text for text in warnings] == [] if better else [True], (warnings, looks)
    assert labelled or warnings


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 20])
def test_a_folder_of_few_pictures_is_left_in_peace(count, tmp_path, capsys):
    """Batches of 2 and of 4, as they are chosen for so few."""
    options = {"encoder": {"name": "resnet10", "width": 0.125}, "epochs": 20, "training": {"device": "cpu"}}
    warnings, rows = told(images(count)[0], tmp_path / "run", options, capsys)
    assert rows[-1]["effective_rank"] < 4
    assert np.mean([row["retrieval_auc"] for row in rows]) > 0.6
    assert warnings == []


@pytest.mark.slow
def test_a_rate_a_hundred_times_too_high_is_no_trouble_where_the_run_learns(tmp_path, capsys):
    """Batch norm makes a network of images forget how large its weights are: nearest neighbours tell that it learns."""
    warnings, rows = told(digits16(1280), tmp_path / "run", HUNDREDFOLD, capsys, optim__lr=0.2)
    looks = [row["knn_top1"] for row in rows if "knn_top1" in row]
    assert looks[-1] > looks[0] + 0.1, looks
    assert rows[-1]["retrieval_auc"] > 0.6
    assert warnings == []


SILENCED = {"noise": 1.0, "noise_snr": (-80.0, -80.0)}
BROKEN_SOUNDS = {name: BROKEN[name] for name in ("temperature 10", "temperature 1e-6", "frozen encoder")} | {
    "one recording many times": ({}, "nothing is being learned"),
    "views that share nothing": (
        {f"waves__{key}": value for key, value in SILENCED.items()},
        "nothing is being learned",
    ),
    "a rate far too high": ({"optim__lr": 1.0}, "the embedding has collapsed"),
    "weights that decay to nothing": ({"optim__weight_decay": 400.0}, "the embedding has collapsed"),
    "reconstruction alone at a rate far too high": (
        {"optim__lr": 1.0, "method__contrastive_weight": 0.0},
        "the embedding has collapsed",
    ),
}
HEALTHY_SOUNDS = {
    "healthy": ({}, ""),
    "healthy, reconstruction alone": ({"method__contrastive_weight": 0.0}, ""),
    "healthy, in pairs": ({"batch": 2, "epochs": 4}, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HEALTHY_SOUNDS, *BROKEN_SOUNDS])
def test_recordings(name, tmp_path, capsys):
    folder = speech_folder(tmp_path / "clips", 4, 12)
    if name == "one recording many times":
        for path in folder.rglob("*.wav"):
            write(path, tone(1, 1))
    change, word = (HEALTHY_SOUNDS | BROKEN_SOUNDS)[name]
    warnings, rows = told(folder, tmp_path / "run", SOUNDS, capsys, **change)
    assert word in " ".join(warnings), rows[-1]
    assert bool(warnings) == bool(word), warnings
    assert not any("image" in text or "--views" in text for text in warnings)


@pytest.mark.slow
def test_healthy_digits_of_28_pixels(tmp_path, capsys):
    digits = load_digits()
    pictures = np.stack([
        np.asarray(Image.fromarray((15.9 * image).astype(np.uint8)).resize((28, 28))) for image in digits.images
    ])[..., None]  # fmt: skip
    options = {"encoder": {"name": "resnet10", "width": 0.25}, "epochs": 4, "training": {"device": "cpu"}}
    warnings, rows = told((pictures, digits.target), tmp_path / "run", options, capsys)
    assert rows[-1]["retrieval_auc"] > 0.6
    assert warnings == []
