"""The page that shows a run: curves, tables, view pairs, nearest neighbours and a map, in one self-contained file."""

from twofold.report.canvas import Figure
from twofold.report.charts import (
    MOST_BARS,
    Points,
    bar_figure,
    heat_figure,
    histogram_figure,
    map_figure,
    overlap,
    point_figure,
)
from twofold.report.images import Neighbours, find_neighbours, thumbnails
from twofold.report.map import EmbeddingMap, embedding_map, project
from twofold.report.page import Report, render, write_report
from twofold.report.plots import Series, label_figure, line_figure, training_figures
from twofold.report.tables import Table, label_table

__all__ = [
    "MOST_BARS",
    "EmbeddingMap",
    "Figure",
    "Neighbours",
    "Points",
    "Report",
    "Series",
    "Table",
    "bar_figure",
    "embedding_map",
    "find_neighbours",
    "heat_figure",
    "histogram_figure",
    "label_figure",
    "label_table",
    "line_figure",
    "map_figure",
    "overlap",
    "point_figure",
    "project",
    "render",
    "thumbnails",
    "training_figures",
    "write_report",
]
