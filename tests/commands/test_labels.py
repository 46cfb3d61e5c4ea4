"""`twofold labels` as a user runs it, and the words it makes of numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import OPTIONS, images

import twofold
from sound_files import RATE, speech_folder
from twofold.cli import main
from twofold.commands.labels import labels
from twofold.encoders import SpeechEncoder, read_header, save_encoder
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.evaluation.few_labels import LabelEfficiency, label_efficiency
from twofold.studies import labels as command
from twofold.studies.labels import interpret


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    options = OPTIONS | {"epochs": 1, "monitor": {"every": 0}}
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **options).path


def test_table_json_and_page_hold_every_way(pretrained, monkeypatch):
    few = {"counts": [4, 8], "draws": 2, "epochs": 1, "batch": 4}
    report = labels(pretrained, images(), test=images(40, seed=1), **few)
    assert [(c.features, c.labels, len(c.top1)) for c in report.cells] == [
        (name, count, 2)
        for name in ("linear classifier", "linear classifier on raw pixels", "fine-tuned", "from scratch")
        for count in (4, 8)
    ]
    saved = json.loads((pretrained / "labels" / "labels.json").read_text())
    assert saved["cells"][0]["top1"] == list(report.cells[0].top1)
    assert saved["interpretation"] == report.interpretation
    assert "from scratch" in report.text()
    assert "<svg" in report.page.read_text()
    assert "device: cpu" not in (runs := next((pretrained / "labels").glob("scratch-8-*/config.yaml")).read_text())
    assert "device: auto" in runs
    monkeypatch.setattr(
        command, "label_efficiency", lambda sets, *_, **__: [c for c in report.cells if c.features in sets]
    )
    monkeypatch.setattr("twofold.training.loop.Training.fit", lambda _: pytest.fail("what is done is not done again"))
    again = labels(pretrained, images(), test=images(40, seed=1), resume=True, **few)
    assert again.cells == report.cells


def test_raw_pixels_and_filterbank_are_what_a_classifier_without_an_encoder_has(pretrained, tmp_path):
    (x, y), (x_test, y_test) = images(), images(40, seed=1)
    few = {"counts": [8], "draws": 2, "ways": ["plain"], "out": str(tmp_path / "few")}
    found = labels(pretrained, (x, y), test=(x_test, y_test), **few).cells
    x, x_test = (each.reshape(len(each), -1).astype(np.float32) / 255 for each in (x, x_test))
    alone = label_efficiency({"pixels": (x, x_test)}, y, y_test, counts=[8], draws=2)
    assert found[0].top1 == alone[0].top1
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    save_encoder(tmp_path / "encoder.safetensors", net.eval())
    folder = speech_folder(tmp_path / "clips", 2, 6)
    few |= {"out": str(tmp_path / "heard")}
    heard = labels(tmp_path / "encoder.safetensors", folder, test=folder, **few)
    assert [cell.features for cell in heard.cells] == ["linear classifier on filterbank"]


def test_more_pixels_than_memory_holds_are_left_out_and_said(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("twofold.evaluation.protocols.beside.available_memory", lambda: 1000)
    few = {"counts": [8], "draws": 1, "out": str(tmp_path / "few")}
    found = labels(pretrained, images(), ways=["linear", "plain"], **few).cells
    assert [cell.features for cell in found] == ["linear classifier"]
    assert "without raw pixels: 64 images" in capsys.readouterr().out
    with pytest.raises(UserError, match="more than half the free memory"):
        labels(pretrained, images(), ways=["plain"], **few | {"out": str(tmp_path / "other")})


def test_from_the_shell(pretrained, tmp_path, capsys):
    x, y = images()
    np.savez(tmp_path / "data.npz", images=x, labels=y)
    words = ["labels", str(pretrained), str(tmp_path / "data.npz"), "--ways", "[linear]", "--draws", "2"]
    words += ["--out", str(tmp_path / "few"), "--device", "cpu"]
    assert main([*words, "--counts", "[4, 16]"]) == 0
    assert "linear classifier" in capsys.readouterr().out
    assert (tmp_path / "few" / "labels.json").exists()
    assert main([*words, "--counts", "[1]"]) == 2
    assert "at least one for each of the 2 classes" in capsys.readouterr().err


def test_evaluate_takes_a_subset_of_the_labels_too(pretrained):
    few = twofold.evaluate(pretrained, images(), test=images(40, seed=1), labels="8/class", draw=1)
    assert few.train.images == 16
    assert few.test.images == 40
    assert "16 of 64 labels (8/class; seed 0, draw 1)" in few.text()
    held_out = twofold.evaluate(pretrained, images(), labels="50%", protocol="knn", k=3)
    assert (held_out.train.images, held_out.test.images) == (26, 12)


def test_the_reading_says_what_the_numbers_say():
    def cell(name, count, *top1):
        return LabelEfficiency(name, count, top1, ())

    cells = [
        cell("fine-tuned", 10, 0.80, 0.81, 0.82), cell("fine-tuned", 40, 0.90), cell("fine-tuned", 160, 0.905),
        cell("from scratch", 10, 0.30, 0.30, 0.30), cell("from scratch", 40, 0.60), cell("from scratch", 160, 0.85),
    ]  # fmt: skip
    told = interpret(cells, "from scratch")
    assert told == (
        "With 10 labels the best is: fine-tuned, 81.0 ± 1.0 %. 160 labels give 90.5 % (fine-tuned), +9.5 points. "
        "Trained from scratch, 10 labels give 30.0 %; it takes 160 of them (40 are too few) to reach what the "
        "pretrained net reaches with 10. From about 40 labels on, more of them buy less than a point."
    )
    worse = [*cells[:5], cell("from scratch", 160, 0.7)]
    assert "30.0 %; even 160 stay below what the pretrained net reaches with 10." in interpret(worse, "from scratch")


def _told(**ways):
    """The reading of way -> accuracy, or accuracies of the draws, with 10, 20, 40, ... labels."""
    cells = [
        LabelEfficiency(way.replace("_", " "), 10 * 2**i, tuple(np.atleast_1d(value)), ())
        for way, values in ways.items()
        for i, value in enumerate(values)
    ]
    return interpret(cells, "from scratch")


def test_more_labels_buy_little_only_where_all_later_gains_are_small():
    assert "less than a point" not in _told(linear=[0.80, 0.805, 0.90, 0.95])
    assert "less than a point" not in _told(linear=[0.800, 0.806, 0.812, 0.83])
    assert "From about 20 labels on, more of them buy less than a point." in _told(linear=[0.8, 0.9, 0.904, 0.908])
    assert _told(linear=[0.8]) == "With 10 labels: linear, 80.0 %."


def test_a_lead_within_the_scatter_is_none():
    """Draws are compared with one another, by Student's t: all ways get the same labelled images in each."""
    alike = _told(linear=[[0.80, 0.84, 0.90]], fine_tuned=[[0.83, 0.85, 0.92]])
    assert alike == (
        "With 10 labels none of the best is clearly ahead: fine tuned, 86.7 ± 4.7 %; linear, 84.7 ± 5.0 %."
    ), "2.0 points with a standard error of 0.6, which is 3.5 of them: three draws need 4.3"
    assert "the best is: fine tuned, 87.0 ± 5.0 %." in _told(
        linear=[[0.80, 0.84, 0.90]], fine_tuned=[[0.82, 0.87, 0.92]]
    )
    once = _told(linear=[0.8], fine_tuned=[0.9])
    assert once == "With 10 labels, of one draw, whose spread is not known: fine tuned, 90.0 %; linear, 80.0 %."
    most = _told(linear=[0.5, [0.9, 0.91]], fine_tuned=[0.6, [0.91, 0.905]])
    assert "20 labels give 90.8 ± 0.4 % (fine tuned; not clearly better than linear), +30.8 points." in most


