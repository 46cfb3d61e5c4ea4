"""Heat maps, bars, points and histograms: what they draw, what they say in words, and where a pointer finds what."""

import re

import numpy as np
import pytest

from twofold.report import (
    MOST_BARS,
    Points,
    Series,
    bar_figure,
    charts,
    heat_figure,
    histogram_figure,
    line_figure,
    map_figure,
    overlap,
    plots,
    point_figure,
)
from twofold.report.canvas import CLASSES, HEIGHT, SERIES, VARIABLES
from twofold.report.charts import _legend, _range


def test_a_heat_map_tells_every_cell_and_the_average_of_each_row():
    figure = heat_figure("Heat", ["crop", "color"], ["crop", "color"], [[0.3, 0.56], [None, 0.1]],
                         rows_are="first", columns_are="second")  # fmt: skip
    for number in ("30.0", "56.0", "43.0", "10.0"):
        assert f">{number}<" in figure.svg
    assert "crop: 30.0 %, 56.0 %; average 43.0 %. color: none, 10.0 %; average 10.0 %." in figure.alt
    alphas = sorted(float(found) for found in re.findall(r"var\(--s1\); opacity: ([0-9.]+)", figure.svg))
    assert alphas == pytest.approx(
        sorted(0.04 + 0.46 * (v - 0.1) / 0.46 for v in (0.1, 0.1, 0.3, 0.43, 0.56)), abs=1e-3
    )


def test_bars_begin_where_the_caption_says():
    lines = [Series("nonlinear", [0.64, 0.65], [0.01, None]), Series("linear", [0.61, None])]
    figure = bar_figure("Bars", "outputs", ["32", "128"], lines, note="Ours.")
    assert figure.note == "Ours. The axis begins at 59 %."
    assert all(f">{number}<" in figure.svg for number in ("64.0", "65.0", "61.0"))
    assert figure.hover["at"] == ["outputs 32", "outputs 128"]
    assert [each["text"] for each in figure.hover["series"]] == [["64.0 %", "65.0 %"], ["61.0 %", None]]
    high, low = (each["y"][0] for each in figure.hover["series"])
    assert 0 < high < low < 72 * HEIGHT, "y goes downwards"
    assert bar_figure("Low", "x", ["a"], [Series("", [0.02])]).note == "The axis begins at 1 %."
    assert bar_figure("Zero", "x", ["a", "b"], [Series("", [0.02, 0.9])]).note == "", "an axis from 0 needs no word"


def test_names_wider_than_their_groups_are_turned():
    def height(names):
        svg = bar_figure("Names", "loss", names, [Series("", [0.5] * len(names))]).svg
        turned = "rotate(-30" in svg
        return turned, float(re.search(r'viewBox="0 0 [0-9.]+ ([0-9.]+)"', svg)[1])

    assert height(["NT-Xent", "margin"]) == (False, pytest.approx(72 * HEIGHT))
    many = ["NT-Xent", "NT-Logistic (semi-hard)", "margin", "margin (semi-hard)"]
    assert height(many) == (True, pytest.approx(72 * (HEIGHT + 0.4)))


def test_many_kinds_of_bars_are_shades_of_one_colour():
    lines = [Series(str(k), [0.5 + 0.01 * k]) for k in range(6)]
    figure = bar_figure("Shades", "x", ["a"], lines)
    assert {each["color"] for each in figure.hover["series"]} == {VARIABLES[SERIES[0]]}
    with pytest.raises(ValueError, match="10 kinds of bars"):
        bar_figure("Many", "x", ["a"], [Series(str(k), [0.5]) for k in range(MOST_BARS + 1)])


@pytest.mark.parametrize(
    ("values", "errors", "bottom"), [([0.5, 0.9], None, 30), ([0.901, 0.905], None, 89), ([0.5, 0.5], [0.3, 0], 0)]
)
def test_the_axis_of_bars_begins_at_a_round_number_below_them(values, errors, bottom):
    found, top = _range([Series("", values, errors)])
    assert found == bottom
    assert top > 100 * max(values)


@pytest.fixture
def axes(monkeypatch):
    """The axes of each figure that is drawn."""
    found = []

    def watched(draw):
        def own(title, paint, *rest, **more):
            def both(figure):
                paint(figure)
                found.append(figure.axes[0])

            return draw(title, both, *rest, **more)

        return own

    for module in (charts, plots):
        monkeypatch.setattr(module, "draw", watched(module.draw))
    return found


