"""What the page is made of: neighbours, map, pictures, curves, tables."""

import base64
import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_example import cells, digits, example, metrics

from twofold.data import ArraySource, BadImage
from twofold.errors import UserError
from twofold.evaluation.few_labels import LabelEfficiency
from twofold.report import (
    EmbeddingMap,
    Report,
    Series,
    Table,
    embedding_map,
    find_neighbours,
    label_figure,
    label_table,
    line_figure,
    outcome,
    render,
    thumbnails,
    training_figures,
    write_report,
)
from twofold.report.images import png, sprite
from twofold.report.map import project
from twofold.report.tables import spread
from twofold.studies.finetuning import Trial
from twofold.studies.finetuning import table as trial_table


def decoded(address: str) -> np.ndarray:
    prefix = "data:image/png;base64,"
    assert address.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address[len(prefix) :]))).convert("RGB"))


def test_neighbours_are_those_of_a_slow_search_and_never_the_query_itself() -> None:
    source, features, labels = digits()
    found = find_neighbours(features, source, labels=labels, queries=7, k=5)
    pictures = thumbnails(source, np.arange(len(features)), 64)
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    assert found.labels is not None
    assert found.query_labels is not None
    for q in range(7):
        query = next(i for i in range(len(pictures)) if (pictures[i] == found.queries[q]).all())
        ranked = sorted((i for i in range(len(unit)) if i != query), key=lambda i: -unit[query] @ unit[i])[:5]
        np.testing.assert_allclose(found.similarity[q], unit[ranked] @ unit[query], atol=1e-5)  # float32
        assert (found.images[q] == pictures[ranked]).all()
        assert found.labels[q].tolist() == labels[ranked].tolist()
        assert found.query_labels[q] == labels[query]
    assert len(set(found.query_labels.tolist())) == 7  # classes take turns
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    right = labels[np.argsort(-cosine, axis=1, kind="stable")[:, :5]] == labels[:, None]
    assert found.overall is not None  # over all, not over the seven that are shown
    assert found.overall.share == pytest.approx(right.mean(), abs=2e-3)
    assert (found.overall.count, found.overall.k) == (len(labels), 5)
    others = [(labels == label).sum() - 1 for label in labels]
    assert found.overall.chance == pytest.approx(np.mean(others) / (len(labels) - 1))
    some = np.where(np.arange(len(labels)) < 40, labels, -1)
    part = find_neighbours(features, source, labels=some, queries=7, k=5).overall
    assert part is not None
    assert part.count == 40  # those without a class are nobody's mistake
    told = render(Report("t", {}, [], pictures[:0, None], found, None))
    assert f"{100 * found.overall.share:.0f}&nbsp;% of the 5 nearest are of the same class" in told
    assert f"{100 * found.overall.chance:.0f}&nbsp;% would be by chance" in told


def test_exact_copies_are_neighbours_and_k_is_clipped() -> None:
    source = ArraySource(np.zeros((4, 8, 8, 1), np.uint8))
    features = np.ones((4, 3), np.float32)
    found = find_neighbours(features, source, queries=4, k=10)
    assert found.images.shape == (4, 3, 8, 8, 1)
    assert found.overall is None
    np.testing.assert_allclose(found.similarity, 1, atol=1e-6)


def test_thumbnails_keep_small_images_crop_large_ones_and_grey_out_broken_ones() -> None:
    rng = np.random.default_rng(0)
    small = ArraySource(rng.integers(0, 256, (3, 20, 20, 3)).astype(np.uint8))
    assert (thumbnails(small, np.array([2, 0]), 48)[0] == small.read(2)).all()
    wide = np.zeros((1, 40, 100, 1), np.uint8)
    wide[:, :, 30:70] = 200  # the central square
    assert (thumbnails(ArraySource(wide), np.array([0]), 16) == 200).all()

    class Broken:
        channels, name, labels, classes = 3, "broken", None, None

        def read(self, index: int) -> np.ndarray:
            if index:
                raise BadImage("gone.png", "no such file")
            return np.full((50, 60, 3), 7, np.uint8)

    got = thumbnails(Broken(), np.array([0, 1]), 32)  # type: ignore[arg-type]
    assert got.shape == (2, 32, 32, 3)
    assert (got[0] == 7).all()
    assert (got[1] == 128).all()


