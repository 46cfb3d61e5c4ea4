"""The forms in which the papers show their studies: a heat map, grouped bars, points with words, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.report.canvas import (
    CLASSES,
    FAINT,
    HEIGHT,
    INK,
    MARKERS,
    SERIES,
    VARIABLES,
    WIDTH,
    Figure,
    draw,
    end_at_shares,
    place,
)
from twofold.report.plots import Series

_FAINTEST, _STRONGEST = 0.04, 0.5  # of a heat map's cells; more would leave too little contrast with the ink
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}
_MOST_VALUES = 12  # bars over which their values are written
MOST_BARS = 10
"""Kinds of bars in a group."""


def heat_figure(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    rows_are: str,
    columns_are: str,
    note: str = "",
) -> Figure:
    """A matrix of shares in %, the stronger the colour the higher, and the average of each row beside it.

    Args:
        title: heading.
        rows, columns: their names.
        values: [rows][columns], in [0, 1]; None where there is none.
        rows_are, columns_are: what they are, in a few words.
        note: caption.

    Raises:
        UserError: matplotlib is missing.
    """
    means = [float(np.mean([v for v in row if v is not None])) if any(v is not None for v in row) else None
             for row in values]  # fmt: skip
    known = [v for row in values for v in row if v is not None]
    low, high = min(known), max(known)

    def cell(axes: Any, x: float, y: float, value: float | None) -> None:
        if value is None:
            return
        share = (value - low) / (high - low) if high > low else 0.0
        alpha = _FAINTEST + (_STRONGEST - _FAINTEST) * share
        axes.bar(x, 1, 1, y - 0.5, color=SERIES[0], alpha=alpha, linewidth=0)
        axes.text(x, y, f"{100 * value:.1f}", ha="center", va="center", fontsize=9)

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                cell(axes, x, y, value)
            cell(axes, len(columns) + 0.25, y, means[y])
        axes.set_xlim(-0.5, len(columns) + 0.75)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        turned = max(map(len, columns)) > 7
        at = [*range(len(columns)), len(columns) + 0.25]
        axes.set_xticks(at, [*columns, "average"], rotation=35 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.set_xlabel(columns_are)
        axes.set_ylabel(rows_are)
        axes.spines[["left", "bottom"]].set_visible(False)

    size = (max(WIDTH, 1.4 + 0.55 * (len(columns) + 1.25)), max(2.0, 1.1 + 0.4 * len(rows)))
    svg, _ = draw(title, paint, size=size)
    words = [f"{name}: {_percents(row)}; average {_percents([mean])}."
             for name, row, mean in zip(rows, values, means, strict=True)]  # fmt: skip
    alt = f"{title}, {rows_are} by {columns_are} ({', '.join(columns)}). {' '.join(words)}"
    return Figure(title, svg, alt, note)


def bar_figure(
    title: str, x_name: str, groups: Sequence[str], series: Sequence[Series], *, note: str = ""
) -> Figure:  # fmt: skip
    """Bars of shares in %, in groups; in the legend's order, with whiskers where the series has errors.

    Up to five kinds have colours of their own; more are shades of one, as of the steps of a quantity.

    The axis begins at a round number near the lowest bar, which the caption tells where it is not 0, and ends at 100 %
    at the most.

    Args:
        title: heading.
        x_name: what a group is.
        groups: their names.
        series: at most `MOST_BARS`, each with a value for every group or None.
        note: caption.

    Raises:
        UserError: matplotlib is missing.
    """
    if len(series) > MOST_BARS:
        raise ValueError(f"a figure tells {MOST_BARS} kinds of bars apart, got {len(series)}")
    several = len(series) > len(SERIES)
    looks = [(SERIES[0], 0.15 + 0.8 * k / len(series)) if several else (SERIES[k], 0.75) for k in range(len(series))]
    bottom, top = _range(series)
    width = 0.8 / len(series)
    written = len(groups) * len(series) <= _MOST_VALUES
    across = min(max(WIDTH, 1 + 0.25 * len(groups) * len(series)), 6.0)
    turned = 6 * max(map(len, groups)) > 72 * (across - 0.8) / len(groups)  # names wider than their groups

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        for k, s in enumerate(series):
            shift = (k + 0.5) * width - 0.4
            _bars(axes, s, looks[k], shift, width, (bottom, top), written)
        axes.set_ylim(bottom, top)
        axes.set_xticks(range(len(groups)), groups, rotation=30 if turned else 0, ha="right" if turned else "center",
                        rotation_mode="anchor" if turned else "default")  # fmt: skip
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel(x_name)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axes.grid(True, axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=_legend([s.name for s in series])[0], **_LEGEND)

    def hover(figure: Any) -> dict[str, Any]:
        axes = figure.axes[0]
        return {
            "x": [place(axes, i, bottom)[0] for i in range(len(groups))],
            "at": [f"{x_name} {group}" for group in groups],
            "series": [_bar_hover(axes, s, color) for s, (color, _) in zip(series, looks, strict=True)],
        }

    svg, found = draw(title, paint, hover, (across, HEIGHT + _legend([s.name for s in series])[1] + 0.4 * turned))
    begins = f"The axis begins at {bottom:g} %." if bottom else ""
    alt = f"{title} by {x_name} ({', '.join(groups)}). " + " ".join(f"{s.name}: {_percents(s.values)}." for s in series)
    return Figure(title, svg, alt, " ".join(each for each in (note, begins) if each), found)


def _bars(
    axes: Any, s: Series, look: tuple[str, float], shift: float, width: float, span: tuple[float, float], written: bool
) -> None:
    """The bars of one kind, their whiskers, and their values where they are to be written."""
    known, (bottom, top) = [i for i, v in enumerate(s.values) if v is not None], span
    at, heights = [i + shift for i in known], [100 * (s.values[i] or 0.0) for i in known]
    errors = [100 * (s.error[i] or 0.0) for i in known] if s.error else [0.0] * len(known)
    color, alpha = look
    axes.bar(at, [h - bottom for h in heights], width * 0.92, bottom, color=color, alpha=alpha, label=s.name)
    if any(errors):
        axes.errorbar(at, heights, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    for x, height, error in zip(at, heights, errors, strict=True) if written else ():
        axes.text(x, min(height + error, top) + 0.015 * (top - bottom), f"{height:.1f}", ha="center", fontsize=8)


def _bar_hover(axes: Any, s: Series, color: str) -> dict[str, Any]:
    return {
        "name": s.name, "color": VARIABLES[color],
        "y": [None if v is None else place(axes, i, 100 * v)[1] for i, v in enumerate(s.values)],
        "text": [None if v is None else f"{100 * v:.1f} %" for v in s.values],
    }  # fmt: skip


@dataclass(frozen=True)
class Points:
    """Points of one colour: their name, places, and a word beside each (empty for none); `joined` draws a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    words: Sequence[str] = ()
    error: Sequence[float] = ()
    joined: bool = False


