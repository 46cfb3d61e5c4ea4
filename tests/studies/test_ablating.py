"""The papers' ablations as studies: plans that build, tables, verdicts, and cells trained several at a time."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import images

from twofold import cli
from twofold.commands.study import study
from twofold.errors import Stopped, UserError
from twofold.report.tables import terminal
from twofold.runs.config import build
from twofold.studies import cells
from twofold.studies.ablating import AugmentationsStudy, BatchStudy
from twofold.studies.grid import Score
from twofold.studies.heads import HeadsStudy
from twofold.studies.losses import LossesStudy
from twofold.studies.moco import MocoStudy
from twofold.studies.second import DepthStudy, MemoryStudy
from twofold.studies.shares import FewLabelsStudy
from twofold.studies.sizes import LinearStudy, SizeStudy
from twofold.studies.strengths import StrengthStudy
from twofold.studies.transformations import TransformationsStudy

TABLES = [AugmentationsStudy, BatchStudy, HeadsStudy, LossesStudy, MocoStudy, SizeStudy]
STUDIES = [*TABLES, DepthStudy, LinearStudy, MemoryStudy, StrengthStudy, TransformationsStudy]
SHARED = """
encoder: {name: resnet10, width: 0.125, stem: cifar}
training: {device: cpu, precision: fp32, threads: 1}
monitor: {every: 0}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    where = tmp_path_factory.mktemp("data")
    x, y = images()
    np.savez(where / "data.npz", images=x, labels=y)
    (where / "shared.yaml").write_text(SHARED)
    return where


def of(kind, data="data", folder=None, **options):
    return kind(str(data), kind.Config(**options), folder)


@pytest.mark.parametrize("kind", STUDIES)
def test_every_place_is_a_run_of_its_own(kind, data):
    small = {"batches": (8, 16)} if kind is BatchStudy else {}
    small |= {"labels": ("25%", "all")} if issubclass(kind, FewLabelsStudy) else {}
    small |= {"strengths": ("0.5", "1", "AutoAugment")} if kind is StrengthStudy else {}
    made = of(kind, data / "data.npz", seeds=2, k=3, **small)
    parts = made.plan()
    places = made.places()
    assert len(parts) == 2 * len(places)
    assert len({part.name for part in parts}) == len(parts)
    built = [build(part.options) for part in parts[: len(places)]]
    for i, one in enumerate(built):
        assert all(one != other for other in built[:i]), "each differs from the others"
    assert {part.seed for part in parts} == {0, 1}
    where = {(place.row, place.column) for place in places}
    assert all({each.first, each.second} <= where for each in made.contrasts())
    known = {"linear", *(after.name for part in parts for after in part.after)}
    known |= {f"{name}, {what}" for name in known for what in ("h", "z")}
    known |= {each for part in parts for each in made.also(part)}
    assert all({each.of, each.against or each.of} <= known for each in made.contrasts()), "all of it is measured"
    said = list(made.contrasts())
    assert all(each.more in said and each.less in said for each in made.trends()), "what is compared is told, too"


def test_the_composition_matrix():
    """Figure 5: one view alone is changed; off the diagonal the row's operator first."""
    places = {
        (p.row, p.column): p.options["views"] for p in of(AugmentationsStudy, operators=("crop", "color")).places()
    }
    assert {key: views["operators"] for key, views in places.items()} == {
        ("crop", "crop"): ["crop"], ("crop", "color"): ["crop", "color"], ("color", "crop"): ["color", "crop"],
        ("color", "color"): ["color"],
    }  # fmt: skip
    for views in places.values():
        own = {name: views[name] for name in ("operators_on", "shared_crop", "color_strength", "blur", "rotation")}
        assert own == {
            "operators_on": "first", "shared_crop": True, "color_strength": 0, "blur": 0, "rotation": 0
        }, "what a recipe does to both views is left out"  # fmt: skip
    assert len(of(AugmentationsStudy).places()) == 49


