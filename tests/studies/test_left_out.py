"""A training inside a study that diverges is left out, said in words everywhere, kept, and costs the study nothing."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import encoder_file, images

from twofold.commands import study_cell
from twofold.commands.labels import labels
from twofold.commands.study import study
from twofold.data import ArraySource
from twofold.encoders.load import load
from twofold.errors import Diverged, UserError
from twofold.evaluation.features import Extractor
from twofold.options import merge
from twofold.runs import distill as distillation
from twofold.studies import classes, distilling, finetuning, grid, targets
from twofold.studies import labels as few
from twofold.studies.classes import RULES, Point
from twofold.studies.distilling import Pair
from twofold.studies.diverging import FILE, kept
from twofold.studies.finetuning import SCRATCH, Trial
from twofold.studies.methods import Outcome, RunSpec
from twofold.studies.targets import TargetsConfig, TargetsStudy, Taught

TOO_MUCH = {"optim": {"name": "sgd", "lr": 1e30, "lr_rule": "none"}}
"""Options that no net survives."""


@pytest.fixture
def data(small):
    encoder_file(small / "encoder.safetensors")
    return small


def spoiling(monkeypatch, owner, name, where, at):
    """Trainings in folders that `where` takes diverge; returns the names of the folders that are trained in.

    `at` is the place of the folder among the arguments.
    """
    train, called = getattr(owner, name), []

    def some(*args, **more):
        place = Path(args[at])
        called.append(place.name)
        args = list(args)
        if where(place.name):
            args[at + 1] = merge(args[at + 1], TOO_MUCH)
        return train(*args, **more)

    monkeypatch.setattr(owner, name, some)
    return called


def told_everywhere(data, capsys, again, *places):
    """That each place is told, why in the terminal; and again in the same words by `again`, which resumes."""
    said = " ".join(capsys.readouterr().out.split())
    for place in places:
        assert f"{place} is left out: " in said
    assert "Usually the learning rate is too high" in said
    lost = f"Left out, since their training diverged: {'; '.join(places)}."
    document = json.loads((data / "s" / "study.json").read_text())
    assert document["interpretation"].endswith(lost)
    assert "nan" not in json.dumps(document).lower()
    assert lost in (data / "s" / "report.html").read_text()
    assert again().text().count(lost) == 1
    assert f"{places[-1]} is left out: " in " ".join(capsys.readouterr().out.split())
    return document["results"]


def test_fine_tuning(data, monkeypatch, capsys):
    called = spoiling(monkeypatch, finetuning, "finetune", lambda name: name.startswith("labels1-head0"), 3)
    asked = {"run": str(data / "encoder.safetensors"), "labels": ["8", "16"], "from_head": [0], "draws": 2}
    asked |= {"epochs": 1.0, "batch": 8}

    def again():
        called.clear()
        found = study("finetune", data / "data.npz", data / "s", resume=True, **asked)
        assert len(called) == 6, "what diverged would diverge again"
        return found

    text = study("finetune", data / "data.npz", data / "s", **asked).text()
    assert len(called) == 8
    assert "Fine-tuned from h less from scratch" in text
    assert "with 8 labels" in text
    places = [f"fine-tuned from h, labels 16, draw {draw}" for draw in (0, 1)]
    results = told_everywhere(data, capsys, again, *places)
    assert {(r["count"], r["from_head"]) for r in results} == {(8, 0), (8, SCRATCH), (16, SCRATCH)}


def test_distillation(data, monkeypatch, capsys):
    called = spoiling(monkeypatch, distillation, "distill", lambda name: name.endswith("seed1"), 2)
    asked = {"teachers": [str(data / "encoder.safetensors")], "teacher_labels": "all", "seeds": 2}
    asked |= {"epochs": 1.0, "batch": 16, "config": str(data / "machine.yaml")}
    (data / "machine.yaml").write_text("training: {device: cpu, precision: fp32, threads: 1}")

    def again():
        called.clear()
        found = study("distillation", data / "data.npz", data / "s", resume=True, **asked)
        assert called == ["teacher0-student0-temperature0-seed0"]
        return found

    study("distillation", data / "data.npz", data / "s", **asked)
    words = "teacher0-student0-temperature0-seed1: resnet10@0.125 from resnet10@0.125"
    results = told_everywhere(data, capsys, again, words)
    assert [r["seed"] for r in results] == [0]


def test_classes(data, monkeypatch, capsys):
    called = spoiling(monkeypatch, classes, "finetune", lambda name: "draw1" in name, 3)
    asked = {"run": str(data / "encoder.safetensors"), "protocols": ["linear", "finetune"], "draws": 2}
    asked |= {"per_class": 4, "epochs": 1.0, "batch": 4}

    def again():
        called.clear()
        found = study("classes", data / "data.npz", data / "s", resume=True, **asked)
        assert set(called) == {"draw0-2classes-8images"}
        return found

    study("classes", data / "data.npz", data / "s", **asked)
    results = told_everywhere(data, capsys, again, "draw 1, 2 classes and 8 images fine-tuned")
    assert {(r["protocol"], r["draw"]) for r in results} == {("linear", 0), ("linear", 1), ("finetune", 0)}


def test_labels(data, monkeypatch, capsys):
    spoiling(monkeypatch, few, "finetune", lambda name: name.startswith("scratch-4") and "draw1" in name, 3)
    asked = {"counts": [4, 8], "draws": 2, "epochs": 1, "batch": 4, "out": str(data / "few")}
    run, file = data / "encoder.safetensors", str(data / "data.npz")
    found = labels(run, file, **asked)
    lost = "Left out, since their training diverged: from scratch, 4 labels."
    assert [cell.labels for cell in found.cells if cell.features == "from scratch"] == [8]
    assert "from scratch, 4 labels is left out: " in " ".join(capsys.readouterr().out.split())
    for file_name, field in (("labels.json", "interpretation"), ("labels.html", None)):
        text = (data / "few" / file_name).read_text()
        assert lost in (json.loads(text)[field] if field else text)
    monkeypatch.setattr("twofold.training.loop.Training.fit", lambda _: pytest.fail("it would diverge again"))
    assert labels(run, file, resume=True, **asked).text() == found.text()


def test_labels_of_which_nothing_else_is_asked_are_an_error(data, monkeypatch):
    spoiling(monkeypatch, few, "finetune", lambda _: True, 3)
    with pytest.raises(UserError, match=r"in every cell \(fine-tuned, 8 labels\), as told above: give another --batch"):
        labels(data / "encoder.safetensors", str(data / "data.npz"), counts=[8], draws=1, ways=["finetuned"], batch=4)


def test_what_students_learn_from(data, monkeypatch, capsys):
    """A teacher that diverges takes its students with it, and no other."""
    spoiling(monkeypatch, targets, "finetune", lambda name: name == "teacher-labels0-seed1", 3)
    spoiling(monkeypatch, targets.distillation, "distill", lambda name: "both-all-seed0" in name, 2)
    trained = []

    def here(cells, jobs):  # noqa: ARG001  # as `run_cells`
        for cell in cells:
            trained.append(cell.place.name)
            targets.train_part(cell.place, cell.work)

    monkeypatch.setattr(targets, "run_cells", here)
    (data / "machine.yaml").write_text("training: {device: cpu, precision: fp32, threads: 1}")
    asked = {"run": str(data / "encoder.safetensors"), "labels": ["8"], "seeds": 2, "epochs": 1.0, "batch": 16}
    asked |= {"teacher_epochs": 1.0, "config": str(data / "machine.yaml"), "jobs": 2}
    study("distill-targets", data / "data.npz", data / "s", **asked)
    assert [name for name in trained if "seed1" in name] == ["teacher-labels0-seed1"]

    def again():
        trained.clear()
        found = study("distill-targets", data / "data.npz", data / "s", resume=True, **asked)
        assert not trained
        return found

    results = told_everywhere(
        data, capsys, again,
        "a teacher with 8 of the labels, seed 1, and the students that it was to teach",
        "resnet10@0.125 from both, all images, 8 of the labels, seed 0",
    )  # fmt: skip
    assert [(r["target"], r["seed"]) for r in results] == [(name, 0) for name in ("labels", "both-labelled", "teacher")]


def test_what_a_cell_of_a_grid_is_asked_beside_its_score(data, monkeypatch, capsys):
    """The cell stays, its fine-tuning is left out."""

    def here(cells, jobs):  # noqa: ARG001  # as `run_cells`
        for cell in cells:
            lost = {"fine-tuned, 25%": "the loss became nan. Usually the learning rate is too high"}
            found = Outcome("simclr", 16, 0, 0.5, 0.5, 1.0, 64, 0, "cpu", parameters=10, lost=lost)
            cell.place.mkdir()
            (cell.place / "cell.json").write_text(json.dumps(asdict(found)))

    monkeypatch.setattr(grid, "run_cells", here)
    asked = {"memories": [64], "labels": ["25%"], "seeds": 1, "epochs": 1.0, "batch": 16, "k": 3}
    asked |= {"config": str(data / "shared.yaml")}
    study("memory", data / "data.npz", data / "s", **asked)
    places = [f"keys kept {row}, seed 0, fine-tuned, 25%" for row in ("none", "64")]
    results = told_everywhere(
        data, capsys, lambda: study("memory", data / "data.npz", data / "s", resume=True, **asked), *places
    )
    assert [r["row"] for r in results] == ["none", "64"]


def test_an_encoder_that_gives_no_numbers_is_one_that_diverged(data, monkeypatch):
    """Weights may be numbers where what they give is none."""

    def spoiled(*_, **__):
        raise Diverged("the encoder gives features that are not finite")

    monkeypatch.setattr(study_cell, "_trained", lambda *_: {})
    monkeypatch.setattr(study_cell, "evaluate", spoiled)
    (data / "cell").mkdir()
    work = {"data": str(data / "data.npz"), "test": None, "k": 3, "cell": asdict(RunSpec("simclr", 16, 0, {}))}
    study_cell.run_cell(data / "cell", work)
    found = json.loads((data / "cell" / "cell.json").read_text())
    assert found["diverged"] == "the encoder gives features that are not finite"


def test_features_that_are_no_numbers_are_told_as_divergence(data):
    model = load(data / "encoder.safetensors")
    for weight in model.parameters():
        weight.data.fill_(1e30)
    with pytest.raises(Diverged, match="that are not finite: its weights are spoiled"):
        Extractor().extract(model, ArraySource(images(4)[0]))


def test_a_training_that_is_no_training_at_all_is_told_and_kept_once(tmp_path):
    def diverge():
        raise Diverged("the loss became nan")

    with pytest.raises(Diverged, match="became nan"):
        kept(tmp_path / "a", diverge)
    with pytest.raises(Diverged, match="became nan"):
        kept(tmp_path / "a", lambda: pytest.fail("it would again"))
    assert kept(tmp_path / "b", lambda: 3) == 3
    (tmp_path / "a" / FILE).write_text("{")
    with pytest.raises(UserError, match=r"diverged.json is damaged: .*; remove it to have the net trained again"):
        kept(tmp_path / "a", diverge)


def test_of_several_processes_the_first_to_diverge_ends_all(tmp_path, monkeypatch):
    """The others wait for it, and would wait for ever."""
    monkeypatch.setattr("twofold.studies.base.world_size", lambda: 2)
    monkeypatch.setattr("twofold.studies.diverging.world_size", lambda: 2)
    made = TargetsStudy("data", TargetsConfig(run="x"), None)
    with pytest.raises(Diverged):
        made.leave_out("a cell", Diverged("the loss became nan"))

    def diverge():
        raise Diverged("the loss became nan")

    with pytest.raises(Diverged):
        kept(tmp_path / "a", diverge)
    assert not (tmp_path / "a").exists()


def test_words_of_fine_tuning_and_classes_where_some_are_missing():
    trials = [Trial("1%", 10, SCRATCH, 0, 0.5), Trial("10%", 100, 0, 0, 0.7), Trial("10%", 100, SCRATCH, 0, 0.6)]
    rows = {row[0]: row[1:] for row in finetuning.table(trials).rows}
    assert rows == {"from scratch": ["50.0", "60.0"], "fine-tuned from h": ["", "70.0"]}
    assert "100 labels" in finetuning.interpretation(trials)
    assert "10 labels" not in finetuning.interpretation(trials)
    assert finetuning.interpretation(trials[:1]) == ""
    points = [Point(2, "per_class", 0, 8, 0.9, 0.8), Point(6, "per_class", 0, 24, 0.6, 0.5)]
    told = classes.interpretation([*points, Point(6, "total", 0, 24, 0.6, 0.5)])
    assert RULES["per_class"] in told
    assert RULES["total"] not in told
    assert classes.interpretation([points[1], Point(2, "per_class", 1, 8, 0.9, 0.8)]) == "", "no draw has both"
    assert len(classes.page(points, "data").figures) == 2


def test_a_student_is_judged_at_the_seeds_and_temperatures_that_all_of_its_teachers_have():
    pairs = [
        Pair(teacher, "a", teacher == "a", temperature, seed, 0.8, top1, 0.9)
        for seed in (0, 1)
        for teacher, temperature, top1 in (("a", 1.0, 0.7), ("b", 1.0, 0.6), ("a", 2.0, 0.3), ("b", 2.0, 0.2))
    ]
    assert "a: 50.0 and 40.0 %, +10.0 each time" in distilling.interpretation(pairs)
    one_less = [p for p in pairs if (p.teacher, p.temperature, p.seed) != ("a", 2.0, 1)]
    assert "a: 60.0 and 50.0 %, +10.0 each time" in distilling.interpretation(one_less), "no +30 of seed 1"
    assert distilling.interpretation([p for p in pairs if (p.teacher == "a") == (p.seed == 0)]) == (
        "No student met both kinds of teacher."
    )


def test_students_are_compared_by_seed():
    made = TargetsStudy("data", TargetsConfig(run="x"), None)
    cells = [
        Taught(student, "1%", target, seed, 0.5 + 0.2 * (target == "teacher") + 0.1 * seed, 0.8, 1_000_000, 5_000_000)
        for student in ("a", "b") for target in targets.TARGETS for seed in (0, 1, 2)
        if (student, target) != ("b", "labels")
        and (student, target, seed) not in {("a", "labels", 0), ("a", "teacher", 2)}
    ]  # fmt: skip
    told = {each.words: each.difference for each in made.comparisons(cells)}
    assert told["a, 1% of labels, less labels"] == "+20.0 (one seed)"
    assert told["a, 1% of labels, less both, all images"] == "+20.0 each time"
    assert "b, 1% of labels, less labels" not in told
    rows = {row[0]: row[1] for row in made.table(cells).rows}
    assert (rows["b: labels"], rows["a: labels"]) == ("", "65.0 ± 7.1")
    (figure,) = made.page(cells).figures
    assert "labels: 1M: 65.0 %." in figure.alt
    (bars,) = made.page([cell for cell in cells if cell.student == "b"]).figures
    assert bars.alt.startswith("Student b"), "a bar of nothing is left out"
