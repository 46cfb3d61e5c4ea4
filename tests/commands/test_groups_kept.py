"""A video, patient or speaker stays on one side: of held-out parts, validation parts, folds and monitors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny import OPTIONS, images

import twofold
from sound_files import tone, write
from twofold.cli import main
from twofold.commands.finetune import finetune
from twofold.commands.labels import labels
from twofold.data import DataConfig, open_source
from twofold.encoders import SpeechEncoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.protocols import classifier, linear
from twofold.evaluation.protocols.ctc import split_by_text
from twofold.evaluation.protocols.linear import Linear
from twofold.runs import pretrain as pretraining

TINY = {"epochs": 2, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}}
BY = r"(v\d+)_"


def photographs(root, count, groups, first=0, seed=0):
    """`count` bars and discs of so many videos, named v0_0.png, v1_1.png, ..."""
    x, y = images(count, seed=seed)
    rng = np.random.default_rng(seed)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = root / ("bar", "disc")[label] / f"v{first + rng.integers(groups)}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("videos"), 80, 8)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return twofold.pretrain(folder, tmp_path_factory.mktemp("runs") / "base", report=False, **OPTIONS).path


@pytest.fixture
def fitted(monkeypatch):
    """What linear classifiers were given, with the positions that their penalty was chosen on."""
    seen, chosen, real, choose = [], [], Linear.fit, linear.choose_l2
    monkeypatch.setattr(Linear, "fit", lambda self, inputs: seen.append(inputs) or real(self, inputs))
    monkeypatch.setattr(linear, "choose_l2", lambda x, y, s, *g: chosen.extend(s) or choose(x, y, s, *g))
    return seen, chosen


def test_held_out_and_validation_parts_are_whole_groups(run, folder, fitted):
    found = twofold.evaluate(run, folder, data={"group": BY})
    inputs, (fit, val) = fitted[0][0], fitted[1][0]
    assert not set(inputs.groups[fit]) & set(inputs.groups[val])
    kept, whole = len(set(inputs.groups)), len(set(open_source(folder, DataConfig(group=BY)).groups))
    assert whole == 8
    assert f"groups by {BY}: {kept} in training, {whole - kept} in test, none in two parts" in found.words
    assert found.test.images == pytest.approx(16, abs=3)
    assert twofold.evaluate(run, folder).words.count("groups by") == 0


def test_folds_that_are_made_keep_groups(run, folder, fitted, capsys):
    document = run / "evaluations"
    before = set(document.glob("*.json")) if document.exists() else set()
    assert main(["evaluate", str(run), str(folder), "--folds", "4", "--data.group", BY]) == 0
    saved = json.loads((set(document.glob("*.json")) - before).pop().read_text())
    assert saved["folds"] == ["1", "2", "3", "4"]
    assert sum(fold["count"] for fold in saved["scores"]) == 80
    assert "4 folds made for it (seed 0) in turn" in saved["words"]
    assert f"groups by {BY}: 8, none in two folds" in saved["words"]
    assert "warning" not in capsys.readouterr().out
    everything = set(fitted[0][0].groups) | set(fitted[0][1].groups)
    left_out = [everything - set(inputs.groups) for inputs in fitted[0]]
    assert len(left_out) == 3 * 4, "of the encoder, of pixels and of the untrained encoder"
    for row in range(3):
        own = left_out[4 * row : 4 * row + 4]
        assert sum(map(len, own)) == len(set.union(*own)) == 8, "each group is left out once"
    assert all(not set(i.groups[fit]) & set(i.groups[val]) for i, (fit, val) in zip(*fitted, strict=True))


def test_folds_of_images_without_groups(run, folder):
    found = twofold.evaluate(run, folder, protocol="knn", folds=5)
    assert [scores.count for scores in found.scores] == [16] * 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"folds": 9, "data": {"group": BY}}, r"--folds 9: .* has 8 groups, fewer than folds: give --folds 8 at most"),
        ({"folds": 1}, "--folds 1: give 2 folds at least, or true"),
        ({"folds": True}, r"--folds: .* has no two folds; give a number \(--folds 5\)"),
        ({"folds": 3, "held_out": 0.3}, "--held_out 0.3 has no effect with --folds 3"),
        ({"data": {"group": "w(\\d)"}}, r"--data.group w\(\\d\): 80 of 80 file names"),
    ],
)
def test_what_cannot_be_is_told(run, folder, options, told):
    with pytest.raises(UserError, match=told):
        twofold.evaluate(run, folder, **options)


def test_given_parts_that_share_a_group(run, tmp_path, capsys):
    photographs(tmp_path / "train", 40, 5)
    photographs(tmp_path / "val", 20, 3, first=7, seed=1)
    photographs(tmp_path / "test", 24, 4, first=3, seed=2)
    for call in (
        lambda: twofold.evaluate(run, tmp_path, data={"group": BY}),
        lambda: finetune(run, tmp_path, tmp_path / "ft", data={"group": BY}, **TINY),
        lambda: twofold.distill(tmp_path / "ft", tmp_path, tmp_path / "student", data={"group": BY}, **TINY),
        lambda: twofold.evaluate(run, tmp_path / "train", test=tmp_path / "test", data={"group": BY}),
    ):
        found, out = call(), capsys.readouterr().out
        assert "warning: 2 groups are in both the training and the test part, such as v3, with " in out
        assert out.count("warning: ") == 1
    assert f"groups by {BY}: 5 in training, 4 in test, 2 in two parts" in found.words
    result = json.loads((tmp_path / "ft" / "result.json").read_text())
    assert f"groups by {BY}: 5 in training, 4 in test, 2 in two parts" in result["text"]
    twofold.evaluate(run, tmp_path / "train", test=tmp_path / "val", data={"group": BY})
    twofold.evaluate(run, tmp_path / "train", test=tmp_path / "test")
    assert "warning" not in capsys.readouterr().out


def test_fine_tuning_and_few_labels_hold_whole_groups_out(run, folder, tmp_path):
    tuned = finetune(run, folder, tmp_path / "ft", labels="4/class", data={"group": BY}, **TINY)
    assert "none in two parts" in tuned.result.text
    assert tuned.result.labels == 8, "labels are drawn image by image"
    study = labels(
        run, folder, counts=[4, 16], ways=["linear", "finetuned"], draws=2, out=str(tmp_path / "labels"),
        data={"group": BY}, epochs=1.0,
    )  # fmt: skip
    facts = json.loads((study.path / "labels.json").read_text())
    assert facts["groups"].startswith(f"groups by {BY}: ")
    assert facts["groups"].endswith("none in two parts")


def test_the_monitor_of_pretraining_asks_of_other_groups(folder, tmp_path, monkeypatch):
    seen, real = [], pretraining.LabelMonitor
    monkeypatch.setattr(pretraining, "LabelMonitor", lambda *a, **k: seen.append(a) or real(*a, **k))
    twofold.pretrain(folder, tmp_path / "run", report=False, data={"group": BY}, **OPTIONS | {"epochs": 1})
    _, bank, queries, *_ = seen[0]
    assert len(queries)
    assert not set(bank.groups) & set(queries.groups)


def test_folds_of_the_data_that_divide_a_group(tmp_path, capsys):
    lines = ["path,label,fold,speaker"]
    for i in range(24):
        write(tmp_path / f"{i}.wav", tone(2 * (i % 2), i // 12, 0.3, seed=i))
        lines.append(f"{i}.wav,word{i % 2},{'ab'[i // 12]},{'xyz'[i // 8]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    save_encoder(
        tmp_path / "encoder.safetensors", SpeechEncoder(8000, 20, 60.0, width=16, layers=1, heads=2, hidden=32)
    )
    words = [str(tmp_path / name) for name in ("encoder.safetensors", "list.csv")]
    assert main(["evaluate", *words, "--data.group", "speaker", "--folds"]) == 0
    found = twofold.evaluate(*words, folds=True, data={"group": "speaker"})
    assert "warning: 1 of 3 groups lie in several folds, such as y" in capsys.readouterr().out
    assert "groups by speaker: 3, 1 in two folds" in found.words
    assert found.folds == ("a", "b")


def test_recognisers_are_tested_on_other_texts_of_other_speakers(tmp_path):
    lines = ["path,text,speaker"]
    for i in range(24):
        write(tmp_path / f"{i}.wav", tone(i % 4, i // 4, 0.2, seed=i))
        lines.append(f"{i}.wav,sentence {'abcdefgh'[i % 4 + 4 * (i // 12)]},s{i // 4 if i < 16 else 4}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    source = open_source(tmp_path / "list.csv", DataConfig(group="speaker"))
    train, test = split_by_text(source, 0.3, 0)
    assert len(train) == len(test) == 12
    assert not set(train.speakers) & set(test.speakers)
    assert not set(train.texts) & set(test.texts)
    plain = split_by_text(open_source(tmp_path / "list.csv"), 0.3, 0)
    assert set(plain[0].speakers) & set(plain[1].speakers)
    with pytest.raises(UserError, match=r"--data.group speaker: all groups of .* hang together by the texts"):
        split_by_text(train, 0.3, 0)
    assert classifier.folds_of(source.with_labels(source.speakers), 2)
