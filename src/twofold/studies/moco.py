"""MoCo's studies: from MoCo to MoCo v2 change by change, and its temperature, its momentum and its queue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from twofold.errors import UserError
from twofold.options import merge
from twofold.published import values_of
from twofold.report import Figure, Table, bar_figure, line_figure
from twofold.studies.grid import Contrast, GridConfig, GridStudy, Place, Score, axes_of, series, values

Case = Literal["v1", "a", "b", "c", "v2"]
CHANGES: dict[str, str] = {"v1": "", "a": "MLP", "b": "aug+", "c": "MLP aug+", "v2": "MLP aug+ cos"}
"""The cases of MoCo v2's Table 1, and what each changes in MoCo."""


class Sweep(NamedTuple):
    """An option of MoCo that is varied: what it is called, and the published value that others are compared with, by
    the case that it is varied in."""

    words: str
    published: dict[str, float]


SWEEPS: dict[str, Sweep] = {
    "temperature": Sweep("temperature", {"v1": 0.07, "a": 0.2}),
    "momentum": Sweep("momentum", {"v1": 0.999}),
    "queue": Sweep("keys", {"v1": 65536}),
}
"""By the method's option: the temperature without an MLP head and with one, as MoCo v2 varies it; the others as MoCo
does."""


@dataclass(frozen=True)
class MocoConfig(GridConfig):
    """Which cases are compared, and how long they are trained."""

    epochs: float | None = 20.0
    """Passes over the data in every cell; MoCo's rate falls to a tenth at 60 and again at 80 % of them."""
    cases: tuple[Case, ...] = ("v1", "a", "b", "c", "v2")
    """Cases of MoCo v2's Table 1: v1 is MoCo; a has the head of two layers, b stronger views, c both, v2 the cosine,
    too. None of them leaves the table to what is varied."""
    temperatures: tuple[float, ...] = ()
    """Temperatures to try, each with MoCo's linear head (v1) and with the head of two layers (a)."""
    momenta: tuple[float, ...] = ()
    """Shares of the key encoder that stay at each step, to try in MoCo (v1)."""
    queues: tuple[int, ...] = ()
    """Numbers of keys K, to try in MoCo (v1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None or self.epochs < 5:
            raise UserError(f"--epochs {self.epochs:g}: MoCo's rate falls at 60 and 80 % of them; give 5 or more")
        for name in ("cases", "temperatures", "momenta", "queues"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise UserError(f"--{name} must name none twice; got {list(given)}")
        if not (self.cases or self.temperatures or self.momenta or self.queues):
            raise UserError("--cases [] leaves nothing: name cases, or --temperatures, --momenta or --queues")

    def swept(self) -> dict[str, tuple[float, ...]]:
        """What is varied, ascending, by the method's option."""
        given = {"temperature": self.temperatures, "momentum": self.momenta, "queue": self.queues}
        return {name: tuple(sorted(values)) for name, values in given.items() if values}


