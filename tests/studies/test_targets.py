"""`twofold study distill-targets` and `twofold study views`: plans, what is measured, tables and figures."""

import json

import numpy as np
import pytest
import torch
from tiny import encoder_file, images

from twofold.commands.study import study
from twofold.errors import UserError
from twofold.options import OptionsParser
from twofold.report.tables import terminal
from twofold.runs.config import DistillConfig
from twofold.studies.base import StudyFolder
from twofold.studies.targets import TARGETS, TargetsConfig, TargetsStudy, Taught
from twofold.studies.viewing import WITH, WITHOUT, Common, ViewingConfig, ViewingStudy, _histograms


@pytest.fixture
def data(tmp_path):
    x, y = images(48)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=images(24, seed=1)[0], y_test=y[:24])
    (tmp_path / "opts.yaml").write_text("training: {device: cpu, precision: fp32, threads: 1}")
    encoder_file(tmp_path / "encoder.safetensors")
    return tmp_path


def planned(data, **options):
    config = TargetsConfig(run=str(data / "encoder.safetensors"), config=str(data / "opts.yaml"), **options)
    made = TargetsStudy(str(data / "data.npz"), config, StudyFolder(data / "s", "distill-targets", {}))
    return made, made.plan()


def test_teachers_come_first_and_students_learn_from_their_own_labels(data):
    made, parts = planned(data, labels=("8", "16"), seeds=2, epochs=4.0, batch=16)
    assert [bool(part.student) for part in parts] == [False] * 4 + [True] * 16
    assert [part.work["options"]["labels"] for part in parts[:4]] == ["8", "8", "16", "16"]
    for part in parts[4:]:
        teacher = next(each for each in parts if each.name == part.work["teacher"])
        assert (teacher.labels, teacher.seed) == (part.labels, part.seed)
        assert part.work["options"]["seed"] == teacher.work["options"]["seed"], "the same choice of labels"
        assert "draw" not in teacher.work["options"], "students know no other draw"
    assert len({part.name for part in parts}) == 20
    assert "resnet10@0.125 from teacher, all images, 8 of the labels, seed 0" in made.describe(parts[7])


def test_all_targets_make_the_same_steps(data):
    """48 images: 4 epochs of 16 are 12 steps; of 8 labelled images as many, 8 at a time."""
    _, parts = planned(data, labels=("8",), seeds=1, epochs=4.0, batch=16)
    options = {part.target: part.work["options"] for part in parts if part.student}
    built = {name: OptionsParser(DistillConfig).build(each) for name, each in options.items()}
    assert {name: (c.alpha, c.labels, c.batch, c.epochs) for name, c in built.items()} == {
        "labels": (0.0, "all", 8, 12.0), "both-labelled": (0.5, "all", 8, 12.0),
        "both-all": (0.5, "8", 16, 4.0), "teacher": (None, None, 16, 4.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": None}, "--run is missing"),
        ({"labels": ()}, "--labels must name at least one"),
        ({"labels": ("all",)}, "--labels all leaves no image without a label"),
        ({"alpha": 1.0}, "--alpha must lie between 0 and 1, got 1"),
        ({"seeds": 0}, "--seeds and --jobs must be at least 1, got 0 and 1"),
        ({"students": ("a", "a")}, "--students must name at least one, and none twice"),
    ],
)
def test_what_cannot_be_taught(options, message):
    with pytest.raises(UserError, match=message):
        TargetsConfig(**{"run": "x", **options})


def test_a_file_cannot_set_what_the_study_sets(data):
    (data / "opts.yaml").write_text("{alpha: 0.3}")
    with pytest.raises(UserError, match=r"sets alpha, which the study sets itself: .* as --alpha"):
        planned(data, labels=("8",))
    (data / "opts.yaml").write_text("{squared_temperature: true}")
    _, parts = planned(data, labels=("8",), seeds=1)
    assert all(part.work["options"]["squared_temperature"] for part in parts if part.student)
    with pytest.raises(UserError, match=r"--from_head 1: the run's head has 0 layers; give 0\.\.0"):
        planned(data, labels=("8",), from_head=1)


def taught(students=("a",), seeds=3):
    gains = {"labels": 0.0, "both-labelled": 0.1, "both-all": 0.3, "teacher": 0.3}
    return [
        Taught(
            student, share, target, seed, 0.4 + gain + 0.05 * at + 0.01 * seed + 0.001 * seed * (target == "teacher"),
            0.8, 1_000_000 * (at + 1), 5_000_000,
        )
        for seed in range(seeds) for at, student in enumerate(students) for share in ("1%", "10%")
        for target, gain in gains.items()
    ]  # fmt: skip


