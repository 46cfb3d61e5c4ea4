"""SimCLR's figures 4 and 6 of your own images: what each operator does, and why crops alone are too easy to match.

Crops of one image have nearly the same histogram of intensities, so that a network could match them by that alone; with
colour distortion they have not (section 3.2 of arXiv 2002.05709). Nothing is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twofold.data import DataConfig, open_source
from twofold.devices import choose_device
from twofold.errors import UserError
from twofold.options import plain
from twofold.randomness import Key, permutation
from twofold.report import Report, Table, histogram_figure, overlap
from twofold.report.page import Gallery
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.studies.base import Folder, Study
from twofold.studies.kept import cut, read_some
from twofold.text import counted
from twofold.views import ImageViews, ViewsConfig
from twofold.views.blur import blur_radius
from twofold.views.resample import crop_resize
from twofold.views.studies.operators import make_operator

BINS = 32
OPERATORS = {
    "crop": "crop and resize", "drop": "colour drop", "jitter": "colour jitter", "rotate": "rotate",
    "cutout": "cutout", "noise": "Gaussian noise", "blur": "Gaussian blur", "sobel": "Sobel filter",
}  # fmt: skip
"""Figure 4's operators, and what it calls them."""
WITHOUT, WITH = "without colour distortion", "with colour distortion"


@dataclass(frozen=True)
class ViewingConfig:
    """Which images and crops."""

    images: int = 2
    """Images that are shown, chosen at random."""
    crops: int = 4
    """Crops of each whose histograms are drawn, at most 5."""
    measured: int = 200
    """Images over which it is counted how much the histograms have in common."""
    seed: int = 0
    """Of the choice of images, of crops and of what the operators draw."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Views"""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        for name, least, most in (("images", 1, 8), ("crops", 2, 5), ("measured", 2, 2**31)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"--{name} must lie between {least} and {most}, got {getattr(self, name)}")
        if self.views.operators:
            raise UserError("--views.operators is not for this study: it shows each operator of figure 4 by itself")


@dataclass(frozen=True)
class Common:
    """How much histograms of crops have in common, in [0, 1]: of one image's, and of different images'."""

    distortion: str
    images: int
    same: float
    others: float


