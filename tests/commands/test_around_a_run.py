"""Before, beside and after a run: what is told first, trackers, pages made anew, and what the machine can do."""

import json
import sys
import types

import numpy as np
import pytest
from accelerate.utils import LoggerType
from PIL import Image
from tiny import OPTIONS, as_arguments, images

from twofold import cli
from twofold.commands import doctor as doctors
from twofold.options import merge
from twofold.runs import pretrain as runs
from twofold.runs.tracking import finish

SHORT = as_arguments(merge(OPTIONS, {"epochs": 1}))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    x, y = images(24)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = folder / ("disc" if label else "bar") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return found


def test_tensorboard_gets_curves_options_and_pictures_and_goes_on_with_the_run(photos, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    words = ["pretrain", str(photos), "--out", str(tmp_path / "run"), *SHORT, "--training.track", "tensorboard"]
    assert cli.main(words) == 0, capsys.readouterr().err
    tags = events(tmp_path / "run" / "tensorboard").Tags()
    assert {"loss", "lr"} <= {*tags["scalars"]}
    assert {name.split("/")[0] for name in tags["images"]} == {"views", "neighbours"}
    assert any("options" in name for name in tags["tensors"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = events(tmp_path / "run" / "tensorboard").Scalars("loss")
    assert [(each.step, pytest.approx(each.value, rel=1e-6)) for each in told] == [(r["step"], r["loss"]) for r in rows]
    tuned = ["finetune", str(tmp_path / "run"), str(photos), "--out", str(tmp_path / "tuned"), "--epochs", "1",
             "--training.device", "cpu", "--training.track", "tensorboard"]  # fmt: skip
    assert cli.main(tuned) == 0
    assert "loss" in events(tmp_path / "tuned" / "tensorboard").Tags()["scalars"]
    assert "Result" in (tmp_path / "tuned" / "report.html").read_text()


@pytest.mark.parametrize("track", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_told_before_the_data_are_read(photos, tmp_path, capsys, monkeypatch, track):
    monkeypatch.setitem(sys.modules, track, None)
    monkeypatch.setattr("twofold.runs.tracking.importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(runs, "open_source", lambda *_, **__: pytest.fail("the data were read"))
    words = ["pretrain", str(photos), "--out", str(tmp_path / "run"), "--training.track", track]
    assert cli.main(words) == 2
    assert f"needs {track}: pip install {track}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wandb_is_told_all_and_a_resumed_run_is_the_same_one(photos, tmp_path, monkeypatch, capsys):
    """By a stand-in for the library, which notes what Accelerate calls."""
    calls = []

    class Run:
        def __init__(self):
            self.config = self

        def __getattr__(self, name):
            return lambda *args, **more: calls.append((name, args, more))

    def init(**more):
        calls.append(("init", (), more))
        fake.run = Run()
        return fake.run

    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace(name="wandb")
    fake.init, fake.Image, fake.config = init, lambda image, **_: ("image", np.asarray(image).shape), Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    words = ["pretrain", str(photos), "--out", str(tmp_path / "run"), *SHORT, "--training.track", "wandb"]
    assert cli.main(words) == 0, capsys.readouterr().err
    names = [name for name, _, _ in calls]
    assert names.count("init") == 1
    assert "finish" in names
    logged = [args[0] for name, args, _ in calls if name == "log"]
    assert any("loss" in values for values in logged)
    assert [name for values in logged for name in values if name in ("views", "neighbours")] == ["views", "neighbours"]
    known = json.loads((tmp_path / "run" / "trackers.json").read_text())
    assert cli.main([*words, "--resume"]) == 0
    ids = [more["id"] for name, _, more in calls if name == "init"]
    assert ids == [known["wandb"]] * 2


def test_trackio_gets_images_one_by_one(monkeypatch):
    """It drops a list of them with a warning."""
    logged = []
    library, tracker = types.ModuleType("trackio"), types.SimpleNamespace(name="trackio", finish=lambda: None)
    library.Image = lambda image: ("image", image.shape)
    tracker.run = types.SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    monkeypatch.setitem(sys.modules, "trackio", library)
    finish([tracker], 7, lambda: {"views": np.zeros((2, 8, 8, 3), np.uint8)})
    image = ("image", (8, 8, 3))
    assert logged == [({"views/00": image, "views/01": image}, 7)]


def test_an_occupied_out_is_told_before_the_data_are_read(photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("mine")
    monkeypatch.setattr(runs, "open_source", lambda *_, **__: pytest.fail("the data were read"))
    assert cli.main(["pretrain", str(photos), "--out", str(tmp_path / "run")]) == 2
    assert "exists and is no empty folder" in capsys.readouterr().err


def test_a_page_is_left_out_and_made_anew_with_what_was_evaluated_since(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["pretrain", str(photos), "--out", str(run), *SHORT, "--report", "false"]) == 0
    assert not (run / "report.html").exists()
    assert cli.main(["evaluate", str(run), str(photos), "--protocol", "knn", "--k", "3"]) == 0
    capsys.readouterr()
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == f"report: {run / 'report.html'}"
    page = (run / "report.html").read_text()
    assert "Evaluations" in page
    assert "Map of the representation" in page
    moved = photos.rename(photos.with_name("moved"))
    try:
        assert cli.main(["report", str(run)]) == 0
        assert "without views, neighbours and map" in capsys.readouterr().out
        assert "Map of the representation" not in (run / "report.html").read_text()
        assert cli.main(["report", str(run), str(moved)]) == 0
        assert "Map of the representation" in (run / "report.html").read_text()
    finally:
        moved.rename(photos)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_doctor_trains_a_step_and_tells_a_fault_by_its_status(capsys, monkeypatch):
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "SimCLR on 8 images, loss" in told
    assert "[speech]" in told
    monkeypatch.setattr(doctors, "pretrain", lambda *_, **__: 1 / 0)
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "fault    training step" in told
    assert "ZeroDivisionError" in told


def test_a_name_of_the_hub_fails_at_once_where_it_cannot_be_reached(tmp_path, capfd, monkeypatch):
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["pretrain", "hf:nobody/nothing", "--out", str(tmp_path / "run")]) == 2
    told = capfd.readouterr().err
    assert "the hub cannot be reached" in told
    assert "Retry" not in told
    assert not constants.HF_HUB_OFFLINE
    assert cli.main(["pretrain", "https://example.com/x.tar", "--out", str(tmp_path / "run")]) == 2
    assert "data are not read from addresses" in capfd.readouterr().err


def test_completion_knows_commands_options_and_values(capsys):
    pytest.importorskip("shtab")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for words in ("--optim.lr", "study_methods", "bf16", "--keep_classifier"):
        assert words in script
