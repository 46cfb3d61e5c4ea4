"""`import twofold`: what it offers, groups of options by name, one style of result, and one contract of resuming."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
from tiny import OPTIONS, images

import twofold
from twofold.commands import COMMANDS
from twofold.errors import UserError
from twofold.results import Result

NAMES = {
    "pretrain", "evaluate", "finetune", "distill", "labels", "predict", "embed", "search", "explore", "label",
    "convert", "export", "transfer", "study", "shard", "recipes", "papers", "compare", "doctor", "load", "two_views",
    "fresh", "nt_xent", "info_nce",
}  # fmt: skip
OTHERS = {"Embedder", "losses", "views"}
"""A class, and modules."""
SMALL = {"epochs": 1, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}}
STUDY = {"per_class": 4, "draws": 1, "device": "cpu"}
FEW = {"counts": [4], "ways": ["linear"], "draws": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of one epoch, its data read as a group of options says."""
    options = OPTIONS | {"epochs": 1, "monitor": {"every": 0}}
    return twofold.pretrain(
        images(), tmp_path_factory.mktemp("runs") / "base", report=False, data={"workers": 0}, **options
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Images with a test part, in a file."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    (x, y), (x_test, y_test) = images(48), images(24, seed=1)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return str(path)


CALLS = {
    "pretrain": lambda _run, file, out, **more: twofold.pretrain(file, out, report=False, **SMALL, **more),
    "finetune": lambda run, file, out, **more: twofold.finetune(run, file, out, labels="4/class", **SMALL, **more),
    "distill": lambda run, file, out, **more: twofold.distill(run, file, out, teacher_labels="all", **SMALL, **more),
    "labels": lambda run, file, out, **more: twofold.labels(run, file, out=str(out), **FEW, **more),
    "study": lambda run, file, out, **more: twofold.study("classes", file, out, run=str(run), **STUDY, **more),
    "embed": lambda run, file, out, **more: twofold.embed(run, file, out.with_suffix(".npz"), device="cpu", **more),
    "shard": lambda _run, file, out, **more: twofold.shard(file, out, **more),
    "evaluate": lambda run, file, _out, **more: twofold.evaluate(run, file, protocol="knn", k=3, **more),
}


def test_the_door_shows_what_it_offers_and_nothing_else():
    assert set(dir(twofold)) == NAMES | OTHERS | {"__version__"}
    code = "import sys, twofold; print('torch' in sys.modules, *dir(twofold))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.split()[0] == "False"
    assert set(shown.split()[1:]) == NAMES | OTHERS | {"__version__"}
    for name in NAMES:
        function = getattr(twofold, name)
        assert inspect.isfunction(function)
        assert inspect.getdoc(function)
        assert name in ("load", "two_views", "nt_xent", "info_nce") or any(
            command.split()[0] == name for command in COMMANDS
        )
    with pytest.raises(AttributeError, match="no attribute 'demo'"):
        twofold.demo  # noqa: B018


@pytest.mark.parametrize("name", [name for name in CALLS if name != "pretrain"])
def test_data_is_a_group_of_options_for_every_command(pretrained, file, tmp_path, name):
    """The first parameters have no name that could stand in its way."""
    with pytest.raises(UserError, match=r"--data\.workers -1: give 0 or more"):
        CALLS[name](pretrained.path, file, tmp_path / "out", data={"workers": -1})
    with pytest.raises(UserError, match=r"there is no option 'data\.wrokers'; did you mean 'workers'"):
        CALLS[name](pretrained.path, file, tmp_path / "out", data={"wrokers": 0})
    assert not (tmp_path / "out").exists()


def test_transfer_has_groups_of_its_own(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"--budget\.steps and --budget\.batch must be at least 1, got 0"):
        twofold.transfer(pretrained.path, data="cars", root=str(tmp_path), budget={"steps": 0})


def check(result):
    """The contract of results."""
    assert isinstance(result, Result)
    assert all(isinstance(value, float | int) for value in result.metrics.values())
    assert result.text().strip()
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_a_pretrained_run_is_a_result(pretrained):
    check(pretrained)
    assert pretrained.metrics["loss"] == pretrained.rows()[-1]["loss"]
    assert "step" not in pretrained.metrics
    assert "encoder.safetensors" in pretrained.text()
    assert pretrained.steps == 5  # 64 // 16 and the reference's one more
    assert "workers: 0" in pretrained.config_file.read_text()


@pytest.mark.parametrize(("name", "measured"), [("finetune", "top1"), ("distill", "agreement"), ("labels", "linear "),
                                                ("study", "2 classes")])  # fmt: skip
def test_what_is_there_is_refused_without_resume_and_read_with_it(
    pretrained, file, tmp_path, monkeypatch, name, measured
):
    first = CALLS[name](pretrained.path, file, tmp_path / "out", data={"workers": 0})
    check(first)
    assert any(key.startswith(measured) for key in first.metrics)
    assert all(0 <= value <= 2 for value in first.metrics.values())
    what = "run" if name in ("finetune", "distill") else "study"
    words = f"already holds a {what}; continue it with --resume, or choose another folder"
    with pytest.raises(UserError, match=words):
        CALLS[name](pretrained.path, file, tmp_path / "out", data={"workers": 0})
    monkeypatch.setattr("twofold.training.loop.Training.fit", lambda _: pytest.fail("what is done is not done again"))
    again = CALLS[name](pretrained.path, file, tmp_path / "out", data={"workers": 0}, resume=True)
    assert again.metrics == first.metrics
    assert again.to_dict() == first.to_dict()


@pytest.mark.parametrize("name", ["pretrain", "finetune", "distill", "labels", "study"])
def test_files_of_others_are_left_alone_with_and_without_resume(pretrained, file, tmp_path, name):
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match="exists and is no empty folder; choose another one"):
            CALLS[name](pretrained.path, file, tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_other_results_are_like_these(pretrained, file, tmp_path):
    embedded = twofold.embed(pretrained.path, file, tmp_path / "f.npz", data={"workers": 0})
    packed = twofold.shard(file, tmp_path / "shards", data={"workers": 0})
    listed, one = twofold.recipes(), twofold.recipes("demo-mnist")
    evaluated = CALLS["evaluate"](pretrained.path, file, None, data={"workers": 0})
    for result in (embedded, packed, listed, one, evaluated):
        check(result)
    assert {"top1", "mean_per_class"} <= evaluated.metrics.keys()
    assert {part.path.name for part in packed.parts} == {"train", "test"}
    assert list(one.to_dict()) == ["demo-mnist"]
    assert one.text().startswith("demo-mnist\n")
