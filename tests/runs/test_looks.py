"""How a run is watched: within a twentieth of its time, from images decoded once, and the same after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import OPTIONS, images

import twofold
from twofold.data import FileSource
from twofold.data.config import DataConfig
from twofold.encoders import ResNet
from twofold.evaluation.features import Extractor
from twofold.evaluation.monitors import MonitorConfig, hold_out
from twofold.evaluation.prepared import Prepared
from twofold.runs.looks import BEFORE, LOOKING_SHARE, READ, TRAINED, plan_looks
from twofold.training.loop import Training


def cost(looks: Any, epochs: float, examples: int) -> float:
    """Share of the passes forward that looks take, as `plan_looks` counts them."""
    return (looks.bank + looks.queries) * (np.ceil(epochs / looks.every) + READ + BEFORE) / (TRAINED * examples)


@pytest.mark.parametrize("count", [400, 800, 5000, 60_000])
@pytest.mark.parametrize("epochs", [1, 3, 8, 15, 33, 100, 400])
def test_looks_stay_within_their_share(count: int, epochs: int) -> None:
    labels = np.arange(count) % 7
    bank, queries = hold_out(labels, 0, 0.1, 5000)
    looks = plan_looks(MonitorConfig(), epochs, epochs * count, len(bank), len(queries))
    asked = int(np.ceil(epochs / looks.every))
    if looks.bank + looks.queries > 64:
        assert cost(looks, epochs, epochs * count) <= LOOKING_SHARE
    assert 1 <= asked <= 21
    assert looks.queries >= 0.09 * (looks.bank + looks.queries)
    smaller = hold_out(labels, 0, 0.1, (looks.bank, looks.queries))
    assert set(smaller[0]) <= set(bank)
    assert set(smaller[1]) <= set(queries)


def test_long_runs_are_looked_at_whole_and_what_is_asked_for_is_done() -> None:
    whole = plan_looks(MonitorConfig(), 200, 200 * 800, 720, 80)
    assert (whole.every, whole.bank, whole.queries) == (10, 720, 80)
    told = plan_looks(MonitorConfig(every=1, samples=300), 3, 3 * 800, 720, 80)
    assert (told.every, told.bank, told.queries) == (1, 300, 80)
    often = plan_looks(MonitorConfig(every=1), 20, 20 * 800, 720, 80)
    assert often.every == 1
    assert 64 <= often.bank + often.queries < 160
    seldom = plan_looks(MonitorConfig(samples=5000), 20, 20 * 800, 720, 80)
    assert (seldom.every, seldom.bank, seldom.queries) == (20, 720, 80)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures, labels = images(64, 48)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (tmp_path / "data" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[: 40 + i % 9]).save(tmp_path / "data" / str(label) / f"{i}.png")
    return tmp_path / "data"


def test_a_file_is_decoded_once_however_often_a_run_looks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = FileSource.read
    monkeypatch.setattr(FileSource, "read", lambda source, index: read.append(index) or whole(source, index))
    options = OPTIONS | {"epochs": 4, "monitor": {"every": 1}, "data": {"workers": 0}, "views": {"size": 16}}
    run = twofold.pretrain(folder, folder.parent / "run", report=False, **options)
    assert len([row for row in run.rows() if "knn_top1" in row]) == 5  # the last epoch has a step more
    assert sorted(read) == list(range(64))  # by the loader's cache; the looks take them from there
    read.clear()
    options["data"] = {"workers": 0, "cache": "off"}
    again = twofold.pretrain(folder, folder.parent / "off", report=False, **options)
    assert len(read) == 17 * 16 + 64  # the steps' own, and each image of the looks once
    assert [row["knn_top1"] for row in again.rows() if "knn_top1" in row] == [
        row["knn_top1"] for row in run.rows() if "knn_top1" in row
    ]


def test_what_is_kept_changes_no_feature_and_stays_within_its_bound(folder: Path) -> None:
    torch.manual_seed(0)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    source, net = FileSource(folder, files, DataConfig()), ResNet(10, 0.125, "cifar")
    plain = Extractor(size=16).extract(net, source)
    each = 4 * 3 * 16 * 16
    memory = Prepared(10 * each)
    kept = Extractor(size=16, memory=memory)
    first, second = kept.extract(net, source), kept.extract(net, source)
    assert np.array_equal(plain.h, first.h)
    assert np.array_equal(plain.h, second.h)
    assert (first.text, first.cut) == (second.text, second.cut) == (plain.text, plain.cut)
    assert memory.held == 10 * each
    assert np.array_equal(
        Extractor(size=24, memory=memory).extract(net, source).h, Extractor(size=24).extract(net, source).h
    )


def test_looks_and_what_is_learned_are_the_same_after_a_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = OPTIONS | {"monitor": {}, "views": {"size": 16}, "data": {"workers": 0}}
    whole = twofold.pretrain(folder, folder.parent / "whole", report=False, **options)
    save = Training.save

    def die(training: Training) -> None:
        save(training)
        if training.step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "save", die)
    with pytest.raises(KeyboardInterrupt):
        twofold.pretrain(folder, folder.parent / "stopped", report=False, **options)
    monkeypatch.undo()
    resumed = twofold.pretrain(folder, folder.parent / "stopped", report=False, resume=True, **options)
    looks = [[(row["step"], row["knn_top1"]) for row in run.rows() if "knn_top1" in row] for run in (whole, resumed)]
    assert looks[0] == looks[1] != []
    nets = [twofold.load(run.path).state_dict() for run in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*(net.values() for net in nets), strict=True))
    unwatched = twofold.pretrain(
        folder, folder.parent / "unwatched", report=False, **options | {"monitor": {"every": 0}}
    )
    bare = twofold.load(unwatched.path).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), bare.values(), strict=True))