def test_shares_end_at_0_and_at_100(axes):
    """No margin and no whisker asks for an accuracy that cannot be; the marks themselves are whole."""
    shares, errors = [0.001, 0.995], [0.05, 0.05]
    line_figure("Line", "labels", [1, 10], [Series("a", shares, errors)], percent=True)
    bar_figure("Bars", "labels", ["1", "10"], [Series("a", shares, errors)])
    percents = [100 * share for share in shares]
    point_figure("Points", "linear in %", "tuned in %", [Points("a", percents, percents, (), [5, 5])], shares="xy")
    for each in axes:
        assert each.get_ylim() == (0, 100)
    assert axes[-1].get_xlim() == (0, 100)
    assert not axes[0].lines[0].get_clip_on()
    assert not axes[-1].lines[0].get_clip_on()
    line_figure("High", "labels", [1, 10], [Series("a", [0.9, 0.95])], percent=True)
    low, high = axes[-1].get_ylim()
    assert 80 < low < 90
    assert 95 < high < 100, "no more of the axis than there is to see"


def test_what_is_no_share_or_lies_below_0_is_drawn_whole(axes):
    line_figure("Beyond chance", "classes", [2, 10], [Series("a", [-0.1, 0.5])], percent=True)
    assert axes[-1].get_ylim()[0] < -10
    line_figure("Loss", "epoch", [1, 2], [Series("a", [0.0, 140.0])])
    assert axes[-1].get_ylim()[1] > 140
    point_figure("Gain", "parameters", "gain in %", [Points("a", [1e6, 2e6], [0.0, 150.0])], shares="")
    assert axes[-1].get_ylim()[1] > 150
    bar_figure("None", "x", ["a"], [Series("a", [0.0])])
    low, high = axes[-1].get_ylim()
    assert low == 0 < high


def test_points_are_found_by_their_place_on_either_kind_of_axis():
    clouds = [Points("1x", [77400.0, 2.3e7], [69.3, 71.0], ["18", "50"], [0.2, 0.1]), Points("2x", [308000.0], [74.2])]
    figure = point_figure("Size", "parameters", "linear in %", clouds, log_x=True)
    assert figure.hover["at"] == ["parameters 77.4k", "parameters 308k", "parameters 23M"]
    assert figure.hover["x"] == sorted(figure.hover["x"])
    assert [each["text"] for each in figure.hover["series"]] == [["69.3 %", None, "71.0 %"], [None, "74.2 %", None]]
    assert ">18<" in figure.svg
    assert "1x: 77.4k: 69.3 %, 23M: 71.0 %." in figure.alt
    with pytest.raises(ValueError, match="5 sets of points"):
        point_figure("Many", "x", "y", clouds * 3)


def test_two_points_of_one_place_are_both_told():
    """Two lengths of training can come to one linear accuracy."""
    figure = point_figure("Same", "x", "y", [Points("net", [91.7, 91.7], [50.0, 65.0])])
    assert figure.hover["series"][0]["text"] == ["50.0 %, 65.0 %"]


def test_overlap_is_the_share_in_common():
    a, b, c = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5]), np.array([0.5, 0.5, 0.0])
    assert overlap(np.stack([a, c])) == 1
    assert overlap(np.stack([a, b])) == 0.5
    assert overlap(np.stack([a, b, c])) == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_histograms_say_in_words_how_alike_they_are():
    panels = [[np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.0, 1.0]])]]
    figure = histogram_figure("Intensities", ["image 1"], ["without", "with"], panels, x_name="intensity")
    assert "image 1, without: 2 histograms, with 100 % in common." in figure.alt
    assert "image 1, with: 2 histograms, with 0 % in common." in figure.alt
    assert VARIABLES[SERIES[1]] in figure.svg


def test_a_legend_takes_as_many_columns_as_fit():
    assert _legend(["1x", "2x", "4x"]) == (3, 0)
    columns, more = _legend(["both, labelled images"] * 5)
    assert (columns, more) == (2, pytest.approx(0.4))


def test_maps_beside_each_other_have_a_colour_for_each_class():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 7], 5)
    panels = [(name, rng.random((15, 2)).astype(np.float32)) for name in ("h", "z")]
    figure = map_figure("Maps", panels, labels, [f"class {i}" for i in range(8)], note="Ours.")
    for k in range(3):
        assert f"var({VARIABLES[CLASSES[k]]})" in figure.svg
    assert f"var({VARIABLES[CLASSES[3]]})" not in figure.svg
    assert figure.svg.count(">class 2<") == 1, "one legend for both"
    assert (
        figure.alt == "Maps: maps of 15 examples by h and z, coloured by class: class 0 (5), class 2 (5), class 7 (5)."
    )
    named = map_figure("Names", panels, labels, ["_other", "", "$5 to $9", *[""] * 4, "c"]).svg
    assert ">_other<" in named, "a name is the user's"
    assert ">$5 to $9<" in named
    with pytest.raises(ValueError, match="10 classes apart, got 15"):
        map_figure("Many", panels, np.arange(15), [str(i) for i in range(15)])
