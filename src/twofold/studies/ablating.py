"""SimCLR's and MoCo's ablations as studies: augmentations, heads, losses, batch, size, and MoCo's rows.

Each is a table of short pretrainings on your own data, scored by a linear classifier on the frozen encoder. The papers'
numbers stand beside where a place of the table is theirs; those are of ImageNet at full length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from twofold.errors import UserError
from twofold.options import merge
from twofold.published import find
from twofold.studies.grid import Contrast, GridConfig, GridStudy, Place

Operators = Literal["crop", "cutout", "color", "sobel", "noise", "blur", "rotate"]
_OPERATORS: tuple[Operators, ...] = ("crop", "cutout", "color", "sobel", "noise", "blur", "rotate")


def _published(item: str, metric: str = "top1") -> dict[tuple[str, ...], float]:
    """The values of a published table by the keys of its rows."""
    return {tuple(row.keys.values()): row.values[metric] for row in find(item)[0].rows if metric in row.values}


def _check(name: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) < len(values):
        raise UserError(f"--{name} must name at least one, and none twice; got {list(values)}")


@dataclass(frozen=True)
class AugmentationsConfig(GridConfig):
    """Which operators are composed."""

    seeds: int = 1
    """Runs of each cell, with seeds 0, 1, ...; of one seed no difference counts."""
    operators: tuple[Operators, ...] = _OPERATORS
    """Operators: each alone, and each after each other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("operators", self.operators)


class AugmentationsStudy(GridStudy):
    """Figure 5: operators on one view alone, one by one and composed, both views sharing a first crop."""

    name = "augmentations"
    Config = AugmentationsConfig
    title = "Composition of augmentations"
    rows_are, columns_are = "first", "second"
    source: ClassVar[str] = "figure 5 of arXiv 2002.05709"

    def places(self) -> Sequence[Place]:
        """Row the first operator, column the second, the diagonal one alone."""
        base = {"operators_on": "first", "shared_crop": True, "color_strength": 0.0, "blur": 0.0}
        return [
            Place(first, second, {"views": base | {"operators": [first] if first == second else [first, second]}})
            for first in self.config.operators
            for second in self.config.operators
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """The paper's finding: crop with colour against each of them alone."""
        both = ("crop", "color")
        return [Contrast(f"crop, then color, less {one} alone", both, (one, one)) for one in both]


@dataclass(frozen=True)
class HeadsConfig(GridConfig):
    """Which heads are compared."""

    outputs: tuple[int, ...] = (32, 128)
    """Outputs of the head; without a head it has the features' number, once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("outputs", self.outputs)


class HeadsStudy(GridStudy):
    """Figure 8: no head, a linear one and a nonlinear one, by the number of its outputs."""

    name = "heads"
    Config = HeadsConfig
    title = "Projection heads"
    rows_are, columns_are = "head", "outputs"
    source: ClassVar[str] = "figure 8 of arXiv 2002.05709"

    def places(self) -> Sequence[Place]:
        """Row the kind, column the outputs."""
        sizes = [str(size) for size in self.config.outputs]
        kinds = ("nonlinear", "linear")
        found = [Place(k, size, {"head": {"kind": k, "out_dim": int(size)}}) for k in kinds for size in sizes]
        return [*found, Place("none", sizes[0], {"head": {"kind": "none"}})]

    def contrasts(self) -> Sequence[Contrast]:
        """Nonlinear against linear at each size, and linear against none."""
        sizes = [str(size) for size in self.config.outputs]
        found = [Contrast(f"nonlinear less linear, {s} outputs", ("nonlinear", s), ("linear", s)) for s in sizes]
        return [*found, Contrast("linear less none", ("linear", sizes[-1]), ("none", sizes[0]))]


class LossesStudy(GridStudy):
    """Table 4: NT-Xent against NT-Logistic and the margin triplet, each with and without semi-hard mining."""

    name = "losses"
    Config = GridConfig
    title = "Losses"
    rows_are, columns_are = "loss", ""
    source: ClassVar[str] = "Table 4 of arXiv 2002.05709, each the best of its grid"
    cases: ClassVar[dict[str, dict[str, Any]]] = {
        "NT-Xent": {},
        "NT-Logistic": {"loss": "nt_logistic"},
        "NT-Logistic (semi-hard)": {"loss": "nt_logistic", "mining": "semi_hard"},
        "margin": {"loss": "margin_triplet"},
        "margin (semi-hard)": {"loss": "margin_triplet", "mining": "semi_hard"},
    }

    def places(self) -> Sequence[Place]:
        """A row a loss, all at the rate and the temperature that all cells share."""
        return [Place(name, "", {"method": {"name": "simclr"} | options}) for name, options in self.cases.items()]

    def contrasts(self) -> Sequence[Contrast]:
        """NT-Xent against each other."""
        return [
            Contrast(f"NT-Xent less {name}", ("NT-Xent", ""), (name, "")) for name in self.cases if name != "NT-Xent"
        ]

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # there is one column
        """Table 4."""
        return _published("simclr/table-4").get((row,))


@dataclass(frozen=True)
class BatchConfig(GridConfig):
    """Which batches and lengths are compared."""

    batches: tuple[int, ...] = (32, 128)
    """Images per step."""
    lengths: tuple[float, ...] = (5, 20)
    """Passes over the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("batches", self.batches)
        _check("lengths", self.lengths)
        for name, instead in (("batch", "batches"), ("epochs", "lengths")):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} is what this study varies: use --{instead}")