def point_figure(
    title: str,
    x_name: str,
    y_name: str,
    clouds: Sequence[Points],
    *,
    note: str = "",
    log_x: bool = False,
    shares: str = "y",
) -> Figure:
    """Points in a plane, y in % as it is given (no fraction), told apart by colour and mark.

    Args:
        title: heading.
        x_name, y_name: what the axes are.
        clouds: at most five, each with a point at least.
        note: caption.
        log_x: logarithmic x.
        shares: which axes are shares of a whole, "y", "xy" or "": they end at 0 and 100 % at the most.

    Raises:
        UserError: matplotlib is missing.
    """
    if len(clouds) > len(SERIES):
        raise ValueError(f"a figure tells {len(SERIES)} sets of points apart, got {len(clouds)}")

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        for cloud, color, marker in zip(clouds, SERIES, MARKERS, strict=False):
            _dots(axes, cloud, color, marker)
        if log_x:
            axes.set_xscale("log")
            _few_ticks(axes, [x for cloud in clouds for x in cloud.x])
        axes.margins(0.12)
        if "x" in shares:
            end_at_shares(axes, (x for cloud in clouds for x in cloud.x), "x")
        if "y" in shares:
            end_at_shares(axes, (y for cloud in clouds for y in cloud.y), "y")
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.grid(True, linewidth=0.8)
        axes.set_axisbelow(True)
        if len(clouds) > 1 or clouds[0].joined:
            figure.legend(loc="outside upper left", ncols=columns, **_LEGEND)

    columns, more = _legend([cloud.name for cloud in clouds])
    places = sorted({x for cloud in clouds for x in cloud.x})

    def hover(figure: Any) -> dict[str, Any]:
        axes = figure.axes[0]
        base = axes.get_ylim()[0]
        return {
            "x": [place(axes, x, base)[0] for x in places],
            "at": [f"{x_name} {_short(x)}" for x in places],
            "series": [_point_hover(axes, cloud, SERIES[k], places) for k, cloud in enumerate(clouds)],
        }

    svg, found = draw(title, paint, hover, (WIDTH, HEIGHT + more))
    words = [f"{cloud.name}: " + ", ".join(f"{_short(x)}: {y:.1f} %" for x, y in zip(cloud.x, cloud.y,
             strict=True)) + "." for cloud in clouds]  # fmt: skip
    return Figure(title, svg, f"{title}, {y_name} over {x_name}. {' '.join(words)}", note, found)


