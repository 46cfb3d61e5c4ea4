"""Grids whose encoders are fine-tuned, too, or asked for transformations: plans, tables, figures, and small runs."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import images
from torch import nn

from twofold.commands.study import study
from twofold.data import ArraySource
from twofold.errors import UserError
from twofold.options import OptionsParser, merge
from twofold.report.tables import terminal
from twofold.runs.config import FinetuneConfig
from twofold.studies import kept
from twofold.studies.ablating import AugmentationsStudy, BatchStudy
from twofold.studies.after import After
from twofold.studies.grid import Score
from twofold.studies.heads import HeadsStudy, eigenvalues
from twofold.studies.moco import MocoStudy
from twofold.studies.second import DepthStudy, MemoryStudy, from_layer
from twofold.studies.sizes import LinearStudy, SizeStudy
from twofold.studies.strengths import StrengthStudy
from twofold.studies.transformations import TransformationsStudy


@pytest.fixture
def data(small):
    return small


def of(kind, data="data", **options):
    return kind(str(data), kind.Config(**options), None)


def scores(values, seeds=3, parameters=None):
    """(row, column) -> (linear, {name: value}); every seed a point better than the one before, and a little more."""
    return [
        Score(row, column, seed, linear + 0.01 * seed + 0.0001 * seed * at, 0.5, 1.0,
              {name: value + 0.01 * seed + 0.00005 * seed * (at + i) for i, (name, value) in enumerate(more.items())},
              (parameters or {}).get((row, column), 0))
        for seed in range(seeds) for at, ((row, column), (linear, more)) in enumerate(values.items())
    ]  # fmt: skip


def test_the_labels_of_a_seed_are_its_own_and_no_cell_draws_where_all_are_taken(data):
    made = of(LinearStudy, data / "data.npz", labels=("25%", "all"), lengths=(1, 2), finetune_epochs=3.0, seeds=2, k=3)
    parts = made.plan()
    assert {part.seed: [a.options for a in part.after] for part in parts} == {
        seed: [{"epochs": 3.0, "labels": "25%", "seed": seed, "draw": seed},
               {"epochs": 3.0, "labels": "all", "seed": seed}]
        for seed in (0, 1)
    }  # fmt: skip
    assert {json.dumps(part.options["encoder"]) for part in parts} == {
        '{"name": "resnet10", "width": 0.25}', '{"name": "resnet10", "width": 0.5}'
    }  # fmt: skip


def test_heads_are_fine_tuned_from_every_layer_but_the_last(data):
    parts = of(DepthStudy, data / "data.npz", layers=(2, 3), labels=("25%",), seeds=1, k=3).plan()
    assert [[(a.name, a.options["from_head"]) for a in part.after] for part in parts] == [
        [("fine-tuned, 25%, from h", 0), ("fine-tuned, 25%, from layer 1", 1)],
        [("fine-tuned, 25%, from h", 0), ("fine-tuned, 25%, from layer 1", 1), ("fine-tuned, 25%, from layer 2", 2)],
    ]


def test_the_supervised_counterpart_sees_the_views_of_its_column(data):
    parts = of(StrengthStudy, data / "data.npz", strengths=("0.5", "AutoAugment"), seeds=1, k=3).plan()
    for part in parts:
        (after,) = part.after
        built = OptionsParser(FinetuneConfig).build(after.options)
        assert built.from_scratch
        assert after.options["views"] == part.options["views"]
    assert [part.options["views"].get("operators", []) for part in parts] == [[], ["autoaugment"]]
    assert [part.options["views"]["color_strength"] for part in parts] == [0.5, 0.0]


def test_each_transformation_is_added_to_its_own_pretraining(data):
    parts = of(TransformationsStudy, data / "data.npz", seeds=1, k=3).plan()
    assert {part.row: part.options.get("views", {}).get("operators", []) for part in parts} == kept.TRANSFORMATIONS
    assert all(part.after == (After(part.row, "transformation", {"images": 2000}),) for part in parts)
    grey = images(channels=1)
    np.savez(data / "grey.npz", images=grey[0], labels=grey[1])
    rows = [part.row for part in of(TransformationsStudy, data / "grey.npz", seeds=1, k=3).plan()]
    assert "colour or grey" not in rows
    assert len(rows) == 3
    with pytest.raises(UserError, match="--transformations color: the images have 1 channel "):
        of(TransformationsStudy, data / "grey.npz", transformations=("color",), seeds=1, k=3).plan()


def test_linear_evaluation_stands_beside_fine_tuning():
    made = of(LinearStudy, nets=("resnet10",), lengths=(2, 20), labels=("1%", "all"))
    found = scores({
        ("resnet10", "2"): (0.5, {"fine-tuned, 1%": 0.3, "fine-tuned, all": 0.8}),
        ("resnet10", "20"): (0.7, {"fine-tuned, 1%": 0.6, "fine-tuned, all": 0.9}),
    })  # fmt: skip
    lines = terminal(made.table(found)).splitlines()
    assert lines[0].split("  ")[0] == "encoder"
    assert lines[1].endswith(" 81.0 ± 1.0")
    assert made.table(found).rows[1] == ["resnet10", "20", "71.0 ± 1.0", "61.0 ± 1.0", "91.0 ± 1.0"]
    told = made.interpretation(found)
    assert "resnet10, 20 less 2 epochs, fine-tuned, 1%: +30.0 ± 0.0, better" in told
    three = [
        Score("a", str(n), 0, n / 10, 0.5, 1.0, {"fine-tuned, 1%": n / 20, "fine-tuned, all": 1 - n / 10})
        for n in (5, 6, 7)
    ]
    assert made.remark(three).endswith("1.00 with 1% of the labels, -1.00 with all of the labels.")
    page = made.page(found)
    assert [figure.title for figure in page.figures] == [
        "Fine-tuned on 1% of the labels",
        "Fine-tuned on all of the labels",
    ]
    assert ">20 ep.<" in page.figures[0].svg
    assert "Over 6 encoders linear accuracy correlates" in page.lead
    assert len(page.tables) == 1, "three comparisons stand in the lead"
    many = of(LinearStudy, nets=("resnet10", "b"), lengths=(2, 20), labels=("1%", "all"))
    found += [dataclasses.replace(cell, row="b") for cell in found]
    page = many.page(found)
    assert page.lead.startswith("Over 12 encoders")
    assert len(page.tables[1].rows) == 6
    assert page.tables[1].rows[0] == ["resnet10, 20 less 2 epochs, linear", "+20.0 ± 0.0", "better"]


def test_depths_and_layers():
    made = of(DepthStudy, layers=(2, 3), labels=("1%", "all"))
    values = {0: 0.5, 1: 0.7, 2: 0.6}
    found = scores({
        (f"{n} layers", ""): (
            0.9, {from_layer(s, j): values[j] + 0.1 * (n == 3) for s in ("1%", "all") for j in range(n)}
        )
        for n in (2, 3)
    })  # fmt: skip
    rows = made.table(found).rows
    assert [row[0] for row in rows] == [
        "2 layers, from h", "2 layers, from layer 1", "3 layers, from h", "3 layers, from layer 1",
        "3 layers, from layer 2",
    ]  # fmt: skip
    assert [row[1] for row in rows] == ["51.0 ± 1.0", "71.0 ± 1.0", "61.0 ± 1.0", "81.0 ± 1.0", "71.0 ± 1.0"]
    assert [row[3] for row in rows] == ["91.0 ± 1.0", "", "91.0 ± 1.0", "", ""]
    told = made.interpretation(found)
    assert "2 layers, 1% of the labels, from layer 1 less from h: +20.0 ± 0.0, better" in told
    assert "3 layers less 2 layers, all of the labels, from layer 1: +10.0" in told
    best, layers = made.figures(found)
    assert "2 layers: 71.0 %, 71.0 %. 3 layers: 81.0 %, 81.0 %." in best.alt, "from the best layer of each"
    assert "from h: 61.0 %, 61.0 %. from layer 1: 81.0 %, 81.0 %. from layer 2: 71.0 %, 71.0 %." in layers.alt


def test_memory_stands_beside_what_is_published():
    made = of(MemoryStudy, memories=(64,))
    found = scores({
        (row, ""): (linear, {"fine-tuned, 1%": 0.2, "fine-tuned, 10%": 0.4})
        for row, linear in (("none", 0.7), ("64", 0.71))
    })  # fmt: skip
    rows = made.table(found).rows
    assert rows[0] == ["none", "71.0 ± 1.0 (71.1)", "21.0 ± 1.0", "41.0 ± 1.0"]
    assert rows[1] == ["64", "72.0 ± 1.0 (71.7)", "21.0 ± 1.0 (57.9)", "41.0 ± 1.0 (68.4)"]
    assert "64 keys less none, linear: +1.0 ± 0.0, better" in made.interpretation(found)
    assert [p.options["method"] for p in made.places()] == [{"name": "simclr"}, {"name": "simclr", "memory": 64}]


def test_bigger_nets_gain_more_with_fewer_labels():
    """v2's figure 1 is relative to the smallest net, whatever the order of the rows."""
    made = of(SizeStudy, nets=("a", "b"), widths=(1,), labels=("1%", "all"))
    sizes = {("a", "1"): 2_000_000, ("b", "1"): 1_000_000}
    found = scores({
        ("a", "1"): (0.7, {"fine-tuned, 1%": 0.45, "fine-tuned, all": 0.88}),
        ("b", "1"): (0.6, {"fine-tuned, 1%": 0.3, "fine-tuned, all": 0.8}),
    }, 1, sizes)  # fmt: skip
    scatter, gain = made.figures(found)
    assert "width 1: 2M: 70.0 %, 1M: 60.0 %." in scatter.alt
    assert "1% of the labels: 1M: 0.0 %, 2M: 50.0 %. all of the labels: 1M: 0.0 %, 2M: 10.0 %." in gain.alt
    uncounted = [Score(c.row, c.column, c.seed, c.linear_top1, 0.5, 1.0, c.more) for c in found]
    assert made.figures(uncounted)[0].title == "Linear accuracy"


