"""`twofold pretrain` as a user runs it: a run from start to report, stopped anywhere and resumed bit for bit."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import OPTIONS, as_arguments, images

import twofold
from twofold.errors import Stopped, UserError
from twofold.options import merge
from twofold.training.loop import Training
from twofold.training.rundir import RunDirectory


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run trained without a stop."""
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "whole", **OPTIONS)


def same_weights(first, second):
    a, b = load_file(first.encoder_file), load_file(second.encoder_file)
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def learned(run):
    """The metrics without what the clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows()]


def test_a_run_directory_is_complete(whole):
    document = yaml.safe_load(whole.config_file.read_text())
    assert document["run"]["images"] == 64
    assert document["run"]["versions"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert document["options"]["method"]["temperature"] == 0.2
    rows = whole.rows()
    assert [row["step"] for row in rows] == [*range(2, 17, 2), 17]
    for name in (
        "loss",
        "chance",
        "contrastive_top1",
        "contrastive_entropy",
        "alignment",
        "uniformity",
        "effective_rank",
        "negatives",
        "lr",
    ):
        assert np.isfinite(rows[-1][name])
    assert rows[-1]["chance"] == pytest.approx(np.log(31))
    assert rows[-1]["negatives"] == 30
    assert {"knn_top1", "probe_top1"} <= rows[-1].keys()
    looks = [row for row in rows if "knn_top1" in row]
    assert len({row["knn_before"] for row in looks}) == 1, "the look before the first step, beside each"
    assert (whole.path / "report.html").stat().st_size > 10_000
    best = max((row for row in rows if "knn_top1" in row), key=lambda row: row["knn_top1"])["step"]
    kept = {int(path.stem.removeprefix("step-")) for path in (whole.path / "checkpoints").iterdir()}
    assert kept == {best, 16, 17}  # the last two, and the best one beside them


def test_the_monitors_look_when_due_and_not_only_where_both_intervals_meet(tmp_path):
    """Epochs need not be whole steps, so that a look every few epochs need not fall on a logged step."""
    options = merge(OPTIONS, {"monitor": {"every": 2}, "training": {"log_every": 5}})
    rows = twofold.pretrain(images(), tmp_path / "run", **options).rows()
    assert [row["step"] for row in rows] == [5, 10, 15, 17]
    assert [row["step"] for row in rows if "knn_top1" in row] == [10, 17]  # due after steps 8 and 16


def test_load_gives_the_encoder_ready_to_use(whole):
    encoder = twofold.load(whole.path)
    x = torch.as_tensor(images()[0]).permute(0, 3, 1, 2)[:5].float() / 255
    assert not encoder.training
    assert encoder(x).shape == (5, encoder.feature_dim)


def test_training_is_repeatable(whole, tmp_path):
    again = twofold.pretrain(images(), tmp_path / "again", **OPTIONS)
    assert same_weights(whole, again)
    assert learned(whole) == learned(again)


def test_another_seed_is_another_run(whole, tmp_path):
    other = twofold.pretrain(images(), tmp_path / "other", **merge(OPTIONS, {"seed": 4}))
    assert not same_weights(whole, other)


@pytest.mark.parametrize("stop_at", [1, 5, 8, 15])
def test_stopped_anywhere_and_resumed_it_is_the_same_run(whole, tmp_path, monkeypatch, stop_at):
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: self.step == stop_at or real(self, asked))
    with pytest.raises(Stopped, match="--resume"):
        twofold.pretrain(images(), tmp_path / "run", **OPTIONS)
    monkeypatch.setattr(Training, "agree", real)
    run = twofold.pretrain(images(), tmp_path / "run", resume=True, **OPTIONS)
    assert same_weights(whole, run)
    assert learned(whole) == learned(run)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """(the data's file, the options, a run trained without a stop) of a run long enough to be met at work."""
    where, (x, y) = tmp_path_factory.mktemp("long"), images()
    np.savez(where / "data.npz", images=x, labels=y)
    options = merge(OPTIONS, {"epochs": 40, "training.checkpoint_every": 1000, "monitor.every": 20})
    return where / "data.npz", options, twofold.pretrain(where / "data.npz", where / "straight", **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_run_that_resumes_to_the_same_weights(long, tmp_path, number):
    data, options, straight = long
    command = [sys.executable, "-m", "twofold", "pretrain", str(data), *as_arguments(options)]
    run = RunDirectory(tmp_path / "run")
    process = subprocess.Popen(
        [*command, "--out", str(run.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run.metrics_file.exists() and len(run.metrics_file.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "--resume" in err
    assert run.latest() is not None
    assert run.latest_step() < straight.latest_step()
    resumed = twofold.pretrain(data, run.path, resume=True, **options)
    assert same_weights(straight, resumed)
    assert learned(straight) == learned(resumed)


def test_a_cut_short_metrics_line_is_mended_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "agree", lambda self, _asked: self.step == 5)
    with pytest.raises(Stopped):
        twofold.pretrain(images(), tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run = twofold.pretrain(images(), tmp_path / "run", resume=True, **OPTIONS)
    assert [row["step"] for row in run.rows()] == [*range(2, 17, 2), 17]


def test_resume_refuses_other_options_and_other_data(whole):
    with pytest.raises(UserError, match=r"optim\.lr"):
        twofold.pretrain(images(), whole.path, resume=True, **merge(OPTIONS, {"optim.lr": 0.5}))
    with pytest.raises(UserError, match="data has changed"):
        twofold.pretrain(images(seed=1), whole.path, resume=True, **OPTIONS)


def test_an_output_folder_in_use_is_refused(whole, tmp_path):
    before = whole.config_file.read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        twofold.pretrain(images(), whole.path, **OPTIONS)
    assert whole.config_file.read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no empty folder"):
        twofold.pretrain(images(), tmp_path, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="--batch"):
        twofold.pretrain(images(), tmp_path / "run", **merge(OPTIONS, {"batch": 128}))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_spoiled_weights_are_never_saved(tmp_path):
    options = merge(OPTIONS, {"optim": {"name": "sgd", "lr": 1e30, "lr_rule": "none", "warmup_epochs": 0}})
    with pytest.raises(UserError, match=r"--optim\.lr"):
        twofold.pretrain(images(), tmp_path / "run", **options)
    for path in (tmp_path / "run" / "checkpoints").glob("*"):
        saved = torch.load(path, weights_only=True)
        assert all(torch.isfinite(v).all() for v in saved["method"].values() if v.is_floating_point())


def test_a_module_of_your_own_is_trained_and_loaded(tmp_path):
    def make():
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )

    options = {key: value for key, value in OPTIONS.items() if key != "encoder"}
    run = twofold.pretrain(images(), tmp_path / "run", encoder=make(), **options)
    assert twofold.load(run.path, encoder=make()).feature_dim == 8


def test_the_metrics_are_json_lines_that_any_tool_reads(whole):
    for line in whole.metrics_file.read_text().splitlines():
        assert isinstance(json.loads(line), dict)
