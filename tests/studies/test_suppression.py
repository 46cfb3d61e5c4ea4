"""Feature suppression as a study: what is laid over images, cells, published values, and that it runs and goes on."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny import images

from sound_files import speech_folder
from twofold import cli
from twofold.data import open_source, splits_of
from twofold.errors import UserError
from twofold.options import flatten, plain
from twofold.report.tables import terminal
from twofold.runs.config import build
from twofold.studies import cells
from twofold.studies.grid import Score
from twofold.studies.suppression import SuppressionStudy, with_bits, with_digits

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


def of(data="mnist5k", folder=None, **options):
    return SuppressionStudy(str(data), SuppressionStudy.Config(**options), folder)


def test_bits_are_channels_that_are_random_and_the_same_all_over():
    x = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    made, read = with_bits(x, 5, "train")
    assert made.shape == (400, 8, 8, 8)
    assert (made[..., :3] == x).all()
    planes = made[..., 3:]
    assert set(np.unique(planes)) == {0, 255}
    assert (planes == planes[:, :1, :1]).all()
    bits = planes[:, 0, 0] == 255
    assert (read == bits[:, 0] + 2 * bits[:, 1] + 4 * bits[:, 2]).all()
    assert abs(bits.mean() - 0.5) < 0.05
    assert np.abs(np.corrcoef(bits.T) - np.eye(5)).max() < 0.2, "bits tell nothing of each other"
    more, _ = with_bits(x, 9, "train")
    assert (more[..., :8] == made).all(), "more bits are added to the same"
    assert (with_bits(x, 5, "test")[0] != made).any()
    assert with_bits(x, 2, "train")[1].max() == 3


def test_digits_are_added_nine_times_and_are_what_is_told():
    x = np.full((60, 32, 32, 3), 100, np.uint8)
    made, digit = with_digits(x, 20, "train")
    layer = made.astype(int) - 100
    assert (layer.min(), layer.max()) == (0, 155), "white is white"
    assert (layer[..., :1] == layer).all()
    assert 10 < len({image.tobytes() for image in layer}) <= 20, "of so many different pictures"
    known = load_digits()
    ink = (255 * known.images / 16).round().clip(0, 155).astype(int)
    told = {image.tobytes(): number for image, number in zip(ink, known.target.tolist(), strict=True)}
    for top, left in ((1, 1), (12, 12), (22, 1), (22, 22)):
        found = [told.get(image[top : top + 8, left : left + 8].tobytes()) for image in layer[..., 0]]
        assert found == digit.tolist()
    bigger, _ = with_digits(np.full((2, 48, 50, 1), 0, np.uint8), 20, "train")
    assert bigger.shape == (2, 48, 50, 1)


def test_cells_have_channels_of_their_own_and_colours_that_stay(data):
    study = of(data / "data.npz", amounts=(4, 0), temperatures=(0.2, 0.1), seeds=2, config=str(data / "shared.yaml"))
    parts = study.plan()
    assert [(p.row, p.column) for p in parts[:4]] == [
        ("0.1", "0 bits"), ("0.1", "4 bits"), ("0.2", "0 bits"), ("0.2", "4 bits")
    ]  # fmt: skip
    assert len(parts) == 8
    for part in parts:
        options = flatten(plain(build(part.options)))
        assert options["encoder.channels"] == (7 if part.column == "4 bits" else 3)
        assert options["method.temperature"] == float(part.row)
        assert (options["views.color_strength"], options["views.grayscale"]) == (0.0, 0.0)
    assert [c.words for c in study.contrasts()] == [f"4 bits less 0 bits, temperature {t}" for t in ("0.1", "0.2")]


def test_the_notebooks_accuracies_stand_beside():
    study = of()
    assert study.published("0.1", "10 bits") == 18.7
    assert study.published("0.2", "0 bits") == 90.0
    assert study.published("0.3", "0 bits") is None
    assert of(compete="digits").published("0.1", "10 digits") is None
    values = {("0.1", "0 bits"): (0.9, None), ("0.1", "10 bits"): (0.3, 0.99)}
    scores = [
        Score(*place, seed, v + 0.001 * seed * v, 0.5, 1.0, {} if other is None else {"other_top1": other})
        for seed in range(3)
        for place, (v, other) in values.items()
    ]
    text = terminal(study.table(scores))
    assert "0.1: classes" in text
    assert "(89.2)" in text
    assert "In brackets the paper's, of MNIST at its own size (the authors' notebook" in text
    assert "0.1: bits" in text
    assert "99.0" in text
    assert "worse" in study.interpretation(scores)
    assert study.means(scores)["0.1, 10 bits: other_top1"] == pytest.approx(0.99)
    assert "0.1, 0 bits: other_top1" not in study.means(scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amounts": (33,)}, "--amounts 33: there are 0 to 32 bits"),
        ({"amounts": (1,), "compete": "digits"}, "--amounts 1: there are 0, or 2 to 1,797 pictures"),
        ({"amounts": (3, 3)}, "--amounts must name at least one, and none twice"),
        ({"temperatures": (0.0,)}, "--temperatures must be above 0"),
        ({"side": 4}, "--side must be at least 8"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        of(**options)


def test_images_that_do_not_do(data, tmp_path):
    small = data / "small.npz"
    x, y = images()
    np.savez(small, images=x[:, :16, :16], labels=y)
    with pytest.raises(UserError, match="digits take 24 pixels and the images have 16: give --side 32"):
        of(small, compete="digits", k=3).plan()
    with pytest.raises(UserError, match="23 channels of 16 pixels a side: give fewer --amounts, or a larger --side"):
        of(small, k=3).plan()
    for i in range(12):
        place = tmp_path / f"class{i % 2}" / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (30 + i, 40), (20 * i, 0, 0)).save(place)
    with pytest.raises(UserError, match=r"has images of .* and of .*: give --side 32"):
        of(tmp_path, amounts=(0, 2), k=3).plan()
    (tmp_path / "class0" / "broken.png").write_bytes(b"no image")
    study = of(tmp_path, amounts=(0, 2), side=24, k=3, config=str(data / "shared.yaml"), batch=2)
    assert study.plan()
    assert sum(len(part.images) for part in study._pictures.values()) == 12, "what is broken is left out"
    assert all(len(part.images) == len(part.labels) for part in study._pictures.values())
    speech_folder(tmp_path / "speech", 2, 2)
    with pytest.raises(UserError, match="holds recordings, and bits and digits are laid over images"):
        of(tmp_path / "speech").plan()


def test_tiles_of_two_photographs():
    train, test = (open_source("tiles520", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (416, 104)
    assert train.read(0).shape == (32, 32, 3)
    assert train.classes[:2] == ["china, top left", "china, top right"]
    assert set(np.bincount(train.labels)) <= set(range(40, 70))
    assert splits_of("tiles520").evaluation == ("train", "test")
    seen = {train.read(i).tobytes() for i in range(len(train))}
    assert len(seen) > 400
    assert sum(test.read(i).tobytes() in seen for i in range(len(test))) < 5, "sky alone is alike"


@pytest.mark.slow
@pytest.mark.parametrize(("compete", "amounts"), [("bits", "[0, 4]"), ("digits", "[0, 6]")])
def test_it_runs_and_goes_on(data, tmp_path, monkeypatch, compete, amounts):
    words = ["study", "suppression", str(data / "data.npz"), "--out", str(tmp_path / "s"), "--epochs", "1"]
    words += ["--batch", "16", "--k", "3", "--config", str(data / "shared.yaml"), "--seeds", "1"]
    words += ["--compete", compete, "--amounts", amounts, "--side", "24"]
    asked, begin = [], cells._begin
    monkeypatch.setattr(cells, "_begin", lambda cell, *more: (asked.append(cell.work), begin(cell, *more))[1])
    assert cli.main(words) == 0
    assert len(asked) == 2
    assert cli.main([*words, "--resume"]) == 0
    assert len(asked) == 2, "nothing is done again"
    found = json.loads((tmp_path / "s" / "study.json").read_text())["results"]
    assert found[0]["more"] == {}
    assert 0 <= found[1]["more"]["other_top1"] <= 1
    assert sorted(file.name for file in (tmp_path / "s" / "data").iterdir()) == [
        f"0-{compete}.npz", f"{amounts[4]}-{compete}-read.npz", f"{amounts[4]}-{compete}.npz"
    ]  # fmt: skip
    assert (tmp_path / "s" / "report.html").exists()
