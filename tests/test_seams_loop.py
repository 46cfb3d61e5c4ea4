"""Each part of the loop is asked about the step that it is, of the run that it is: counted once, and not one off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asked import Asked
from sound_files import speech_folder
from test_seams_runs import IMAGES, RUN, SOUNDS
from twofold.commands.pretrain import pretrain
from twofold.data import Loader
from twofold.errors import Stopped
from twofold.methods import base as methods
from twofold.training import loop as loops
from twofold.training.best import Best
from twofold.training.checkpoint import checkpoints
from twofold.training.health import Health
from twofold.training.health_contrast import Contrast
from twofold.training.loop import Training
from twofold.training.metrics import MetricsFile
from twofold.training.soundness import Soundness

TRAINING = {"device": "cpu", "precision": "fp32", "checkpoint_every": 4, "log_every": 3, "keep": 5}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    told = Asked(monkeypatch)
    told.of(loops, "Vigil", "patience", "pulse")
    told.of(loops, "ProgressReport")
    told.of(loops, "derive_seed")
    told.of(loops, "load_checkpoint", "steps")
    told.of(loops, "save_checkpoint", "step", "keep", "spare")
    told.of(loops, "set_aside", "step")
    told.of(methods, "retrieval_auc", "normalize")
    told.of(Loader, "iterate", "start", "stop")
    told.of(Soundness, "after_forward", "step")
    told.of(Soundness, "check_loss", "step")
    told.of(Soundness, "check_state", "step")
    told.of(Best, "consider", "step")
    told.of(Health, "advice", "step")
    told.of(MetricsFile, "restore", "step")
    return told


def test_every_part_of_the_loop_counts_alike(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """21 steps in batches of 8, stopped after the seventh and resumed; rows every 3 steps, checkpoints every 4."""
    real, built = Training.agree, list[Any]()
    monkeypatch.setattr(
        Training, "agree", lambda self, number: built.append(self) or self.step == 7 or real(self, number)
    )
    options = {**RUN, "training": TRAINING, "method": {"name": "simclr", "normalize": False, "temperature": 0.3}}
    with pytest.raises(Stopped):
        pretrain(IMAGES, tmp_path / "run", report=False, **options)
    assert [(patience, pulse.args) for patience, pulse in asked.taken("Vigil")] == [(60.0, (0,))]
    assert asked.taken("ProgressReport") == [(21, 0, 8, "images", False)]
    assert asked.taken("iterate") == [(0, 21)]
    assert asked.taken("save_checkpoint") == [(4, 5, None), (7, 5, None)]
    assert asked.taken("check_state") == asked.taken("consider") == [4, 7]
    assert asked.taken("after_forward") == [*range(7)]
    assert asked.taken("advice") == [3, 6]
    assert asked.taken("check_loss") == [3, 6]
    assert [call for call in asked.taken("derive_seed") if "step" in call] == [(3, "step", k, 0) for k in range(7)]
    assert set(asked.taken("retrieval_auc")) == {False}
    for name in ("load_checkpoint", "set_aside", "restore"):
        asked[name].clear()
    monkeypatch.setattr(Training, "agree", real)
    logged = list[Any]()
    accelerator = type(built[0].accelerator)
    monkeypatch.setattr(accelerator, "log", lambda _, row, step: logged.append((step, "step" in row, row["loss"])))
    pretrain(IMAGES, tmp_path / "run", report=False, resume=True, **options)
    assert [pulse.args for _, pulse in asked["Vigil"]] == [(7,)]
    assert asked["ProgressReport"] == [(21, 7, 8, "images", False)]
    assert asked["iterate"] == [(7, 21)]
    assert set(asked["load_checkpoint"]) == {21}
    assert (asked["set_aside"], asked["restore"]) == ([7], [7])
    assert [call[0] for call in asked["save_checkpoint"]] == [8, 12, 16, 20, 21]
    assert asked["after_forward"] == [*range(7, 21)]
    assert asked["check_loss"] == [9, 12, 15, 18, 21]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 21]
    assert logged == [(row["step"], False, row["loss"]) for row in rows[2:]]


class Begun(Exception):
    """A run begins, and is not trained."""


def begin(source: Any, out: Path, /, rank: int = 0, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """The loop of a run that is about to begin on a rank, and what its progress report was given."""
    given, begun, real = list[Any](), list[Any](), Training.health

    def report(*parts: Any) -> Any:
        given.append(parts)
        raise Begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "health", lambda self: begun.append(self) or real(self))
        patch.setattr(loops, "ProgressReport", report)
        patch.setattr(loops, "rank", lambda: rank)
        with pytest.raises(Begun):
            pretrain(source, out, report=False, **options)
    return begun[0], given[0]


def test_rows_are_judged_by_what_the_method_contrasts(tmp_path: Path) -> None:
    method = {"name": "simclr", "normalize": False, "temperature": 0.3}
    loop, report = begin(IMAGES, tmp_path / "images", **{**RUN, "method": method})
    assert report == (21, 0, 8, "images", False)
    health = loop.health()
    assert (health.total, health.contrast) == (21, Contrast("image", 8, 0.3, False, True, 8))
    assert health.norm == loop.method.encoder_norm()
    loop.step = 3
    loop.clock.marks = 11
    assert (loop.pulse(3).marks, loop.pulse(3).step, loop.pulse(3).long, loop.pulse(2).long) == (11, 3, True, False)
    loop.best.step = 3
    for loop.step in (3, 4, 5, 6):  # of which the last two are kept, and the best
        loop.save()
    assert [path.name for path in checkpoints(tmp_path / "images")] == [f"step-{k:09d}.pt" for k in (3, 5, 6)]
    folder = speech_folder(tmp_path / "clips", 2, 8)
    method = {"contrastive_weight": 0.0, "temperature": 0.3}
    loop, report = begin(folder, tmp_path / "sounds", 1, **{**SOUNDS, "method": method})
    assert report == (loop.steps, 0, 8, "recordings", True)
    assert loop.health().contrast == Contrast("audio", 8, 0.3, True, False, 8)


def test_a_run_that_goes_on_shows_its_earlier_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _ = begin(IMAGES, tmp_path / "images", **RUN)
    told = Asked(monkeypatch)
    told.of(Health, "replay", "since")
    loop.step = 3
    assert loop.health().norm is None  # the weights are not those of the start
    loop.ends = (2, 5, 21)  # of a run of 2 steps that was extended to 5, and now to 21
    loop.health()
    assert told.taken("replay") == [0, 5]