def _dots(axes: Any, cloud: Points, color: str, marker: str) -> None:
    """A set of points, their whiskers and words."""
    look = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.5, "label": cloud.name}
    line = "-" if cloud.joined else "none"
    dots, *_ = axes.errorbar(cloud.x, cloud.y, list(cloud.error) or None, capsize=2, linestyle=line, **look)
    dots.set_clip_on(False)  # a mark at 100 % is whole
    for x, y, word in zip(cloud.x, cloud.y, cloud.words, strict=False):
        axes.annotate(word, (x, y), (4, 4), textcoords="offset points", fontsize=8)


def _point_hover(axes: Any, cloud: Points, color: str, places: Sequence[float]) -> dict[str, Any]:
    """What a pointer finds of a set of points; two of one place are both told."""
    at: dict[float, list[float]] = {}
    for x, y in zip(cloud.x, cloud.y, strict=True):
        at.setdefault(x, []).append(y)
    return {
        "name": cloud.name, "color": VARIABLES[color],
        "y": [place(axes, x, at[x][0])[1] if x in at else None for x in places],
        "text": [", ".join(f"{y:.1f} %" for y in at[x]) if x in at else None for x in places],
    }  # fmt: skip


def histogram_figure(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[NDArray[np.float64]]],
    *,
    x_name: str,
    note: str = "",
) -> Figure:
    """Histograms over [0, 1], several in a panel, in a grid of panels.

    Args:
        title: heading.
        rows, columns: names of the grid's.
        counts: [rows][columns], each [k, bins] shares of up to five histograms.
        x_name: what is counted.
        note: caption.

    Raises:
        UserError: matplotlib is missing.
    """

    def paint(figure: Any) -> None:
        figure.get_layout_engine().set(wspace=0.08)
        grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
        for y, row in enumerate(counts):
            for x, panel in enumerate(row):
                axes = grid[y][x]
                for k, histogram in enumerate(panel):
                    edges = np.linspace(0, 1, len(histogram) + 1)
                    axes.stairs(histogram, edges, color=SERIES[k], linewidth=1.4, fill=False)
                    axes.stairs(histogram, edges, color=SERIES[k], alpha=0.1, fill=True)
                axes.set_xlim(0, 1)
                axes.set_yticks([])
                axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
                axes.spines["left"].set_visible(False)
                axes.spines["bottom"].set_color(FAINT)
                if y == 0:
                    axes.set_title(columns[x], fontsize=10)
                if x == 0:
                    axes.set_ylabel(rows[y])
        figure.supxlabel(x_name, fontsize=10)

    svg, _ = draw(title, paint, size=(WIDTH, 0.8 + 1.15 * len(rows)))
    words = [f"{rows[y]}, {columns[x]}: {len(panel)} histograms, {_alike(panel)}."
             for y, row in enumerate(counts) for x, panel in enumerate(row)]  # fmt: skip
    return Figure(title, svg, f"{title}. {' '.join(words)}", note)