class BatchStudy(GridStudy):
    """Figure 9 and Table B.1: batch by length of training."""

    name = "batch"
    Config = BatchConfig
    title = "Batch and length of training"
    rows_are, columns_are = "batch", "epochs"
    source: ClassVar[str] = "figure 9 of arXiv 2002.05709"

    def places(self) -> Sequence[Place]:
        """Row the batch, column the epochs."""
        return [
            Place(str(batch), f"{epochs:g}", {"batch": batch, "epochs": epochs})
            for batch in sorted(self.config.batches)
            for epochs in sorted(self.config.lengths)
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """The largest batch against the smallest, at each length: the paper finds the gap smaller with more epochs."""
        low, high = str(min(self.config.batches)), str(max(self.config.batches))
        lengths = [f"{epochs:g}" for epochs in sorted(self.config.lengths)]
        return [Contrast(f"batch {high} less {low}, {e} epochs", (high, e), (low, e)) for e in lengths if low != high]


@dataclass(frozen=True)
class SizeConfig(GridConfig):
    """Which nets are compared."""

    nets: tuple[str, ...] = ("resnet10", "resnet18")
    """Encoders by name."""
    widths: tuple[float, ...] = (0.25, 0.5)
    """Multiples of their widths."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("nets", self.nets)
        _check("widths", self.widths)


class SizeStudy(GridStudy):
    """Figure 7: depth by width."""

    name = "size"
    Config = SizeConfig
    title = "Depth and width"
    rows_are, columns_are = "encoder", "width"
    source: ClassVar[str] = "figure 7 of arXiv 2002.05709"

    def places(self) -> Sequence[Place]:
        """Row the net, column the width."""
        return [
            Place(net, f"{width:g}", {"encoder": {"name": net, "width": width}})
            for net in self.config.nets
            for width in sorted(self.config.widths)
        ]

    def contrasts(self) -> Sequence[Contrast]:
        """The widest against the narrowest of each net, and the last net against the first."""
        nets = self.config.nets
        low, high = (f"{end(self.config.widths):g}" for end in (min, max))
        wide = [Contrast(f"{net}, width {high} less {low}", (net, high), (net, low)) for net in nets if low != high]
        deep = [Contrast(f"{nets[-1]} less {nets[0]}, width {high}", (nets[-1], high), (nets[0], high))]
        return [*wide, *(deep if len(nets) > 1 else [])]


@dataclass(frozen=True)
class MocoConfig(GridConfig):
    """How long the cases are trained."""

    epochs: float | None = 20.0
    """Passes over the data in every cell; MoCo's rate falls to a tenth at 60 and again at 80 % of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None or self.epochs < 5:
            raise UserError(f"--epochs {self.epochs}: MoCo's rate falls at 60 and 80 % of them; give 5 or more")


class MocoStudy(GridStudy):
    """MoCo v2's Table 1: MoCo's head, views and schedule, one change after the other."""

    name = "moco"
    Config = MocoConfig
    title = "From MoCo to MoCo v2"
    rows_are, columns_are = "case", ""
    source: ClassVar[str] = "Table 1 of arXiv 2003.04297; README of facebookresearch/moco"

    def places(self) -> Sequence[Place]:
        """v1, a (a deeper head), b (stronger views), c (both), v2 (and the cosine)."""
        falls = [round(share * self.config.epochs) for share in (0.6, 0.8)]
        steps: dict[str, Any] = {"optim": {"schedule": "step", "milestones": falls}}
        deep: dict[str, Any] = {"head": {"kind": "nonlinear", "layers": 2}, "method": {"temperature": 0.2}}
        flat: dict[str, Any] = {"head": {"kind": "linear"}, "method": {"temperature": 0.07}}
        strong: dict[str, Any] = {"views": {"blur": 0.5, "jitter": 0.8, "jitter_ranges": [0.4, 0.4, 0.4, 0.1]}}
        plain: dict[str, Any] = {"views": {"blur": 0.0, "jitter": 1.0, "jitter_ranges": [0.4, 0.4, 0.4, 0.4]}}
        cases = {
            "v1": (flat, plain, steps), "a": (deep, plain, steps), "b": (flat, strong, steps),
            "c": (deep, strong, steps), "v2": (deep, strong, {"optim": {"schedule": "cosine_epoch"}}),
        }  # fmt: skip
        return [Place(name, "", merge({"method": {"name": "moco"}}, *parts)) for name, parts in cases.items()]

    def contrasts(self) -> Sequence[Contrast]:
        """Each change against MoCo, and both against MoCo v2."""
        found = [Contrast(f"{name} less v1", (name, ""), ("v1", "")) for name in ("a", "b", "c", "v2")]
        return [*found, Contrast("v2 less c", ("v2", ""), ("c", ""))]

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # there is one column
        """What the README confirms."""
        return _published("moco/readme").get((f"{row}-200",))
