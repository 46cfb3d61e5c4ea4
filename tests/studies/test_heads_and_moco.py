"""Heads read at h and at z, MoCo's own options, trends of comparisons, and what a cell is asked beside its number."""

import json

import numpy as np
import pytest
import torch
from tiny import images

from twofold.commands import study_cell
from twofold.data import ArraySource
from twofold.encoders import ResNet, load_head, save_encoder
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.evaluation.protocols.classifier import DataUsed, Evaluation
from twofold.evaluation.scores import score
from twofold.heads import HeadConfig, ProjectionHead
from twofold.options import OptionsParser, merge
from twofold.report.tables import terminal
from twofold.studies import heads as heads_module
from twofold.studies.ablating import BatchStudy
from twofold.studies.grid import GridPart, Score
from twofold.studies.heads import HeadsStudy, chosen_of, representation_figure
from twofold.studies.moco import MocoStudy
from twofold.studies.sizes import SizeStudy
from twofold.studies.speech import SpeechStudy
from twofold.studies.suppression import SuppressionStudy


def of(kind, **options):
    return kind("data", OptionsParser(kind.Config).build(options), None)


def scores(values, seeds=3):
    """(row, column) -> accuracy and more; a little higher with each seed, each place and measure by its own amount."""

    def shaken(value, seed, at, measure):
        return value + 0.01 * seed + 0.0005 * seed * (at**2 + measure * (at + 1))

    return [
        Score(
            row, column, seed, shaken(value, seed, at, 0), 0.5, 1.0,
            {name: shaken(each, seed, at, k) for k, (name, each) in enumerate(more.items(), 1)},
        )
        for seed in range(seeds) for at, ((row, column), (value, more)) in enumerate(values.items())
    ]  # fmt: skip


def test_z_stands_below_h_and_is_compared_with_it():
    study = of(HeadsStudy, outputs=[32, 128])
    cells = scores({("nonlinear", "32"): (0.9, {"z": 0.8}), ("nonlinear", "128"): (0.91, {"z": 0.9}),
                    ("linear", "128"): (0.85, {}), ("none", "as h"): (0.8, {})})  # fmt: skip
    table = study.table(cells)
    assert [row[0] for row in table.rows] == ["nonlinear", "nonlinear, from z", "linear", "none"]
    assert table.rows[1][1:] == ["81.1 ± 1.1", "91.2 ± 1.2", ""]
    assert "Rows from z are of the head's outputs" in table.note
    told = study.interpretation(cells)
    assert "h less z, nonlinear, 32 outputs: +9.9 ± 0.1, better" in told
    assert "h less z, linear" not in told, "what was not measured is left out"
    before = [Score("nonlinear", "32", 0, 0.9, 0.5, 1.0)]  # of a version that did not ask for z
    assert [row[0] for row in study.table(before).rows] == ["nonlinear"]


def test_only_a_head_has_z():
    study = of(HeadsStudy)
    asked = {row: study.also(GridPart("cell", row, "", 0, {})) for row in ("nonlinear", "linear", "none")}
    assert asked == {"nonlinear": ("z",), "linear": ("z",), "none": ()}


def test_maps_show_at_most_ten_classes_and_so_many_images():
    labels = np.repeat(np.arange(25), 4)
    rows = chosen_of(labels, 30)
    assert len(rows) == 30
    assert len(np.unique(labels[rows])) <= 10
    assert np.array_equal(rows, np.unique(rows))
    assert len(np.unique(labels[chosen_of(labels, 1000)])) == 10
    assert set(chosen_of(np.array([-1, 0, 1, -1]), 10)) == {1, 2}, "images without a label have no colour"
    with pytest.raises(UserError, match="--tsne 3: a map needs 10 images or more"):
        of(HeadsStudy, tsne=3)


def test_h_and_z_of_the_same_images_are_drawn(tmp_path, monkeypatch):
    torch.manual_seed(0)
    encoder = ResNet(10, 0.125, stem="cifar").eval()
    head = ProjectionHead(encoder.feature_dim, HeadConfig(kind="nonlinear", layers=2, out_dim=5)).eval()
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, encoder, head, extra={"options": {"views": {"size": 16}}})
    x, y = images(40)
    source = ArraySource(x, y, classes=["disc", "bar"])
    drawn, project = [], heads_module.project
    monkeypatch.setattr(heads_module, "project", lambda part: (drawn.append(part), project(part))[1])
    figure = representation_figure(file, source, 24)
    rows = chosen_of(y, 24)
    with torch.inference_mode():
        h = load(file)(torch.from_numpy(x[rows]).permute(0, 3, 1, 2) / 255)
        z = load_head(file)(h)
    np.testing.assert_allclose(drawn[0], h, atol=1e-5)
    np.testing.assert_allclose(drawn[1], z, atol=1e-4)
    assert "maps of 24 examples by h, 64 numbers and z, 5 numbers, coloured by class: disc (" in figure.alt
    assert ">h, 64 numbers<" in figure.svg
    assert "t-SNE" in figure.note


