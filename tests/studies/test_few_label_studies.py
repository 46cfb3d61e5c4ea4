"""The studies of classes, fine-tuning and distillation: plans, what is measured, what is said, and resuming."""

import json

import numpy as np
import pytest
import torch
import yaml
from tiny import images

from twofold import cli
from twofold.commands.study import study
from twofold.encoders import EncoderConfig, build_encoder, read_header, save_encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.runs import distill as distillation
from twofold.studies import classes, distilling, finetuning
from twofold.studies.classes import ClassesConfig, Point, chance_corrected
from twofold.studies.distilling import DistillStudyConfig, Pair, student_options
from twofold.studies.finetuning import SCRATCH, FinetuneStudyConfig, Trial


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "encoder.safetensors"
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar", channels=3), 16)
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=2, out_dim=16))
    save_encoder(path, encoder, head, extra={"options": {"views": {"size": 16, "crop_area": [0.5, 1.0]}}})
    return path


@pytest.fixture
def data(tmp_path):
    x, y = images(48)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=images(24, seed=1)[0], y_test=y[:24])
    return str(tmp_path / "data.npz")


def blobs(seed=0, per_class=30, count=6):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(count), per_class)
    return (rng.normal(0, 1, (len(y), 8)) + 3 * np.random.default_rng(9).normal(0, 1, (count, 8))[y]).astype("f"), y


@pytest.mark.parametrize(("top1", "count", "expected"), [(0.5, 2, 0), (1, 7, 1), (0.1, 10, 0), (0.55, 10, 0.5)])
def test_chance_correction(top1, count, expected):
    assert chance_corrected(top1, count) == pytest.approx(expected)


def test_classes_are_nested_and_images_as_many_as_said():
    x, y = blobs()
    x_test, y_test = blobs(1)
    points = classes.measure(ClassesConfig("run", (2, 4, 6), 5, 24, draws=3), x, y, x_test, y_test)
    assert len(points) == 3 * 3 * 2
    for p in points:
        assert p.images == (5 * p.classes if p.rule == "per_class" else 24)
        assert p.corrected == pytest.approx((p.top1 - 1 / p.classes) / (1 - 1 / p.classes))
        assert p.top1 > 0.8
    shuffled = np.random.default_rng(0).permutation(y)
    guessed = classes.measure(ClassesConfig("run", (2, 6), 10, 30, draws=8), x, shuffled, x_test, y_test)
    for count in (2, 6):
        assert abs(np.mean([p.corrected for p in guessed if p.classes == count])) < 0.25, "guessing is 0 at any count"
    assert np.mean([p.top1 for p in guessed if p.classes == 2]) > 0.35


def test_classes_reads_honestly():
    def points(low, high):
        return [Point(c, rule, d, 10, v, v + 0.01 * d * (c == 2)) for d in range(3) for rule in classes.RULES
                for c, v in ((2, low), (10, high))]  # fmt: skip

    assert classes.interpretation(points(0.9, 0.5)).count("better with fewer classes") == 2
    assert classes.interpretation(points(0.5, 0.9)).count("not better with fewer classes") == 2
    assert classes.interpretation(points(0.5, 0.501)).count("no clear difference") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--run is missing"),
        ({"run": "r", "classes": (1,)}, "--classes must be 2 or more"),
        ({"run": "r", "classes": (2, 9)}, "--classes 9: the data have 6 classes"),
        ({"run": "r", "classes": (2, 6), "per_class": 31}, "lower --per_class"),
        ({"run": "r", "classes": (2, 6), "total": 5}, "--total 5: 6 classes need"),
        ({"run": "r", "classes": (2, 6), "per_class": 2, "total": 100}, "lower --total"),
    ],
)
def test_classes_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        classes.measure(ClassesConfig(**options), *blobs(), *blobs(1))


def test_classes_from_the_shell(run, data, tmp_path, capsys):
    words = ["study", "classes", data, "--run", str(run), "--out", str(tmp_path / "s"), "--per_class", "8"]
    assert cli.main([*words, "--draws", "2"]) == 0
    assert "Chance-corrected accuracy" in capsys.readouterr().out
    results = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    assert {(p["classes"], p["rule"], p["draw"]) for p in results} == {
        (2, rule, d) for rule in classes.RULES for d in (0, 1)
    }
    assert (tmp_path / "s" / "report.html").stat().st_size > 5_000