def test_the_control_is_compared_with_the_pretrained_net_alone():
    plain = {"linear_classifier_on_raw_pixels": [[0.95, 0.96]], "linear": [[0.80, 0.90]]}
    assert "even 10 stay below what the pretrained net" in _told(**plain, from_scratch=[[0.70, 0.79]])
    assert "pretrained" not in _told(linear_classifier_on_raw_pixels=[0.9], from_scratch=[0.8])
    near = _told(linear=[[0.80, 0.90]], from_scratch=[[0.81, 0.88]])
    assert near.endswith("84.5 %, which is not clearly less than the pretrained net has.")
    assert _told(linear=[0.9], from_scratch=[0.8]).endswith("Trained from scratch, 10 labels give 80.0 %, of one draw.")
    control = {"from_scratch": [[0.9, 0.91, 0.92]]}
    assert "rained from scratch" not in _told(linear=[[0.8, 0.81, 0.825]], **control)
    assert "rained from scratch" not in _told(from_scratch=[0.9, 0.91])


def test_another_data_set_and_another_encoder(pretrained, tmp_path):
    """Each data set has its folder; trainings that were stopped before the result was written are in nobody's way."""
    here = {"counts": [4], "draws": 1, "epochs": 1, "batch": 4, "ways": ["finetuned"], "out": str(tmp_path / "few")}
    first = labels(pretrained, images(), test=images(40, seed=1), **here)
    assert first.file == tmp_path / "few" / "labels.json"
    assert first.page.parent == tmp_path / "few"
    with pytest.raises(UserError, match=r"labels\.json is the result with another training data; choose another --out"):
        labels(pretrained, images(seed=5), test=images(40, seed=1), resume=True, **here)
    with pytest.raises(UserError, match="another test data"):
        labels(pretrained, images(), test=images(40, seed=2), resume=True, **here)
    (tmp_path / "few" / "labels.json").unlink()
    assert labels(pretrained, images(), test=images(40, seed=2), resume=True, **here).cells[0].top1 != ()
    assert len(list((tmp_path / "few").glob("finetuned-*"))) == 2
    header, encoder = read_header(pretrained / "encoder.safetensors"), load(pretrained)
    for parameter in encoder.parameters():
        parameter.data.mul_(1.01)
    other = tmp_path / "other" / "encoder.safetensors"
    other.parent.mkdir()
    save_encoder(other, encoder, extra=header["extra"])
    with pytest.raises(UserError, match="the result with another encoder"):
        labels(other, images(), test=images(40, seed=2), resume=True, **here)
    (tmp_path / "few" / "labels.json").write_text("{")
    with pytest.raises(UserError, match=r"labels\.json is damaged"):
        labels(pretrained, images(), test=images(40, seed=2), resume=True, **here)