class MocoStudy(GridStudy):
    """MoCo v2's Table 1: MoCo's head, views and schedule, one change after the other; and each of its own options."""

    name = "moco"
    Config = MocoConfig
    title = "From MoCo to MoCo v2"
    rows_are, columns_are = "case", ""
    source: ClassVar[str] = "arXiv 1911.05722 and 2003.04297; README of facebookresearch/moco"

    def places(self) -> Sequence[Place]:
        """The cases, and then the values of each option that is varied."""
        found = [Place(name, "", self._options(name)) for name in CHANGES if name in self.config.cases]
        for name, values_ in self.config.swept().items():
            for case in SWEEPS[name].published:
                options = merge(self._options(case), self._held() if name == "momentum" else {})
                found += [
                    Place(_row(case, name, value), "", merge(options, {"method": {name: value}})) for value in values_
                ]
        return found

    def _held(self) -> dict[str, Any]:
        """What is chosen by the momentum elsewhere: as it was given, else as published, for every momentum alike."""
        symmetric, norm = (
            self.shared.get(room, {}).get(name) for room, name in (("method", "symmetric"), ("head", "norm"))
        )
        return {"method": {"symmetric": bool(symmetric)}, "head": {"norm": bool(norm)}}

    def _options(self, case: str) -> dict[str, Any]:
        words = CHANGES[case]
        falls = [round(share * self.config.epochs) for share in (0.6, 0.8)]
        steps: dict[str, Any] = {"optim": {"schedule": "step", "milestones": falls}}
        deep: dict[str, Any] = {"head": {"kind": "nonlinear", "layers": 2}, "method": {"temperature": 0.2}}
        flat: dict[str, Any] = {"head": {"kind": "linear"}, "method": {"temperature": 0.07}}
        strong: dict[str, Any] = {"views": {"blur": 0.5, "jitter": 0.8, "jitter_ranges": [0.4, 0.4, 0.4, 0.1]}}
        plain: dict[str, Any] = {"views": {"blur": 0.0, "jitter": 1.0, "jitter_ranges": [0.4, 0.4, 0.4, 0.4]}}
        cosine: dict[str, Any] = {"optim": {"schedule": "cosine_epoch"}}
        if self.shared.get("optim", {}).get("milestones") is not None:  # a recipe's, which a cosine has no use for
            cosine["optim"]["milestones"] = None
        return merge({"method": {"name": "moco"}}, deep if "MLP" in words else flat,
                     strong if "aug+" in words else plain, cosine if "cos" in words else steps)  # fmt: skip

    def contrasts(self) -> Sequence[Contrast]:
        """Each change against MoCo, both against MoCo v2, and each value against the published one or, where that is
        not tried, the largest."""
        pairs = [*((name, "v1") for name in ("a", "b", "c", "v2")), ("v2", "c")]
        cases = self.config.cases
        found = [Contrast(f"{a} less {b}", (a, ""), (b, "")) for a, b in pairs if a in cases and b in cases]
        for name, tried in self.config.swept().items():
            for case, published in SWEEPS[name].published.items():
                usual = published if published in tried else tried[-1]
                found += [
                    Contrast(f"{_row(case, name, value)} less {usual:g}", (_row(case, name, value), ""),
                             (_row(case, name, usual), ""))
                    for value in tried if value != usual
                ]  # fmt: skip
        return found

    def published(self, row: str, column: str) -> float | None:  # noqa: ARG002  # there is one column
        """What the README and the paper confirm."""
        case, _, value = row.partition(", temperature ")
        if row == "a":  # its temperature is 0.2
            value = "0.2"
        if value:
            return values_of("moco/temperature").get(("MLP" if case == "a" else "linear", value))
        return values_of("moco/readme").get((f"{row}-200",))

    def table(self, cells: Sequence[Score]) -> Table:
        """With a mark for each change, as the paper has it."""
        table, names = super().table(cells), ("MLP", "aug+", "cos")
        rows = [
            [row[0], *("x" if name in CHANGES[_case(str(row[0]))] else "" for name in names),
             f"{self.config.epochs:g}", *row[1:]]
            for row in table.rows
        ]  # fmt: skip
        return dataclasses.replace(table, columns=[self.rows_are, *names, "epochs", "linear"], rows=rows)

    def figures(self, cells: Sequence[Score]) -> Sequence[Figure]:
        """Bars over the cases and over each option that is varied; of the queue a curve, as MoCo has it."""
        there, figures = axes_of(cells)[0], list[Figure]()
        if cases := [row for row in there if row in CHANGES]:
            line = series("linear", cells, [((row, ""), "linear") for row in cases])
            figures.append(bar_figure("Linear accuracy", self.rows_are, cases, [line]))
        for name, tried in self.config.swept().items():
            heads = {"v1": "linear head", "a": "head of two layers"}
            curves = [
                series(heads[case], cells, [((_row(case, name, value), ""), "linear") for value in tried])
                for case in SWEEPS[name].published
                if any(values(cells, (_row(case, name, value), "")) for value in tried)
            ]
            if curves:
                title, words = f"Linear accuracy by {SWEEPS[name].words}", SWEEPS[name].words
                bars = bar_figure(title, words, [f"{value:g}" for value in tried], curves)
                figures.append(bars if name != "queue" else line_figure(title, words, tried, curves, percent=True,
                                                                        log_x=True))  # fmt: skip
        return figures


def _row(case: str, option: str, value: float) -> str:
    """A case with another value of an option."""
    return f"{case}, {SWEEPS[option].words} {value:g}" if option != "queue" else f"{case}, {value:,} keys"


def _case(row: str) -> str:
    """The case that a row is of."""
    return row.partition(",")[0]
