"""The page that shows a run: curves, tables, view pairs, nearest neighbours and a map, in one self-contained file."""

from twofold.report.images import Neighbours, find_neighbours, thumbnails
from twofold.report.map import EmbeddingMap, embedding_map
from twofold.report.page import Report, render, write_report
from twofold.report.plots import Figure, Series, label_figure, line_figure, training_figures
from twofold.report.tables import Table, label_table

__all__ = [
    "EmbeddingMap",
    "Figure",
    "Neighbours",
    "Report",
    "Series",
    "Table",
    "embedding_map",
    "find_neighbours",
    "label_figure",
    "label_table",
    "line_figure",
    "render",
    "thumbnails",
    "training_figures",
    "write_report",
]
