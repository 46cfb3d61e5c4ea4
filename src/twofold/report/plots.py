"""Curves as inline SVG that follows the page's colours, with the numbers a pointer can ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twofold.evaluation.few_labels import LabelEfficiency
from twofold.report.canvas import FAINT, MARKERS, SERIES, VARIABLES, Figure, draw, end_at_shares, place

Row = Mapping[str, Any]
_MOST = 600  # points of a curve: more than the drawing has pixels
_LEVELS = ("chance", "contrastive_chance", "knn_before")
"""What is drawn as the level of having learned nothing yet: dashed, and not without the curve that it is for."""
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), "-.", (0, (1, 1)))


@dataclass(frozen=True)
class Series:
    """One curve: its name, and for each x a value or None; `error` gives half the length of error bars."""

    name: str
    values: Sequence[float | None]
    error: Sequence[float | None] | None = None
    dashed: bool = False


def training_figures(metrics: Sequence[Row]) -> list[Figure]:
    """The curves of a run, those for which there are numbers.

    Args:
        metrics: rows of metrics.jsonl; every key may be missing from any row. Accuracies lie in [0, 1].

    Returns:
        Loss against its chance level (of speech with both of its parts: contrast, and reconstruction against the mean
        and a straight line), contrastive accuracy, kNN and probe accuracy, effective rank, alignment and
        uniformity, learning rate. Of long runs evenly spaced rows are drawn, the last one among them.
    """
    rows = [row for row in metrics if _number(row.get("step")) is not None or _number(row.get("epoch")) is not None]
    axis = "epoch" if rows and all(_number(row.get("epoch")) is not None for row in rows) else "step"

    def plot(title: str, note: str, keys: Mapping[str, str], **options: Any) -> Figure | None:
        known = [row for row in rows if any(_number(row.get(key)) is not None for key in keys if key not in _LEVELS)]
        if not known:
            return None
        known = known[:: -(-len(known) // _MOST)][:-1] + known[-1:]
        x = [_number(row.get(axis)) or 0.0 for row in known]
        series = [
            Series(name, [_number(row.get(key)) for row in known], dashed=key in _LEVELS) for key, name in keys.items()
        ]
        series = [s for s in series if any(v is not None for v in s.values)]
        return line_figure(title, axis, x, series, note=note, **options)

    apart = any(_number(row.get("contrastive")) is not None for row in rows)  # a method of more than one loss
    contrast = {"contrastive": "loss", "contrastive_chance": "chance level"}
    figures = [
        plot("Training loss", "The weighted sum of both parts; at chance nothing has been learned.",
             {"loss": "loss", "chance": "chance level"}) if apart else None,
        plot("Contrastive loss", "At chance the encoder cannot tell which two views belong together.",
             contrast if apart else {"loss": "loss", "chance": "chance level"}),
        plot("Reconstruction", "Mean absolute error of hidden frames. Below the straight line between the nearest "
             "frames that are seen, more has been learned than that sounds change slowly.",
             {"reconstruction": "error", "mean_error": "the mean everywhere", "linear_error": "straight line"}),
        plot("Contrastive accuracy", "How often a view's partner is the most similar of all candidates.",
             {"contrastive_top1": "top-1"}, percent=True),
        plot("Accuracy on held-out images", "The encoder itself never sees a label.",
             {"knn_top1": "nearest neighbours", "probe_top1": "linear probe",
              "knn_before": "neighbours before training"}, percent=True),
        plot("Effective rank", "How many directions the representation uses; near 1 it has collapsed.",
             {"effective_rank": "effective rank"}),
        plot("Alignment and uniformity", "Distance of partners, and how evenly projections cover the sphere; "
             "lower is better for both.", {"alignment": "alignment", "uniformity": "uniformity"}),
        plot("Learning rate", "", {"lr": "learning rate"}),
    ]  # fmt: skip
    return [figure for figure in figures if figure is not None]


def label_figure(cells: Sequence[LabelEfficiency]) -> Figure:
    """Test accuracy against the number of labels, a curve for each feature set, bars of one standard deviation."""
    counts = sorted({cell.labels for cell in cells})
    by = {(cell.features, cell.labels): cell for cell in cells}
    series = []
    for name in dict.fromkeys(cell.features for cell in cells):
        result = [by.get((name, count)) for count in counts]
        series.append(Series(name, [c.mean if c else None for c in result], [c.std if c else None for c in result]))
    note = "Bars: one standard deviation over draws of labels." if any(cell.std is not None for cell in cells) else ""
    return line_figure("Accuracy against labels", "labels", counts, series, note=note, percent=True, log_x=True)


def line_figure(
    title: str,
    x_name: str,
    x: Sequence[float],
    series: Sequence[Series],
    *,
    note: str = "",
    percent: bool = False,
    log_x: bool = False,
) -> Figure:
    """Curves over a common x, told apart by colour and by dashes or marks.

    Args:
        title: heading.
        x_name: what x is, one word.
        x: positions, ascending.
        series: at most five curves.
        note: caption.
        percent: values are shares in [0, 1], shown in %; the axis ends at 0 and 100 % at the most.
        log_x: logarithmic x, with a tick at each position.

    Raises:
        UserError: matplotlib is missing.
    """
    if len(series) > len(SERIES):
        raise ValueError(f"a figure tells {len(SERIES)} curves apart, got {len(series)}")
    colors: list[str] = []

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        colors.extend(_draw(axes, x, series, 100.0 if percent else 1.0))
        _dress(axes, x_name, x, percent, log_x, len(series) > 1)
        if percent:
            end_at_shares(axes, (100 * v for s in series for v in s.values if v is not None))

    svg, hover = draw(title, paint, lambda figure: _hover(figure.axes[0], x_name, x, series, colors, percent))
    alt = f"{title} over {x_name}. " + " ".join(_in_words(s, percent) for s in series)
    return Figure(title, svg, alt.strip(), note, hover)


def _draw(axes: Any, x: Sequence[float], series: Sequence[Series], factor: float) -> list[str]:
    """Draw the curves; the colour of each."""
    colors, solid = [], 0
    for s in series:
        color = FAINT if s.dashed else SERIES[solid]
        known = [i for i, v in enumerate(s.values) if v is not None]
        look: dict[str, Any] = {"color": color, "linewidth": 1.8, "label": s.name}
        if s.dashed:
            look |= {"linestyle": (0, (4, 3)), "linewidth": 1.3}
        elif len(known) <= 12:
            look |= {"marker": MARKERS[solid], "markersize": 5}
        else:
            look |= {"linestyle": _DASHES[solid]}
        solid += not s.dashed
        colors.append(color)
        xs, ys = [x[i] for i in known], [(s.values[i] or 0.0) * factor for i in known]
        bars = s.error and [(s.error[i] or 0.0) * factor for i in known]
        curve, *_ = axes.errorbar(xs, ys, bars, capsize=3, **look)
        curve.set_clip_on(False)  # a mark at 100 % is whole
    return colors


def _dress(axes: Any, x_name: str, x: Sequence[float], percent: bool, log_x: bool, legend: bool) -> None:
    axes.set_xlabel(x_name)
    axes.grid(True, axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(list(x), [f"{v:,.0f}" for v in x])
        axes.set_xticks([], minor=True)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def _hover(
    axes: Any, x_name: str, x: Sequence[float], series: Sequence[Series], colors: Sequence[str], percent: bool
) -> dict[str, Any]:
    """Positions in the drawing's units (y downwards), rounded to a tenth, and texts."""
    factor = 100.0 if percent else 1.0

    def height(i: int, value: float | None) -> float | None:
        return None if value is None else place(axes, x[i], value * factor)[1]

    base = axes.get_ylim()[0]
    return {
        "x": [place(axes, v, base)[0] for v in x],
        "at": [f"{x_name} {v:,.4g}" if v < 1e4 else f"{x_name} {v:,.0f}" for v in x],
        "series": [
            {
                "name": s.name,
                "color": VARIABLES[color],
                "y": [height(i, v) for i, v in enumerate(s.values)],
                "text": [None if v is None else _value(v, percent) for v in s.values],
            }
            for s, color in zip(series, colors, strict=True)
        ],
    }


def _in_words(series: Series, percent: bool) -> str:
    known = [v for v in series.values if v is not None]
    first, last = _value(known[0], percent), _value(known[-1], percent)
    if series.dashed or len(known) == 1:
        return f"{series.name}: {last}."
    low, high = _value(min(known), percent), _value(max(known), percent)
    return f"{series.name}: from {first} to {last}, lowest {low}, highest {high}."


def _value(value: float, percent: bool) -> str:
    return f"{value * 100:.1f} %" if percent else f"{value:.4g}"


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