def test_classes_by_fine_tuning_on_several_sets(run, data, tmp_path):
    """Each set and protocol by itself; labels are renumbered, so that a network tells the chosen classes alone."""
    other = tmp_path / "other.npz"
    x, _ = images(60, seed=3)
    kept = np.arange(60) % 3
    names = np.array(["cat", "ape", "bee"])
    np.savez(other, x_train=x, y_train=names[kept], x_test=x[:12], y_test=names[kept[:12]])
    options = {"run": str(run), "sets": [str(other)], "protocols": ["linear", "finetune"], "per_class": 4, "draws": 1}
    options |= {"epochs": 1.0, "batch": 4}
    text = study("classes", data, tmp_path / "s", **options).text()
    for title in ("data.npz, frozen features", "data.npz, fine-tuned", "other.npz, frozen", "other.npz, fine-tuned"):
        assert title in " ".join(text.split())
    assert "of a logistic regression on frozen features or of fine-tuned networks" in " ".join(text.split())
    results = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    found = {(r["data"].rpartition("/")[2], r["protocol"], r["classes"], r["rule"], r["draw"]) for r in results}
    assert found == {
        (name, protocol, count, rule, 0) for name, counts in (("data.npz", (2,)), ("other.npz", (2, 3)))
        for count in counts for protocol in ("linear", "finetune") for rule in classes.RULES
    }  # fmt: skip
    three = json.loads((tmp_path / "s" / "set1-draw0-3classes-12images" / "result.json").read_text())
    assert three["labels"] == 12
    header = read_header(tmp_path / "s" / "set1-draw0-2classes-8images" / "encoder.safetensors")
    assert header["classifier"]["classes"] == 2
    assert set(header["parts"]["prediction"]["classes"]) < set(names.tolist())
    trained = list((tmp_path / "s").glob("set*-draw*"))
    assert len(trained) == 1 + 3, "equal images by both rules are one run"
    assert study("classes", data, tmp_path / "s", resume=True, **options).text() == text