def map_figure(
    title: str,
    panels: Sequence[tuple[str, NDArray[np.float32]]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    note: str = "",
) -> Figure:
    """Maps of the same examples side by side, a colour and a mark for each class.

    Args:
        title: heading.
        panels: of each map its name and the places [n, 2] of the examples in [0, 1].
        labels: [n] classes, of at most ten kinds.
        classes: names, by label.
        note: caption.

    Raises:
        UserError: matplotlib is missing.
    """
    present = np.unique(labels)
    if len(present) > len(CLASSES):
        raise ValueError(f"a map tells {len(CLASSES)} classes apart, got {len(present)}")

    def paint(figure: Any) -> None:
        for axes, (name, xy) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for k, label in enumerate(present):
                x, y = xy[labels == label].T
                axes.plot(x, y, MARKERS[k % len(MARKERS)], color=CLASSES[k], markersize=2.5)
            axes.set_title(name, fontsize=10)
            axes.set(aspect="equal", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[])
            axes.spines[["left", "bottom"]].set_visible(False)
        # The user's names: none is left out for its first letter, and none is mathematics.
        shown = [name.replace("$", r"\$") for name in names]
        figure.legend(figure.axes[0].lines, shown, loc="outside lower center", ncols=columns, markerscale=2, **_LEGEND)

    across = 3.1 * len(panels)
    names = [classes[label] for label in present]
    columns, more = _legend(names, across, most=5)
    svg, _ = draw(title, paint, size=(across, 3.9 + more))
    said = ", ".join(f"{name} ({(labels == label).sum()})" for name, label in zip(names, present, strict=True))
    maps = " and ".join(name for name, _ in panels)
    return Figure(title, svg, f"{title}: maps of {len(labels)} examples by {maps}, coloured by class: {said}.", note)


def overlap(histograms: NDArray[np.float64]) -> float:
    """The mean share that two of these histograms [k, bins], each of sum 1, have in common; 1 where all are alike."""
    pairs = [np.minimum(histograms[a], histograms[b]).sum() for a in range(len(histograms)) for b in range(a)]
    return float(np.mean(pairs))


def _alike(panel: NDArray[np.float64]) -> str:
    return f"with {100 * overlap(panel):.0f} % in common" if len(panel) > 1 else "alone"


def _range(series: Sequence[Series]) -> tuple[float, float]:
    """In %: a round number below all bars, with room, and one above them, 100 at the most."""
    ends = [100 * (v + sign * ((s.error[i] or 0.0) if s.error else 0.0))
            for s in series for i, v in enumerate(s.values) if v is not None for sign in (-1, 1)]  # fmt: skip
    low, high = min(ends), max(ends)
    span = max(high - low, 2.0)  # bars of one height have one
    step = 10 ** math.floor(math.log10(span))
    bottom = max(0.0, step * math.floor((low - span / 2) / step))
    return bottom, min(100.0, high + 0.12 * max(high - bottom, 1.0))


def _legend(names: Sequence[str], across: float = WIDTH, most: int = 3) -> tuple[int, float]:
    """In how many columns a legend of these names fits that many inches, and those that its further lines take."""
    columns = max(1, min(most, int(72 * across / (48 + 5.2 * max(map(len, names))))))
    return columns, 0.2 * (-(-len(names) // columns) - 1)


def _few_ticks(axes: Any, x: Sequence[float]) -> None:
    """On a logarithmic axis of less than two decades, ticks at its ends and in the middle, or at each place."""
    low, high = min(x), max(x)
    ticks = sorted(set(x)) if len(set(x)) <= 4 else [low, math.sqrt(low * high), high]
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _short(value: float) -> str:
    """A number with two or three digits: 77k, 1.2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _percents(values: Sequence[float | None]) -> str:
    return ", ".join("none" if v is None else f"{100 * v:.1f} %" for v in values)
