"""Numbers with what they count, in the singular where there is one."""

from __future__ import annotations

import re

import numpy as np
import pytest

import twofold
from commands.tiny import images
from twofold.text import counted, counted_have


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (1, "image", "1 image"), (0, "image", "0 images"), (1200, "test image", "1,200 test images"),
        (1, "class", "1 class"), (2, "class", "2 classes"), (2, "batch", "2 batches"), (1.0, "epoch", "1 epoch"),
        (0.5, "epoch", "0.5 epochs"), (np.int64(3000), "row", "3,000 rows"), (np.int64(1), "row", "1 row"),
    ],
)  # fmt: skip
def test_a_number_and_its_noun(count, noun, expected):
    assert counted(count, noun) == expected


def test_as_a_subject():
    assert [counted_have(n, "file") for n in (1, 2)] == ["1 file has", "2 files have"]


def test_a_run_of_one_epoch_scored_on_one_image_says_so(tmp_path, capsys):
    small = {"encoder": {"name": "resnet10", "width": 0.125}, "training.device": "cpu"}
    run = twofold.pretrain(images(), tmp_path / "base", epochs=1, batch=16, **small)
    x, y = images(21, seed=1)
    result = twofold.evaluate(run.path, (x[:20], y[:20]), test=(x[20:], y[20:]), protocol="linear")
    told = [capsys.readouterr().out, run.text(), result.text(), (tmp_path / "base" / "report.html").read_text()]
    tuned = twofold.finetune(
        run.path, (x[:20], y[:20]), test=(x[20:], y[20:]), out=tmp_path / "tuned", epochs=1, batch=10,
        **{"training.device": "cpu", "labels": 10},
    )  # fmt: skip
    told += [tuned.text(), (tmp_path / "tuned" / "report.html").read_text()]
    assert "1 test image, scored once" in told[2]
    assert "1 epoch, batch" in told[4]
    assert "1 epoch of batches" in told[3]
    for text in told:
        assert not re.search(r"(?<![\d.,\-/+])1 (test |training )?(images|epochs|labels|classes|steps)\b", text)