def test_color_is_the_papers_table():
    made = of(StrengthStudy, strengths=("0.125", "1", "AutoAugment"))
    found = scores({("SimCLR", s): (v, {"supervised": w})
                    for s, v, w in (("0.125", 0.5, 0.8), ("1", 0.6, 0.7), ("AutoAugment", 0.55, 0.9))})  # fmt: skip
    table = made.table(found)
    assert table.rows[0] == ["SimCLR", "51.0 ± 1.0 (59.6)", "61.0 ± 1.0 (63.2)", "56.0 ± 1.0 (61.1)"]
    assert table.rows[1] == ["supervised", "81.0 ± 1.0 (77.0)", "71.0 ± 1.0 (75.7)", "91.0 ± 1.0 (77.1)"]
    told = made.interpretation(found)
    assert "strength 1 less 0.125, SimCLR: +10.0 ± 0.0, better" in told
    assert "strength 1 less 0.125, supervised: -10.0 ± 0.0, worse" in told
    assert "supervised: 81.0 %, 71.0 %, 91.0 %." in made.figures(found)[0].alt


def test_the_matrix_has_the_average_of_each_row_and_moco_its_marks():
    made = of(AugmentationsStudy, operators=("crop", "color"))
    found = scores({("crop", "crop"): (0.3, {}), ("crop", "color"): (0.5, {}), ("color", "crop"): (0.5, {}),
                    ("color", "color"): (0.2, {})}, 1)  # fmt: skip
    table = made.table(found)
    assert table.columns[-1] == "average"
    assert [row[-1] for row in table.rows] == ["40.0", "35.0"]
    assert "average 40.0 %" in made.figures(found)[0].alt
    moco = of(MocoStudy).table(scores({("v1", ""): (0.6, {}), ("c", ""): (0.67, {}), ("v2", ""): (0.675, {})}, 1))
    assert [row[1:5] for row in moco.rows] == [["", "", "", "20"], ["x", "x", "", "20"], ["x", "x", "x", "20"]]
    assert moco.rows[0][5] == "60.0 (60.8)"


