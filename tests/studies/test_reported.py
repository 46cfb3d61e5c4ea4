"""What papers report stands beside a study's results for machines, too, under the same names and in the same units."""

import json

import numpy as np
import pytest

from twofold.published import values_of
from twofold.report.tables import terminal
from twofold.studies.base import StudyFolder
from twofold.studies.grid import Score
from twofold.studies.losses import NORMALISED, LossesStudy
from twofold.studies.second import MemoryStudy
from twofold.studies.sizes import SizeStudy
from twofold.studies.strengths import StrengthStudy
from twofold.studies.suppression import SuppressionStudy
from twofold.studies.transfer.linear import TransferResult
from twofold.studies.transfer.sets import reported
from twofold.studies.transfer.study import TransferStudy
from twofold.studies.transformations import TransformationsStudy


def of(kind, **options):
    return kind("data", kind.Config(**options), None)


def score(row, column="", linear=0.5, **more):
    return Score(row, column, 0, linear, 0.4, 1.0, {name.replace("_", " "): value for name, value in more.items()})


TABLE_3 = "colour or grey"
CASES = {
    "color": (of(StrengthStudy), [score("SimCLR", "1", supervised=0.7)],
              {"SimCLR, 1: linear_top1": 0.632, "SimCLR, 1: supervised": 0.757}),
    "transformations": (
        of(TransformationsStudy),
        [Score(TABLE_3, "", 0, 0.5, 0.4, 1.0, {f"{TABLE_3}, {what}": 0.9 for what in ("chance", "h", "z")})],
        {f"{TABLE_3}: {TABLE_3}, chance": 0.8, f"{TABLE_3}: {TABLE_3}, h": 0.993, f"{TABLE_3}: {TABLE_3}, z": 0.974},
    ),
    "memory": (
        of(MemoryStudy), [Score(row, "", 0, 0.5, 0.4, 1.0, {"fine-tuned, 1%": 0.3}) for row in ("none", "64")],
        {"none: linear_top1": 0.711, "64: linear_top1": 0.717, "64: fine-tuned, 1%": 0.579},
    ),
    "suppression": (of(SuppressionStudy), [score("0.1", "10 bits"), score("0.3", "0 bits")],
                    {"0.1, 10 bits: linear_top1": 0.187}),
    "losses": (  # each loss at its best alone, as the paper has it
        of(LossesStudy, rates=(0.1, 1.0)),
        [score("NT-Xent", "rate 0.1", 0.4), score("NT-Xent", "rate 1", 0.6), score(f"{NORMALISED}0.1")],
        {"NT-Xent, rate 1: linear_top1": 0.639, f"{NORMALISED}0.1: linear_top1": 0.644},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_value_that_a_table_has_in_brackets_is_there_for_machines(name):
    study, cells, wanted = CASES[name]
    found = study.reported(cells)
    assert found == pytest.approx(wanted)
    assert found.keys() <= {each for cell in cells for each in study.measured(cell)}, "under the names of the results"
    shown = terminal(study.table(cells))
    if name == "losses":
        shown += terminal(study.page(cells).tables[1])
    assert all(f"({100 * value:.1f}" in shown for value in found.values())
    assert shown.count("(") - shown.count("(Table") >= len(found)


def test_transfer_tells_those_of_both_widths():
    cells = [
        TransferResult("food101", protocol, "top1", value=0.5, validation=0.4, settings={}, images=(9, 3), text="",
                       asked={}, seconds=1.0, start=start)
        for protocol, start in (("linear", "run"), ("linear", "supervised"), ("random", "run"))
    ]  # fmt: skip
    found = TransferStudy.reported(TransferStudy.__new__(TransferStudy), cells)
    assert found["food101, linear: top1 (SimCLR 1x)"] == pytest.approx(0.684)
    assert found["food101, linear, supervised: top1 (supervised 4x)"] == pytest.approx(0.752)
    assert found["food101, random: top1 (random start 1x)"] == pytest.approx(0.869)
    assert len(found) == len(reported("food101", "linear")) + 2 + 2


def test_size_stands_beside_the_second_versions_nets_and_the_firsts_long_runs():
    cells = [Score("resnet101", "2", 0, 0.5, 0.4, 1.0, {"fine-tuned, 1%": 0.3}), score("resnet50", "1")]
    second = of(SizeStudy, recipe="simclr2-imagenet-800", labels=("1%",))
    assert second.reported(cells) == pytest.approx({
        "resnet101, 2: linear_top1": 0.77, "resnet101, 2: fine-tuned, 1%": 0.691, "resnet50, 1: linear_top1": 0.717,
    })  # fmt: skip
    assert "50.0 (77.0)" in terminal(second.table(cells))
    second.shared = {"encoder": {"sk_ratio": 0.0625}}
    assert second.reported(cells)["resnet101, 2: linear_top1"] == pytest.approx(0.79)
    first = of(SizeStudy, recipe="simclr-imagenet-1000")
    assert first.reported(cells) == {}
    first.shared = {"epochs": 1000}
    assert first.reported(cells) == pytest.approx({"resnet50, 1: linear_top1": 0.693})
    assert of(SizeStudy).reported(cells) == {}, "of no recipe nothing is published"
    assert values_of("simclr2/checkpoints")[("r101-2x-sk",)] == 79.0


def test_the_folder_and_the_result_hold_it(tmp_path):
    config = SuppressionStudy.Config()
    folder = StudyFolder(tmp_path / "study", "suppression", {"data": "data"})
    folder.start()
    cells = [score("0.1", "10 bits", 0.2), score("0.1", "10 bits", 0.3)]
    result = SuppressionStudy("data", config, folder).finish(cells)
    document = json.loads((tmp_path / "study" / "study.json").read_text())
    key = "0.1, 10 bits: linear_top1"
    for found in (document, result.to_dict()):
        assert found["published"] == {key: 0.187}
        assert np.isclose(found["metrics"][key], 0.25)
