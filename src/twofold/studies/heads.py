"""SimCLR's projection heads as a study: by kind and size, h against z, and what a linear head keeps (figure 8)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.data import DataConfig, Source
from twofold.data.sources.subset import subset
from twofold.encoders import load_head, read_header
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.options import OptionsParser
from twofold.randomness import permutation
from twofold.report import Figure, Series, Table, line_figure, map_figure, project
from twofold.studies.grid import (
    Also,
    Contrast,
    GridConfig,
    GridPart,
    GridStudy,
    Place,
    Score,
    axes_of,
    beside,
    values,
)
from twofold.text import counted

AS_H = "as h"
"""The column of what has as many outputs as the encoder has features."""
Z = "z"
"""What linear accuracy on the head's outputs is called."""
MOST_CLASSES = 10
"""Classes of the maps of h and z: the paper draws ten at random."""


@dataclass(frozen=True)
class HeadsConfig(GridConfig):
    """Which heads are compared."""

    varied = ("outputs",)

    outputs: tuple[int, ...] = (32, 128)
    """Outputs of the head; without a head it has the features' number, once."""
    eigenvalues: bool = False
    """Train a linear head with as many outputs as the encoder has features, too, and show its eigenvalues."""
    tsne: int = 1000
    """Test images of at most ten classes on the maps of h and z beside each other; 0 draws none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tsne and self.tsne < 10:
            raise UserError(f"--tsne {self.tsne}: a map needs 10 images or more; 0 draws none")


class HeadsStudy(GridStudy):
    """Figure 8: no head, a linear one and a nonlinear one, by the number of its outputs; each read at h and at z."""

    name = "heads"
    Config = HeadsConfig
    title = "Projection heads"
    rows_are, columns_are = "head", "outputs"
    source: ClassVar[str] = "figure 8 of arXiv 2002.05709"
    needs_width = True
    width: int | None = None

    def prepare(self, width: int, channels: int) -> None:  # noqa: ARG002
        """A square head needs the number of features."""
        self.width = width

    def places(self) -> Sequence[Place]:
        """Row the kind, column the outputs."""
        sizes = [str(size) for size in self.config.outputs]
        kinds = ("nonlinear", "linear")
        found = [Place(k, size, {"head": {"kind": k, "out_dim": int(size)}}) for k in kinds for size in sizes]
        if self.config.eigenvalues:
            found.append(Place("linear", AS_H, {"head": {"kind": "linear", "out_dim": self.width}}))
        return [*found, Place("none", AS_H, {"head": {"kind": "none"}})]

    def also(self, part: GridPart) -> Sequence[Also]:
        """Linear accuracy of z, where there is a head."""
        return () if part.row == "none" else ("z",)

    def contrasts(self) -> Sequence[Contrast]:
        """Nonlinear against linear at each size, both against none, and h against z of each head."""
        outputs = {str(size): counted(size, "output") for size in self.config.outputs}
        sizes = list(outputs)
        found = [Contrast(f"nonlinear less linear, {outputs[s]}", ("nonlinear", s), ("linear", s)) for s in sizes]
        found += [Contrast(f"{kind} less none", (kind, sizes[-1]), ("none", AS_H)) for kind in ("nonlinear", "linear")]
        places = [(kind, size) for kind in ("nonlinear", "linear") for size in sizes]
        return [*found, *(Contrast(f"h less z, {k}, {outputs[s]}", (k, s), (k, s), "linear", Z) for k, s in places)]

    def table(self, cells: Sequence[Score]) -> Table:
        """Linear accuracy of h, and below it that of z."""
        table, (rows, columns), body = super().table(cells), axes_of(cells), []
        for row, line in zip(rows, table.rows, strict=True):
            body.append(line)
            found = [values(cells, (row, column), Z) for column in columns]
            if any(found):
                body.append([f"{row}, from z", *(beside(each, None) for each in found)])
        note = f"{table.note} Rows from z are of the head's outputs, all others of h." if len(body) > len(rows) else ""
        return dataclasses.replace(table, rows=body, note=note or table.note)

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Bars over kinds and outputs; maps of h and z; the eigenvalues where they were asked for."""
        figures = list(super().figures(cells))
        if self.config.tsne:
            place = ("nonlinear", str(self.config.outputs[-1]))
            figures += [self._map(part) for part in self._trained(*place) if part.seed == 0]
        part = next(iter(self._trained("linear", AS_H)), None)
        if part is not None:
            figures.append(eigenvalue_figure(self._file(part)))
        return figures

    def _trained(self, row: str, column: str) -> list[GridPart]:
        """The runs of a place, but for those that diverged, of which there may be no encoder."""
        own = [part for part in self.parts if (part.row, part.column) == (row, column)]
        return [part for part in own if self.describe(part) not in self.diverged]

    def _file(self, part: GridPart) -> Path:
        return self.folder.path / part.name / "encoder.safetensors"

    def _map(self, part: GridPart) -> Figure:
        """h beside z of some test images, as the paper's appendix has them."""
        file = self._file(part)
        header = read_header(file)
        data = OptionsParser(DataConfig).build(part.options.get("data", {}))
        _, test = labelled_parts(*evaluation_parts(self.data, self.config.test, Pixels.of(header).fill(data)))
        return representation_figure(file, test, self.config.tsne)


