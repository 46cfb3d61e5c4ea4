"""`--extend`: epochs added to a finished run, for every method, stopped anywhere and resumed bit for bit."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from test_pretrain import learned, same_weights
from test_pretrain_moco import MOCO
from test_pretrain_speech import TINY
from tiny import OPTIONS, as_arguments, images

import twofold
from sound_files import speech_folder
from twofold import cli
from twofold.errors import Stopped, UserError
from twofold.options import merge
from twofold.training.loop import Training

METHODS = {
    "simclr": OPTIONS,
    "moco": MOCO,
    "memory": merge(OPTIONS, {"method": {"name": "simclr", "memory": 40, "memory_momentum": 0.9}}),
    "moco's cosine": merge(MOCO, {"optim": {"schedule": "cosine_epoch"}, "data": {"last_batch": "drop"}}),
    "speech": TINY,
}


@pytest.fixture(scope="module", params=METHODS)
def finished(request, tmp_path_factory):
    """A finished run, what it was trained on, and its options."""
    root = tmp_path_factory.mktemp("finished")
    data = speech_folder(root / "clips", 3, 12) if request.param == "speech" else images()
    run = twofold.pretrain(data, root / "run", report=False, **METHODS[request.param])
    return run, data, METHODS[request.param]


def copied(run, to):
    shutil.copytree(run.path, to)
    return to


def stop_after(monkeypatch, step):
    """End the next run after a step, as a signal does."""
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: self.step == step or real(self, asked))
    return real


def test_an_extension_goes_on_from_the_whole_state_and_resumes_bit_for_bit(finished, tmp_path, monkeypatch):
    run, data, options = finished
    straight = twofold.pretrain(data, copied(run, tmp_path / "straight"), extend=2.0, report=False)
    assert straight.steps > run.steps
    assert not same_weights(run, straight)
    assert learned(straight)[: len(run.rows())] == learned(run)
    assert [row["step"] for row in straight.rows()] == sorted({row["step"] for row in straight.rows()})
    epochs = [row["epoch"] for row in straight.rows()]
    assert epochs[-1] == pytest.approx(options["epochs"] + 2, abs=0.3)

    out = copied(run, tmp_path / "stopped")
    real = stop_after(monkeypatch, run.steps + 3)
    with pytest.raises(Stopped, match="--resume"):
        twofold.pretrain(data, out, extend=2.0, report=False, **options)
    monkeypatch.setattr(Training, "agree", real)
    resumed = twofold.pretrain(data, out, resume=True, report=False, **options)
    assert same_weights(straight, resumed)
    assert learned(straight) == learned(resumed)
    first, second = (torch.load(each.latest(), weights_only=True) for each in (straight, resumed))
    torch.testing.assert_close(first["method"], second["method"], rtol=0, atol=0)
    torch.testing.assert_close(first["optimizer"]["state"], second["optimizer"]["state"], rtol=0, atol=0)


def test_killed_before_its_first_step_it_is_resumed(finished, tmp_path, monkeypatch):
    run, data, _ = finished
    straight = twofold.pretrain(data, copied(run, tmp_path / "straight"), extend=1.0, report=False)

    def killed(_self):
        raise KeyboardInterrupt

    real, out = Training.fit, copied(run, tmp_path / "killed")
    monkeypatch.setattr(Training, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        twofold.pretrain(data, out, extend=1.0, report=False)
    monkeypatch.setattr(Training, "fit", real)
    assert same_weights(straight, twofold.pretrain(data, out, resume=True, report=False))


@pytest.fixture(scope="module")
def simclr(tmp_path_factory):
    return twofold.pretrain(images(), tmp_path_factory.mktemp("simclr") / "run", report=False, **OPTIONS)


def test_the_optimiser_and_the_projection_head_are_those_of_the_checkpoint(simclr, tmp_path, monkeypatch):
    seen = {}

    def look(self):
        seen.update(step=self.step, method=self.method.state_dict(), optimizer=self.optimizer.state_dict())
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "fit", look)
    with pytest.raises(KeyboardInterrupt):
        twofold.pretrain(images(), copied(simclr, tmp_path / "run"), extend=1.0)
    kept = torch.load(simclr.latest(), weights_only=True)
    assert seen["step"] == kept["step"] == simclr.steps
    torch.testing.assert_close(seen["method"], kept["method"], rtol=0, atol=0)
    torch.testing.assert_close(seen["optimizer"]["state"], kept["optimizer"]["state"], rtol=0, atol=0)
    assert kept["optimizer"]["state"]


def test_twice_is_one_curve_and_written_down(simclr, tmp_path, capsys):
    out = copied(simclr, tmp_path / "run")
    twofold.pretrain(images(), out, extend=2.0, report=False)
    capsys.readouterr()
    result = twofold.pretrain(images(), out, extend=3.0)
    told = " ".join(capsys.readouterr().out.split())
    assert "is extended by 3 epochs, steps 26 to 37; the learning rate rises from 0 to 0.006 over 1 step " in told
    rows = result.rows()
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[-1]["step"] == 37 == 64 * 9 // 16 + 1
    rates = {row["step"]: row["lr"] for row in rows}
    assert rates[26] == 0
    assert rates[18] == 0
    assert rates[28] > rates[36] > 0
    document = yaml.safe_load((out / "config.yaml").read_text())
    assert document["options"]["epochs"] == 4
    assert document["options"]["extensions"] == [2.0, 3.0]
    assert [(each["from_step"], each["epochs"]) for each in document["run"]["extended"]] == [(17, 2.0), (25, 3.0)]
    assert document["run"]["extended"][0]["versions"]["torch"]
    assert "4 + 2 + 3 epochs of batches of 16" in (out / "report.html").read_text()


def test_the_same_passes_planned_at_once_are_the_same_run(simclr, tmp_path):
    """The option that an extension leaves in config.yaml says all that it did."""
    extended = twofold.pretrain(images(), copied(simclr, tmp_path / "run"), extend=2.0, report=False)
    again = twofold.pretrain(images(), tmp_path / "again", config=extended.config_file, report=False)
    assert same_weights(extended, again)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"optim.lr": 1.0}, "--optim.lr is 1.0, but .* extend the run without the option"),
        ({"batch": 32}, "--batch is 32"),
        ({"epochs": 8}, "--epochs is 8.*--extend adds epochs to a finished run"),
        ({"resume": True}, "give one of them"),
        ({"extend": 0}, "--extend 0: give the number of epochs"),
        ({"extend": -1.0}, "--extend -1: give"),
        ({"extend": float("inf")}, "--extend inf: give"),
        ({"extend": 0.001}, "0.001 more epochs are not one step"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(simclr, tmp_path, changed, words):
    out = copied(simclr, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=words):
        twofold.pretrain(images(), out, **({"extend": 2.0} | changed))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_longer_epochs_at_resume_tell_of_extend(simclr):
    with pytest.raises(UserError, match=r"--epochs is 8, but .* --extend adds epochs to a finished run"):
        twofold.pretrain(images(), simclr.path, resume=True, epochs=8)


def test_other_data_are_refused(simclr, tmp_path):
    out = copied(simclr, tmp_path / "run")
    with pytest.raises(UserError, match="the data has changed"):
        twofold.pretrain(images(seed=9), out, extend=2.0)
    assert "extended" not in yaml.safe_load((out / "config.yaml").read_text())["run"]


def test_no_run_and_an_unfinished_run_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no run in"):
        twofold.pretrain(images(), tmp_path / "none", extend=2.0, **OPTIONS)
    assert not (tmp_path / "none").exists()
    real = stop_after(monkeypatch, 6)
    with pytest.raises(Stopped):
        twofold.pretrain(images(), tmp_path / "run", **OPTIONS)
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="has done 6 of its 17 steps: finish it with --resume first"):
        twofold.pretrain(images(), tmp_path / "run", extend=2.0)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == rows
    monkeypatch.setattr(Training, "agree", real)
    twofold.pretrain(images(), tmp_path / "run", resume=True, report=False)
    stop_after(monkeypatch, 20)
    with pytest.raises(Stopped):
        twofold.pretrain(images(), tmp_path / "run", extend=2.0)
    with pytest.raises(UserError, match="has done 20 of its 25 steps: finish it with --resume first"):
        twofold.pretrain(images(), tmp_path / "run", extend=2.0)


@pytest.mark.parametrize("keep_one", [True, False])
def test_without_the_last_checkpoint_it_says_what_is_needed(simclr, tmp_path, keep_one):
    out = copied(simclr, tmp_path / "run")
    checkpoints = sorted((out / "checkpoints").iterdir())
    for path in checkpoints[-1:] if keep_one else checkpoints:
        path.unlink()
    kept = "--resume trains again from step 16" if keep_one else "none is kept"
    with pytest.raises(UserError, match=rf"(?s)step-000000017\.pt.*{kept}.*--start_from {out}"):
        twofold.pretrain(images(), out, extend=2.0)


def test_the_command_line_extends(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", images=images()[0])
    words = ["pretrain", str(tmp_path / "data.npz"), "--out", str(tmp_path / "run")]
    options = as_arguments(merge(OPTIONS, {"monitor": {"every": 0}}))
    assert cli.main([*words, *options]) == 0
    assert cli.main([*words, *options, "--extend", "1"]) == 0
    assert "is extended by 1 epoch, steps" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*words, "--extend", "1", "--resume"]) == 2
