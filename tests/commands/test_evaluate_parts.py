"""Which images an evaluation fits on, chooses on and scores on; what it keeps; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import OPTIONS, images

import twofold
from twofold.cli import main
from twofold.commands import evaluate as evaluating
from twofold.commands.distill import distill
from twofold.commands.finetune import finetune
from twofold.commands.labels import labels
from twofold.commands.study import study
from twofold.data import open_source, splits_of
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.logistic import GRID, choose_l2, fit_linear
from twofold.evaluation.scores import score

COUNTS = {"train": 40, "val": 20, "test": 24}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    options = OPTIONS | {"epochs": 1, "monitor": {"every": 0}}
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **options).path


@pytest.fixture
def folder(tmp_path) -> Path:
    """train, val and test, each with bars and discs; a share of the labels is wrong, so that penalties differ."""
    for seed, (split, count) in enumerate(COUNTS.items()):
        x, y = images(count, seed=seed)
        y = np.where(np.arange(count) % 5 == 1, 1 - y, y)
        for i, (image, label) in enumerate(zip(x, y, strict=True)):
            path = tmp_path / "data" / split / ("bar", "disc")[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return tmp_path / "data"


@pytest.fixture
def forwards(monkeypatch):
    """How many batches any encoder has been given."""
    seen, real = [], Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: seen.append(len(x)) or real(self, x))
    return seen


def test_the_data_s_own_validation_part_chooses_and_then_joins_the_fit(run, folder):
    """Against the same steps written out."""
    found = twofold.evaluate(run, folder)
    parts = {name: Extractor(size=16).extract(twofold.load(run), open_source(folder, split=name)) for name in COUNTS}
    x, y = (np.concatenate([getattr(parts[n], what) for n in ("train", "val")]) for what in ("h", "labels"))
    l2, accuracy = choose_l2(x, y, [(np.arange(40), np.arange(40, 60))], GRID)
    model = fit_linear(x, y, l2)
    expected = score(model.logits(parts["test"].h), model.classes, parts["test"].labels)
    assert (found.settings["l2"], found.settings["validation_top1"], found.scores) == (l2, accuracy, expected)
    assert (found.train.images, found.validation.images, found.test.images) == (40, 20, 24)
    assert "on 20 images of the validation part, then fitted on all 60 training images" in found.words
    assert found.validation.fingerprint == open_source(folder, split="val").fingerprint()
    assert type(found).from_json(found.to_json()) == found


def test_who_gets_which_parts(run, folder):
    def used(**options):
        found = twofold.evaluate(run, folder, **options)
        return found.train.images, found.validation and found.validation.images, found.test.images

    assert used(protocol="knn", k=3) == (40, None, 24), "neighbours have nothing to choose"
    assert used(labels="8") == (8, None, 24), "labels that nobody counted may not choose"
    assert used(test=folder / "val") == (40, None, 20)
    assert used(validation=folder / "test", test=folder / "val") == (40, 24, 20)
    assert used(**{"data.split": "train"}) == (32, None, 8)
    assert splits_of(folder).validation == ("train", "val")
    assert splits_of("dtd").validation == splits_of("voc2007").validation == ("train", "val")
    assert splits_of("imagenet").validation is splits_of("pets").validation is splits_of("stl10").validation is None


def test_validation_data_may_number_its_classes_in_another_way(run, folder, tmp_path):
    for i, path in enumerate(sorted((folder / "val").rglob("*.png"))):
        target = tmp_path / "other" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        if i == 0:
            (tmp_path / "other" / "a-first-class").mkdir()
    same = twofold.evaluate(run, folder, validation=tmp_path / "other")
    assert same.validation.images == 20
    x = np.load(_npz(folder, tmp_path))
    pair = twofold.evaluate(run, (x["x_train"], x["y_train"]), test=(x["x_test"], x["y_test"]),
                            validation=(x["x_val"], x["y_val"]))  # fmt: skip
    assert pair.scores == same.scores


def _npz(folder, tmp_path):
    arrays = {}
    for split in COUNTS:
        source = open_source(folder, split=split)
        arrays[f"x_{split}"] = np.stack([source.read(i) for i in range(len(source))])
        arrays[f"y_{split}"] = source.labels
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def test_features_are_encoded_once_for_all_that_asks_for_them(run, folder, forwards, capsys):
    first, each = twofold.evaluate(run, folder), sum(COUNTS.values())
    assert sum(forwards) == 3 * each, "of the encoder, and of the pixels and the untrained encoder beside it"
    forwards.clear()
    again = twofold.evaluate(run, folder)
    assert forwards == []
    assert again.scores == first.scores
    assert again.settings == first.settings
    assert (first.train.kept, again.train.kept) == (False, True)
    assert "kept from an earlier evaluation" in again.text()
    twofold.evaluate(run, folder, protocol="knn", k=3)
    labels(run, folder, counts=[8], ways=["linear"], draws=1)
    study("classes", folder, folder.parent / "study", run=str(run), per_class=3, draws=1)
    assert forwards == []
    twofold.evaluate(run, folder, features="z")
    assert sum(forwards) == 2 * each, "what heads give are other features, and pixels are the same"
    forwards.clear()
    twofold.evaluate(run, folder)
    assert forwards == []
    twofold.evaluate(run, folder, keep_features=False)
    assert sum(forwards) == 3 * each
    forwards.clear()
    twofold.evaluate(run, folder, keep_features=False, baselines=False)
    assert sum(forwards) == each
    forwards.clear()
    for path in (run / "features").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    assert twofold.evaluate(run, folder).scores == first.scores
    assert capsys.readouterr().out.count("are damaged") == 9
    assert sum(forwards) == 3 * each


def test_from_the_shell(run, folder, tmp_path, capsys):
    words = ["evaluate", str(run), str(folder / "train"), "--test", str(folder / "test")]
    assert main([*words, "--validation", str(folder / "val")]) == 0
    assert "20 images of the validation part" in capsys.readouterr().out
    saved = sorted((run / "evaluations").glob("linear-*.json"), key=lambda path: path.stat().st_mtime_ns)[-1]
    assert json.loads(saved.read_text())["validation"]["images"] == 20
    assert main([*words, "--validation", str(folder / "val"), "--protocol", "knn"]) == 2
    assert "has no effect with --protocol knn: leave it out, or choose linear" in capsys.readouterr().err
    assert main([*words, "--validation", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_it_computes_where_asked_and_on_a_gpu_where_there_is_one(run, folder, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluating, "choose_device", lambda *words: asked.append(words) or torch.device("meta"))
    with pytest.raises(NotImplementedError, match="meta"):  # the encoder went where it was told
        twofold.evaluate(run, folder, keep_features=False)
    assert asked == [("auto", "--device")]
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: torch sees no such device here; use --device cpu"):
        twofold.evaluate(run, folder, device="cuda")


# Bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 5}, "--k 5 has no effect with --protocol linear: leave it out, or choose knn"),
        ({"temperature": None}, "--temperature None has no effect with --protocol linear: leave it out, or choose knn"),
        (
            {"protocol": "knn", "grid": "paper"},
            "--grid paper has no effect with --protocol knn: .* choose linear",
        ),
        ({"draw": 1}, "--draw 1 has no effect with --labels all"),
        ({"held_out": 0.5}, r"--held_out 0\.5 has no effect: .*test is what is scored"),
    ],
)
def test_an_option_without_effect_is_refused(run, folder, options, told):
    with pytest.raises(UserError, match=told):
        twofold.evaluate(run, folder, **options)


def empty(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


def test_a_class_without_images_in_a_split(run, folder, tmp_path):
    empty(folder / "val" / "disc")
    with pytest.raises(UserError, match=r"data/val has no image of disc, of which .*data/train has.*--validation"):
        twofold.evaluate(run, folder)
    empty(folder / "test" / "disc")
    for ask in (
        lambda: twofold.evaluate(run, folder),
        lambda: twofold.evaluate(run, folder, protocol="knn"),
        lambda: finetune(run, folder, tmp_path / "ft"),
        lambda: labels(run, folder),
        lambda: study("finetune", folder, tmp_path / "s", run=str(run)),
    ):
        with pytest.raises(UserError, match=r"data/test has no image of disc, of which .*data/train has.*--test"):
            ask()
    assert not (tmp_path / "ft").exists()


def test_test_images_of_some_classes_are_scored_when_they_are_named(run):
    x, y = images(40, seed=1)
    found = twofold.evaluate(run, images(), test=(x[y == 1], y[y == 1]))
    assert found.scores.count == 20
    assert "test set as given, which has images of 1 of the 2 classes" in found.words


def test_a_class_of_which_only_validation_or_test_has_images(run, folder):
    for split in ("val", "test"):
        extra = folder / split / "egg" / "0.png"
        extra.parent.mkdir()
        Image.fromarray(images(1)[0][0]).save(extra)
    with pytest.raises(UserError, match="classes without a training image: egg"):
        twofold.evaluate(run, folder)
    empty(folder / "test" / "egg")
    with pytest.raises(UserError, match="validation set has classes without a training image: egg"):
        twofold.evaluate(run, folder)


def test_an_empty_validation_split(run, folder):
    empty(folder / "val")
    with pytest.raises(UserError, match=r"data/val: no images found"):
        twofold.evaluate(run, folder)
    with pytest.raises(UserError, match=r"data/val: no images found"):
        twofold.evaluate(run, images(), validation=folder / "val", test=images(20, seed=1))
    x, y = images(20, seed=1)
    with pytest.raises(UserError, match="labelled images of 0 class"):
        twofold.evaluate(run, images(), validation=torch.utils.data.TensorDataset(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.full((20,), -1)), test=(x, y))  # fmt: skip


MANY = np.stack([images(40)[1] == 0, images(40)[1] == 1, np.arange(40) % 3 == 0], axis=1).astype(int)


@pytest.mark.parametrize(
    "ask",
    [
        lambda run, data, _: twofold.evaluate(run, data, test=data),
        lambda run, data, _: twofold.evaluate(run, data, test=data, protocol="knn"),
        lambda run, data, _: twofold.evaluate(run, images(), test=data),
        lambda run, data, _: twofold.evaluate(run, images(), test=images(20, seed=1), validation=data),
        lambda run, data, _: labels(run, data, test=data),
        lambda run, data, out: finetune(run, data, out, test=data, labels="4/class"),
        lambda run, data, out: distill(run, data, out, teacher_labels="all"),
    ],
    ids=["linear", "knn", "test", "validation", "labels", "finetune a subset", "teacher"],
)  # fmt: skip
def test_many_labels_an_image_under_a_metric_of_one(run, tmp_path, ask):
    with pytest.raises(UserError, match="several labels an image") as error:
        ask(run, (images(40)[0], MANY), tmp_path / "out")
    assert "give single labels" in str(error.value) or "use all, or the path of a list" in str(error.value)
    assert not (tmp_path / "out" / "config.yaml").exists()
