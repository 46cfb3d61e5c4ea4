"""What pretraining was told reaches its data, its encoder, its method and its monitors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from asked import Asked
from sound_files import RATE, speech_folder
from test_seams_runs import IMAGES, LABELS, RUN, SOUNDS, Built
from twofold.data import ArraySource, DataConfig
from twofold.data.groups import groups_of
from twofold.encoders import read_header
from twofold.errors import UserError
from twofold.evaluation import monitors
from twofold.evaluation.monitors import LabelMonitor
from twofold.options import plain
from twofold.randomness import permutation
from twofold.runs import pretrain as core
from twofold.runs.minutes import Rate
from twofold.runs.pretrain import pretrain
from twofold.training.loop import Training


def changed(base: dict[str, Any] = RUN, **change: Any) -> dict[str, Any]:
    """The options with others in their place, `group__name=value`."""
    options = {name: dict(value) if isinstance(value, dict) else value for name, value in base.items()}
    for name, value in change.items():
        group, _, key = name.partition("__")
        options[group] = {**options.get(group, {}), key: value} if key else value
    return options


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    told = Asked(monkeypatch)
    told.of(core, "open_source", "config", "split")
    told.of(core, "build_encoder")
    told.of(core, "adapt_as", "channels", "image_size")
    told.of(core, "source_for", "seed", "fit")
    told.of(core, "build_training", "span", "extensions")
    told.of(core, "hold_out", "seed", "share", "most", "groups")
    told.of(core, "train_or_advise", "micro_batch")
    return told


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs are built and not trained; the loop of each."""
    loops = list[Any]()

    def fit(self: Training[Any, Any]) -> bool:
        loops.append(self)
        raise Built

    monkeypatch.setattr(Training, "fit", fit)
    return loops


