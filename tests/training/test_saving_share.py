"""Where the distance of checkpoints is left open, saving takes a hundredth of a run's time; else they come as asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import OPTIONS, images

import twofold.training.loop as loop
from twofold.commands.pretrain import pretrain
from twofold.options import merge
from twofold.runs.build import SAVING_SHARE

OPEN = merge(OPTIONS, {"training": {"checkpoint_every": None}, "report": False, "monitor": {"every": 0}})
SAVING, STEP = 0.2, 0.02
"""Seconds."""


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of saves, by a clock that steps and saves alone move: how fast the machine is changes nothing."""
    now, steps = [0.0], list[int]()
    write, update = loop.save_checkpoint, loop.Training.update

    def slow(folder: Path, step: int, *given: Any) -> Path:
        now[0] += SAVING
        steps.append(step)
        return write(folder, step, *given)

    def steady(*given: Any) -> Any:
        now[0] += STEP
        return update(*given)

    monkeypatch.setattr(loop, "save_checkpoint", slow)
    monkeypatch.setattr(loop.Training, "update", steady)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return steps


def train(out: Path, options: dict[str, Any], labelled: bool = False) -> dict[str, torch.Tensor]:
    x, y = images()
    pretrain((x, y) if labelled else x, out=out, **options)
    newest = sorted((out / "checkpoints").iterdir())[-1]
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)["method"]
    return state


def test_epochs_that_are_short_are_not_saved_each(saved: list[int], tmp_path: Path) -> None:
    """An epoch is 4 steps. What is saved changes nothing of what is learned."""
    some = train(tmp_path / "some", merge(OPEN, {"epochs": 10}))
    assert SAVING / SAVING_SHARE > 41 * STEP
    assert saved == [4, 41]
    saved.clear()
    every = train(tmp_path / "every", merge(OPEN, {"epochs": 10, "training": {"checkpoint_every": 4}}))
    assert saved == [*range(4, 41, 4), 41]
    assert all(some[name].equal(every[name]) for name in every)


def test_the_share_is_kept(saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share of a quarter a save comes after three times what the one before took, 0.6 s or 30 steps, and not
    much later: at the next end of an epoch."""
    monkeypatch.setattr("twofold.runs.build.SAVING_SHARE", 0.25)
    train(tmp_path / "run", merge(OPEN, {"epochs": 25}))
    assert saved == [4, 36, 68, 100, 101]


def test_what_a_monitor_looked_at_is_saved(saved: list[int], tmp_path: Path) -> None:
    """Else the clock would choose which encoder is the best."""
    train(tmp_path / "run", merge(OPEN, {"epochs": 6, "monitor": {"every": 2}}), labelled=True)
    assert saved == [4, 8, 16, 24, 25]