def test_mocos_own_options_are_varied_in_the_papers_cases():
    study = of(MocoStudy, cases=[], temperatures=[0.2, 0.07], momenta=[0.99, 0.9], queues=[256, 1024])
    places = {place.row: place.options for place in study.places()}
    assert list(places) == [
        "v1, temperature 0.07", "v1, temperature 0.2", "a, temperature 0.07", "a, temperature 0.2",
        "v1, momentum 0.9", "v1, momentum 0.99", "v1, 256 keys", "v1, 1,024 keys",
    ]  # fmt: skip
    methods = [options["method"] for options in places.values()]
    assert [each["temperature"] for each in methods] == [0.07, 0.2, 0.07, 0.2, 0.07, 0.07, 0.07, 0.07]
    assert [each.get("momentum") for each in methods[4:6]] == [0.9, 0.99]
    assert [each.get("queue") for each in methods[6:]] == [256, 1024]
    assert places["a, temperature 0.2"]["head"]["kind"] == "nonlinear"
    assert [(each.first[0], each.second[0]) for each in study.contrasts()] == [
        ("v1, temperature 0.2", "v1, temperature 0.07"),  # the published one, where it is tried
        ("a, temperature 0.07", "a, temperature 0.2"),
        ("v1, momentum 0.9", "v1, momentum 0.99"),  # and else the largest
        ("v1, 256 keys", "v1, 1,024 keys"),
    ]


@pytest.mark.parametrize("given", [False, True])
def test_momenta_are_compared_with_all_else_alike(given):
    """Elsewhere a fast key encoder brings the symmetric loss and batch norm in the head."""
    study = of(MocoStudy, cases=["v1"], momenta=[0.5, 0.999])
    if given:
        study.shared = {"method": {"symmetric": True}, "head": {"norm": True}}
    whole, fast, slow = (place.options for place in study.places())
    assert (fast["method"]["symmetric"], fast["head"]["norm"]) == (given, given)
    assert merge(fast, {"method": {"momentum": 0.999}}) == slow
    assert "symmetric" not in whole["method"]


def test_only_what_is_confirmed_stands_beside_mocos_options():
    study = of(MocoStudy, temperatures=[0.07, 0.1, 0.2], momenta=[0.999], queues=[65536])
    rows = [place.row for place in study.places()]
    known = {row: study.published(row, "") for row in rows}
    assert {row: value for row, value in known.items() if value is not None} == {
        "v1": 60.8, "a": 66.2, "v2": 67.5,
        "v1, temperature 0.07": 60.8, "a, temperature 0.07": 62.9, "a, temperature 0.2": 66.2,
    }  # fmt: skip
    cells = scores({(row, ""): (0.5 + 0.01 * i, {}) for i, row in enumerate(rows)})
    table = study.table(cells)
    marks = {row[0]: row[1:4] for row in table.rows}
    assert marks["a, temperature 0.1"] == ["x", "", ""]
    assert marks["v1, 65,536 keys"] == ["", "", ""]
    assert "(62.9)" in terminal(table)
    assert [figure.title for figure in study.figures(cells)] == [
        "Linear accuracy", "Linear accuracy by temperature", "Linear accuracy by momentum", "Linear accuracy by keys",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": []}, r"--cases \[\] leaves nothing"),
        ({"temperatures": [0.1, 0.1]}, "--temperatures must name none twice"),
        ({"queues": [64, 64]}, "--queues must name none twice"),
    ],
)
def test_what_moco_cannot_vary(options, message):
    with pytest.raises(UserError, match=message):
        of(MocoStudy, **options)


