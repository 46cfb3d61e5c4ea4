"""Real runs that learn classes, healthy and broken on purpose: each broken one gets its word, no other gets any."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import twofold

CPU = {"training": {"device": "cpu", "precision": "fp32"}, "data": {"workers": 0}}


def digits(part):
    """Digits of 16 px, and their classes."""
    every = load_digits()
    pictures = (np.kron(every.images[part], np.ones((1, 2, 2))) * 15.9).astype(np.uint8)[..., None]
    return pictures, every.target[part]


TRAIN, TEST = digits(slice(1300)), digits(slice(1300, None))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An encoder after four epochs."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    options = {"encoder": {"name": "resnet10", "width": 0.25}, "views": {"size": 16, "flip": 0.0}, "batch": 64}
    twofold.pretrain(TRAIN[0], folder, report=False, epochs=4, **options, **CPU)
    return folder


def warned(capsys, run):
    """The warnings of a run, in one line each."""
    capsys.readouterr()
    run()
    lines = capsys.readouterr().out.split("warning: ")[1:]
    return [" ".join(line.split()) for line in lines]


SCRATCH, LINEAR = {"from_scratch": True}, {"freeze": "encoder"}
HEALTHY = {
    "one label a class": {"labels": "1/class", "epochs": None},
    "one label a class, linear": {"labels": "1/class", "epochs": None, **LINEAR},
    "one label a class, from scratch": {"labels": "1/class", "epochs": None, **SCRATCH},
    "all labels": {}, "all labels, linear": LINEAR, "all labels, from scratch": SCRATCH,
    "slowly, from scratch": {**SCRATCH, "optim": {"lr": 0.03}, "epochs": 10},
    "with a long warm-up": {**SCRATCH, "optim": {"warmup_epochs": 3}},
    "in small batches": {**SCRATCH, "batch": 8, "epochs": 2}, "in smaller ones": {**SCRATCH, "batch": 4, "epochs": 1},
    "in other small batches": {**SCRATCH, "batch": 8, "epochs": 2, "seed": 5},
}  # fmt: skip
BROKEN = {
    "labels of others": ({}, "nothing is being learned"),
    "labels of others, linear": (LINEAR, "nothing is being learned"),
    "labels of others, few": ({"labels": "10/class", "epochs": None}, "they were learned by heart"),
    "constant images": ({}, "nothing is being learned"),
    "a rate of next to nothing": ({"optim": {"lr": 1e-12}}, "have not moved"),
    "a rate of next to nothing, linear": ({"optim": {"lr": 1e-5}, **LINEAR}, "the loss has hardly fallen"),
    "a hundred times the rate": ({"optim": {"lr": 5.0}}, "times as large"),
    "a hundred times the rate, adamw": ({"optim": {"name": "adamw", "lr": 0.5}}, "times as large"),
    "a hundred times the rate, linear": ({"optim": {"lr": 10.0}, **LINEAR}, "far above that of a constant prediction"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HEALTHY, *BROKEN])
def test_fine_tuning(name, pretrained, tmp_path, capsys):
    change, word = BROKEN.get(name, (HEALTHY.get(name), ""))
    (pictures, labels), options = TRAIN, {"epochs": 6, **change, **CPU}
    options = {key: value for key, value in options.items() if value is not None}
    if name.startswith("labels of others"):
        labels = np.random.default_rng(0).permutation(labels)
    if name == "constant images":
        pictures = np.full_like(pictures, 128)
    told = warned(
        capsys,
        lambda: twofold.finetune(pretrained, (pictures, labels), tmp_path / "run", test=TEST, report=False, **options),
    )
    assert word in " ".join(told), told
    assert bool(told) == bool(word), told


@pytest.fixture(scope="module")
def teacher(pretrained, tmp_path_factory):
    """The encoder with a classifier, right in nine of ten cases."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    twofold.finetune(pretrained, TRAIN, folder, test=TEST, report=False, epochs=6, **CPU)
    return folder


STUDENTS = {
    "healthy": ({}, ""), "healthy, slow": ({"optim": {"lr": 3e-4}}, ""), "healthy, sharp": ({"temperature": 0.1}, ""),
    "healthy, asked once": ({"targets": "cached"}, ""), "healthy, with labels": ({"alpha": 0.5, "labels": "10%"}, ""),
    "the teacher is not listened to": ({"alpha": 0.0, "labels": "10%"}, ""),
    "a rate of next to nothing": ({"optim": {"lr": 1e-12}}, "have not moved"),
    "a thousand times the rate": ({"optim": {"lr": 6.0}}, "times as large"),
    "constant images": ({}, "the teacher names one class"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_distillation(name, teacher, tmp_path, capsys):
    change, word = STUDENTS[name]
    options = {"encoder": {"name": "resnet10", "width": 0.125}, "batch": 64, "epochs": 6, **change, **CPU}
    pictures = np.full_like(TRAIN[0], 128) if name == "constant images" else TRAIN[0]
    told = warned(
        capsys,
        lambda: twofold.distill(teacher, (pictures, TRAIN[1]), tmp_path / "run", test=TEST, report=False, **options),
    )
    assert word in " ".join(told), told
    assert bool(told) == bool(word), told
