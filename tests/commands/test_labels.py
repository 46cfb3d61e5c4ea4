"""`twofold labels` as a user runs it, and the words it makes of numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import OPTIONS, images

import twofold
from twofold.cli import main
from twofold.commands import labels as command
from twofold.commands.labels import labels, read_out
from twofold.errors import UserError
from twofold.evaluation.labels import Cell


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    options = OPTIONS | {"epochs": 1, "monitor": {"every": 0}}
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **options).path


def test_table_json_and_page_hold_every_way(pretrained, monkeypatch):
    few = {"counts": [4, 8], "draws": 2, "epochs": 1, "batch": 4}
    report = labels(pretrained, images(), test=images(40, seed=1), **few)
    assert [(c.features, c.labels, len(c.top1)) for c in report.cells] == [
        (name, count, 2) for name in ("linear classifier", "fine-tuned", "from scratch") for count in (4, 8)
    ]
    saved = json.loads((pretrained / "labels" / "labels.json").read_text())
    assert saved["cells"][0]["top1"] == list(report.cells[0].top1)
    assert saved["reading"] == report.reading
    assert "from scratch" in report.text()
    assert "<svg" in report.page.read_text()
    monkeypatch.setattr(command, "label_efficiency", lambda *_, **__: list(report.cells[:2]))
    monkeypatch.setattr("twofold.training.loop.Training.fit", lambda _: pytest.fail("what is done is not done again"))
    again = labels(pretrained, images(), test=images(40, seed=1), **few)
    assert again.cells == report.cells


def test_from_the_shell(pretrained, tmp_path, capsys):
    x, y = images()
    np.savez(tmp_path / "data.npz", images=x, labels=y)
    words = ["labels", str(pretrained), str(tmp_path / "data.npz"), "--ways", "[linear]", "--draws", "2"]
    assert main([*words, "--counts", "[4, 16]"]) == 0
    assert "linear classifier" in capsys.readouterr().out
    assert main([*words, "--counts", "[1]"]) == 2
    assert "at least one for each of the 2 classes" in capsys.readouterr().err


def test_evaluate_takes_a_subset_of_the_labels_too(pretrained):
    few = twofold.evaluate(pretrained, images(), test=images(40, seed=1), labels="8/class", draw=1)
    assert few.evaluation.train.images == 16
    assert few.evaluation.test.images == 40
    assert "16 of 64 labels (8/class; seed 0, draw 1)" in few.text()
    held_out = twofold.evaluate(pretrained, images(), labels="50%", protocol="knn", k=3)
    assert (held_out.evaluation.train.images, held_out.evaluation.test.images) == (26, 12)


def test_the_reading_says_what_the_numbers_say():
    def cell(name, count, *top1):
        return Cell(name, count, top1, ())

    cells = [
        cell("fine-tuned", 10, 0.80, 0.82), cell("fine-tuned", 40, 0.90), cell("fine-tuned", 160, 0.905),
        cell("from scratch", 10, 0.30), cell("from scratch", 40, 0.60), cell("from scratch", 160, 0.85),
    ]  # fmt: skip
    told = read_out(cells)
    assert "With 10 labels the best is: fine-tuned, 81.0 ± 1.4 %." in told
    assert "160 labels give 90.5 % (fine-tuned), +9.5 points." in told
    assert "From scratch, 10 labels give 30.0 %; as much as the pretrained net takes 160 labels." in told
    assert "From about 40 labels on, more of them buy less than a point." in told
    worse = [*cells[:5], cell("from scratch", 160, 0.7)]
    assert "even 160 labels stay below what the pretrained net reaches with 10." in read_out(worse)


@pytest.mark.parametrize(
    ("data", "options", "told"),
    [
        (images(), {"draws": 0}, "--draws must be at least 1"),
        (images(), {"counts": [200]}, "at most the 64 labelled images"),
        ((images()[0], np.eye(64, dtype=int)), {}, r"the labels of array have the shape \(64, 64\)"),
        (images()[0], {}, "has no labels"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(pretrained, data, options, told):
    with pytest.raises(UserError, match=told):
        labels(pretrained, data, test=images(40, seed=1), **options)