def test_batches_stand_beside_table_b1_under_the_rule_that_is_used():
    made = of(BatchStudy, batches=(256, 512), lengths=(100,))
    assert made.published("256", "100") is None, "no rule, no value"
    made.shared = {"optim": {"lr_rule": "linear"}}
    assert (made.published("256", "100"), made.published("512", "100")) == (57.5, 60.7)
    made.shared = merge(made.shared, {"optim": {"lr_rule": "sqrt"}})
    assert made.published("256", "100") == 62.8


def test_a_square_head_has_as_many_outputs_as_features(data):
    made = of(HeadsStudy, data / "data.npz", outputs=(16,), eigenvalues=True, config=str(data / "shared.yaml"), k=3)
    parts = made.plan()
    square = [part.options["head"] for part in parts if (part.row, part.column) == ("linear", "as h")]
    assert square[0] == {"kind": "linear", "out_dim": 64}
    matrix = np.array([[2.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # 2, i and -i
    np.testing.assert_allclose(eigenvalues(matrix), [4, 0, 0], atol=1e-12)


class Mean(nn.Module):
    """Features: the mean of each quarter; the head keeps the mean of all alone."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)

    def outputs(self, h):
        return [h, h.mean(1, keepdim=True)]


def test_a_rotation_is_told_from_what_keeps_it_and_not_from_what_does_not():
    """Bright corners: which is bright says how the view was turned, and its mean does not."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, (240, 16, 16, 3), np.uint8)
    x[:, :8, :8] += 150
    options = {"size": 16, "color_strength": 0.0, "blur": 0.0, "flip": 0.0, "crop_area": [0.9, 1.0],
               "operators": ["rotate"]}  # fmt: skip
    net = Mean()
    found = kept.transformation(net, net, options, "rotation", ArraySource(x[:160]), ArraySource(x[160:]))
    assert found["rotation, h"] > 0.95
    assert found["rotation, z"] < 0.5
    assert 0.25 <= found["rotation, chance"] < 0.45


def test_sobel_and_colour_are_labelled_as_they_were_drawn():
    x = np.random.default_rng(0).integers(100, 150, (64, 16, 16, 3), np.uint8)
    views = {"size": 16, "blur": 0.0, "jitter": 0.0, "color_strength": 1.0, "flip": 0.0}
    grey = kept.build_views(OptionsParser(kept.ViewsConfig).build(views | {"grayscale": 0.5}))
    seen, applied = kept._views(grey, "colour or grey", ArraySource(x), np.arange(64), 0)
    is_grey = (seen[:, 0] - seen[:, 1]).abs().amax((1, 2)) < 1e-6
    assert torch.equal(is_grey, torch.from_numpy(applied == 1))
    operators = kept.TRANSFORMATIONS["original or Sobel"]
    sobel = kept.build_views(OptionsParser(kept.ViewsConfig).build(views | {"operators": operators, "grayscale": 0.0}))
    seen, applied = kept._views(sobel, "original or Sobel", ArraySource(x), np.arange(64), 0)
    assert 0 < applied.sum() < 64
    assert torch.equal(seen.amax((1, 2, 3)) == 1, torch.from_numpy(applied == 1)), "its largest gradient is 1"


def test_what_h_keeps_stands_beside_table_3():
    made = of(TransformationsStudy, transformations=("rotation",))
    more = {"rotation, h": 0.6, "rotation, z": 0.3, "rotation, chance": 0.26}
    found = scores({("rotation", ""): (0.9, more)})
    assert made.table(found).rows == [["rotation", "27.0 ± 1.0 (25.0)", "61.0 ± 1.0 (67.6)", "31.0 ± 1.0 (25.6)"]]
    assert "rotation, h less z: +30.0 ± 0.0, better" in made.interpretation(found)
    assert "h: 61.0 %. z: 31.0 %. chance: 27.0 %." in made.figures(found)[0].alt


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LinearStudy, {"labels": ("1%", "1%")}, "--labels must name at least one, and none twice"),
        (LinearStudy, {"epochs": 3.0}, "--epochs is what this study varies: use --lengths"),
        (LinearStudy, {"nets": ("resnet10@wide",)}, r"--nets resnet10@wide: 'wide' is no width"),
        (DepthStudy, {"layers": (2, 5)}, "a head has 1 to 4 layers"),
        (MemoryStudy, {"memories": ()}, "--memories must name at least one"),
        (StrengthStudy, {"strengths": ()}, "--strengths must name at least one"),
        (TransformationsStudy, {"images": 3}, "--images must be at least 10, got 3"),
        (TransformationsStudy, {"transformations": ()}, "--transformations must name at least one"),
    ],
)
def test_what_cannot_be(kind, options, message):
    with pytest.raises(UserError, match=message):
        of(kind, **options)