def test_pictures_survive_their_way_into_an_address() -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 1), (5, 7, 3)):
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        want = np.broadcast_to(pixels.reshape(5, 7, -1), (5, 7, 3))
        assert (decoded(png(pixels)) == want).all()
    large = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), 80, 0), 80, 1)
    assert large.nbytes > 2**20
    assert np.abs(decoded(png(large)).astype(int) - large).max() <= 32  # stored in 256 colours


def test_a_sheet_holds_each_tile_at_its_row_and_column() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    sheet, columns = sprite(tiles)
    assert columns == 3
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        assert (sheet[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] == tile).all()


def test_a_map_keeps_neighbourhoods_fits_the_frame_and_repeats() -> None:
    source, features, labels = digits()
    got = embedding_map(features, source, labels=labels, most=200)
    assert got.xy.shape == (200, 2)
    assert got.xy.min() >= 0
    assert got.xy.max() <= 1
    assert np.ptp(got.xy, axis=0).max() == pytest.approx(1, abs=1e-6)
    assert got.labels is not None
    distance = np.linalg.norm(got.xy[:, None] - got.xy[None], axis=2) + 9 * np.eye(200)
    assert np.mean(got.labels[distance.argmin(1)] == got.labels) > 0.6  # chance is 0.1; pixels give about 0.8
    assert "200 of 300, drawn at random" in got.method
    again = embedding_map(features, source, labels=labels, most=200)
    np.testing.assert_allclose(again.xy, got.xy, atol=1e-6)
    assert got.tiles is not None
    index = [int(np.flatnonzero((features == f).all(1))[0]) for f in features]
    assert sorted(index) == list(range(300))
    shown = got.tiles.reshape(200, -1) / 255
    match = np.abs(shown[:, None] - features[None]).max(2).argmin(1)  # which digit each picture shows
    assert labels[match].tolist() == got.labels.tolist()


@pytest.mark.parametrize(("n", "d"), [(2, 5), (3, 1), (9, 60), (12, 2)])
def test_tiny_maps_work(n: int, d: int) -> None:
    features = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    xy, _ = project(features)
    assert xy.shape == (n, 2)
    assert np.isfinite(xy).all()


def test_a_map_of_one_image_is_a_user_error() -> None:
    with pytest.raises(UserError, match="at least 2 images"):
        embedding_map(np.ones((1, 3), np.float32))


def test_curves_are_drawn_for_what_there_is() -> None:
    titles = [figure.title for figure in training_figures(metrics())]
    assert titles == [
        "Contrastive loss",
        "Contrastive accuracy",
        "Accuracy on held-out images",
        "Effective rank",
        "Alignment and uniformity",
        "Learning rate",
    ]
    assert "neighbours before training" in training_figures(metrics())[2].alt
    assert training_figures([]) == []
    assert training_figures([{"step": 1, "chance": 5.0}]) == []
    spoiled = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3}, {"step": 4, "loss": 1.0}]
    (figure,) = training_figures(spoiled)
    assert figure.hover["at"] == ["step 1", "step 4"]
    assert "from 2 to 1" in figure.alt


def test_curves_of_classes_stand_beside_what_chance_gets() -> None:
    rows = [
        {"epoch": k, "loss": 2.0 - k, "chance": 2.3, "train_accuracy": 0.5, "by_chance": 0.1, "lr": 0.1} for k in (0, 1)
    ]
    drawn = {figure.title: figure.alt for figure in outcome._curves(rows)}
    assert list(drawn) == ["Training loss", "Learning rate", "train accuracy"]
    assert "the same answer to all" in drawn["Training loss"]
    assert "answers dealt out at random" in drawn["train accuracy"]
    older = [{name: value for name, value in row.items() if name not in ("chance", "by_chance")} for row in rows]
    assert not any("answer" in figure.alt for figure in outcome._curves(older))


def test_long_runs_are_thinned_and_keep_their_end() -> None:
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(5001)]
    (figure,) = training_figures(rows)
    assert 300 < len(figure.hover["x"]) <= 600
    assert figure.hover["at"][-1] == "step 5,000"


def test_hover_positions_lie_on_the_drawn_curve() -> None:
    figure = line_figure("t", "x", [0, 1, 3], [Series("a", [1.0, 5.0, 2.0]), Series("b", [None, 2.0, 3.0])])
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure.svg)
    assert box is not None
    width, height = float(box[1]), float(box[2])
    a, b = figure.hover["series"]
    assert b["y"][0] is None
    assert b["text"][0] is None
    assert all(0 < x < width for x in figure.hover["x"])
    assert all(0 < y < height for y in a["y"])
    paths = re.findall(r' d="(M [^"]*)"', figure.svg)
    points = [re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path) for path in paths]
    drawn = next(p for p in points if len(p) == 3 and float(p[0][1]) > float(p[1][1]) < float(p[2][1]))
    for (x, y), at, value in zip(drawn, figure.hover["x"], a["y"], strict=True):
        assert (float(x), float(y)) == (pytest.approx(at, abs=0.06), pytest.approx(value, abs=0.06))  # rounded to 0.1