def test_mocos_rate_falls_where_the_code_lets_it():
    """120 and 160 of 200 epochs in main_moco.py; v2 takes a cosine by the epoch."""
    places = {place.row: place.options for place in of(MocoStudy, epochs=200.0).places()}
    assert places["v1"]["optim"] == {"schedule": "step", "milestones": [120, 160]}
    assert places["v2"]["optim"] == {"schedule": "cosine_epoch"}
    assert (places["a"]["head"]["kind"], places["a"]["views"]["blur"]) == ("nonlinear", 0.0)
    assert (places["b"]["head"]["kind"], places["b"]["views"]["blur"]) == ("linear", 0.5)
    assert {name: options["method"] for name, options in places.items()} == {
        name: {"name": "moco", "temperature": 0.07 if name in ("v1", "b") else 0.2} for name in places
    }


def test_the_grids_of_the_losses(data):
    """Appendix B.10: 5 rates by 4 margins or 4 temperatures; a margin of 0 has no semi-hard negative."""
    grids = {"rates": (0.01, 0.1, 0.3, 0.5, 1.0), "margins": (0.0, 0.4, 0.8, 1.6), "temperatures": (0.1, 0.2, 0.5, 1.0)}
    made = of(LossesStudy, data / "data.npz", recipe="simclr-imagenet-100", epochs=1, batch=8, seeds=1, **grids)
    counts = {}
    for part in made.plan():
        counts[part.row] = counts.get(part.row, 0) + 1
    assert counts == {"NT-Xent": 5, "NT-Logistic": 20, "NT-Logistic (semi-hard)": 20, "margin": 20,
                      "margin (semi-hard)": 15}  # fmt: skip
    built = {(part.row, part.column): build(part.options) for part in made.parts}
    one = built["margin (semi-hard)", "rate 0.5, margin 1.6"]
    assert (one.optim.lr, one.method.margin, one.method.mining, one.method.scale) == (0.5, 1.6, "semi_hard", "mean_2n")
    assert built["NT-Xent", "rate 0.5"].method.scale == "simclr_sum2"
    assert built["NT-Logistic", "rate 1, temperature 0.2"].method.temperature == 0.2
    for options, words in (
        ({"losses": ()}, "leaves nothing"), ({"rates": (1.0, 1.0)}, "--rates must name none twice"),
        ({"losses": ("NT-Xent",), "margins": (0.4,)}, "--margins .0.4. is of margin, which --losses leaves out"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            of(LossesStudy, **options)
    with pytest.raises(UserError, match="needs a margin above 0"):
        of(LossesStudy, margins=(0.0,)).places()


def test_the_best_of_each_grid_stands_beside_table_4():
    made = of(LossesStudy, losses=("NT-Xent", "margin"), rates=(0.1, 0.5))
    found = scores({("NT-Xent", "rate 0.1"): 0.5, ("NT-Xent", "rate 0.5"): 0.9, ("margin", "rate 0.1"): 0.8,
                    ("margin", "rate 0.5"): 0.2})  # fmt: skip
    table = made.table(found)
    assert table.rows == [["NT-Xent", "rate 0.5", "92.1 ± 2.1 (63.9)"], ["margin", "rate 0.1", "82.2 ± 2.2 (50.9)"]]
    assert "best on the test images, which flatters each" in table.note
    assert "NT-Xent less margin, each at its best: +9.9 ± 0.2, better" in made.interpretation(found)
    tables = made.page(found).tables
    assert [len(each.rows) for each in tables if each.title == "Grids"] == [4]


def test_table_5_has_entropy_and_accuracy_of_the_contrast(data, tmp_path):
    result = study(
        "losses", data / "data.npz", out=tmp_path / "five", losses=(), normalised=(0.1, 0.5), products=(10.0,),
        epochs=1, batch=16, seeds=1, k=3, config=str(data / "shared.yaml"),
    )  # fmt: skip
    rows = {row[0]: row[1:] for row in result.table.rows}
    assert list(rows) == ["NT-Xent, normalised, temperature 0.1", "NT-Xent, normalised, temperature 0.5",
                          "NT-Xent, not normalised, temperature 10"]  # fmt: skip
    assert [row[0].split()[1] for row in rows.values()] == ["(4.5)", "(8.2)", "(0.5)"]
    assert [row[1].split()[1] for row in rows.values()] == ["(87.8)", "(68.2)", "(91.7)"]
    assert [row[2].split()[1] for row in rows.values()] == ["(64.4)", "(60.7)", "(57.2)"]
    last = json.loads((tmp_path / "five/cell00-seed0/metrics.jsonl").read_text().splitlines()[-1])
    assert rows["NT-Xent, normalised, temperature 0.1"][0] == f"{last['contrastive_entropy']:.1f} (4.5)"
    assert "temperature 0.1 less NT-Xent, normalised, temperature 0.5" in result.interpretation


def test_options_of_the_method_that_the_study_names_are_those_of_its_cells(data, tmp_path):
    (tmp_path / "queue.yaml").write_text("{method: {queue: 64}, batch: 16}")
    parts = of(MocoStudy, data / "data.npz", config=str(tmp_path / "queue.yaml"), k=3).plan()
    assert {build(part.options).method.queue for part in parts} == {64}


def scores(values, spread=0.001, seeds=3):
    """(row, column) -> accuracy, a little shaken by the seed, a little more in one than in another."""
    return [Score(row, column, seed, value + 0.02 * seed + spread * seed * at, 0.5, 1.0)
            for seed in range(seeds) for at, ((row, column), value) in enumerate(values.items())]  # fmt: skip


def test_tables_and_verdicts():
    made = of(LossesStudy)
    found = scores({("NT-Xent", ""): 0.9, ("margin", ""): 0.8, ("NT-Logistic", ""): 0.899})
    told = made.interpretation(found)
    assert "NT-Xent less margin: +9.9 ± 0.2, better" in told
    assert "NT-Xent less NT-Logistic: -0.1 ± 0.5, no clear difference" in told
    assert "semi-hard" not in told, "what is not in the table is left out"
    text = terminal(made.table(found))
    assert "92.0 ± 2.0 (63.9)" in text
    assert "(50.9)" in text
    assert "In brackets the paper's, of ImageNet at its own size (Table 4" in text
    assert "one seed: no spread is known" in terminal(made.table(scores({("NT-Xent", ""): 0.9}, seeds=1)))
    assert "(one seed), no clear" in made.interpretation(scores({("NT-Xent", ""): 0.9, ("margin", ""): 0.1}, seeds=1))
    page = of(BatchStudy).page(scores({("32", "5"): 0.5, ("32", "20"): 0.6, ("128", "5"): 0.7, ("128", "20"): 0.8}))
    assert "batch 128 less 32, 5 epochs: +20" in page.lead
    assert [each["name"] for each in page.figures[0].hover["series"]] == ["batch 32", "batch 128"]
    assert "batch 32: 52.0 %, 62.1 %. batch 128: 72.2 %, 82.3 %." in page.figures[0].alt
    many = of(BatchStudy).page(scores({(str(n), e): 0.5 for n in range(2, 14) for e in ("5", "20")}, seeds=1))
    assert many.figures[0].note.startswith("Of 12 the first 10; the table has all.")
    assert of(MocoStudy).published("v1", "") == 60.8
    assert of(MocoStudy).published("a", "") == 66.2
    assert of(MocoStudy).published("b", "") is None


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (BatchStudy, {"batch": 3}, "--batch is what this study varies: use --batches"),
        (BatchStudy, {"lengths": ()}, "--lengths must name at least one"),
        (AugmentationsStudy, {"operators": ("crop", "crop")}, "none twice"),
        (MocoStudy, {"epochs": 3.0}, "give 5 or more"),
        (SizeStudy, {"seeds": 0}, "--seeds must be at least 1, got 0"),
        (SizeStudy, {"jobs": 0}, "--jobs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be(kind, options, message):
    with pytest.raises(UserError, match=message):
        of(kind, **options)


@pytest.mark.slow
def test_cells_are_trained_several_at_a_time_and_kept(data, tmp_path, monkeypatch, capsys):
    words = ["study", "augmentations", str(data / "data.npz"), "--out", str(tmp_path / "s"), "--operators", "[crop]"]
    words += ["--epochs", "1", "--batch", "16", "--k", "3", "--config", str(data / "shared.yaml"), "--seeds", "2"]
    begun, begin = [], cells._begin

    def seen(cell, slot, jobs):
        begun.append((cell.place.name, slot, jobs, cells._share(slot, jobs)))
        return begin(cell, slot, jobs)

    monkeypatch.setattr(cells, "_begin", seen)
    assert cli.main([*words, "--jobs", "2"]) == 0
    assert [each[:3] for each in begun] == [("cell00-seed0", 0, 2), ("cell00-seed1", 1, 2)]
    assert begun[0][3]
    out = capsys.readouterr().out
    assert "Composition of augmentations" in out or "crop" in out
    found = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    assert [(cell["row"], cell["column"], cell["seed"]) for cell in found] == [("crop", "crop", 0), ("crop", "crop", 1)]
    assert (tmp_path / "s" / "report.html").exists()
    assert cli.main([*words, "--resume"]) == 0, "how many at a time is no other study"
    assert len(begun) == 2, "nothing is done again"


def process(monkeypatch, code):
    """Every cell is a process that runs `code`, with its folder as the only argument."""

    def begin(cell, *_):
        return subprocess.Popen([sys.executable, "-S", "-c", code, str(cell.place)], start_new_session=True)

    monkeypatch.setattr(cells, "_begin", begin)


def test_as_many_as_asked_are_at_work_and_all_are_done(tmp_path, monkeypatch):
    process(monkeypatch, "import pathlib, sys, time; time.sleep(0.3); pathlib.Path(sys.argv[1]).touch()")
    asked = [cells.Cell(tmp_path / str(i), {}) for i in range(5)]
    most, started, poll, begin = [], [], time.sleep, cells._begin

    def looked(seconds):
        most.append(sum(each.poll() is None for each in started))
        poll(seconds)

    def noted(*words):
        started.append(begin(*words))
        return started[-1]

    monkeypatch.setattr(cells, "_begin", noted)
    monkeypatch.setattr(cells.time, "sleep", looked)
    cells.run_cells(asked, 2)
    assert max(most) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == list("01234")


def test_a_cell_that_fails_is_named_and_no_other_is_begun(tmp_path, monkeypatch):
    process(monkeypatch, "import sys; sys.exit(3)")
    with pytest.raises(UserError, match=r"the cell first failed \(status 3\)"):
        cells.run_cells([cells.Cell(tmp_path / name, {}) for name in ("first", "second")])
    assert not list(tmp_path.iterdir())


def test_a_signal_reaches_every_cell(tmp_path, monkeypatch):
    """Each process notes the signal that it is sent and ends."""
    process(monkeypatch, "import pathlib, signal, sys\n"
            "def note(number, _): pathlib.Path(sys.argv[1]).write_text(str(number)); sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, note); pathlib.Path(sys.argv[1] + '.up').touch()\n"
            "signal.pause(); signal.pause()")  # fmt: skip
    poll = time.sleep

    def interrupt(seconds):
        poll(seconds)
        if len(list(tmp_path.glob("*.up"))) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cells.time, "sleep", interrupt)
    with pytest.raises(Stopped, match="--resume goes on"):
        cells.run_cells([cells.Cell(tmp_path / name, {}) for name in "ab"], 2)
    assert [(tmp_path / name).read_text() for name in "ab"] == [str(int(signal.SIGTERM))] * 2


@pytest.mark.parametrize(("visible", "slot", "device"), [("", 0, "0"), ("", 3, "1"), ("4,7", 1, "7")])
def test_gpus_are_taken_in_turn(monkeypatch, visible, slot, device):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(cells.torch.cuda, "device_count", lambda: 2)
    assert cells._share(slot, 4) == {"CUDA_VISIBLE_DEVICES": device}
    assert cells._share(0, 1) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLES)
def test_each_study_runs(kind, data, tmp_path):
    small = {"operators": ["crop", "color"]} if kind is AugmentationsStudy else {}
    small |= {"batches": [8, 16], "lengths": [1]} if kind is BatchStudy else {"epochs": 5.0, "batch": 16}
    result = study(
        kind.name,
        str(data / "data.npz"),
        tmp_path / "s",
        seeds=1,
        k=3,
        config=str(data / "shared.yaml"),
        jobs=2,
        **small,
    )
    assert result.cells
    assert all(0 <= cell.linear_top1 <= 1 for cell in result.cells)