class Own(nn.Module):
    """Features of images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 12 * 12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def test_each_part_of_a_run_is_told_what_the_run_was(asked: Asked, built: list[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=IMAGES, x_test=IMAGES[:30])
    data = {"workers": 0, "split": "test", "cache": "off"}
    with pytest.raises(Built):
        pretrain(tmp_path / "data.npz", tmp_path / "one", changed(data=data, micro_batch=4))
    assert asked["open_source"] == [(DataConfig(workers=0, split="test", cache="off"), "test")]
    assert len(built[0].loader.source) == 30
    assert asked["train_or_advise"] == [4]
    ((encoder, size),) = asked["build_encoder"]
    assert (encoder.title(), size) == (built[0].run.read(core.RunConfig)[0].encoder.title(), 12)
    assert asked["source_for"] == [(3, True)]
    assert asked["build_training"] == [(1, ())]
    with pytest.raises(Built):
        pretrain(IMAGES, tmp_path / "own", changed(encoder={"name": "custom"}), module=Own())
    assert asked["adapt_as"] == [(3, 12)]
    assert built[1].method.encoder.input.size == 12
    folder = speech_folder(tmp_path / "clips", 2, 8)
    with pytest.raises(Built):
        pretrain(folder, tmp_path / "sounds", changed(SOUNDS, method={"mask_span": 4}))
    assert asked["build_training"][-1] == (4, ())
    assert built[2].loader.views.sample_rate == RATE


def test_a_run_from_other_weights_says_which(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "fit", lambda _: True)  # weights as they begin are other ones enough
    pretrain(IMAGES, tmp_path / "base", changed(epochs=1.0))
    weights = pretrain(IMAGES, tmp_path / "other", changed(epochs=1.0, seed=4)).run.encoder_file
    starts = Asked(monkeypatch)
    starts.of(core, "read_start")
    start = {"start_from": str(tmp_path / "base"), "epochs": 1.0}
    asked.clear()
    told = asked.setdefault("source_for", [])
    monkeypatch.setattr(core, "source_for", lambda source, _, seed, fit: told.append((seed, fit)) or source)
    pretrain(IMAGES, tmp_path / "run", changed(**start))
    assert told == [(3, False)]
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    config, facts = (
        core.RunDirectory(tmp_path / "run").read(core.RunConfig)[0],
        core.RunDirectory(tmp_path / "run").facts(),
    )
    assert facts["start"]["from"] == str(tmp_path / "base")
    pretrain(IMAGES, tmp_path / "run", changed(**start), resume=True)
    assert starts["read_start"] == [(str(tmp_path / "base"), None, plain(config.encoder))]
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    weights.replace(tmp_path / "base" / "encoder.safetensors")
    with pytest.raises(UserError, match=f"--start_from {tmp_path / 'base'} holds other weights"):
        pretrain(IMAGES, tmp_path / "run", changed(**start), resume=True)


def test_a_run_that_is_resumed_before_its_first_checkpoint_reads_its_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "from_start", lambda options: (None, dict(options)))
    options = changed(start_from="base.pt", start_prefix="net.", epochs=1.0)
    pretrain(IMAGES, tmp_path / "run", options)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    asked, told = Asked(monkeypatch), list[Any]()
    asked.of(core, "check_same_data")
    monkeypatch.setattr(core, "read_start", lambda *given: told.append(given))
    monkeypatch.setattr(Training, "fit", lambda _: True)
    pretrain(IMAGES, tmp_path / "run", changed(options, training__changed_data="allow"), resume=True)
    assert [given[:2] for given in told] == [("base.pt", "net.")]
    assert [given[2] for given in asked["check_same_data"]] == ["allow"]


@pytest.mark.parametrize(("monitor", "share"), [({"every": 1}, core.LOOKING_SHARE), ({"every": 1, "samples": 9}, 1.0)])
def test_the_epochs_of_a_budget_are_chosen_for_the_run_as_it_was_told(
    monitor: dict[str, int], share: float, built: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, options = Asked(monkeypatch), changed(monitor=monitor, micro_batch=4)
    del options["epochs"]
    asked.of(core, "epochs_within", "minutes", "steps_per_epoch", "monitor_every", "looking_share")
    asked.of(core, "or_advise", "micro_batch")
    monkeypatch.setattr(core, "measure_rate", lambda *_: Rate(0.1, 0.0, 2.0, 10))
    with pytest.raises(Built):
        pretrain((IMAGES, LABELS), tmp_path / "run", options, minutes=3.0)
    assert asked["epochs_within"] == [(3.0, 5.0, 1, share)]
    assert asked["or_advise"] == [4]
    assert len(built) == 1


def test_a_run_that_was_stopped_and_one_that_was_extended(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, number: 7 * (self.step == 2) or real(self, number))
    done = pretrain(IMAGES, tmp_path / "run", changed(epochs=1.0))
    assert (done.complete, done.step, done.steps, done.seen, done.stopped_by) == (False, 2, 6, 16, 7)
    monkeypatch.setattr(Training, "agree", real)
    pretrain(IMAGES, tmp_path / "run", changed(epochs=1.0), resume=True)
    more = pretrain(IMAGES, tmp_path / "run", changed(epochs=1.0), extend=1.0)
    assert (more.step, more.steps) == (11, 11)
    assert asked["build_training"] == [(1, ()), (1, ()), (1, (1.0,))]


def test_the_monitors_look_at_what_the_run_was_told(asked: Asked, built: list[Any], tmp_path: Path) -> None:
    options = changed(monitor={"every": 1, "probe": False, "samples": 12}, views={"size": 12, "resample": "tf2"})
    with pytest.raises(Built):
        pretrain((IMAGES, LABELS), tmp_path / "one", options)
    (monitor,) = built[0].monitors
    assert [given[:2] for given in asked["hold_out"]] == [(3, 0.1)] * 2
    assert [given[3] for given in asked["hold_out"]] == [None] * 2
    assert (monitor.classifier, monitor.knn) == (None, True)
    assert (monitor.extractor.size, monitor.extractor.resample) == (12, "tf2")
    bank, queries = core.hold_out(LABELS, 3, 0.1, (len(monitor.bank), len(monitor.queries)))
    for source, places in ((monitor.bank, bank), (monitor.queries, queries)):
        assert (source.labels == LABELS[places]).all()
        assert np.array_equal(source.read(0), ArraySource(IMAGES).read(int(places[0])))


def test_a_monitor_is_what_it_was_told(asked: Asked, built: list[Any], tmp_path: Path) -> None:
    options = changed(head={"out_dim": 12, "layers": 3, "hidden_dim": 20})
    options["monitor"] = {"every": 1, "probe_layer": 1, "probe_rule": "run", "knn_k": 3, "knn_temperature": 0.3}
    with pytest.raises(Built):
        pretrain((IMAGES, LABELS), tmp_path / "run", options)
    (monitor,) = built[0].monitors
    assert monitor.classifier.weight.shape == (4, 20)
    assert isinstance(monitor.norm, nn.Identity)
    asked.of(monitors, "knn_accuracy", "k", "temperature")
    assert set(monitor.measure()) == {"probe_top1", "knn_top1"}
    assert asked["knn_accuracy"] == [(3, 0.3)]
    own = LabelMonitor(monitor.method, monitor.bank, monitor.queries, lr=0.5)
    assert own.optimizer.param_groups[0]["lr"] == 0.5


def test_groups_of_the_data_stay_together_where_monitors_look(asked: Asked, built: list[Any], tmp_path: Path) -> None:
    groups = np.arange(40) % 8
    folder = tmp_path / "photos"
    for i, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = folder / f"class{label}" / f"g{groups[i]}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    with pytest.raises(Built):
        pretrain(folder, tmp_path / "run", changed(data={"workers": 0, "group": r"(g\d+)_"}, monitor={"every": 1}))
    (monitor,) = built[0].monitors
    assert all(given[3] is not None for given in asked["hold_out"])
    bank, queries = (set(groups_of(part) or []) for part in (monitor.bank, monitor.queries))
    assert bank
    assert queries
    assert not bank & queries


def test_what_is_held_out_of_groups_is_its_formula() -> None:
    groups = np.array([5, 5, 5, 2, 2, 8, 8, 8, 1, 1, 3, 3])
    labels = np.where(np.arange(12) == 4, -1, 0)
    labelled = np.flatnonzero(labels >= 0)
    turn = np.unique(groups[labelled])[permutation(3, "monitor/groups", 0, 5)]
    chosen = list[int]()
    for group in turn[:-1].tolist():
        if np.isin(groups[labelled], chosen).sum() < 0.4 * len(labelled):
            chosen.append(group)
    asked = np.isin(groups[labelled], chosen)
    parts = [each[permutation(3, "monitor", 0, len(each))] for each in (labelled[~asked], labelled[asked])]
    bank, queries = core.hold_out(labels, 3, 0.4, (3, 2), groups)
    assert (bank.tolist(), queries.tolist()) == (sorted(parts[0][:3].tolist()), sorted(parts[1][:2].tolist()))


def test_what_comes_of_a_run_is_told_and_written(asked: Asked, tmp_path: Path) -> None:
    options = changed(monitor={"every": 1, "probe": False}, training__checkpoint_every=5)
    done = pretrain((IMAGES, LABELS), tmp_path / "run", options)
    assert (done.complete, done.step, done.steps, done.seen, done.stopped_by) == (True, 21, 21, 168, None)
    assert (done.first, done.trackers, done.kind) == (True, [], "image")
    assert asked["train_or_advise"] == [None]
    header = read_header(done.run.encoder_file)
    assert (header["extra"]["steps"], header["extra"]["of"]) == (21, 21)
    assert header["head"]["out_dim"] == 12
    best = read_header(done.run.best_file)["extra"]
    rows = [row for row in rows_of(done.run.metrics_file) if "knn_top1" in row]
    assert best["score"] == max(row["knn_top1"] for row in rows)
    assert best["options"] == header["extra"]["options"]


def rows_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
