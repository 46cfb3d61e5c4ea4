"""Studies whose cells are fine-tuned, too, on shares of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from twofold.errors import UserError
from twofold.evaluation.label_subsets import is_list
from twofold.options import merge
from twofold.published import values_of
from twofold.recipe import read_layers
from twofold.report import Table
from twofold.studies.after import After
from twofold.studies.grid import GridConfig, GridStudy, Place, Score, axes_of, beside, over_seeds, values

SET_BY_THE_STUDY = ("labels", "draw", "seed", "from_scratch", "from_head")
"""Options of fine-tuning that a file of options cannot set."""


@dataclass(frozen=True)
class FewLabelsConfig(GridConfig):
    """How the cells' encoders are fine-tuned."""

    labels: tuple[str, ...] = ("1%", "10%", "all")
    """Shares or numbers of labels to fine-tune on, as `twofold finetune --labels` takes them."""
    finetune_epochs: float | None = None
    """Passes over the labelled images; chosen from their number when not given."""
    finetune_batch: int | None = None
    """Images per step of fine-tuning; chosen from their number when not given."""
    finetune_config: str | None = None
    """A YAML file of further options of fine-tuning."""

    varied: ClassVar[tuple[str, ...]] = ("labels",)

    def further(self) -> dict[str, Any]:
        """Options that every fine-tuning takes; UserError where the file sets what the study sets itself."""
        given = read_layers(None, self.finetune_config, {}, command="finetune")
        named = [name for name in SET_BY_THE_STUDY if given.get(name)]
        if named:
            raise UserError(
                f"--finetune_config {self.finetune_config} sets {named[0]}, which the study sets itself: leave it out"
            )
        own = {"epochs": self.finetune_epochs, "batch": self.finetune_batch}
        return merge(given, {name: value for name, value in own.items() if value is not None})


def finetuned(config: FewLabelsConfig, labels: str, seed: int, name: str = "", **options: Any) -> After:
    """Fine-tuning on so many labels, the choice of which goes with the seed.

    Args:
        config: of the study.
        labels: see `FinetuneConfig.labels`.
        seed: of the cell.
        name: of what is measured; the labels when not given.
        options: further ones of fine-tuning.
    """
    drawn = {} if labels == "all" or is_list(labels) else {"draw": seed}
    chosen = merge(config.further(), {"labels": labels, "seed": seed} | drawn, options)
    return After(name or tuned(labels), "finetune", chosen)


def tuned(labels: str) -> str:
    """What fine-tuning on so many labels is called."""
    return f"fine-tuned, {labels}"


def of_second(net: str, measure: str) -> float | None:
    """The accuracy in % of a net of SimCLR v2's README, `r50-1x-sk`, under a measure; None of what it does not tell."""
    if measure == "linear":
        return values_of("simclr2/checkpoints").get((net,))
    share = measure.removeprefix(tuned("")).replace("%", "pct").replace("all", "100pct")
    return values_of("simclr2/finetuned").get((net, share))


class FewLabelsStudy(GridStudy):
    """A table of encoders, each scored by a linear classifier and fine-tuned on shares of the labels."""

    compared: ClassVar[str] = "Accuracy"

    def after(self, place: Place, seed: int) -> Sequence[After]:  # noqa: ARG002
        """Fine-tuning on each share."""
        return [finetuned(self.config, labels, seed) for labels in self.config.labels]

    def measures(self) -> list[str]:
        """What the columns of the table are."""
        return ["linear", *(tuned(labels) for labels in self.config.labels)]

    def table(self, cells: Sequence[Score]) -> Table:
        """A row for each place, a column for each measure, the paper's behind ours where it is known."""
        rows, columns = axes_of(cells)
        there = {(cell.row, cell.column) for cell in cells}
        several, body, known = len(columns) > 1, [], False
        for place in [(row, column) for row in rows for column in columns if (row, column) in there]:
            papers = [self.published_as(*place, measure) for measure in self.measures()]
            known |= any(paper is not None for paper in papers)
            line = [beside(values(cells, place, m), p) for m, p in zip(self.measures(), papers, strict=True)]
            body.append([place[0], *([place[1]] if several else []), *line])
        heads = [self.rows_are, *([self.columns_are] if several else []), *self.measures()]
        words = f"In brackets the paper's, of ImageNet at its own size ({self.source})."
        words = words if known else f"After {self.source}."
        return Table(self.title, heads, body, f"Test accuracy in %, {over_seeds(cells)}. {words}")
