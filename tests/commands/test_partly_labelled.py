"""Data of which some images have no label: these are pretrained on, and never counted in a score."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny import OPTIONS, images

import twofold
from twofold.commands.finetune import finetune
from twofold.commands.labels import labels
from twofold.commands.shard import shard
from twofold.encoders import load_classifier
from twofold.evaluation.features import Extractor
from twofold.evaluation.protocols.imagenet import load_classified

TINY = {"epochs": 2, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 labelled training images and 24 without, 20 labelled test images and 7 without."""
    root = tmp_path_factory.mktemp("partly")
    for split, count, known, seed in (("train", 64, 40, 0), ("test", 27, 20, 1)):
        x, y = images(count, seed=seed)
        for i, (image, label) in enumerate(zip(x, y, strict=True)):
            path = root / split / (("bar", "disc")[label] if i < known else "") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "shards"
    shard(folder, out)
    return out


@pytest.fixture(scope="module")
def run(packed, tmp_path_factory):
    report = twofold.pretrain(packed, tmp_path_factory.mktemp("runs") / "base", report=False, **OPTIONS)
    return report.path


@pytest.fixture(params=["folder", "packed"])
def data(request):
    return request.getfixturevalue(request.param)


def test_all_images_are_pretrained_on(run):
    facts = twofold.training.rundir.RunDirectory(run).facts()
    assert facts["images"] == 64
    assert not (run / "skipped.tsv").exists()


def test_only_labelled_images_are_scored_and_the_others_told(run, data):
    found = twofold.evaluate(run, data)
    assert (found.train.images, found.train.unlabelled) == (40, 24)
    assert (found.test.images, found.test.unlabelled, found.scores.count) == (20, 7, 20)
    assert "24 training and 7 test images without a label left out" in found.text()


def test_fine_tuning_scores_what_has_a_label(run, data, tmp_path):
    report = finetune(run, data, tmp_path / "ft", **TINY)
    assert (report.result.labels, report.result.scores.count) == (40, 20)
    assert "40 of 64 labels" in report.result.text
    assert "7 test images without a label left out" in report.result.text


def test_labels_study_counts_what_has_a_label(run, folder, tmp_path):
    found = labels(run, folder, counts=[2, 40], ways=["linear"], draws=1, out=str(tmp_path / "labels"))
    assert [cell.labels for cell in found.cells] == [2, 40]


def test_a_comparison_says_which_images_its_accuracies_leave_out(run, folder, tmp_path):
    found = twofold.distill(run, folder, tmp_path / "student", teacher_labels="all", **TINY).result
    assert found.comparison.images == 27
    assert "7 images without a label left out of the accuracies" in found.summary()


def test_a_published_classifier_is_not_wrong_about_images_without_a_label(run, folder, tmp_path):
    tuned = finetune(run, folder, tmp_path / "ft", **TINY)
    found = twofold.evaluate(tuned.path, folder / "test", protocol="imagenet")
    net = load_classified(tuned.path / "encoder.safetensors")
    source = twofold.data.open_source(folder / "test")
    seen = Extractor(16, preprocessing="none").extract(net, source)
    right = seen.h.argmax(1) == source.labels
    assert load_classifier(tuned.path / "encoder.safetensors") is not None
    assert (found.images, found.top1) == (20, pytest.approx(np.mean(right[source.labels >= 0])))
    assert "7 images without a label left out" in found.words
