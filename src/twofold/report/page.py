"""`report.html`: one file that shows a run, opens without a network, and asks nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.files import write_atomically
from twofold.report.canvas import Figure
from twofold.report.extras import require
from twofold.report.images import Neighbours, class_name, png, sprite
from twofold.report.map import EmbeddingMap
from twofold.report.plots import training_figures
from twofold.report.tables import Table
from twofold.text import counted

COLORS, SHAPES = 10, 5  # of the map's marks; the style sheet and the template define as many
_SHAPE_OF = (0, 1, 2, 3, 4, 0, 3, 4, 1, 2)  # no two colours that some eyes confuse have the same shape
_MAP_SIDE, _MAP_MARGIN = 1000, 16  # units of the map's drawing


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side: a heading, and for each its caption and uint8 [H, W, C], C 1 or 3."""

    title: str
    tiles: tuple[tuple[str, NDArray[np.uint8]], ...]


@dataclass(frozen=True)
class Report:
    """What the page shows; parts that are None or empty are left out.

    Attributes:
        title: heading.
        facts: name -> value, shown as a list: data, encoder, machine, time, ...
        metrics: rows of metrics.jsonl, see `training_figures`.
        view_pairs: uint8 [n, 2, H, W, C], two views of each image, C 1 or 3.
        neighbours: from `find_neighbours`.
        map: from `embedding_map`.
        tables: results; the first thing on the page.
        figures: further plots, shown beside the tables (see `label_figure`).
        lead: what the page is about and what came of it, in a sentence or two.
        audio: of pairs of recordings, both views as addresses to be played.
        curves: of training, of more runs than one.
        galleries: pictures with captions.
    """

    title: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    view_pairs: NDArray[np.uint8] | None = None
    neighbours: Neighbours | None = None
    map: EmbeddingMap | None = None
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    lead: str = ""
    audio: Sequence[tuple[str, str]] = ()
    curves: Sequence[Figure] = ()
    galleries: Sequence[Gallery] = ()


def write_report(path: str | Path, report: Report) -> Path:
    """Write the page to `path`, whole or not at all.

    Raises:
        UserError: matplotlib or jinja2 is missing, or the disk refuses.
    """
    path, page = Path(path), render(report).encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(page))
    return path


def render(report: Report) -> str:
    """The page as HTML: style, script, pictures and drawings inside, nothing to be fetched."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page: str = environment.from_string(_resource("page.html")).render(
        report=report,
        curves=[*training_figures(report.metrics), *report.curves],
        map=None if report.map is None else _map(report.map, "recording" if report.audio else "image"),
        png=png,
        pixelated=_pixelated,
        css=_resource("page.css"),
        js=_resource("page.js"),
    )
    return page


def _resource(name: str) -> str:
    return files("twofold.report").joinpath(name).read_text(encoding="utf-8")


def _pixelated(pixels: NDArray[np.uint8]) -> bool:
    """Whether a picture [H, W, C] is so small that enlarging should show its pixels."""
    longest: int = max(pixels.shape[:2])
    return longest <= 64


def _map(points: EmbeddingMap, example: str) -> dict[str, Any]:
    """What the template draws: marks in the drawing's units, legend, sheet of pictures."""
    xy = points.xy * _MAP_SIDE
    low, high = xy.min(axis=0), xy.max(axis=0)
    xy = xy - low + _MAP_MARGIN
    labels = np.full(len(xy), -1) if points.labels is None else points.labels
    name = partial(class_name, classes=points.classes)
    drawn = {"width": high[0] - low[0] + 2 * _MAP_MARGIN, "height": max(high[1] - low[1], 200) + 2 * _MAP_MARGIN}
    marks = [
        {"x": round(float(x), 1), "y": round(float(y), 1), "label": int(label), **_look(int(label))}
        for (x, y), label in zip(xy, labels, strict=True)
    ]
    present, counts = np.unique(labels, return_counts=True)
    legend = [
        {"label": int(label), "name": name(int(label)), "count": int(count), **_look(int(label))}
        for label, count in zip(present, counts, strict=True)
    ]
    sheet = None
    if points.tiles is not None:
        pixels, columns = sprite(points.tiles)
        side = points.tiles.shape[1]
        rows = pixels.shape[0] // side
        sheet = {"png": png(pixels), "columns": columns, "rows": rows, "side": side}
    size = {key: round(float(value)) for key, value in drawn.items()}
    about = f"Map of {counted(len(marks), example)}"
    if points.labels is None:
        legend = []
    else:
        names = [str(item["name"]) for item in legend]
        about += (
            f", coloured by {counted(len(names), 'class')}: "
            + ", ".join(names[:20])
            + (", ..." if len(names) > 20 else "")
        )
    return {"marks": marks, "legend": legend, "sheet": sheet, "about": about, **size}


def _look(label: int) -> dict[str, Any]:
    """Colour and shape of a class; the pair repeats only after 50 classes."""
    if label < 0:
        return {"color": "x", "shape": 0}
    return {"color": label % COLORS, "shape": (_SHAPE_OF[label % COLORS] + label // COLORS) % SHAPES}