class ViewingStudy(Study[str, Common]):
    """What each operator does to some images, and the histograms of their crops; a part is one kind of views."""

    name = "views"
    Config = ViewingConfig

    def __init__(self, data: str, config: ViewingConfig, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder

    def plan(self) -> Sequence[str]:
        """Crops alone, and crops with colour distortion."""
        config = self.config
        self.source = open_source(self.data, config.data)
        chosen, _ = choose(
            build({"data": plain(config.data), "views": plain(config.views)}),
            self.source.facts(),
            choose_device("auto"),
        )
        if (chosen.views.color_strength or 0) <= 0:
            raise UserError("--views.color_strength 0 distorts no colour, and that is what this study shows")
        self.views = dataclasses.replace(chosen.views, blur=0.0)
        if len(self.source) < config.images:
            raise UserError(f"--images {config.images}: {self.source.name} has {len(self.source)}")
        order = permutation(config.seed, "views", 0, len(self.source))
        self.images, self.rows = read_some(self.source, order[: max(config.measured, config.images)])
        return (WITHOUT, WITH)

    def histograms(self, distortion: str, count: int) -> NDArray[np.float64]:
        """[count, crops, BINS] shares of the values of all channels, of crops of the first images."""
        config = self.views if distortion == WITH else dataclasses.replace(self.views, color_strength=0.0)
        views = ImageViews(config)
        found = [_histograms(_view(views, self.images[:count], Key(self.config.seed, step), self.rows[:count]))
                 for step in range(self.config.crops)]  # fmt: skip
        return np.stack(found, 1)

    def run(self, part: str) -> Sequence[Common]:
        """How much the histograms have in common."""
        found = self.histograms(part, min(self.config.measured, len(self.images)))
        same = float(np.mean([overlap(each) for each in found]))
        others = float(np.mean([overlap(found[:, crop]) for crop in range(found.shape[1])]))
        return [Common(part, len(found), same, others)]

    def table(self, cells: Sequence[Common]) -> Table:
        """A row for each kind of views."""
        rows = [[c.distortion, f"{100 * c.same:.1f}", f"{100 * c.others:.1f}"] for c in cells]
        note = (
            f"Share in % that the histograms of intensities of two crops have in common, mean over {cells[0].images} "
            f"images and {counted(self.config.crops, 'crop')} of each ({BINS} bins, all channels together)."
        )
        return Table("Histograms of crops", ["views", "crops of one image", "crops of different images"], rows, note)

    def interpretation(self, cells: Sequence[Common]) -> str:
        """How much easier crops of one image are to match by their histograms, in both kinds of views."""
        words = [f"{100 * (c.same - c.others):+z.1f} points {c.distortion}" for c in cells]
        return f"Crops of one image have more of their histograms in common than others: {', '.join(words)}."

    def measured(self, cell: Common) -> Mapping[str, float]:
        """Shares in common."""
        return {f"{cell.distortion}: same": cell.same, f"{cell.distortion}: others": cell.others}

    def page(self, cells: Sequence[Common]) -> Report:
        """Figure 4's gallery of each image that is shown, and figure 6's histograms."""
        count = min(self.config.images, len(self.images))
        pairs = [self.histograms(kind, count) for kind in (WITHOUT, WITH)]
        rows = [f"image {i + 1}" for i in range(count)]
        figure = histogram_figure(
            "Intensities of crops", rows, ["without", "with colour distortion"],
            [[pair[i] for pair in pairs] for i in range(count)], x_name="intensity",
            note=f"Each colour is a crop; all channels together, in {BINS} bins.",
        )  # fmt: skip
        return Report(
            "Views", {"data": self.data, "size": f"{self.views.size} px"}, tables=[self.table(cells)], figures=[figure],
            lead=self.interpretation(cells),
            galleries=[self.gallery(i, f"Operators on image {i + 1}") for i in range(count)],
        )  # fmt: skip

    def gallery(self, number: int, title: str) -> Gallery:
        """An image, and what each operator makes of it; those are left out that do nothing to such images."""
        size = self.views.size or 0
        image = self.images[number]
        whole = crop_resize(image, _square(image), size).clamp(0, 1)
        tiles = [("original", _pixels(whole))]
        left_out = {"drop": image.shape[1] != 3, "blur": blur_radius(size) == 0}
        for name, words in OPERATORS.items():
            if left_out.get(name):
                continue
            operator = make_operator(name)
            drawn = operator.draw(Key(self.config.seed, number), f"gallery/{name}", np.zeros(1, np.int64), size)
            tiles.append((words, _pixels(operator.apply(whole, drawn))))
        return Gallery(title, tuple(tiles))


def _view(views: ImageViews, images: Sequence[Tensor], key: Key, rows: Sequence[int]) -> Tensor:
    draw, crops = cut(views, images, key, rows)
    return views.photometric(crops, draw)


def _histograms(x: Tensor) -> NDArray[np.float64]:
    """[n, BINS] shares of the values of each view."""
    values = (x.flatten(1) * BINS).long().clamp_(0, BINS - 1)
    counts = torch.zeros(len(x), BINS).scatter_add_(1, values, torch.ones_like(values, dtype=torch.float32))
    found: NDArray[np.float64] = (counts / values.shape[1]).double().numpy()
    return found


def _square(image: Tensor) -> Tensor:
    """The central square as a box."""
    height, width = image.shape[2:]
    side = min(height, width)
    return torch.tensor([[(height - side) // 2, (width - side) // 2, side, side]])


def _pixels(x: Tensor) -> NDArray[np.uint8]:
    """[1, C, S, S] as uint8 [S, S, C]."""
    found: NDArray[np.uint8] = (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return found