def representation_figure(file: Path, source: Source, most: int) -> Figure:
    """Maps of h and z = head(h) of the same images, coloured by class.

    Args:
        file: an encoder with its head.
        source: labelled images, one label each.
        most: images at most, of at most ten classes, both drawn at random.
    """
    head = load_head(file)
    assert head is not None  # the study trained one
    found = Extractor.of(file).extract(load(file), subset(source, chosen_of(np.asarray(source.labels), most)))
    labels = found.labels
    assert labels is not None
    with torch.inference_mode():
        z: NDArray[np.float32] = head.outputs(torch.from_numpy(found.h))[-1].numpy()
    panels = [(f"{name}, {counted(x.shape[1], 'number')}", *project(x)) for name, x in (("h", found.h), ("z", z))]
    note = (
        f"The same {counted(len(labels), 'test image')} in both maps, of the nonlinear head. {panels[0][2]}; "
        "distances between far groups mean little."
    )
    names = [source.classes[i] if source.classes else str(i) for i in range(int(labels.max()) + 1)]
    return map_figure("h beside z", [(name, xy) for name, xy, _ in panels], labels, names, note=note)


def chosen_of(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Positions, ascending, of at most `most` labelled examples of at most ten classes, both drawn at random."""
    classes = np.unique(labels[labels >= 0])
    few = classes[permutation(0, "heads/classes", 0, len(classes))[:MOST_CLASSES]]
    rows = np.flatnonzero(np.isin(labels, few))
    return np.sort(rows[permutation(0, "heads/images", 0, len(rows))[:most]])


def eigenvalues(weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squares of the real parts of a square matrix's eigenvalues, the largest first (appendix of the paper)."""
    found: NDArray[np.float64] = np.sort(np.linalg.eigvals(weight.astype(np.float64)).real ** 2)[::-1]
    return found


def eigenvalue_figure(file: Path) -> Figure:
    """The eigenvalues of a square linear head, as shares of the largest: few large ones mean that it keeps little."""
    head = load_head(file)
    assert head is not None  # the study trained one
    found = eigenvalues(head.layers[0][0].weight.detach().numpy())  # type: ignore[index]
    shares = [float(value / found[0]) for value in found]
    large = int((found > 0.1 * found[0]).sum())
    note = (
        f"Squares of the real parts of the eigenvalues of the linear head's {len(found)} x {len(found)} matrix, as "
        f"shares of the largest; {large} of them reach a tenth of it."
    )
    return line_figure(
        "Eigenvalues of the linear head", "number", list(range(1, len(found) + 1)), [Series("share", shares)], note=note
    )
