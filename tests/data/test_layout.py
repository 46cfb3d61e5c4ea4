"""What is made of the folders that lie in a folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from twofold.data import open_source, splits_of
from twofold.errors import UserError


def tree(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(path)
    return root


SPLIT = ("train/cat/0.png", "train/dog/0.png", "train/dog/1.png", "test/cat/0.png", "test/dog/0.png")


@pytest.mark.parametrize("beside", ["unlabeled/0.png", "samples/0.png", "unlabelled/x/0.png", "Extra stuff/0.png"])
def test_folders_beside_train_and_test_are_no_classes(tmp_path, beside):
    source = open_source(tree(tmp_path, *SPLIT, beside))
    assert source.classes == ["cat", "dog"]
    assert len(source) == 3, "test images are not trained on"
    assert splits_of(tmp_path).evaluation == ("train", "test")


def test_what_was_made_of_a_folder_is_said(tmp_path):
    tree(tmp_path, *SPLIT, "unlabeled/0.png", "unlabeled/1.png", "samples/0.png")
    line = open_source(tmp_path).layout
    assert "3 images in train, 2 classes (cat, dog)" in line
    assert "other parts: test, unlabeled" in line
    assert "left out: samples" in line
    assert len(open_source(tmp_path, split="unlabeled")) == 2
    whole = open_source(tmp_path, split="all")
    assert (len(whole), whole.classes) == (8, ["samples", "test", "train", "unlabeled"])
    with pytest.raises(UserError, match="it has train, test, unlabeled"):
        open_source(tmp_path, split="val")


def test_train_beside_cars_is_a_vehicle(tmp_path):
    assert open_source(tree(tmp_path, "train/0.png", "car/0.png", "plane/0.png")).classes == ["car", "plane", "train"]


def test_masks_beside_images_are_not_trained_on(tmp_path):
    source = open_source(tree(tmp_path, "images/0.png", "images/1.png", "masks/0.png", "masks/1.png"))
    assert (len(source), source.labels) == (2, None)
    assert "left out: masks" in source.layout
    assert len(open_source(tmp_path, split="all")) == 4


def test_loose_images_beside_classes_are_unlabelled(tmp_path):
    source = open_source(tree(tmp_path, "cat/0.png", "dog/0.png", "loose.png"))
    assert source.labels.tolist() == [0, 1, -1]
    assert source.classes == ["cat", "dog"]


def test_files_that_are_passed_over_are_counted_by_kind(tmp_path):
    tree(tmp_path, "0.png", "1.png", "2.png")
    for name in ("a.heic", "b.HEIC", "c.svg", "d.cr2", "notes.txt", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"not looked at")
    words = "2 .heic, 1 .svg, 1 .cr2 files passed over, which Pillow does not read: convert them to PNG or JPEG; "
    words += "1 .txt file passed over: no images"
    assert open_source(tmp_path).facts().layout == f"{tmp_path}: 3 images, no classes; {words}"
