"""`--minutes`: epochs from a short trial, which leaves no trace in the run that follows."""

from __future__ import annotations

import inspect
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import twofold
from sound_files import RATE, speech_folder
from twofold import cli
from twofold.commands import pretrain as command
from twofold.errors import Stopped, UserError
from twofold.runs import pretrain
from twofold.runs.minutes import Rate, check_minutes, epochs_within, measure_rate
from twofold.training import loop
from twofold.training.loop import Training

TINY = {
    "batch": 8, "seed": 3, "training": {"device": "cpu", "precision": "fp32"}, "monitor": {"every": 0},
    "encoder": {
        "name": "speech:small",
        "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "sample_rate": RATE},
    },
    "head": {"out_dim": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return speech_folder(tmp_path_factory.mktemp("speech") / "clips", 3, 12)


class Clock:
    """Seconds that pass with each step of a training, and with each look of its monitors."""

    def __init__(self, monkeypatch, first=3.0, step=0.25, look=2.0):
        self.now, self.steps, self.first, self.step, self.look = 100.0, 0, first, step, look
        update, run_monitors = Training.update, Training.run_monitors

        def slow(training, *rest):
            self.now += self.first if self.steps < 2 else self.step
            self.steps += 1
            return update(training, *rest)

        def watching(training):
            self.now += self.look
            return run_monitors(training)

        monkeypatch.setattr(Training, "update", slow)
        monkeypatch.setattr(Training, "run_monitors", watching)

    def __call__(self):
        return self.now


@pytest.fixture
def trial(folder, tmp_path, monkeypatch):
    """A training of many steps, as the trial gets it, and what it was called with."""
    seen = {}

    class Enough(Exception):
        pass

    def measured(training, _budget):
        seen["training"] = training
        raise Enough

    def make(**options):
        monkeypatch.setattr(pretrain, "measure_rate", measured)
        with pytest.raises(Enough):
            twofold.pretrain(folder, tmp_path / "trial", report=False, minutes=1.0, **(TINY | options))
        return seen["training"]

    return make


def test_the_rate_is_that_of_the_later_steps(trial, monkeypatch):
    training, clock = trial(), Clock(monkeypatch)
    found = measure_rate(training, 10.0, clock)  # a twentieth of ten minutes: 30 s, of which two steps take 6
    assert found.step == pytest.approx(0.25)
    assert found.look == 0.0
    assert found.spent == pytest.approx(30.0)
    assert found.steps == 49


def test_the_trial_is_short_and_has_ten_steps_at_least(trial, monkeypatch):
    for budget, steps in ((0.01, 10), (1e9, 98)):
        clock = Clock(monkeypatch)
        found = measure_rate(trial(), budget, clock)
        monkeypatch.undo()
        assert found.steps == steps // 2
        assert found.spent == pytest.approx(6 + 0.25 * (steps - 2))


def test_monitors_are_timed_by_themselves(trial, monkeypatch):
    training = trial(monitor={"every": 1, "knn_k": 3})
    assert training.monitors
    found = measure_rate(training, 1.0, Clock(monkeypatch))
    assert (found.step, found.look) == (pytest.approx(0.25), pytest.approx(2.0))


def test_epochs_fill_what_the_trial_left():
    rate = Rate(step=0.25, look=0.0, spent=30.0, steps=96)
    epochs, told = epochs_within(10.0, rate, 4.0, 0)
    assert epochs == (600 - 30) / 0.25 / 4  # 570
    assert "10 minutes: 250 ms a step in 96 steps" in told
    assert epochs_within(10.0, Rate(0.7, 0.0, 30.0, 96), 3.0, 0)[0] == 271.0  # 271.43, rounded down
    # twenty-two looks of 10 s, or one every two epochs beside eight steps of 0.25 s
    assert epochs_within(10.0, Rate(0.25, 10.0, 30.0, 96), 4.0, 0)[0] == (600 - 30 - 220) / 0.25 / 4
    assert epochs_within(10.0, Rate(0.25, 10.0, 30.0, 96), 4.0, 2)[0] == 95.0
    # looks that the run keeps within 5 % cost no more than that
    assert epochs_within(10.0, Rate(0.25, 10.0, 30.0, 96), 4.0, 0, 0.05)[0] == 541.0  # of 541.5
    assert epochs_within(10.0, Rate(0.25, 10.0, 30.0, 96), 4.0, 2, 0.05)[0] == 541.0
    assert epochs_within(10.0, Rate(0.25, 0.001, 30.0, 96), 4.0, 0, 0.05)[0] == 569.0


@pytest.mark.parametrize("per_epoch", [1.0, 3.0, 7.0, 49.0, 97.5, 12345.0])
def test_one_step_at_least(per_epoch):
    epochs, told = epochs_within(0.001, Rate(5.0, 0.0, 30.0, 6), per_epoch, 0)
    assert int(per_epoch * epochs) == 1
    assert "not even one step fits" in told


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_no_time_is_refused(value):
    with pytest.raises(UserError, match="--minutes"):
        check_minutes(value)


@pytest.fixture
def fixed(monkeypatch):
    """A trial that takes real steps and finds a rate that does not depend on the machine."""
    real, found = measure_rate, []

    def measured(training, _budget):
        found.append(real(training, 0.001))
        return Rate(step=1.0, look=0.0, spent=3.0, steps=found[-1].steps)

    monkeypatch.setattr(pretrain, "measure_rate", measured)
    return found


def weights(run):
    return twofold.load(run).state_dict()


def same(a, b):
    return all(torch.equal(first, second) for first, second in zip(a.values(), b.values(), strict=True))


def test_the_run_is_that_with_as_many_epochs_bit_for_bit(folder, tmp_path, fixed, capsys):
    budget = 15 / 60  # 15 s, of which 12 are left, for 12 steps of the fixed rate
    out = tmp_path / "timed"
    run = twofold.pretrain(folder, out, report=False, minutes=budget, **TINY)
    assert fixed[0].steps == 5
    assert run.read(pretrain.RunConfig)[0].epochs == 3.0  # four steps an epoch
    assert run.steps == 12
    assert "epochs 3 (0.25 minutes" in capsys.readouterr().out
    straight = twofold.pretrain(folder, tmp_path / "straight", report=False, epochs=3.0, **TINY)
    assert same(weights(run.path), weights(straight.path))
    learned = [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows()]
    assert learned == [{k: v for k, v in row.items() if k != "seconds"} for row in straight.rows()]


def test_a_run_that_is_resumed_keeps_its_epochs(folder, tmp_path, fixed, monkeypatch):
    budget, real = 15 / 60, Training.agree
    straight = twofold.pretrain(folder, tmp_path / "straight", report=False, minutes=budget, **TINY)
    monkeypatch.setattr(Training, "agree", lambda self, asked: self.step == 5 or real(self, asked))
    with pytest.raises(Stopped):
        twofold.pretrain(folder, tmp_path / "stopped", report=False, minutes=budget, **TINY)
    monkeypatch.setattr(Training, "agree", real)
    trials = len(fixed)
    for again in (99.0, None):  # another budget, or none, changes nothing of a run that is there
        run = twofold.pretrain(folder, tmp_path / "stopped", report=False, resume=True, minutes=again, **TINY)
        assert run.read(pretrain.RunConfig)[0].epochs == 3.0
    assert len(fixed) == trials
    assert same(weights(run.path), weights(straight.path))


@pytest.mark.usefixtures("fixed")
def test_it_wins_over_a_file_and_not_over_an_option(folder, tmp_path):
    (tmp_path / "options.yaml").write_text("epochs: 50\n")
    run = twofold.pretrain(
        folder, tmp_path / "run", report=False, minutes=0.1, config=tmp_path / "options.yaml", **TINY
    )
    assert run.read(pretrain.RunConfig)[0].epochs == 0.75
    with pytest.raises(UserError, match=r"--minutes 0\.1 .* --epochs 2"):
        twofold.pretrain(folder, tmp_path / "both", minutes=0.1, epochs=2, **TINY)
    with pytest.raises(UserError, match="--extend"):
        twofold.pretrain(folder, run.path, minutes=0.1, extend=2.0)
    assert not (tmp_path / "both").exists()


@pytest.mark.usefixtures("fixed")
def test_a_module_of_the_users_own_starts_as_it_was(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    options = {k: v for k, v in TINY.items() if k != "encoder"} | {"views": {"size": 16}}

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    own = net()
    timed = twofold.pretrain(pixels, tmp_path / "a", report=False, minutes=0.25, encoder=own, **options)
    epochs = timed.read(pretrain.RunConfig)[0].epochs
    twin = net()
    straight = twofold.pretrain(pixels, tmp_path / "b", report=False, epochs=epochs, encoder=twin, **options)
    assert same(twofold.load(timed.path, net()).state_dict(), twofold.load(straight.path, net()).state_dict())
    assert same(own.state_dict(), twin.state_dict())


def test_on_the_command_line_a_run_takes_what_was_asked_for(folder, tmp_path, capsys, monkeypatch):
    """Six seconds by a clock that steps alone move: trial and run together, but for less than one part in a hundred."""
    assert inspect.signature(measure_rate).parameters["clock"].default is time.monotonic
    clock = Clock(monkeypatch, first=0.2, step=0.02)
    monkeypatch.setattr(pretrain, "measure_rate", lambda training, budget: measure_rate(training, budget, clock))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=clock))
    words = ["--batch", "8", "--seed", "3", "--monitor.every", "0", "--training.device", "cpu"]
    words += ["--encoder.name", "speech:small", "--encoder.speech.width", "16", "--encoder.speech.heads", "2"]
    words += ["--encoder.speech.hidden", "32", "--encoder.speech.sample_rate", str(RATE), "--training.log_every", "50"]
    words += ["--training.checkpoint_every", "100000"]
    assert cli.main(["pretrain", str(folder), "--out", str(tmp_path / "run"), "--minutes", "0.1", *words]) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "0.1 minutes: 20 ms a step in 5 steps of a trial of" in told
    rows = twofold.pretrain(folder, tmp_path / "run", resume=True, report=False).rows()
    trial = 2 * 0.2 + 8 * 0.02
    assert 0.99 * (6 - trial) < rows[-1]["seconds"] <= 6 - trial
    assert rows[-1]["step"] == round(rows[-1]["seconds"] / 0.02)


def test_what_prints_options_makes_no_trial(folder):
    with pytest.raises(UserError, match="--minutes"):
        command.run({"data": str(folder), "minutes": 1.0, "print_config": True})


@pytest.mark.parametrize(("seconds", "symmetric"), [(0.01, True), (0.0001, False)])
def test_a_method_that_chooses_by_the_steps_is_timed_as_it_chooses(seconds, symmetric, tmp_path, monkeypatch):
    """MoCo's trial took one-sided steps, as for 20,000 steps and more, and the short run symmetric ones of twice the
    work: a minute took two."""
    tried = []

    def measured(training, budget):
        tried.append((training.method.symmetric, budget))
        return Rate(step=seconds, look=0.0, spent=0.5, steps=5)

    class Enough(Exception):
        pass

    begun, real = [], pretrain.assemble

    def assemble(config, *rest):
        if len(tried) == 2:
            begun.append(config)
            raise Enough
        return real(config, *rest)

    monkeypatch.setattr(pretrain, "measure_rate", measured)
    monkeypatch.setattr(pretrain, "assemble", assemble)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    options = {k: v for k, v in TINY.items() if k != "encoder"} | {"views": {"size": 16}, "method": {"name": "moco"}}
    with pytest.raises(Enough):
        twofold.pretrain(pixels, tmp_path / "run", report=False, minutes=0.1, encoder={"width": 0.125}, **options)
    assert [budget for _, budget in tried] == [0.0, 0.1]  # the first tells no more than which it will be
    assert tried[0][0] is False
    assert tried[1][0] is symmetric
    assert bool(begun[0].method.symmetric) is symmetric
    assert begun[0].epochs == pytest.approx((6 - 2 * 0.5) / seconds / 6, rel=0.01)  # both trials are of the budget
