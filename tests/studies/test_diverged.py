"""A cell whose training diverges is left out, with a word; it keeps no study from its end."""

import json

import pytest

from twofold import cli, verdicts
from twofold.errors import Diverged
from twofold.studies import after as afters
from twofold.studies.grid import Score
from twofold.studies.methods import read_outcome
from twofold.studies.second import DepthStudy, MemoryStudy
from twofold.studies.sizes import LinearStudy, SizeStudy, gain_figure

TOO_MUCH = 1e30
"""A rate that no net survives."""


@pytest.fixture
def data(small):
    with (small / "shared.yaml").open("a") as file:
        file.write("optim: {name: sgd}\n")
    return small


def words(data, rates, *more):
    return [
        "study", "losses", str(data / "data.npz"), "--out", str(data / "study"), "--losses", "[NT-Xent]", "--rates",
        json.dumps(rates), "--seeds", "1", "--epochs", "1", "--batch", "16", "--k", "3",
        "--config", str(data / "shared.yaml"), *more,
    ]  # fmt: skip


def test_the_others_of_a_grid_are_its_result(data, capsys):
    asked = words(data, [0.01, TOO_MUCH])
    assert cli.main(asked) == 0
    told = " ".join(capsys.readouterr().out.split())
    place = f"loss NT-Xent, setting rate {TOO_MUCH:g}, seed 0"
    assert f"{place} is left out: " in told
    assert "Usually the learning rate is too high" in told
    document = json.loads((data / "study" / "study.json").read_text())
    assert [cell["column"] for cell in document["results"]] == ["rate 0.01"]
    assert document["interpretation"].endswith(f"Left out, since their training diverged: {place}.")
    assert f"since their training diverged: {place}." in (data / "study" / "report.html").read_text()
    assert "nan" not in (data / "study" / "study.json").read_text().lower()
    outcome = read_outcome(data / "study" / "cell01-seed0")
    assert "no numbers" in outcome.diverged or "became" in outcome.diverged
    kept = (data / "study" / "cell01-seed0" / "cell.json").stat().st_mtime_ns
    assert cli.main([*asked, "--resume"]) == 0
    assert (data / "study" / "cell01-seed0" / "cell.json").stat().st_mtime_ns == kept, "it would diverge again"


def test_a_study_of_nothing_else_is_an_error(data, capsys):
    assert cli.main(words(data, [TOO_MUCH])) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "training diverged in every cell (loss NT-Xent, setting rate 1e+30, seed 0), as told above" in told
    assert "give a lower optim.lr in --config" in told


def test_the_study_of_methods_leaves_one_out_too(data, capsys):
    text = (data / "shared.yaml").read_text()
    (data / "shared.yaml").write_text(text.replace("{name: sgd}", "{name: sgd, lr: 1.0e30}"))
    asked = ["study", "methods", str(data / "data.npz"), "--out", str(data / "study"), "--batches", "[16]"]
    asked += ["--methods", "[simclr]", "--epochs", "1", "--k", "3", "--config", str(data / "shared.yaml")]
    assert cli.main(asked) == 2
    captured = capsys.readouterr()
    assert "simclr-batch16-seed0 is left out: " in captured.out
    assert "training diverged in every cell (simclr-batch16-seed0)" in " ".join(captured.err.split())


def test_a_fine_tuning_that_diverges_costs_its_own_number_alone(monkeypatch, tmp_path, data):
    from tiny import encoder_file

    def diverge(*_, **__):
        raise Diverged("the loss became nan in step 1")

    asked = [afters.After("fine-tuned, 1%", "finetune", {})]
    monkeypatch.setattr(afters, "finetune", diverge)
    file = encoder_file(tmp_path / "encoder.safetensors")
    found = afters.measure(tmp_path, file, asked, str(data / "data.npz"), None, {})
    assert found == ({}, {"fine-tuned, 1%": "the loss became nan in step 1"})
    monkeypatch.setattr(afters, "finetune", lambda *_, **__: pytest.fail("it would diverge again"))
    assert afters.measure(tmp_path, file, asked, str(data / "data.npz"), None, {}) == found
    cells = [Score(net, "1", 0, 0.5, 0.5, 1.0, more, size) for net, more, size in (
        ("a", {"fine-tuned, 1%": 0.2}, 1_000_000), ("b", {}, 2_000_000), ("c", {"fine-tuned, 1%": 0.4}, 3_000_000),
    )]  # fmt: skip
    assert "1% of the labels: 1M: 0.0 %, 3M: 100.0 %." in gain_figure(cells, ["1%"]).alt


@pytest.mark.parametrize("kind", [SizeStudy, LinearStudy, DepthStudy, MemoryStudy])
def test_pages_are_whole_where_no_fine_tuning_came_to_its_end(kind):
    """A figure of nothing is left out; the table has an empty place."""
    study = kind("data", kind.Config(labels=("1%", "all")), None)
    cells = [Score(row, "1" if study.columns_are else "", seed, 0.5, 0.5, 1.0, {}, 1000)
             for row in ("2 layers", "none") for seed in (0, 1)][: 2 if kind is DepthStudy else 4]  # fmt: skip
    page = study.page(cells)
    assert page.tables[0].rows[0][-1] in ("", "50.0 ± 0.0")
    assert study.interpretation(cells) == ""
    assert all("%" in figure.alt for figure in page.figures)


def test_the_same_numbers_are_told_in_words():
    assert verdicts.paired([0.5, 0.5], [0.5003, 0.5004]).times(100).words().startswith("+0.0 ± "), "no -0.0"