def test_drawings_have_no_fixed_colours_shared_ids_or_addresses() -> None:
    figures = [*training_figures(metrics()), label_figure(cells())]
    ids: list[str] = []
    for figure in figures:
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(?:xlink:)?href="#[^"]*"|url\(#[^)]*\)', "", figure.svg))
        assert "var(--ink)" in figure.svg
        ids += re.findall(r'\bid="([^"]+)"', figure.svg)
    assert len(ids) == len(set(ids))
    assert training_figures(metrics())[0].svg == figures[0].svg  # the same bytes each time


def test_the_label_table_gives_mean_and_spread_and_marks_the_best() -> None:
    table = label_table([*cells(), LabelEfficiency("third", 50, (0.91, 0.91, 0.91), (1.0, 1.0, 1.0))])
    assert list(table.columns) == ["", "50 labels", "4,000 labels"]
    assert table.rows[0] == ["raw pixels", "66.3 ± 1.5", "90.5"]
    assert table.rows[2] == ["third", "91.0 ± 0.0", None]
    assert table.text(2, 2) == ""
    assert set(table.best) == {(1, 1), (2, 1), (1, 2)}
    assert "3 draws" in table.note
    with pytest.raises(ValueError, match="2 cells"):
        Table("t", ["a", "b"], [["only one"]])
    assert Table("t", ["a", "b"], [[1, 0.123456]]).text(0, 1) == "0.1235"


def test_text_from_outside_cannot_become_markup() -> None:
    page = render(example())
    assert "<script>document.title" not in page
    assert "<b>not bold" not in page
    assert "pretrained <encoder>" not in page
    assert page.count("<script>") == 1


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = render(example())
    for value in re.findall(r'\b(?:src|href|action|data|poster|srcset)="([^"]*)"', page):
        assert value.startswith(("data:", "#")), value[:80]
    for value in re.findall(r"url\(([^)]*)\)", page):
        assert value.startswith(("data:", "#")), value[:80]
    assert "@import" not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "report",
    [
        Report("empty"),
        Report("map without labels", map=EmbeddingMap(np.random.default_rng(0).random((5, 2)).astype(np.float32))),
        Report("one point", map=EmbeddingMap(np.zeros((1, 2), np.float32), np.array([-1]))),
        Report("nan", metrics=[{"step": 1, "loss": math.nan}]),
    ],
    ids=lambda report: report.title,
)
def test_reports_of_little_are_pages_too(report: Report) -> None:
    page = render(report)
    assert f"<h1>{report.title}</h1>" in page
    assert "nan" not in page.replace(report.title, "").lower()


@pytest.mark.parametrize(("missing", "named"), [("jinja2", "jinja2"), ("matplotlib", "matplotlib")])
def test_missing_libraries_are_named_with_the_remedy(
    missing: str, named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{named}.*pip install {named}"):
        write_report(tmp_path / "report.html", Report("t", metrics=metrics()))
    assert list(tmp_path.iterdir()) == []


def test_of_one_draw_no_deviation_is_told():
    """In the notes of tables and plots: there was a 'standard deviation over 1 draws'."""
    one, some = ([LabelEfficiency("a", 4, top1, ())] for top1 in ((0.5,), (0.5, 0.6, 0.7)))
    assert "; one draw of the labelled images: no spread is known (" in label_table(one).note
    assert "; mean ± standard deviation over 3 draws of the labelled images (" in label_table(some).note
    assert (label_figure(one).note, label_figure(some).note != "") == ("", True)
    trials = [Trial("1%", 4, 0, draw, 0.5) for draw in (0, 1)]
    assert "in %, one draw of labels and seed: no spread is known; " in trial_table(trials[:1]).note
    assert "in %, mean ± standard deviation over 2 draws of labels and seed; " in trial_table(trials).note


@pytest.mark.parametrize("of", [list, np.array])
def test_a_spread_is_of_lists_and_of_arrays_and_empty_of_none(of):
    assert spread(of([0.5, 0.7])) == "60.0 ± 14.1"
    assert spread(of([0.5])) == "50.0"
    assert spread(of([])) == ""