def test_a_trend_compares_comparisons_seed_by_seed():
    """The larger batch is 10 points worse after 2 epochs and 1 point after 8."""
    study = of(BatchStudy, batches=[32, 256], lengths=[2, 8])
    table = {("32", "2"): 0.8, ("256", "2"): 0.7, ("32", "8"): 0.9, ("256", "8"): 0.89}
    found = study.interpretation(scores({place: (value, {}) for place, value in table.items()}))
    assert "batch 256 less 32, 2 epochs, less the same at 8 epochs: -9.2 ± 0.5, smaller" in found
    assert not of(BatchStudy, batches=[32, 256], lengths=[2]).trends()
    assert not of(BatchStudy, batches=[32], lengths=[2, 8]).trends()
    size = of(SizeStudy, nets=["resnet10"], widths=[0.25, 0.5], labels=["1%", "10%"])
    cells = scores({("resnet10", "0.25"): (0.8, {"fine-tuned, 1%": 0.5, "fine-tuned, 10%": 0.7}),
                    ("resnet10", "0.5"): (0.9, {"fine-tuned, 1%": 0.6, "fine-tuned, 10%": 0.72})})  # fmt: skip
    told = size.interpretation(cells)
    assert "width 0.5 less 0.25, fine-tuned, 1%, less the same fine-tuned, 10%: +7.9 ± 0.1, larger" in told
    assert not of(SizeStudy, labels=["1%"]).trends()
    assert not of(SizeStudy).trends()


def evaluation(baselines):
    """Of two images that are told apart; beside it an encoder that tells one of them."""
    y, used = np.array([0, 1]), DataUsed("data", 2, 0, 0, "fingerprint")
    beside = {"untrained": score(np.array([[1.0, 0.0]] * 2), np.arange(2), y)} if baselines else {}
    return Evaluation(
        protocol="linear", words="", scores=score(np.eye(2), np.arange(2), y), settings={}, train=used, test=used,
        baselines=beside, feature_dim=2, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("also", [(), ("baselines",), ("z",)])
def test_a_cell_measures_only_what_its_study_shows(tmp_path, monkeypatch, also):
    """Baselines take three times as long as the number that they stand beside."""
    asked = []

    def seen(*_, **options):
        asked.append(options)
        return evaluation(options["baselines"])

    took = {"seconds": 1.0, "images": 8, "memory": 1, "device": "cpu", "parameters": 9}
    monkeypatch.setattr(study_cell, "evaluate", seen)
    monkeypatch.setattr(study_cell, "_trained", lambda *_: took)
    cell = {"method": "simclr", "batch": 8, "seed": 0, "options": {}}
    study_cell.run_cell(tmp_path, {"data": "d", "test": None, "k": 3, "cell": cell, "also": list(also)})
    assert [each["baselines"] for each in asked] == [also == ("baselines",), False, *[False] * (also == ("z",))]
    assert [each.get("features") for each in asked if each.get("features")] == ["z"] * (also == ("z",))
    more = json.loads((tmp_path / "cell.json").read_text())["more"]
    assert more == {(): {}, ("z",): {"z": 1.0}, ("baselines",): {"untrained": 0.5}}[also]


def test_speech_stands_beside_what_learns_nothing():
    study = of(SpeechStudy, objectives=["contrast", "both"], views=["both", "wave"])
    study.parts = [GridPart(f"cell{i}-seed{seed}", "", "", seed, {}) for seed in (0, 1) for i in (0, 1)]
    assert [study.also(part) for part in study.parts] == [("baselines",), (), ("baselines",), ()]
    beside = {"majority": 0.1, "filterbank": 0.5, "filterbank_thirds": 0.6, "untrained": 0.55}
    cells = scores({("contrast only", "wave and spectrogram"): (0.7, beside), ("contrast only", "wave"): (0.7, {}),
                    ("both", "wave and spectrogram"): (0.8, {}), ("both", "wave"): (0.8, {})})  # fmt: skip
    table = study.table(cells)
    assert [row[0] for row in table.rows] == [
        "contrast only", "both", "filterbank alone", "filterbank alone by thirds", "untrained encoder"
    ]  # fmt: skip
    assert table.rows[2][1:] == ["51.1 ± 1.1", ""]
    assert "both less filterbank alone: +30.1 ± 0.2, better" in study.interpretation(cells)
    assert "contrast only less untrained encoder: +14.8 ± 0.5, better" in study.interpretation(cells)


def test_no_other_study_asks_for_what_it_does_not_show():
    part = GridPart("cell", "", "", 0, {})
    assert {kind: of(kind).also(part) for kind in (BatchStudy, SuppressionStudy, MocoStudy)} == {
        BatchStudy: (), SuppressionStudy: (), MocoStudy: ()
    }  # fmt: skip
