"""What all plots share: colours that follow the page's, and drawings as SVG for the middle of it."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from twofold.report.extras import require

WIDTH, HEIGHT = 4.6, 2.9  # inches of 72 units
# Stand-ins that cannot occur otherwise; the page's style sheet gives the variables a light and a dark value.
INK, FAINT, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0{i}0f0f" for i in range(1, 6))
CLASSES = tuple(f"#0{i}0e0e" for i in range(10))
VARIABLES = (
    {INK: "--ink", FAINT: "--faint", GRID: "--grid"}
    | {c: f"--s{i}" for i, c in enumerate(SERIES, 1)}
    | {c: f"--c{i}" for i, c in enumerate(CLASSES)}
)
MARKERS = "os^Dv"


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        title: heading.
        svg: an <svg> element.
        alt: what it shows, in words.
        note: caption.
        hover: positions of the points in the drawing's units and what they stand for:
            {"x": [..], "at": [..], "series": [{"name", "color", "y": [.. or null], "text": [..]}]}.
    """

    title: str
    svg: str
    alt: str
    note: str = ""
    hover: dict[str, Any] = field(default_factory=dict)


def draw(
    title: str,
    paint: Callable[[Any], None],
    settled: Callable[[Any], dict[str, Any]] | None = None,
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> tuple[str, dict[str, Any]]:
    """An <svg> element, and what `settled` finds in the figure once its layout is final.

    Args:
        title: of the plot; no other one of the page may have it.
        paint: draws into a matplotlib figure.
        settled: looks at the figure afterwards.
        size: in inches of 72 units.

    Raises:
        UserError: matplotlib is missing.
    """
    matplotlib = require("matplotlib")
    figure_class = require("matplotlib.figure").Figure
    style = {
        "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10, "axes.edgecolor": FAINT, "text.color": INK,
        "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "axes.labelcolor": INK, "grid.color": GRID, "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = figure_class(figsize=size, dpi=72, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        found = settled(figure) if settled else {}
    return _inline(buffer.getvalue(), title), found


def place(axes: Any, x: float, y: float) -> tuple[float, float]:
    """Where a point lies in the drawing, in its units, y downwards, rounded to a tenth."""
    across, up = axes.transData.transform((x, y))
    return round(float(across), 1), round(float(axes.figure.bbox.height - up), 1)


def end_at_shares(axes: Any, values: Iterable[float], way: Literal["x", "y"] = "y") -> None:
    """End an axis of shares in % at 0 and at 100: room around the values and their whiskers reach no further.

    Args:
        axes: on which everything is drawn.
        values: that are drawn, in %. Where one lies below 0, as accuracy beyond chance may, so does the axis' end.
        way: which axis.
    """
    values = list(values)
    low, high = getattr(axes, f"get_{way}lim")()
    ends = max(low, 0.0) if min(values, default=0.0) >= 0 else low, min(high, 100.0)
    getattr(axes, f"set_{way}lim")(*ends)


def _inline(svg: str, title: str) -> str:
    """An <svg> for the middle of a page: no prologue, ids that no other figure has, colours by variable."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" ', 1)  # the figure around it carries the words
    prefix = "f" + hashlib.sha256(title.encode()).hexdigest()[:6] + "-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.strip()