def test_a_study_of_a_version_without_an_option_goes_on(run, data, tmp_path):
    """What it was asked lacks the option; it had what the option is by default, and nothing else."""
    options = {"run": str(run), "per_class": 8, "draws": 1}
    study("classes", data, tmp_path / "s", **options)
    file = tmp_path / "s" / "study.json"
    document = json.loads(file.read_text())
    for name in ("protocols", "sets", "epochs"):
        del document["asked"]["options"][name]
    del document["asked"]["options"]["data"]["patience"]
    file.write_text(json.dumps(document))
    assert study("classes", data, tmp_path / "s", resume=True, **options)
    with pytest.raises(UserError, match=r"options.protocols is \['finetune'\], but .* was started with \['linear'\]"):
        study("classes", data, tmp_path / "s", resume=True, protocols=["finetune"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.0}, r"--epochs is of fine-tuning: ask for it, too, with --protocols"),
        ({"protocols": []}, "--protocols must name at least one"),
        ({"sets": ["a", "a"]}, "--sets names one twice"),
        ({"protocols": ["finetune"], "per_class": 1000}, r"data.npz.*: 2000 images .*|data.npz.*lower --per_class"),
    ],
)
def test_sets_and_protocols_that_cannot_be(run, data, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        study("classes", data, tmp_path / "s", run=str(run), **options)
    assert not (tmp_path / "s").exists()


def test_fine_tuning_is_planned_with_the_same_labels_for_every_start(run, data, tmp_path):
    cells = finetuning.plan(FinetuneStudyConfig("r", ("1%", "all"), draws=2), layers=3)
    assert [entry for _, _, entry, _, _ in cells[:4]] == [0, 1, 2, SCRATCH]
    for start in range(0, 16, 4):
        group = cells[start : start + 4]
        assert len({(o["labels"], o.get("draw"), o["seed"]) for *_, o in group}) == 1
        assert [o.get("from_scratch", False) for *_, o in group] == [False, False, False, True]
    assert len({name for name, *_ in cells}) == len(cells) == 16
    assert [o.get("draw") for *_, o in cells[::4]] == [0, 1, None, None], "of all labels nothing is drawn"
    with pytest.raises(UserError, match=r"head has 2 layers; give 0\.\.2"):
        finetuning.plan(FinetuneStudyConfig("r", from_head=(3,)), 2)
    options = {"run": str(run), "labels": ["8", "all"], "draws": 1, "epochs": 1.0, "batch": 8}
    text = study("finetune", data, tmp_path / "s", **options).text()
    assert "from scratch" in text
    assert "Fine-tuned from h less from scratch: " in text
    assert "Fine-tuned from head layer 1 less fine-tuned from h: " in text
    results = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    assert [(r["count"], r["from_head"]) for r in results] == [(n, h) for n in (8, 48) for h in (0, 1, SCRATCH)]
    scored = json.loads((tmp_path / "s" / "labels1-head1-draw0" / "result.json").read_text())
    assert results[4]["top1"] == scored["scores"]["top1"]


def test_fine_tuning_reads_honestly():
    def trials(gaps, spread=0.1, draws=3):
        """The control differs much between draws, each start from it by its gap."""
        return [Trial("40", 40, entry, draw, 0.5 + spread * draw + gap + 0.002 * draw * (entry != SCRATCH))
                for draw in range(draws) for entry, gap in gaps.items()]  # fmt: skip

    better = finetuning.interpretation(trials({0: 0.12, SCRATCH: 0}))
    assert "Fine-tuned from h less from scratch: +12.2 ± 0.5 with 40 labels, better." in better
    assert "-11.8 ± 0.5 with 40 labels, worse" in finetuning.interpretation(trials({0: -0.12, SCRATCH: 0}))
    assert "no clear difference" in finetuning.interpretation(trials({0: -0.001, SCRATCH: 0}))
    two = finetuning.interpretation(trials({0: 0.12, 1: 0.12, SCRATCH: 0}))
    assert "Fine-tuned from head layer 1 less fine-tuned from h: +0.0 each time with 40 labels, no clear" in two
    one = finetuning.interpretation(trials({0: 0.12, SCRATCH: 0}, draws=1))
    assert "+12.0 (one draw) with 40 labels, no clear difference" in one
    assert finetuning.page(trials({0: 0.12, SCRATCH: 0}), "data").lead == better


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("finetune", {"labels": "10%"}, r"sets labels, which the study sets itself: .* by --labels"),
        ("finetune", {"seed": 0}, "sets seed, which"),
        ("finetune", {"from_head": 1}, "sets from_head, which"),
        ("finetune", {"data": {"workers": 0}}, r"sets data, .* as --data\.\*"),
        ("finetune", {"freeze": "encoder"}, "--from_scratch has nothing to keep"),
        ("finetune", {"epoch": 3}, "there is no option 'epoch'"),
        ("distillation", {"temperature": 2.0}, r"sets temperature, which .* by --temperatures"),
        ("distillation", {"encoder": {"name": "resnet10"}}, r"sets encoder, which .* by --students"),
        ("distillation", {"unlabelled": True}, "sets unlabelled, which"),
        ("distillation", {"labels": "8"}, "--labels 8 needs --alpha"),
    ],
)
def test_a_file_of_options_cannot_set_what_the_study_sets(run, data, tmp_path, name, options, told):
    (tmp_path / "opts.yaml").write_text(json.dumps(options))
    own = {"run": str(run)} if name == "finetune" else {"teachers": [str(run)], "teacher_labels": "all"}
    with pytest.raises(UserError, match=told):
        study(name, data, tmp_path / "s", config=str(tmp_path / "opts.yaml"), **own)
    assert not (tmp_path / "s").exists()