def test_a_file_of_fine_tuning_cannot_set_what_the_study_sets(data):
    (data / "tune.yaml").write_text("{labels: 10%}")
    made = of(MemoryStudy, data / "data.npz", labels=("25%",), finetune_config=str(data / "tune.yaml"), k=3)
    with pytest.raises(UserError, match="sets labels, which the study sets itself"):
        made.plan()
    few = of(MemoryStudy, data / "data.npz", labels=("1",), memories=(64,), k=3)
    with pytest.raises(UserError, match="--labels 1: "):
        few.plan()


@pytest.mark.slow
def test_a_cell_is_fine_tuned_once_and_measured_again_after_a_stop(data):
    words = {"epochs": 1.0, "batch": 16, "k": 3, "seeds": 1, "config": str(data / "shared.yaml"), "layers": (2,),
             "labels": ("25%",), "finetune_epochs": 2.0}  # fmt: skip
    text = study("head-depth", data / "data.npz", data / "s", **words).text()
    cell = data / "s" / "cell00-seed0"
    found = json.loads((cell / "cell.json").read_text())
    assert set(found["more"]) == {"fine-tuned, 25%, from h", "fine-tuned, 25%, from layer 1"}
    assert found["parameters"] > 10_000
    weights = [cell / f"after0{i}" / "encoder.safetensors" for i in (0, 1)]
    before = [file.stat().st_mtime_ns for file in weights]
    (cell / "cell.json").unlink()
    assert study("head-depth", data / "data.npz", data / "s", resume=True, **words).text() == text
    assert [file.stat().st_mtime_ns for file in weights] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformations", {"transformations": ("rotation", "color"), "images": 48}),
        ("color", {"strengths": ("0.5", "AutoAugment"), "supervised_epochs": 1.0}),
        ("heads", {"outputs": (16,), "eigenvalues": True}),
        ("memory", {"memories": (64,), "labels": ("25%",), "finetune_epochs": 1.0}),
    ],
)
def test_each_runs_and_leaves_a_page(data, name, options):
    words = {"epochs": 1.0, "batch": 16, "k": 3, "seeds": 1, "config": str(data / "shared.yaml")}
    result = study(name, data / "data.npz", data / "s", **words, **options)
    assert result.page is not None
    assert all(0 <= value <= 1 for value in result.metrics.values())
    if name == "heads":
        page = result.page.read_text()
        assert "64 x 64 matrix" in page
        assert "h beside z" in page
        assert {"z" in cell.more for cell in result.cells if cell.row != "none"} == {True}
