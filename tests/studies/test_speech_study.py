"""Objective by views of recordings, as a study: its cells, what is refused, and that it runs and goes on."""

import json

import numpy as np
import pytest
from tiny import images

from sound_files import speech_folder
from twofold import cli
from twofold.errors import UserError
from twofold.options import flatten, plain
from twofold.runs.config import build
from twofold.studies import cells
from twofold.studies.grid import Score
from twofold.studies.speech import SpeechStudy

SHARED = """
encoder: {name: "speech:small", speech: {width: 16, heads: 2, layers: 1}}
training: {device: cpu, precision: fp32, threads: 1}
monitor: {every: 0}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    where = tmp_path_factory.mktemp("speech")
    speech_folder(where / "words", 2, 5)
    (where / "shared.yaml").write_text(SHARED)
    return where


def of(data="data", **options):
    return SpeechStudy(str(data), SpeechStudy.Config(**options), None)


def test_cells_are_objectives_by_views(data):
    study = of(data / "words", seeds=2, batch=4, config=str(data / "shared.yaml"))
    parts = study.plan()
    assert len(parts) == 24
    found = {(p.row, p.column): flatten(plain(build(p.options))) for p in parts}
    for (row, column), options in found.items():
        weights = options["method.contrastive_weight"], options["method.reconstruction_weight"]
        assert (weights[0] == 0, weights[1] == 0) == (row == "reconstruction only", row == "contrast only")
        assert (options["waves.chain"] == 0) == (column in ("spectrogram", "neither"))
        masks = options["method.time_mask"], options["method.frequency_mask"]
        assert (masks == (0, 0.0)) == (column in ("wave", "neither"))
    assert len({json.dumps(options, default=str) for options in found.values()}) == 12
    places = {(place.row, place.column) for place in study.places()}
    contrasts = study.contrasts()
    assert len(contrasts) == 2 * 4 + 3 * 3 + 3 * 2
    assert all({first, second} <= places for _, first, second, *_ in contrasts)


def test_what_cannot_be(data, tmp_path):
    with pytest.raises(UserError, match="--views must name at least one, and none twice"):
        of(views=("wave", "wave"))
    with pytest.raises(UserError, match="--parts must be at least 1, got 0"):
        of(parts=0)
    with pytest.raises(UserError, match=r"one_speaker: .*words does not say who speaks"):  # said before the first cell
        of(data / "words", recipe="demo-speech", batch=4).plan()
    x, y = images()
    np.savez(tmp_path / "data.npz", images=x, labels=y)
    with pytest.raises(UserError, match=r"data.npz holds images: give a folder of labelled recordings"):
        of(tmp_path / "data.npz", epochs=1.0, batch=8).plan()


def test_the_table_says_that_nothing_is_published():
    study = of()
    scores = [
        Score(row, column, seed, value + 0.001 * seed * (value > 0.6), 0.5, 1.0)
        for seed in range(3)
        for (row, column), value in {("contrast only", "wave"): 0.5, ("both", "wave"): 0.8}.items()
    ]
    assert "whose own table could not be read" in study.table(scores).note
    assert "both less contrast only, wave: +30.1 ± 0.2, better" in study.interpretation(scores)


@pytest.mark.slow
def test_it_runs_and_goes_on(data, tmp_path, monkeypatch):
    words = ["study", "speech", str(data / "words"), "--out", str(tmp_path / "s"), "--epochs", "1", "--batch", "4"]
    words += ["--k", "3", "--config", str(data / "shared.yaml"), "--seeds", "1", "--parts", "2"]
    words += ["--objectives", "[reconstruction]", "--views", "[wave, neither]"]
    asked, begin = [], cells._begin
    monkeypatch.setattr(cells, "_begin", lambda cell, *more: (asked.append(cell.work), begin(cell, *more))[1])
    assert cli.main(words) == 0
    assert [(work["scoring"], work["also"]) for work in asked] == [({"parts": 2}, ["baselines"]), ({"parts": 2}, [])]
    assert cli.main([*words, "--resume"]) == 0
    assert len(asked) == 2, "nothing is done again"
    results = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    assert [(each["row"], each["column"]) for each in results] == [
        ("reconstruction only", "wave"), ("reconstruction only", "neither")
    ]  # fmt: skip
    assert [set(each["more"]) for each in results] == [{"majority", "filterbank", "untrained"}, set()]
    (evaluation, *_) = (tmp_path / "s" / "cell00-seed0" / "evaluations").glob("linear-*.json")
    assert "features are those of 2 parts of equal length, side by side" in json.loads(evaluation.read_text())["words"]
