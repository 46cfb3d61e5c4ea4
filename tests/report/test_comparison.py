"""Runs beside one another: groups, spread, intervals, what differs, and the page."""

import json

import numpy as np
import pytest
import yaml
from scipy import stats

from twofold import cli
from twofold.commands.compare import compare
from twofold.errors import UserError
from twofold.options import merge, plain
from twofold.report.comparison import differences, grouped, spreads, welch
from twofold.report.records import read_record
from twofold.runs.config import build


def made(path, seed, top1=None, rate=0.1, recipe=None, **options):
    """A run's folder with what a comparison reads of it."""
    path.mkdir()
    config = build(merge({"epochs": 2, "batch": 8, "seed": seed, "optim.lr": rate}, options))
    facts = {"data": "photos", "images": 40, "fingerprint": "f", "recipe": recipe, "seed": seed,
             "versions": {"torch": "2"}}  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump({"run": facts, "options": plain(config)}))
    rows = [{"step": step, "epoch": step / 4, "loss": 3.0 - rate * step, "knn_top1": 0.5} for step in range(1, 9)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for place, value in enumerate(top1 or ()):
        document = {"protocol": "linear", "words": "a probe", "metrics": {"top1": value}}
        (path / "evaluations").mkdir(exist_ok=True)
        (path / "evaluations" / f"linear-20260101-00000{place}.json").write_text(json.dumps(document))
    return path


@pytest.fixture
def runs(tmp_path):
    slow = [made(tmp_path / f"slow{seed}", seed, [0.1, value], 0.01) for seed, value in enumerate((0.60, 0.62, 0.64))]
    fast = [made(tmp_path / f"fast{seed}", seed, [value], 0.1) for seed, value in enumerate((0.70, 0.75, 0.71))]
    return [*slow, *fast]


def test_runs_that_differ_in_their_seed_or_their_machine_are_one_group(tmp_path, runs):
    other = made(tmp_path / "elsewhere", 7, [0.6], 0.01, **{"training.threads": 3, "data.workers": 2})
    groups = grouped([read_record(run) for run in [*runs, other]])
    assert [group.seeds for group in groups] == [[0, 1, 2, 7], [0, 1, 2]]
    assert differences(groups) == [("--optim.lr", None, [0.01, 0.1])]


def test_a_result_has_its_mean_spread_and_interval(runs):
    groups = grouped([read_record(run) for run in runs])
    slow, fast = spreads(groups, "linear: top1")
    assert (slow.mean, slow.sd, slow.n) == (pytest.approx(0.62), pytest.approx(0.02), 3)  # each run's newest
    assert slow.difference is None
    assert fast.difference == pytest.approx(0.10)
    expected = stats.ttest_ind([0.70, 0.75, 0.71], [0.60, 0.62, 0.64], equal_var=False).confidence_interval(0.95)
    assert fast.interval == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        low, high = welch(rng.normal(1.0, 2.0, 4), rng.normal(0.0, 1.0, 6))
        inside += low <= 1.0 <= high
    assert 0.935 < inside / 2000 < 0.965
    assert welch([1.0], [1.0, 2.0]) is None
    assert welch([1.0, 1.0], [1.0, 1.0]) is None


def test_what_is_printed_written_and_drawn(tmp_path, runs, capsys):
    words = ["compare", *map(str, runs), "--out", str(tmp_path / "both")]
    assert cli.main([*words, "--json", str(tmp_path / "r.json")]) == 0
    told = capsys.readouterr().out
    assert "slow0, slow1, slow2" in told
    assert "62.00 % ± 2.00 (n = 3)" in told
    assert "72.00 % ± 2.65 (n = 3) [+10.00; " in told
    assert "--optim.lr" in told
    assert "--optim.weight_decay" not in told
    document = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert document == json.loads((tmp_path / "r.json").read_text())
    assert document["groups"][1]["seeds"] == [0, 1, 2]
    assert document["results"]["linear: top1"][1]["mean"] == pytest.approx(0.72)
    page = (tmp_path / "both" / "comparison.html").read_text()
    assert "Training loss" in page
    assert "72.00 % ± 2.65" in page
    assert "B: fast0, fast1, fast2" in page
    assert cli.main(words) == 2
    assert "already holds a comparison" in capsys.readouterr().err


def test_the_published_value_stands_beside_runs_of_a_recipe(tmp_path, runs):
    own = made(tmp_path / "own", 0, [0.5], recipe="simclr-cifar10-resnet18")
    told = compare(own, runs[0]).text()
    assert "about 91 % top-1 by linear evaluation" in told
    assert "One run each" in told


@pytest.mark.parametrize(
    ("words", "said"), [((0,), "needs two runs"), ((0, 1, 0), "is given twice"), ((0, "none"), "holds no run")]
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        compare(*(runs[word] if isinstance(word, int) else tmp_path / word for word in words))
