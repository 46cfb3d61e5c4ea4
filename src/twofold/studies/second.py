"""SimCLR v2's ablations of pretraining: the depth of the head and where fine-tuning starts in it, and the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from twofold.errors import UserError
from twofold.published import values_of
from twofold.report import Figure, Table, bar_figure
from twofold.studies.after import After
from twofold.studies.grid import Contrast, Place, Score, axes_of, beside, over_seeds, series, values
from twofold.studies.shares import FewLabelsConfig, FewLabelsStudy, finetuned, of_second, tuned


@dataclass(frozen=True)
class DepthConfig(FewLabelsConfig):
    """Which heads are compared."""

    varied = ("layers", "labels")

    layers: tuple[int, ...] = (2, 3, 4)
    """Layers of the nonlinear projection head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= min(self.layers) <= max(self.layers) <= 4:
            raise UserError(f"--layers {list(self.layers)}: a head has 1 to 4 layers")


def from_layer(labels: str, layer: int) -> str:
    """What fine-tuning from an output of the head is called."""
    return f"{tuned(labels)}, from {_start(layer)}"


class DepthStudy(FewLabelsStudy):
    """Layers of the projection head, by the layer that fine-tuning starts from, by the share of labels."""

    name = "head-depth"
    Config = DepthConfig
    title = "Depth of the projection head"
    rows_are, columns_are = "head", ""
    source: ClassVar[str] = "arXiv 2006.10029 on projection heads, whose values are not confirmed here"

    def places(self) -> Sequence[Place]:
        """A row for each depth."""
        return [Place(_layers(n), "", {"head": {"kind": "nonlinear", "layers": n}}) for n in sorted(self.config.layers)]

    def after(self, place: Place, seed: int) -> Sequence[After]:
        """Fine-tuning on each share from h and from each layer but the last."""
        config = self.config
        return [
            finetuned(config, labels, seed, from_layer(labels, layer), from_head=layer)
            for labels in config.labels
            for layer in range(place.options["head"]["layers"])
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """With each share: the first layer against h in each head, and the deepest head against the shallowest, from
        the first layer."""
        depths, found = sorted(self.config.layers), []
        for labels in self.config.labels:
            found += [
                Contrast(f"{_layers(n)}, {labels} of the labels, from layer 1 less from h", (_layers(n), ""),
                         (_layers(n), ""), from_layer(labels, 1), from_layer(labels, 0))
                for n in depths if n > 1
            ]  # fmt: skip
            few, many = depths[0], depths[-1]
            if few < many:
                layer = min(1, few - 1)
                start = "h" if layer == 0 else "layer 1"
                words = f"{_layers(many)} less {_layers(few)}, {labels} of the labels, from {start}"
                found.append(Contrast(words, (_layers(many), ""), (_layers(few), ""), from_layer(labels, layer)))
        return found

    def table(self, cells: Sequence[Score]) -> Table:
        """A row for each head and layer, a column for each share."""
        shares, body = self.config.labels, []
        for row in axes_of(cells)[0]:
            for layer in range(_count(row)):
                found = [values(cells, (row, ""), from_layer(labels, layer)) for labels in shares]
                linear = beside(values(cells, (row, "")), None) if layer == 0 else ""
                body.append([f"{row}, from {_start(layer)}", *(beside(each, None) for each in found), linear])
        heads = ["head", *(tuned(labels) for labels in shares), "linear"]
        return Table(self.title, heads, body, f"Test accuracy in %, {over_seeds(cells)}. After {self.source}.")

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """As the paper draws it: depths from their best layers, and the layers of the deepest head."""
        rows, shares = axes_of(cells)[0], list(self.config.labels)
        deepest = (max(rows, key=_count), "")
        layers = [
            series(f"from {_start(layer)}", cells, [(deepest, from_layer(labels, layer)) for labels in shares])
            for layer in range(_count(deepest[0]))
        ]
        best = [series(row, cells, [((row, ""), self._best(cells, row, labels)) for labels in shares]) for row in rows]
        note = "Each from the layer that was best for it on the test images, which flatters all of them."
        plots = {"Depth of the head": (best, note), f"Where fine-tuning starts, {deepest[0]}": (layers, "")}
        return [
            bar_figure(title, "share of labels", shares, lines, note=note)
            for title, (lines, note) in plots.items()
            if any(value is not None for line in lines for value in line.values)
        ]

    def _best(self, cells: Sequence[Score], row: str, labels: str) -> str:
        names = [from_layer(labels, layer) for layer in range(_count(row))]
        return max(names, key=lambda name: sum(values(cells, (row, ""), name)))


def _start(layer: int) -> str:
    return "h" if layer == 0 else f"layer {layer}"


def _layers(count: int) -> str:
    return f"{count} layer{'s' if count > 1 else ''}"


def _count(row: str) -> int:
    """How many layers the head of a row has."""
    return int(row.split()[0])


@dataclass(frozen=True)
class MemoryConfig(FewLabelsConfig):
    """Which memories are compared."""

    varied = ("memories", "labels")

    memories: tuple[int, ...] = (1024,)
    """Keys of earlier views that are kept, beside none."""
    labels: tuple[str, ...] = ("1%", "10%")
    """Shares or numbers of labels to fine-tune on, as `twofold finetune --labels` takes them."""


class MemoryStudy(FewLabelsStudy):
    """SimCLR v2 with and without its memory, by linear evaluation and fine-tuned on few labels."""

    name = "memory"
    Config = MemoryConfig
    title = "Memory"
    rows_are, columns_are = "keys kept", ""
    source: ClassVar[str] = (
        "README of google-research/simclr, without memory its issue 77; 800 epochs, and a memory of 65,536 keys"
    )

    def places(self) -> Sequence[Place]:
        """A row without memory, and one for each."""
        found = [Place("none", "", {"method": {"name": "simclr"}})]
        return [*found, *(Place(str(n), "", {"method": {"name": "simclr", "memory": n}}) for n in self.config.memories)]

    def contrasts(self) -> Sequence[Contrast]:
        """Each memory against none, by each measure."""
        return [
            Contrast(f"{count:,} keys less none, {measure}", (str(count), ""), ("none", ""), measure)
            for count in self.config.memories
            for measure in self.measures()
        ]

    def published_as(self, row: str, column: str, measure: str) -> float | None:  # noqa: ARG002
        """Of ResNet-50 with all that its linear classifiers reached; the fine-tuned nets had the memory."""
        if row != "none":
            return of_second("r50-1x", measure)
        return values_of("simclr2/without-memory").get(("r50-1x",)) if measure == "linear" else None

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Bars for each measure, with and without."""
        rows, measures = axes_of(cells)[0], self.measures()
        lines = [series("none" if row == "none" else f"{row} keys", cells, [((row, ""), m) for m in measures])
                 for row in rows]  # fmt: skip
        return [bar_figure("Accuracy with and without memory", "measured", measures, lines)]
