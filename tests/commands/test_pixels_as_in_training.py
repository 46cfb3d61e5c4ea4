"""Images are read as in the encoder's training: white drawings on transparent ground, pretrained on black."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny import OPTIONS

import twofold
from twofold.commands.distill import distill
from twofold.commands.embed import embed
from twofold.commands.finetune import finetune
from twofold.commands.labels import labels
from twofold.commands.study import study
from twofold.commands.transfer import transfer
from twofold.data import DataConfig, open_source
from twofold.encoders import read_header
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels
from twofold.runs.config import FinetuneConfig
from twofold.studies.transfer import linear as measuring
from twofold.studies.transfer.sets import SETS
from twofold.training.rundir import RunDirectory

BLACK = {"data.background": "black", "data.workers": 0}
READ = {"data.workers": 0}
SHORT = {"epochs": 2, "batch": 8, "views.size": 16, "training.device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bars and discs, white and opaque; all else is transparent: on white ground nothing is to be seen."""
    root, rng = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] / 16
    for part, count in (("train", 24), ("test", 16)):
        for i in range(count):
            cy, cx = rng.uniform(0.3, 0.7, 2)
            shape = (y - cy) ** 2 + (x - cx) ** 2 < 0.06 if i % 2 else abs(x - cx) < 0.12
            pixels = np.full((16, 16, 4), 255, np.uint8)
            pixels[..., 3] = 255 * shape
            path = root / part / ("bar", "disc")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    options = OPTIONS | {"epochs": 2, "batch": 8, "monitor": {"every": 0}} | BLACK
    return twofold.pretrain(folder, tmp_path_factory.mktemp("runs") / "black", report=False, **options).path


def test_evaluate_gives_the_same_with_and_without_the_option(folder, run):
    plain = twofold.evaluate(run, folder, protocol="knn", k=3, **READ)
    again = twofold.evaluate(run, folder, protocol="knn", k=3, keep_features=False, **BLACK)
    assert plain.scores == again.scores
    assert plain.scores.top1 > 0.5
    assert plain.words == again.words
    white = twofold.evaluate(run, folder, protocol="knn", k=3, **READ, **{"data.background": "white"})
    assert white.scores.top1 == 0.5  # all of them look alike
    assert "data.background white where the encoder was trained with black" in white.text()
    assert "trained with" not in plain.text()


def test_embed_gives_the_same_with_and_without_the_option(folder, run, tmp_path):
    embed(run, folder, tmp_path / "a.npz", **READ)
    embed(run, folder, tmp_path / "b.npz", **BLACK)
    told = embed(run, folder, tmp_path / "c.npz", **READ, **{"data.background": "white"}).text()
    first, second, white = (np.load(tmp_path / f"{name}.npz")["features"] for name in "abc")
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first.round(4), axis=0)) > 12
    assert len(np.unique(white.round(4), axis=0)) == 1
    assert "data.background white where the encoder was trained with black" in told


def test_finetune_reads_as_the_encoder_did(folder, run, tmp_path):
    plain = finetune(run, folder, tmp_path / "a", **SHORT, **READ)
    again = finetune(run, folder, tmp_path / "b", **SHORT, **BLACK)
    assert plain.result.scores == again.result.scores
    assert RunDirectory(tmp_path / "a").read(FinetuneConfig)[0].data.background == "black"
    assert "trained with" not in plain.result.text
    white = finetune(run, folder, tmp_path / "c", **SHORT, **READ, **{"data.background": "white"})
    assert white.result.scores.top1 == 0.5
    assert "images read with data.background white where the encoder was trained with black" in white.result.text
    follows = twofold.evaluate(tmp_path / "a", folder, protocol="knn", k=3, **READ)  # and what comes of it does so, too
    assert follows.scores.top1 > 0.5


def test_labels_reads_as_the_encoder_did(folder, run, tmp_path):
    plain = labels(run, folder, counts=[8], ways=["linear"], draws=2, out=str(tmp_path / "a"), **READ)
    again = labels(run, folder, counts=[8], ways=["linear"], draws=2, out=str(tmp_path / "b"), **BLACK)
    assert plain.cells == again.cells
    assert plain.cells[0].mean > 0.5


def test_a_student_reads_as_its_teacher_did(folder, run, tmp_path):
    options = {"teacher_labels": "all", "epochs": 1, "batch": 8, "training.device": "cpu", "temperature": 1.0}
    plain = distill(run, folder, tmp_path / "a", **options, **READ)
    again = distill(run, folder, tmp_path / "b", **options, **BLACK)
    assert plain.result.comparison == again.result.comparison
    assert plain.result.comparison.teacher_top1 > 0.5
    white = distill(run, folder, tmp_path / "c", **options, **READ, **{"data.background": "white"})
    assert white.result.comparison.teacher_top1 == 0.5
    assert "images read with data.background white where the encoder was trained with black" in white.text()


