"""What a run was told reaches its loop, its reading and its monitors: runs that are built and not trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sound_files import RATE, speech_folder, tone, write
from twofold import kinds
from twofold.commands.pretrain import pretrain
from twofold.optim import WarmupCosine
from twofold.runs import build as runs_build
from twofold.training.config import TrainingConfig
from twofold.training.loop import Training

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4
RUN: dict[str, Any] = {
    "epochs": 4.0, "batch": 8, "seed": 3, "views": {"size": 12}, "head": {"out_dim": 12},
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"},
    "optim": {"name": "sgd", "lr": 0.25, "warmup_steps": 3, "momentum": 0.8}, "data": {"workers": 0},
    "training": {"device": "cpu", "precision": "fp32"}, "monitor": {"every": 0},
}  # fmt: skip
SOUNDS: dict[str, Any] = {
    "encoder": {"name": "speech:small", "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32}},
    "batch": 8, "epochs": 4.0, "seed": 3, "optim": {"name": "adamw", "lr": 2e-3}, "monitor": {"every": 0},
    "training": {"device": "cpu", "precision": "fp32"}, "data": {"workers": 2},
}  # fmt: skip


class Built(Exception):
    """A run is built, and not trained."""


Build = Callable[..., Any]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds runs with other options than `RUN` has, `group__name=value`; gives the loop of each."""
    loops: list[Any] = []

    def built(self: Training[Any, Any]) -> bool:
        loops.append(self)
        raise Built

    def loop(source: Any, base: dict[str, Any] = RUN, /, **change: Any) -> Any:
        options = {name: dict(value) if isinstance(value, dict) else value for name, value in base.items()}
        for name, value in change.items():
            group, _, key = name.partition("__")
            if key:
                options[group] = {**options.get(group, {}), key: value}
            else:
                options[group] = value
        with pytest.raises(Built):
            pretrain(source, tmp_path / f"run{len(loops)}", report=False, **options)
        return loops[-1]

    monkeypatch.setattr(Training, "fit", built)
    return loop


def at(thing: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), thing)


def found(loop: Any, expected: dict[str, Any]) -> dict[str, Any]:
    return {name: at(loop, name) for name in expected}


def test_what_is_left_open_of_rows_and_checkpoints_follows_the_epochs(build: Build) -> None:
    expected = {
        "steps": 21, "steps_per_epoch": 5.0, "ends": [21], "log_every": 1, "checkpoint_every": 5, "keep": 2,
        "saving_share": 0.01, "patience": 60.0, "checkpoint_minutes": None, "monitor_every": 0, "monitors": [],
    }  # fmt: skip
    assert found(loop := build(IMAGES), expected) == expected
    assert loop.schedule == WarmupCosine(0.25, 3, 21)
    expected = {"log_every": 5, "checkpoint_every": 5, "steps": 501}
    assert found(build(IMAGES, epochs=100.0), expected) == expected  # a row an epoch at least
    assert build(IMAGES, epochs=7.6).log_every == 1  # 39 steps, a twentieth of which is one
    warm = build(IMAGES, optim={"name": "sgd", "lr": 0.25, "warmup_epochs": 2.0})
    assert warm.schedule == WarmupCosine(0.25, 10, 21)
    expected = {"log_every": 4, "checkpoint_every": 9, "keep": 3, "saving_share": 1.0}
    training = {**RUN["training"], "log_every": 4, "checkpoint_every": 9, "keep": 3}
    assert found(build(IMAGES, training=training), expected) == expected


def test_rows_and_checkpoints_of_short_epochs_keep_a_distance() -> None:
    given = TrainingConfig(log_every=4, checkpoint_every=9)
    assert runs_build._intervals(given, 100, 3.0, True) == (4, 9)
    assert runs_build._intervals(TrainingConfig(), 100, 3.0, True) == (5, 10)
    assert runs_build._intervals(TrainingConfig(), 20, 3.0, True) == (1, 3)