def test_a_file_of_options_reaches_the_runs_and_the_study_own_options_win(run, data, tmp_path):
    (tmp_path / "opts.yaml").write_text("{alpha: 0.5, teacher_labels: all, labels: '8', epochs: 7}")
    options = {"teachers": [str(run)], "seeds": 1, "epochs": 1.0, "batch": 16, "data.workers": 0}
    study("distillation", data, tmp_path / "s", config=str(tmp_path / "opts.yaml"), **options)
    used = yaml.safe_load((tmp_path / "s" / "teacher0-student0-temperature0-seed0" / "config.yaml").read_text())
    found = used["options"]
    assert (found["alpha"], found["teacher_labels"], found["labels"], found["epochs"]) == (0.5, "all", "8", 1.0)
    assert found["data"]["workers"] == 0, "--data.* of the study are the runs', too"


@pytest.mark.parametrize("name", ["finetune", "distillation"])
def test_many_labels_an_image_are_refused_before_anything_is_trained(run, tmp_path, name):
    x, y = images(48)
    many = np.stack([y, 1 - y, np.arange(48) % 3 == 0], 1).astype(int)
    np.savez(tmp_path / "many.npz", x_train=x, y_train=many, x_test=x, y_test=many)
    own = {"run": str(run), "labels": ["all"]} if name == "finetune" else {"teachers": [str(run)]}
    with pytest.raises(UserError, match="several labels an image, and this study counts one right class"):
        study(name, str(tmp_path / "many.npz"), tmp_path / "s", **own)
    assert not (tmp_path / "s").exists()


def test_classes_take_the_device_that_there_is(run, data, tmp_path, monkeypatch):
    asked, real = [], classes.choose_device
    monkeypatch.setattr(classes, "choose_device", lambda *words: asked.append(words) or torch.device("cpu"))
    study("classes", data, tmp_path / "s", run=str(run), per_class=8, draws=1)
    assert asked == [("auto", "--device")]
    monkeypatch.setattr(classes, "choose_device", real)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: torch sees no such device here; use --device cpu"):
        study("classes", data, tmp_path / "t", run=str(run), device="cuda")


