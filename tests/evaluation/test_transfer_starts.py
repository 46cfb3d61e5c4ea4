"""Transfer from a supervised encoder and from a random start beside the run's own, and the permutation test."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from transfer_trees import TREES

from twofold import cli
from twofold.commands.transfer import transfer
from twofold.encoders import EncoderConfig, build_encoder, load_encoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.frozen import digest
from twofold.runs import finetune as runs
from twofold.studies.transfer import finetune as tuning
from twofold.studies.transfer import study as command
from twofold.studies.transfer.finetune import Budget, RandomBudget, run_options
from twofold.studies.transfer.permutation import UNREAD, hits_of, p_value, packed, unpacked


@pytest.fixture
def encoders(tmp_path):
    """An encoder of the run, another one, and one for another number of channels."""
    files = []
    for seed, channels in ((0, 3), (1, 3), (2, 1)):
        torch.manual_seed(seed)
        files.append(tmp_path / f"encoder{seed}.safetensors")
        config = EncoderConfig.of(name="resnet10", width=0.125, stem="cifar", channels=channels)
        save_encoder(files[-1], build_encoder(config, 16), extra={"options": {"views": {"size": 16}}})
    return files


def test_the_random_start_has_the_papers_budget():
    """Appendix B.8: 40,000 steps, 7 rates from 0.001 to 1, 8 decays from 1e-5 to 10 ** -1.5, not divided."""
    budget = RandomBudget()
    assert (budget.steps, budget.batch, len(budget.rates), len(budget.decays)) == (40_000, 256, 7, 8)
    np.testing.assert_allclose([budget.rates[0], budget.rates[-1]], [1e-3, 1])
    np.testing.assert_allclose([budget.decays[0], budget.decays[-1]], [1e-5, 10**-1.5])
    options = run_options(budget, 0.1, 1e-3, 2560, 224, "tf1", 0)
    assert (options["from_scratch"], options["optim"]["weight_decay"]) == (True, 1e-3)
    assert options["epochs"] * 10 == 40_000
    tuned = run_options(Budget(), 0.1, 1e-3, 2560, 224, "tf1", 0)
    assert "from_scratch" not in tuned
    assert tuned["optim"]["weight_decay"] == pytest.approx(1e-2)
    assert options["bn_momentum"] == tuned["bn_momentum"] == 0.1
    with pytest.raises(UserError, match=r"--random_budget.steps and --random_budget.batch must be at least 1"):
        RandomBudget(steps=0)


def test_three_starts_side_by_side(tmp_path, encoders, monkeypatch, capsys):
    TREES["birdsnap"](tmp_path)
    monkeypatch.setattr(command, "PAPER_GRID", (1e-2, 1.0))
    started, build = [], runs.build_training

    def seen(config, method, *rest, **more):
        started.append((config.from_scratch, digest(method.encoder)))
        return build(config, method, *rest, **more)

    monkeypatch.setattr(runs, "build_training", seen)
    small = {"steps": 2, "batch": 6, "rates": [1e-3], "decays": [0.0]}
    options = {"data": "birdsnap", "root": str(tmp_path), "protocol": "all", "supervised": str(encoders[1]),
               "budget": small, "random_budget": small, "out": str(tmp_path / "out")}  # fmt: skip
    result = transfer(encoders[0], **options)
    assert [(c.protocol, c.start) for c in result.cells] == [
        ("linear", "run"), ("linear", "supervised"), ("finetune", "run"), ("finetune", "supervised"), ("random", "run")
    ]  # fmt: skip
    begun = [digest(load_encoder(file)) for file in encoders[:2]]
    assert [one for _, one in started[:4]] == [begun[0]] * 2 + [begun[1]] * 2
    assert [scratch for scratch, _ in started] == [False] * 4 + [True] * 2
    assert not {one for _, one in started[4:]} & set(begun), "a random start is neither"
    text = result.text()
    assert result.table.columns[3:] == [
        "ours", "SimCLR", "ours, supervised", "supervised", "ours, random start", "random start"
    ]  # fmt: skip
    assert result.table.rows[1][-1] == "76.1/77.0"
    for whose in ("linear, ", "finetune, "):
        assert f"Birdsnap, {whose}" in text
    assert text.count("against the supervised encoder: ") == 2
    assert text.count("against a random start: ") == 1
    for cell in result.cells:
        assert unpacked(cell.hits).mean() == pytest.approx(cell.value)
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(row["protocol"], row.get("start")) for row in rows] == [(c.protocol, None if c.start == "run" else c.start)
                                                                     for c in result.cells]  # fmt: skip
    assert rows[4]["paper"] == {"random start 1x": 76.1, "random start 4x": 77.0}
    assert rows[1]["paper"] == {"supervised 1x": 53.7, "supervised 4x": 56.4}
    monkeypatch.setattr(tuning, "finetune", lambda *_, **__: pytest.fail("trained again"))
    assert transfer(encoders[0], **options, resume=True).text() == text
    words = [
        "transfer",
        str(encoders[0]),
        "--data",
        "birdsnap",
        "--root",
        str(tmp_path),
        "--supervised",
        str(encoders[2]),
    ]
    assert cli.main([*words, "--out", str(tmp_path / "other")]) == 2
    assert "takes 1 channel," in capsys.readouterr().err


def test_the_exact_test_is_mcnemars():
    rng = np.random.default_rng(0)
    a, b = (rng.random(200) < share for share in (0.8, 0.7))
    only = [int((a & ~b).sum()), int((b & ~a).sum())]
    labels = rng.integers(0, 4, 200)
    found = p_value(a.astype("u1"), b.astype("u1"), labels, "top1")
    assert found == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue, rel=1e-9)
    assert p_value(a.astype("u1"), a.astype("u1"), labels, "top1") == 1


def test_permutations_of_unequal_weights_against_scipy():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [60, 20, 5])
    a, b = ((rng.random(85) < share).astype("u1") for share in (0.7, 0.6))
    weights = 1 / np.bincount(labels)[labels]
    gaps = (a.astype(int) - b) * weights
    expected = stats.permutation_test(
        (gaps,), lambda x, axis: np.abs(x.sum(axis=axis)), permutation_type="samples", n_resamples=20_000, rng=0,
        alternative="greater",
    ).pvalue  # fmt: skip
    assert p_value(a, b, labels, "mean_per_class") == pytest.approx(expected, abs=0.012)
    many = np.column_stack([labels == 0, labels > 0])
    assert 0 < p_value(np.minimum(a * 2, 2), b, many, "map11") < 1


def test_where_there_is_no_difference_one_in_twenty_is_told():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(5), 40)
    found = [p_value(*(rng.random((2, 200)) < 0.7).astype("u1"), labels, "top1") for _ in range(1000)]
    assert np.mean(np.array(found) < 0.05) < 0.07


def test_images_that_one_could_not_read_take_no_part():
    a, b = np.array([1, 1, 1, 1, 1, 1, UNREAD], "u1"), np.array([0, 0, 0, 0, 0, 0, 1], "u1")
    assert p_value(a, b, np.zeros(7, int), "top1") == pytest.approx(2 / 2**6)
    text = packed(np.array([1, 0], "u1"), np.array([3, 1]), 4)
    assert unpacked(text).tolist() == [UNREAD, 0, UNREAD, 1]
    with pytest.raises(UserError, match="of 7 and 2 images cannot be compared"):
        p_value(a, b[:2], np.zeros(7, int), "top1")
    with pytest.raises(UserError, match="damaged"):
        unpacked("AAAA")


def test_hits():
    scores = np.array([[0.1, 0.9], [2, 1]])
    assert hits_of(scores, np.array([4, 7]), np.array([7, 7])).tolist() == [1, 0]
    assert hits_of(np.array([[1, -1, 2.0]]), np.arange(3), np.array([[1, 0, 0]])).tolist() == [2]