def test_memory_format_chunks_and_compilation(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, compiled = list[Any](), list[Any]()
    monkeypatch.setattr(runs_build, "run_in_chunks", lambda *given: chunks.append(given[1:]))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    loop = build(IMAGES, training__channels_last=False)
    kernels = [p for p in loop.method.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous() for p in kernels)
    assert loop.make_inputs.memory_format == torch.contiguous_format
    assert build(IMAGES).make_inputs.memory_format == torch.channels_last
    assert (chunks, compiled) == ([], [])
    build(IMAGES, training__compile=True)
    assert (chunks, len(compiled)) == ([], 1)
    build(IMAGES, training__compile=True, micro_batch=4)
    build(IMAGES, micro_batch=2)
    assert (chunks, len(compiled)) == ([(8, 4, True), (8, 2, False)], 1)


def test_batch_and_seed_are_those_of_the_run_everywhere(build: Build) -> None:
    loop = build(IMAGES, optim__lr_rule="linear", method={"name": "moco", "queue": 24})
    expected = {
        "batch": 8, "seed": 3, "loader.seed": 3, "loader.order.seed": 3, "loader.order.batch": 8, "loader.order.n": 40,
        "loader.order.rule": "straddle", "loader.workers": 0, "method.seed": 3, "method.queue.size": 24,
    }  # fmt: skip
    assert found(loop, expected) == expected
    assert loop.optimizer.param_groups[0]["lr"] == 0.25 * 8 / 256
    other = build(IMAGES, seed=4, method={"name": "moco", "queue": 24})
    assert not torch.equal(loop.method.queue.keys, other.method.queue.keys)
    assert not all(map(torch.equal, loop.method.encoder.parameters(), other.method.encoder.parameters()))


def test_batch_norm_is_as_it_was_told(build: Build) -> None:
    def norms(loop: Any) -> list[Any]:
        return [m for m in loop.method.modules() if hasattr(m, "running_mean")]

    plain, told = build(IMAGES), build(IMAGES, bn_momentum=0.4, global_bn=False)
    assert 0.4 not in {m.momentum for m in norms(plain)}
    assert {m.momentum for m in norms(told)} == {0.4}
    assert {m.synchronized for m in norms(plain)} == {True}
    assert {m.synchronized for m in norms(told)} == {False}
    assert {m.synchronized for m in norms(build(IMAGES, global_bn=True))} == {True}


MONITOR = {
    "every": 2, "probe": True, "knn": True, "knn_k": 3, "knn_temperature": 0.3, "knn_features": "z",
    "probe_layer": 1, "probe_rule": "run", "samples": 30,
}  # fmt: skip


def test_every_option_of_the_monitors_reaches_them(build: Build) -> None:
    loop = build((IMAGES, LABELS), monitor=MONITOR, views__resample="tf1")
    (monitor,) = loop.monitors
    expected = {
        "k": 3, "temperature": 0.3, "features": "z", "layer": 1, "knn": True, "complete": True,
        "extractor.size": 12, "extractor.resample": "tf1", "rule.batch": 8, "rule.optim.name": "sgd",
        "classifier.weight.shape": (4, loop.method.head.widths[1]), "method": loop.method, "head": loop.method.head,
    }  # fmt: skip
    assert found(monitor, expected) == expected
    assert monitor.optimizer.param_groups[0]["momentum"] == 0.8
    assert loop.monitor_every == 10
    assert monitor.looked_at == len(monitor.queries) < len(monitor.bank)
    assert len(monitor.bank) == 30
    loop.step = 2
    assert monitor.rule.rate() == loop.schedule(2) != loop.schedule(3)
    (plain,) = build((IMAGES, LABELS), monitor={"every": 1, "knn": False}).monitors
    expected = {"k": None, "temperature": 0.1, "features": "h", "layer": 0, "knn": False, "rule": None, "head": None,
                "classifier.weight.shape": (4, loop.method.encoder.feature_dim)}  # fmt: skip
    assert found(plain, expected) == expected
    assert plain.optimizer.param_groups[0]["lr"] == 2e-3
    assert isinstance(plain.norm, torch.nn.BatchNorm1d)
    assert plain.looked_at == 0
    (neighbours,) = build((IMAGES, LABELS), monitor={"every": 1, "probe": False}).monitors
    assert neighbours.classifier is None


def test_monitors_know_of_labels_that_are_missing_and_of_rare_classes(build: Build) -> None:
    some = np.where(np.arange(40) < 5, -1, LABELS)
    some[39] = 6  # in the bank or among the queries, there is an output for it
    (monitor,) = build((IMAGES, some), monitor={"every": 1}).monitors
    assert not monitor.complete
    assert monitor.classifier.weight.shape[0] == 7


def test_recordings_are_read_as_they_were_told(build: Build, tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "clips", 4, 6)
    for name, seconds in (("noises", 0.4), ("responses", 0.1)):
        write(tmp_path / name / "0.wav", tone(seconds=seconds))
    waves = {"noises": str(tmp_path / "noises"), "responses": str(tmp_path / "responses"), "speed": 0.25}
    loop = build(folder, SOUNDS, waves=waves, method__mask_span=4, batch=4, data={
        "workers": 2, "audio": {"distinct": "label", "bucket": False},
    })  # fmt: skip
    expected = {
        "loader.seed": 3, "loader.order.seed": 3, "loader.order.batch": 4, "loader.order.n": 24,
        "loader.views.config.speed": 0.25, "loader.views.sample_rate": RATE,
        "loader._threads": 2, "loader.views.span": 4, "method.mask_span": 4,
    }  # fmt: skip
    assert found(loop, expected) == expected
    noise = torch.from_numpy(soundfile.read(tmp_path / "noises" / "0.wav", dtype="float32")[0])
    torch.testing.assert_close(loop.loader.views.noises[:, : len(noise)], noise[None])
    assert len(loop.loader.views.responses) == 1
    labels = np.repeat(np.arange(4), 6)
    assert all(len(set(labels[loop.loader.order.indices(step)])) == 4 for step in range(6))
    plain = build(folder, SOUNDS)
    assert len(plain.loader.views.noises) > 1  # generated
    assert plain.loader.views.responses is None
    assert kinds.EXAMPLE[plain.method.encoder.input.kind] == "recording"
