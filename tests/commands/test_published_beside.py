"""What is published stands beside a result wherever that is told: terminal, JSON, pages, comparisons, model cards."""

import json
from html import unescape

import numpy as np
import pytest
from tiny import OPTIONS, images

import twofold
from twofold import cli
from twofold.commands.report import report
from twofold.report.records import read_record

SMALL = {"epochs": 1, "batch": 8, "labels": "4/class", "training": {"device": "cpu"}}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run that says it is of a recipe, its data, and what came of it: evaluated, fine-tuned twice, distilled."""
    where = tmp_path_factory.mktemp("beside")
    run = twofold.pretrain(images(), where / "run", report=False, **OPTIONS | {"epochs": 1, "monitor": {"every": 0}})
    x, y = images(24, seed=1)
    data = where / "data.npz"
    np.savez(data, **dict(zip(("x_train", "y_train"), images(48), strict=True)), x_test=x, y_test=y)
    data, text = str(data), run.config_file.read_text()
    assert "recipe: null" in text
    found = {"plain": twofold.evaluate(run.path, data, protocol="linear")}
    run.config_file.write_text(text.replace("recipe: null", "recipe: simclr-imagenet-1000"))
    found["linear"] = twofold.evaluate(run.path, data, protocol="linear")
    found["knn"] = twofold.evaluate(run.path, data, protocol="knn", k=3)
    found["frozen"] = twofold.finetune(run.path, data, where / "frozen", freeze="encoder", **SMALL)
    found["tuned"] = twofold.finetune(
        run.path, data, where / "tuned", recipe="simclr-finetune:width=2x,labels=1pct", views={"size": 16},
        preprocessing="auto", **SMALL,
    )  # fmt: skip
    found["student"] = twofold.distill(
        found["tuned"].path, data, where / "student", recipe="simclr2-distill-self", epochs=1, batch=8,
        views={"size": 16}, optim={"warmup_epochs": 0}, training={"device": "cpu"},
    )  # fmt: skip
    return run, data, found


def shown(page):
    """A page's words as its reader has them."""
    return unescape(page.read_text())


def test_the_terminal_tells_it(results):
    _, _, found = results
    assert "published" not in found["plain"].text()
    assert "published: 69.3 % top-1, 89 % top-5 by linear evaluation (simclr/table-6" in found["linear"].text()
    told = "recipe simclr-imagenet-1000), not to be compared: 1,281,167 examples there, 64 here; 50,000 test examples"
    assert f"{told} there, 24 here; resnet50 1x there, resnet10 0.125x here; " in found["linear"].text()
    assert "published" not in found["knn"].text()
    assert "published: 69.3 % top-1, 89 % top-5 by linear evaluation" in found["frozen"].text()
    assert "published: 58.5 % top-1, 83 % top-5 fine-tuned (simclr/table-7" in found["tuned"].text()
    assert "not to be compared: 1,281,167 pretraining examples there, 64 here; " in found["tuned"].text()
    assert "resnet50 2x there, resnet10 0.125x here" in found["tuned"].text()
    student = found["student"].text()
    assert "published: 76.6 % top-1 distilled (student r152-3x-sk, labels 1pct) (simclr2/table-3" in student
    assert "of the teacher, resnet152 3x with selective kernels there, resnet10 0.125x here" in student


def test_what_machines_read_tells_it_in_the_same_words(results):
    _, _, found = results
    assert json.loads(found["linear"].file.read_text())["published"] == found["linear"].published
    for name, file in (("frozen", "result.json"), ("tuned", "result.json"), ("student", "distillation.json")):
        kept = json.loads((found[name].path / file).read_text())["published"]
        assert kept == list(found[name].published) == found[name].to_dict()["published"]
        assert kept, name


@pytest.mark.parametrize("name", ["frozen", "tuned", "student"])
def test_the_page_tells_it_in_the_same_words(results, name):
    _, _, found = results
    page = shown(found[name].page)
    assert all(line in page for line in found[name].published)


def test_pages_that_are_made_anew_tell_it(results):
    """Of a pretraining beside its evaluations; of a fine-tuning though the encoder that it began with is gone."""
    run, _, found = results
    page = shown(report(run.path).file)
    assert page.count(found["linear"].published[0]) == 1
    (found["tuned"].path / "report.html").unlink()
    hidden = run.encoder_file.rename(run.path / "elsewhere")
    try:
        assert found["tuned"].published[0] in shown(report(found["tuned"].path).file)
    finally:
        hidden.rename(run.encoder_file)


def test_a_result_of_an_earlier_version_gets_it_when_the_run_is_called_again(results):
    run, data, found = results
    file = found["frozen"].path / "result.json"
    document = json.loads(file.read_text())
    published = document.pop("published")
    file.write_text(json.dumps(document))
    assert read_record(found["frozen"].path).published == {}
    again = twofold.finetune(run.path, data, found["frozen"].path, freeze="encoder", resume=True, **SMALL)
    assert list(again.published) == published == json.loads(file.read_text())["published"]


def test_a_comparison_tells_it(results, tmp_path):
    """Of cells of families, too: they were taken for no recipes."""
    run, _, found = results
    result = twofold.compare(found["tuned"].path, found["student"].path, run.path, out=tmp_path / "both")
    lines = [*found["tuned"].published, *found["student"].published, *found["linear"].published]
    text, page = result.text(), shown(tmp_path / "both" / "comparison.html")
    assert len(lines) == 4
    assert all(line in text and line in page for line in lines)
    assert "58.5 % top-1, 83 % top-5 fine-tuned" in text.partition("Beside each result")[0]
    kept = [each["published"] for each in json.loads((tmp_path / "both" / "comparison.json").read_text())["groups"]]
    assert kept[0] == {str(found["tuned"].path): {"": list(found["tuned"].published)}}
    assert kept[2] == {str(run.path): {"linear": found["linear"].published}}


@pytest.mark.parametrize("name", ["tuned", "student", "linear"])
def test_a_model_card_tells_it(results, tmp_path, name):
    run, _, found = results
    place = run.path if name == "linear" else found[name].path
    twofold.export(place, tmp_path / "hub", format="huggingface")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert all(line in card for line in found[name].published)
    assert ("student_top1" in card) == (name == "student")


def test_a_measurement_that_is_done_is_not_lost_for_a_damaged_file_beside_it(results, capsys):
    run, data, _ = results
    text = run.config_file.read_text()
    run.config_file.write_text("options: [")
    try:
        damaged = twofold.evaluate(run.path, data, protocol="linear")
    finally:
        run.config_file.write_text(text)
    assert damaged.published == []
    damaged.file.unlink()
    assert cli.main(["report", str(run.path)]) == 0
    assert "report" in capsys.readouterr().out