def test_options_of_the_data_reach_the_trainings(pretrained, tmp_path):
    here = {"counts": [4], "draws": 1, "epochs": 1, "batch": 4, "ways": ["scratch"], "out": str(tmp_path)}
    labels(pretrained, images(), test=images(40, seed=1), **here, **{"data.last_batch": "drop"})
    assert "last_batch: drop" in next(tmp_path.glob("scratch-4-*/config.yaml")).read_text()


def test_it_computes_where_it_is_told(pretrained, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "choose_device", lambda name, _option: asked.append(name) or "cpu")
    few = {"counts": [4], "draws": 1, "test": images(40, seed=1), "out": str(pretrained / "where")}
    labels(pretrained, images(), ways=["linear"], **few)
    assert asked == ["auto"]
    labels(pretrained, images(), ways=["scratch"], epochs=1, batch=4, device="cpu", resume=True, **few)
    assert "device: cpu" in next((pretrained / "where").glob("scratch-4-*/config.yaml")).read_text()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the device is there")
@pytest.mark.parametrize("way", ["linear", "scratch"])
def test_a_device_that_is_not_there(pretrained, tmp_path, way):
    with pytest.raises(UserError, match=r"^--device mps: torch sees no such device here; use --device cpu$"):
        labels(pretrained, images(), test=images(40, seed=1), ways=[way], device="mps", out=str(tmp_path))


@pytest.mark.parametrize(
    ("data", "options", "told"),
    [
        (images(), {"draws": 0}, "--draws must be at least 1"),
        (images(), {"counts": [200]}, "at most the 64 labelled images"),
        ((images()[0], np.eye(64, dtype=int)), {}, r"the labels of array have the shape \(64, 64\)"),
        (images()[0], {}, "has no labels"),
        (
            images(),
            {"ways": ["linear"], "epochs": 3},
            r"--epochs 3 has no effect with --ways \[linear\].*: leave it out",
        ),
        (images(), {"ways": ["linear"], "from_head": 1}, r"--from_head 1 has no effect .*choose finetuned or scratch"),
        (images(), {"ways": ["linear"], "batch": 4}, "--batch 4 has no effect"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(pretrained, data, options, told):
    with pytest.raises(UserError, match=told):
        labels(pretrained, data, test=images(40, seed=1), **options)
