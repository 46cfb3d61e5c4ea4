"""Bigger encoders: what depth and width are worth, with how many labels, and whether linear evaluation tells as much.

SimCLR's figure 7 and its appendix B.7, and SimCLR v2's figure 1: the fewer the labels, the more a bigger net gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from twofold.errors import UserError
from twofold.published import values_of
from twofold.report import Figure, Points, point_figure
from twofold.studies.grid import Contrast, Place, Score, Trend, axes_of, left_off, values
from twofold.studies.nets import net_options
from twofold.studies.shares import FewLabelsConfig, FewLabelsStudy, of_second, tuned
from twofold.text import counted


@dataclass(frozen=True)
class SizeConfig(FewLabelsConfig):
    """Which nets are compared."""

    varied = ("nets", "widths")

    nets: tuple[str, ...] = ("resnet10", "resnet18")
    """Encoders by name."""
    widths: tuple[float, ...] = (0.25, 0.5)
    """Multiples of their widths."""
    labels: tuple[str, ...] = ()
    """Shares or numbers of labels to fine-tune on, too, as `twofold finetune --labels` takes them, the fewest first:
    what size gains with the first is compared with what it gains with the last."""


class SizeStudy(FewLabelsStudy):
    """Figure 7: depth by width; with shares of labels v2's figure 1."""

    name = "size"
    Config = SizeConfig
    title = "Depth and width"
    rows_are, columns_are = "encoder", "width"
    source: ClassVar[str] = "figure 7 of arXiv 2002.05709 and figure 1 of arXiv 2006.10029"

    def places(self) -> Sequence[Place]:
        """Row the net, column the width."""
        return [
            Place(net, f"{width:g}", {"encoder": {"name": net, "width": width}})
            for net in self.config.nets
            for width in sorted(self.config.widths)
        ]

    def published_as(self, row: str, column: str, measure: str) -> float | None:
        """Of v2's recipes its README's table; of SimCLR's 1,000 epochs Table 6; nothing where no recipe is named."""
        recipe, net, wide = str(self.config.recipe), row.replace("resnet", "r"), f"{column}x"
        if recipe.startswith("simclr2-imagenet"):
            selective = "-sk" if self.shared.get("encoder", {}).get("sk_ratio") else ""
            return of_second(f"{net}-{wide}{selective}", measure)
        long = recipe.startswith("simclr-imagenet") and self.shared.get("epochs") == 1000
        return values_of("simclr/table-6").get((wide,)) if long and (net, measure) == ("r50", "linear") else None

    def contrasts(self) -> Sequence[Contrast]:
        """The widest against the narrowest of each net, and the last net against the first, by each measure."""
        nets = self.config.nets
        low, high = (f"{end(self.config.widths):g}" for end in (min, max))
        found = []
        for measure in self.measures():
            said = "" if measure == "linear" else f", {measure}"
            pairs = [(f"{n}, width {high} less {low}", (n, high), (n, low)) for n in nets if low != high]
            if len(nets) > 1:
                pairs.append((f"{nets[-1]} less {nets[0]}, width {high}", (nets[-1], high), (nets[0], high)))
            found += [Contrast(words + said, first, second, measure) for words, first, second in pairs]
        return found

    def trends(self) -> Sequence[Trend]:
        """What size gains with the first of the shares of labels, the smallest as a rule, against the last."""
        if len(self.config.labels) < 2:
            return []
        few, many = (tuned(self.config.labels[i]) for i in (0, -1))
        each = {(contrast.first, contrast.second, contrast.of): contrast for contrast in self.contrasts()}
        return [
            Trend(f"{contrast.words}, less the same {many}", contrast, each[first, second, many])
            for (first, second, of), contrast in each.items()
            if of == few
        ]

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Linear accuracy against the number of parameters; what size gains with each share of labels."""
        known = [cell for cell in cells if cell.parameters]
        if not known:  # an earlier version trained them and did not count
            return super().figures(cells)
        there = [share for share in self.config.labels if any(cell.value(tuned(share)) is not None for cell in known)]
        return [self._scatter(known), *([gain_figure(known, there)] if there else [])]

    def _scatter(self, cells: Sequence[Score]) -> Figure:
        """A mark for each net, a colour for each width."""
        rows, columns = axes_of(cells)
        clouds = []
        for width in columns[:5]:
            places = [(row, width) for row in rows if values(cells, (row, width))]
            found = [values(cells, place) for place in places]
            x = [size_of(cells, place) for place in places]
            y = [100 * float(np.mean(each)) for each in found]
            clouds.append(Points(f"width {width}", x, y, [row for row, _ in places], errors(found)))
        note = left_off(5, columns)
        return point_figure("Accuracy by size", "parameters", "linear accuracy in %", clouds, log_x=True, note=note)


def errors(found: Sequence[Sequence[float]]) -> list[float]:
    """Standard deviations in points; nothing where there is one value."""
    return [100 * float(np.std(each, ddof=1)) for each in found] if min(map(len, found)) > 1 else []


def size_of(cells: Sequence[Score], place: tuple[str, str]) -> float:
    """Parameters of the encoder at a place."""
    return float(next(cell.parameters for cell in cells if (cell.row, cell.column) == place))


def gain_figure(cells: Sequence[Score], labels: Sequence[str]) -> Figure:
    """How much better bigger nets are than the smallest, relative to it, by share of labels (v2's figure 1)."""
    places = sorted(dict.fromkeys((cell.row, cell.column) for cell in cells), key=lambda place: size_of(cells, place))
    clouds = []
    for share in labels[:5]:
        there = [place for place in places if values(cells, place, tuned(share))]
        means = [float(np.mean(values(cells, place, tuned(share)))) for place in there]
        gains = [100 * (mean / max(means[0], 1e-9) - 1) for mean in means]
        clouds.append(Points(f"{share} of the labels", [size_of(cells, p) for p in there], gains, joined=True))
    note = f"Fine-tuned accuracy relative to the smallest net's, with the same labels. {left_off(5, labels)}".strip()
    named = "Gain of bigger nets", "parameters", "relative gain in %"
    return point_figure(*named, clouds, log_x=True, note=note, shares="")


@dataclass(frozen=True)
class LinearConfig(FewLabelsConfig):
    """Which nets are trained how long."""

    varied = ("nets", "lengths", "labels")

    nets: tuple[str, ...] = ("resnet10@0.25", "resnet10@0.5")
    """Encoders as NAME or NAME@WIDTH, e.g. resnet18@0.5."""
    lengths: tuple[float, ...] = (2, 5, 20)
    """Passes over the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for net in self.nets:
            net_options(net, "nets")
        if self.epochs is not None:
            raise UserError("--epochs is what this study varies: use --lengths")


class LinearStudy(FewLabelsStudy):
    """Appendix B.7: linear evaluation against fine-tuning, as nets grow and are trained longer."""

    name = "linear-vs-finetune"
    Config = LinearConfig
    title = "Linear evaluation and fine-tuning"
    rows_are, columns_are = "encoder", "epochs"
    source: ClassVar[str] = "appendix B.7 of arXiv 2002.05709, drawn there without values"

    def places(self) -> Sequence[Place]:
        """Row the net, column the epochs."""
        return [
            Place(net, f"{epochs:g}", {"encoder": net_options(net, "nets"), "epochs": epochs})
            for net in self.config.nets
            for epochs in sorted(self.config.lengths)
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """The longest training against the shortest under each measure: the paper finds few labels to gain most."""
        low, high = (f"{end(self.config.lengths):g}" for end in (min, max))
        return [
            Contrast(f"{net}, {high} less {low} epochs, {measure}", (net, high), (net, low), measure)
            for net in self.config.nets
            for measure in self.measures()
            if low != high
        ]

    def remark(self, cells: Sequence[Score]) -> str:
        """How closely linear evaluation goes with each fine-tuning."""
        words = []
        for labels in self.config.labels:
            pairs = [(found, cell.linear_top1) for cell in cells if (found := cell.value(tuned(labels))) is not None]
            mine, linear = np.array(pairs).T if pairs else (np.zeros(0), np.zeros(0))
            if len(pairs) > 2 and mine.std() > 0 and linear.std() > 0:
                words.append(f"{np.corrcoef(mine, linear)[0, 1]:.2f} with {labels} of the labels")
        together = (
            f"Over {counted(len(cells), 'encoder')} linear accuracy correlates with the fine-tuned: {', '.join(words)}."
        )
        return together if words else ""

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Fine-tuned against linear accuracy, a picture for each share of labels, a colour for each net."""
        rows, columns = axes_of(cells)
        figures, note = [], left_off(5, rows)
        for labels in self.config.labels:
            clouds = []
            for row in rows[:5]:
                places = [(row, column) for column in columns if values(cells, (row, column), tuned(labels))]
                x = [100 * float(np.mean(values(cells, place))) for place in places]
                found = [values(cells, place, tuned(labels)) for place in places]
                y = [100 * float(np.mean(each)) for each in found]
                if places:
                    clouds.append(Points(row, x, y, [f"{column} ep." for _, column in places], errors(found)))
            title = f"Fine-tuned on {labels} of the labels"
            if clouds:
                figures.append(
                    point_figure(
                        title, "linear accuracy in %", "fine-tuned accuracy in %", clouds, note=note, shares="xy"
                    )
                )
        return figures