def test_transfer_and_studies_read_as_the_encoder_did(folder, run, tmp_path, monkeypatch):
    seen = []

    def opened(_name, config, _seed):
        seen.append(config)
        train, test = (open_source(folder, config, split=split) for split in ("train", "test"))
        return measuring.DataSplits(train, train, train, test, "words")

    monkeypatch.setattr(measuring, "open_parts", opened)
    (cell,) = transfer(run, data="cifar10", out=str(tmp_path / "transfer"), workers=1).cells
    assert seen[0].background == "black"
    assert cell.value > 0.5
    assert cell.asked["background"] == "black"  # a result from other pixels is not taken for this one
    assert SETS["cifar10"].metric == "top1"
    study("classes", folder, tmp_path / "study", run=str(run), per_class=4, draws=1, **READ)
    points = json.loads((tmp_path / "study" / "study.json").read_text())["results"]
    assert min(point["top1"] for point in points) > 0.5


def test_what_decides_what_a_pixel_is(run, folder):
    pixels = Pixels.of(read_header(run / "encoder.safetensors"))
    pieces = {"tile_overlap": 0, "tile_rest": 0.5, "frames": "first", "frame_step": 1}
    assert pixels == Pixels("black", True, "full", **pieces, trim=0.0)
    whole = dataclasses.replace(pixels, tile=16).of_whole_images()  # as transfer reads
    assert whole == Pixels("black", True, "full", trim=0.0)
    assert pixels.options() == {"data": {"background": "black"}}
    assert pixels.fill(DataConfig(orient=False)) == DataConfig(orient=False, background="black")
    other = open_source(folder, DataConfig(background="black", orient=False, deep_pixels="stretch"), split="test")
    assert pixels.differences(other) == (
        "data.orient False where the encoder was trained with True, "
        "data.deep_pixels stretch where the encoder was trained with full"
    )
    assert Pixels.of({"extra": {}}).options() == {"data": {}}  # a converted checkpoint does not know
    assert Pixels.of({"extra": {}}).differences(other) == ""
    made = Extractor.of(run / "encoder.safetensors", batch=3, size=None)
    assert (made.size, made.resample, made.pixels, made.batch) == (16, "antialias", pixels, 3)


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """Five bands of 16 bits: discs and bars in the fourth alone, noise of other ranges in the others."""
    root, rng = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] / 16
    for part, count in (("train", 24), ("test", 16)):
        for i in range(count):
            cy, cx = rng.uniform(0.3, 0.7, 2)
            stored = rng.integers(0, (300, 5000, 40000, 100, 60000), (16, 16, 5)).astype(np.uint16)
            stored[..., 3] = 100 * ((y - cy) ** 2 + (x - cx) ** 2 < 0.06 if i % 2 else abs(x - cx) < 0.12)
            path = root / part / ("bar", "disc")[i % 2] / f"{i}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig")
    return root


def test_bands_and_their_ranges_are_the_encoders(bands, tmp_path):
    options = OPTIONS | {"epochs": 2, "batch": 8, "monitor": {"every": 0}, "data.workers": 0}
    chosen = {"data.bands": [4, 1], "data.deep_pixels": "bands"}
    run = twofold.pretrain(bands, tmp_path / "run", report=False, **options, **chosen).path
    pixels = Pixels.of(read_header(run / "encoder.safetensors"))
    assert pixels.bands == (4, 1)
    assert pixels.band_ranges[0] == (0.0, 100.0)
    assert len(pixels.band_ranges) == 2
    plain = twofold.evaluate(run, bands, protocol="knn", k=3, **READ)
    assert plain.scores.top1 > 0.5
    for path in (bands / "test").rglob("*.tif"):  # darker test images are read by the range of training
        source = open_source(path.parent, DataConfig(channels=2, bands=(4, 1), band_ranges=pixels.band_ranges))
        assert source.read(0)[..., 0].max() == 255
    embed(run, bands, tmp_path / "a.npz", **READ)
    embed(run, bands, tmp_path / "b.npz", **READ, **chosen)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["features"], b["features"])
        assert a["features"].std(0).max() > 0
    tuned = finetune(run, bands, tmp_path / "tuned", **SHORT, **READ)
    assert RunDirectory(tuned.path).read(FinetuneConfig)[0].data.bands == (4, 1)
    other = twofold.evaluate(run, bands, protocol="knn", k=3, **READ, **{"data.bands": [3, 2]})
    assert "data.bands (3, 2) where the encoder was trained with (4, 1)" in other.text()
    with pytest.raises(UserError, match=r"band_ranges has 2 ranges for 1 channel"):
        twofold.evaluate(run, bands, protocol="knn", k=3, **READ, **{"data.bands": [3]})