def test_targets_side_by_side():
    made = TargetsStudy("data", TargetsConfig(run="x"), None)
    table = made.table(taught())
    assert [row[0] for row in table.rows] == [*TARGETS.values(), "the teacher itself, fine-tuned"]
    assert [row[1] for row in table.rows] == ["41.0 ± 1.0", "51.0 ± 1.0", "71.0 ± 1.0", "71.1 ± 1.1", "80.0 ± 0.0"]
    assert "values are not confirmed here" in terminal(table)
    told = made.interpretation(taught())
    assert "a, 1% of labels, less labels: +30.1 ± 0.2, better" in told
    assert "a, 10% of labels, less both, all images: +0.1 ± 0.2, no clear difference" in told
    (bars,) = made.page(taught()).figures
    assert "labels: 41.0 %, 41.0 %." in bars.alt
    several = made.page(taught(("a", "b")))
    assert [figure.title for figure in several.figures] == ["With 1% of the labels", "With 10% of the labels"]
    assert "labels: 1M: 41.0 %, 2M: 46.0 %." in several.figures[0].alt
    assert "the teacher: 5M: 80.0 %." in several.figures[0].alt
    assert several.tables[0].rows[4][0] == "b: labels"


@pytest.mark.slow
def test_students_are_taught_two_at_a_time_and_kept(data):
    options = {"run": str(data / "encoder.safetensors"), "config": str(data / "opts.yaml"), "labels": ("8",),
               "seeds": 1, "epochs": 1.0, "batch": 16, "teacher_epochs": 1.0, "jobs": 2}  # fmt: skip
    text = study("distill-targets", data / "data.npz", data / "s", **options).text()
    results = json.loads((data / "s" / "study.json").read_text())["results"]
    assert [each["target"] for each in results] == list(TARGETS)
    assert len({each["teacher_top1"] for each in results}) == 1, "one teacher taught all"
    before = {file: file.stat().st_mtime_ns for file in (data / "s").rglob("encoder.safetensors")}
    assert study("distill-targets", data / "data.npz", data / "s", resume=True, **options).text() == text
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())


def test_histograms_of_crops_without_colour_distortion_are_more_alike(data, tmp_path):
    result = study("views", data / "data.npz", tmp_path / "v", images=2, crops=3, **{"views.size": 32})
    without, distorted = result.cells
    assert (without.distortion, distorted.distortion) == (WITHOUT, WITH)
    assert without.same > without.others
    assert without.same - without.others > distorted.same - distorted.others
    page = result.page.read_text()
    assert page.count("Operators on image") >= 2
    for words in ("colour drop", "Sobel filter", "Gaussian blur", "cutout"):
        assert page.count(f"<figcaption>{words}</figcaption>") == 2
    again = study("views", data / "data.npz", tmp_path / "w", images=2, crops=3, **{"views.size": 32})
    assert again.cells == result.cells


def test_what_does_nothing_is_not_shown(tmp_path):
    grey, y = images(channels=1)
    np.savez(tmp_path / "grey.npz", images=grey, labels=y)
    made = ViewingStudy(str(tmp_path / "grey.npz"), ViewingConfig(), None)
    made.plan()
    names = [name for name, _ in made.gallery(0, "").tiles]
    assert names == [
        "original",
        "crop and resize",
        "colour jitter",
        "rotate",
        "cutout",
        "Gaussian noise",
        "Sobel filter",
    ]


def test_a_histogram_counts_every_value():
    x = torch.tensor([[0.0, 0.5], [1.0, 0.51]])[None, None]
    (found,) = _histograms(x)
    assert found.sum() == 1
    assert (found[0], found[16], found[31]) == (0.25, 0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "--images must lie between 1 and 8, got 0"),
        ({"crops": 6}, "--crops must lie between 2 and 5, got 6"),
        ({"views.operators": ["sobel"]}, "--views.operators is not for this study"),
        ({"views.color_strength": 0.0}, "--views.color_strength 0 distorts no colour"),
    ],
)
def test_views_that_cannot_be_shown(data, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        study("views", data / "data.npz", tmp_path / "v", **options)
    assert not (tmp_path / "v").exists()


def test_views_are_told_in_words():
    made = ViewingStudy("data", ViewingConfig(), None)
    cells = [Common(WITHOUT, 5, 0.8, 0.7), Common(WITH, 5, 0.5, 0.49)]
    assert made.interpretation(cells).endswith(
        "+10.0 points without colour distortion, +1.0 points with colour distortion."
    )
    assert made.table(cells).rows == [[WITHOUT, "80.0", "70.0"], [WITH, "50.0", "49.0"]]