def test_distillation_pairs_every_student_with_every_teacher_and_resumes(run, data, tmp_path, monkeypatch):
    torch.manual_seed(1)
    other = build_encoder(EncoderConfig.of(name="resnet18", width=0.125, stem="cifar", channels=3), 16)
    save_encoder(tmp_path / "other.safetensors", other, extra={"options": {"views": {"size": 16}}})
    options = {"teachers": [str(run), str(tmp_path / "other.safetensors")], "teacher_labels": "all", "seeds": 2,
               "epochs": 1.0, "batch": 16}  # fmt: skip
    text = study("distillation", data, tmp_path / "s", **options).text()
    assert "Own kind less another kind" in text
    results = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    names = ("resnet10@0.125", "resnet18@0.125")
    assert [(r["teacher"], r["student"], r["seed"]) for r in results] == [
        (t, s, seed) for t in names for s in names for seed in (0, 1)
    ]
    for r in results:
        assert r["same_base"] == (r["teacher"] == r["student"])
        assert r["gap"] == pytest.approx(r["student_top1"] - r["teacher_top1"])

    def forbidden(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(distillation, "assemble", forbidden)
    assert study("distillation", data, tmp_path / "s", resume=True, **options).text() == text


def test_distillation_is_compared_by_shares_of_labels(run, data, tmp_path):
    """Each share is that of the teacher's classifier, and of the student where it learns from labels, too."""
    torch.manual_seed(1)
    other = build_encoder(EncoderConfig.of(name="resnet18", width=0.125, stem="cifar", channels=3), 16)
    save_encoder(tmp_path / "other.safetensors", other, extra={"options": {"views": {"size": 16}}})
    options = {"teachers": [str(run), str(tmp_path / "other.safetensors")], "shares": ["8", "all"], "seeds": 1,
               "epochs": 1.0, "batch": 16, "alpha": 0.5, "students": ["resnet10@0.125"]}  # fmt: skip
    text = study("distillation", data, tmp_path / "s", **options).text()
    assert "With 8 of the labels: resnet10@0.125" in text
    assert "With all of the labels: resnet10@0.125" in text
    results = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    assert [(r["labels"], r["same_base"]) for r in results] == [(s, own) for s in ("8", "all") for own in (True, False)]
    for n, share in enumerate(("8", "all")):
        place = tmp_path / "s" / f"teacher1-student0-labels{n}-temperature0-seed0" / "config.yaml"
        used = yaml.safe_load(place.read_text())["options"]
        assert (used["teacher_labels"], used["labels"]) == (share, share)
    with pytest.raises(UserError, match=r"--teacher_labels 8 is one of --shares \[.all.\]: give one"):
        study("distillation", data, tmp_path / "t", **options | {"shares": ["all"], "teacher_labels": "8"})
    with pytest.raises(UserError, match="--shares must name at least one, none twice"):
        study("distillation", data, tmp_path / "t", **options | {"shares": ["8", "8"]})
    (tmp_path / "opts.yaml").write_text("{labels: all}")
    with pytest.raises(
        UserError, match="sets labels, which the study sets itself: leave it out, and name it by --shares"
    ):
        study("distillation", data, tmp_path / "t", config=str(tmp_path / "opts.yaml"), **options)
    assert not (tmp_path / "t").exists()


def test_distillation_reads_honestly():
    def pairs(same, other, n=3, teachers=(0.9, 0.9)):
        return [Pair("own" if base else "else", "s", base, 1.0, k, teachers[not base],
                     top1 + 0.02 * k + 0.0002 * k * base, 0.9)
                for k in range(n) for base, top1 in ((True, same), (False, other))]  # fmt: skip

    assert "s: 92.0 and 88.0 %, +4.0 ± 0.0: better from its own kind." in distilling.interpretation(pairs(0.9, 0.86))
    assert "better from another kind" in distilling.interpretation(pairs(0.86, 0.9))
    assert "no clear difference" in distilling.interpretation(pairs(0.9, 0.9))
    assert "no clear difference" in distilling.interpretation(pairs(0.9, 0.5, n=1)), "one seed tells nothing"
    assert distilling.interpretation(pairs(0.9, 0.9)[:1]) == "No student met both kinds of teacher."
    weaker = distilling.interpretation(pairs(0.894, 0.908, teachers=(0.888, 0.911)))
    assert "no verdict, since the teachers themselves differ by -2.3, more than --matched 1" in weaker
    assert "better from another kind" in distilling.interpretation(pairs(0.894, 0.908, teachers=(0.888, 0.911)), 3)
    with pytest.raises(UserError, match="--matched must be 0 points or more, got -1"):
        DistillStudyConfig(teachers=("a",), matched=-1)


def test_a_weaker_teacher_wins_nothing():
    """The docs' own table: a student 1.4 points worse from its own kind was called better, for its teacher is weaker.

    What is left after each teacher and each student has an effect of its own is what own kind is worth.
    """
    means = {("A", "A"): (91.1, 92.3), ("A", "B"): (91.1, 90.8), ("B", "A"): (88.8, 89.9), ("B", "B"): (88.8, 89.4)}
    shaken = [(0.001, -0.002), (0.003, 0.001), (-0.002, 0.002)]

    def cells(worth=0.0):
        return [Pair(t, s, t == s, 1.0, k, teacher / 100, student / 100 + shake[t == s] + worth * (t == s), 0.95)
                for (t, s), (teacher, student) in means.items() for k, shake in enumerate(shaken)]  # fmt: skip

    told = distilling.interpretation(cells())
    assert "better from" not in told
    assert told.count("no verdict") == 2
    assert "effect of its own: +0.5 ± " in told
    assert told.endswith("for own kind, no clear difference.")
    assert "+5.5 ± " in distilling.interpretation(cells(0.05))
    assert distilling.interpretation(cells(0.05)).endswith("for own kind, better.")
    assert distilling.interpretation(cells(-0.05)).endswith("for own kind, worse.")


def test_students_by_name():
    assert student_options("resnet18@0.5", "small") == {"name": "resnet18", "width": 0.5, "stem": "small"}
    assert student_options("timm:resnet18", "small") == {"name": "timm:resnet18"}
    with pytest.raises(UserError, match="'wide' is no width"):
        student_options("resnet18@wide", None)
    with pytest.raises(UserError, match="--teachers must name"):
        DistillStudyConfig()
