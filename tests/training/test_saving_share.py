"""Where the distance of checkpoints is left open, saving takes a hundredth of a run's time; else they come as asked."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import OPTIONS, images

import twofold.training.loop as loop
from twofold.commands.pretrain import pretrain
from twofold.options import merge
from twofold.runs.build import SAVING_SHARE

OPEN = merge(OPTIONS, {"training": {"checkpoint_every": None}, "report": False, "monitor": {"every": 0}})
SAVING = 0.2
"""Seconds."""


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Steps of slow saves, and the clock at their end."""
    times: dict[int, float] = {}
    write = loop.save_checkpoint

    def slow(folder: Path, step: int, *given: Any) -> Path:
        time.sleep(SAVING)
        path = write(folder, step, *given)
        times[step] = time.monotonic()
        return path

    monkeypatch.setattr(loop, "save_checkpoint", slow)
    return times


def train(out: Path, options: dict[str, Any], labelled: bool = False) -> dict[str, torch.Tensor]:
    x, y = images()
    pretrain((x, y) if labelled else x, out=out, **options)
    newest = sorted((out / "checkpoints").iterdir())[-1]
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)["method"]
    return state


def test_epochs_that_are_short_are_not_saved_each(saved: dict[int, float], tmp_path: Path) -> None:
    """An epoch is 4 steps. What is saved changes nothing of what is learned."""
    begun = time.monotonic()
    some = train(tmp_path / "some", merge(OPEN, {"epochs": 10}))
    assert time.monotonic() - begun < SAVING / SAVING_SHARE, "this machine is too slow for the test"
    assert list(saved) == [4, 41]
    saved.clear()
    every = train(tmp_path / "every", merge(OPEN, {"epochs": 10, "training": {"checkpoint_every": 4}}))
    assert list(saved) == [*range(4, 41, 4), 41]
    assert all(some[name].equal(every[name]) for name in every)


def test_the_share_is_kept(saved: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share of a quarter a save comes after three times what the one before took, and not much later."""
    monkeypatch.setattr("twofold.runs.build.SAVING_SHARE", 0.25)
    update = loop.Training.update

    def steady(*given: Any) -> Any:
        time.sleep(0.02)
        return update(*given)

    monkeypatch.setattr(loop.Training, "update", steady)
    train(tmp_path / "run", merge(OPEN, {"epochs": 25}))
    ends = list(saved.values())[:-1]
    assert len(ends) >= 3
    assert all(after - before >= 4 * SAVING for before, after in itertools.pairwise(ends))
    assert len(ends) < 25


def test_what_a_monitor_looked_at_is_saved(saved: dict[int, float], tmp_path: Path) -> None:
    """Else the clock would choose which encoder is the best."""
    train(tmp_path / "run", merge(OPEN, {"epochs": 6, "monitor": {"every": 2}}), labelled=True)
    assert list(saved) == [4, 8, 16, 24, 25]
