"""`twofold study methods`: the plan, the folder, the table, and two cells trained in processes of their own."""

import json

import numpy as np
import pytest
from tiny import images

from twofold.cli import main
from twofold.commands.study import study
from twofold.errors import UserError
from twofold.options import plain
from twofold.report.tables import terminal
from twofold.runs.config import build
from twofold.studies.base import StudyFolder
from twofold.studies.methods import MethodsConfig, Outcome, plan, read_outcome, table

SHARED = """
encoder: {name: resnet10, width: 0.125, stem: cifar}
head: {out_dim: 16}
training: {device: cpu, precision: fp32, threads: 1}
monitor: {every: 0}
method: {temperature: 0.2, queue: 40, normalize: false}
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Words of a study of two cells on 64 tiny images, and its folder."""
    where = tmp_path_factory.mktemp("study")
    x, y = images()
    np.savez(where / "data.npz", images=x, labels=y)
    (where / "shared.yaml").write_text(SHARED)
    words = ["study", "methods", where / "data.npz", "--out", where / "out", "--batches", "[16]", "--epochs", "1"]
    return [str(word) for word in [*words, "--config", where / "shared.yaml", "--k", "5"]], where / "out"


@pytest.fixture(scope="module")
def done(asked):
    words, out = asked
    assert main(words) == 0
    return words, out


def test_each_cell_is_a_run_and_the_results_are_side_by_side(done):
    _, out = done
    found = json.loads((out / "study.json").read_text())
    assert [(cell["method"], cell["batch"]) for cell in found["results"]] == [("simclr", 16), ("moco", 16)]
    for cell in found["results"]:
        assert 0 <= cell["linear_top1"] <= 1
        assert 0 <= cell["knn_top1"] <= 1
        assert cell["seconds"] > 0
        assert 50 * 2**20 < cell["memory"] < 8 * 2**30
        assert abs(cell["images"] - 64) <= 16
        run = out / f"{cell['method']}-batch16-seed0"
        assert len(list((run / "evaluations").glob("*.json"))) == 2
        assert (run / "encoder.safetensors").exists()
    assert "SimCLR" in (out / "report.html").read_text()


def test_resumed_nothing_done_is_done_again(done, capsys):
    words, out = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.parent != out and path.is_file()}
    (out / "moco-batch16-seed0" / "cell.json").unlink()
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    after = {path: path.stat().st_mtime_ns for path in before}
    assert all(after[path] == before[path] for path in before if path.parent.name.startswith("simclr"))
    weights = out / "moco-batch16-seed0" / "checkpoints"
    assert all(after[path] == before[path] for path in weights.iterdir())  # trained once, measured again
    assert read_outcome(out / "moco-batch16-seed0") is not None
    assert main([*words, "--resume", "--epochs", "2"]) == 2
    assert "options.epochs is 2" in capsys.readouterr().err


def test_every_cell_sees_equally_many_images_under_equal_options():
    asked = MethodsConfig(batches=(64, 16), seeds=2)
    shared = {"optim": {"name": "sgd", "lr": 0.1}, "method": {"queue": 128, "scale": "mean_2n", "temperature": 0.3}}
    cells = plan(asked, shared, 3.0)
    assert [cell.name for cell in cells[:4]] == [f"{m}-batch16-seed{s}" for s in (0, 1) for m in ("simclr", "moco")]
    assert len({cell.name for cell in cells}) == 8
    configs = [build(cell.options) for cell in cells]
    assert {config.epochs for config in configs} == {3.0}
    assert {config.method.temperature for config in configs} == {0.3}
    assert {config.optim for config in configs} == {configs[0].optim}
    assert [plain(config.method).get("queue", "has none") for config in configs[:2]] == ["has none", 128]


def outcome(method, batch, seed, linear, seconds=10.0):
    return Outcome(method, batch, seed, linear, linear / 2, seconds, 6400, 600 * 2**20, "cpu")


def test_the_table_tells_means_spread_and_the_best():
    found = [outcome("simclr", 32, 0, 0.5), outcome("moco", 32, 0, 0.6), outcome("simclr", 32, 1, 0.7)]
    found.append(outcome("moco", 32, 1, 0.8, seconds=30))
    shown = table(found)
    assert shown.rows[0] == ["SimCLR, batch 32", "60.0 ± 14.1", "30.0 ± 7.1", "10 s", "600 MiB"]
    assert shown.rows[1] == ["MoCo v2, batch 32", "70.0 ± 14.1", "35.0 ± 7.1", "20 s", "600 MiB"]
    assert shown.best == {(1, 1), (1, 2)}
    for words in ("2 seeds", "6,400 images", "not equal operations", "cpu"):
        assert words in shown.note
    assert "one seed: no spread" in terminal(table(found[:2]))


def test_what_cannot_be_studied_is_said_before_anything_is_trained(tmp_path):
    x, y = images()
    np.save(tmp_path / "bare.npy", x)
    np.savez(tmp_path / "data.npz", images=x, labels=y)
    with pytest.raises(UserError, match="has no labels"):
        study("methods", tmp_path / "bare.npy", tmp_path / "out")
    (tmp_path / "c.yaml").write_text("method: {queue: 8}")
    with pytest.raises(UserError, match="holds fewer keys than the 32 of one step"):
        study("methods", tmp_path / "data.npz", tmp_path / "out", batches=(16,), config=str(tmp_path / "c.yaml"))
    with pytest.raises(UserError, match="--batch 128: there are 64 images"):
        study("methods", tmp_path / "data.npz", tmp_path / "out", batches=(16, 128))
    assert not (tmp_path / "out").exists()
    for bad in ({"batches": ()}, {"batches": (8, 8)}, {"methods": ()}, {"seeds": 0}, {"batches": (1,)}):
        with pytest.raises(UserError, match=f"--{next(iter(bad))}"):
            MethodsConfig(**bad)
    with pytest.raises(UserError, match="did you mean 'methods'"):
        study("method", tmp_path / "data.npz", tmp_path / "out")


def test_a_folder_keeps_to_one_question(tmp_path):
    StudyFolder(tmp_path / "a", "methods", {"data": "x"}).start()
    with pytest.raises(UserError, match="holds the study 'methods', not 'other'"):
        StudyFolder(tmp_path / "a", "other", {"data": "x"}, resume=True).start()
    with pytest.raises(UserError, match="data is 'y'"):
        StudyFolder(tmp_path / "a", "methods", {"data": "y"}, resume=True).start()
    StudyFolder(tmp_path / "a", "methods", {"data": "x"}, resume=True).start()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no empty folder"):
        StudyFolder(tmp_path / "b", "methods", {"data": "x"}).start()
