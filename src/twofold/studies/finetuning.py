"""What fine-tuning gains from pretraining, by the share of labels and the layer of the head that it starts from.

First strand of arXiv 2108.00587: contrastive learning is what makes the method work. Asked as: a fine-tuned run against
the same network trained from scratch with the same labels and budget. The protocol is ours; the paper's own was not
available.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from twofold.data import DataConfig
from twofold.encoders import load_head, read_header
from twofold.encoders.load import encoder_path, load
from twofold.errors import Stopped, UserError
from twofold.evaluation.features import Pixels
from twofold.evaluation.label_subsets import is_list, label_positions
from twofold.evaluation.scores import Scores
from twofold.options import OptionsParser, merge
from twofold.report import Report, Series, Table, line_figure
from twofold.report.tables import averaged, curve, spread
from twofold.runs.config import FinetuneConfig
from twofold.runs.finetune import finetune
from twofold.studies.base import INTERVAL, Folder, Study, check_one_label, shared_options, train_and_test
from twofold.studies.diverging import kept
from twofold.text import counted
from twofold.verdicts import paired

SCRATCH = -1
SET_BY_THE_STUDY = {
    "labels": "and name the choices by --labels",
    "draw": "and say how many by --draws",
    "seed": "each draw has its own; say how many by --draws",
    "from_head": "and name the layers by --from_head",
    "from_scratch": "it is the control of every study",
    "data": "and give it to the study, as --data.*",
}
"""Options of fine-tuning that a file of options cannot set, and what to do instead."""


@dataclass(frozen=True)
class FinetuneStudyConfig:
    """What is compared."""

    run: str | None = None
    """The pretrained encoder: a run's folder, or an encoder.safetensors."""
    labels: tuple[str, ...] = ("1%", "10%", "all")
    """Shares or numbers of labels, as `twofold finetune --labels` takes them."""
    from_head: tuple[int, ...] | None = None
    """Outputs of the projection head to start from; all but the last when not given."""
    draws: int = 3
    """Random choices of labels, each with a seed of its own."""
    epochs: float | None = None
    """Passes over the labelled images; chosen from their number when not given."""
    batch: int | None = None
    """Images per step; chosen from their number when not given."""
    config: str | None = None
    """A YAML file of further options of fine-tuning."""
    test: str | None = None
    """Labelled data for the scores; the data's own test split when not given."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("--run is missing: name the pretrained run that is fine-tuned")
        if not self.labels or len(set(self.labels)) < len(self.labels) or self.draws < 1:
            raise UserError("--labels must name at least one choice, none twice, and --draws be at least 1")


@dataclass(frozen=True)
class Trial:
    """One run: labels as asked and as counted, the layer (-1: from scratch), the draw, test accuracy in [0, 1]."""

    labels: str
    count: int
    from_head: int
    draw: int
    top1: float


class FinetunePart(NamedTuple):
    """A run to be made: its folder's name, labels, layer of the head (-1: from scratch), draw, and its options."""

    name: str
    labels: str
    from_head: int
    draw: int
    options: dict[str, Any]


def plan(study: FinetuneStudyConfig, layers: int) -> list[FinetunePart]:
    """The runs, for a head of so many layers."""
    entries = tuple(range(max(1, layers))) if study.from_head is None else study.from_head
    if not entries or min(entries) < 0 or max(entries) > layers:
        raise UserError(f"--from_head {list(entries)}: the run's head has {counted(layers, 'layer')}; give 0..{layers}")
    budget = {k: v for k, v in (("epochs", study.epochs), ("batch", study.batch)) if v is not None}
    parts = []
    for place, labels in enumerate(study.labels):
        for draw in range(study.draws):
            for entry in (*entries, SCRATCH):
                own: dict[str, Any] = {"from_scratch": True} if entry == SCRATCH else {"from_head": entry}
                drawn = {} if labels == "all" or is_list(labels) else {"draw": draw}
                options = {"labels": labels, "seed": draw} | drawn | budget | own
                name = f"labels{place}-{'scratch' if entry == SCRATCH else f'head{entry}'}-draw{draw}"
                parts.append(FinetunePart(name, labels, entry, draw, options))
    return parts


def title(entry: int) -> str:
    """What a curve is called."""
    if entry == SCRATCH:
        return "from scratch"
    return "fine-tuned from h" if entry == 0 else f"fine-tuned from head layer {entry}"


def table(trials: Sequence[Trial]) -> Table:
    """A row for each start, a column for each number of labels."""
    counts = sorted({t.count for t in trials})
    entries = list(dict.fromkeys(t.from_head for t in trials))
    rows = [[title(e), *(spread([t.top1 for t in trials if t.from_head == e and t.count == c]) for c in counts)]
            for e in entries]  # fmt: skip
    over = averaged(len({t.draw for t in trials}), "draw", " of labels and seed")
    note = f"Test accuracy in %, {over}; the same steps for all starts."
    return Table("Fine-tuning", ["", *(f"{counted(c, 'label')}" for c in counts)], rows, note)


def interpretation(trials: Sequence[Trial]) -> str:
    """What came of it, in plain words: each start against the control, and the head's layers against the features.

    All starts of a draw have the same labels and seed, so it is their differences that are averaged, and judged by
    Student's t; of one draw none counts.
    """
    entries = [entry for entry in dict.fromkeys(t.from_head for t in trials) if entry != SCRATCH]
    pairs = [(entry, SCRATCH) for entry in entries] + [(entry, entries[0]) for entry in entries[1:]]
    message = [words for first, second in pairs if (words := _against(trials, first, second))]
    return f"In points, {INTERVAL}. {' '.join(message)}" if message else ""


def _against(trials: Sequence[Trial], first: int, second: int) -> str:
    """One start less another at each number of labels; empty where no draw has both."""
    parts = []
    for count in sorted({t.count for t in trials}):
        a, b = ({t.draw: t.top1 for t in trials if t.count == count and t.from_head == e} for e in (first, second))
        draws = [draw for draw in a if draw in b]
        if not draws:
            continue
        found = paired([a[draw] for draw in draws], [b[draw] for draw in draws]).times(100)
        words = ("better" if found.mean > 0 else "worse") if found.clear else "no clear difference"
        once = " (one draw)" if found.error is None else ""
        parts.append(f"{found.words()}{once} with {counted(count, 'label')}, {words}")
    name = title(first)
    return f"{name[0].upper()}{name[1:]} less {title(second)}: {'; '.join(parts)}." if parts else ""


def page(trials: Sequence[Trial], data: str) -> Report:
    """The page."""
    counts = sorted({t.count for t in trials})
    lines: list[Series] = []
    for entry in dict.fromkeys(t.from_head for t in trials):
        values = {c: [t.top1 for t in trials if t.from_head == entry and t.count == c] for c in counts}
        lines.append(curve(title(entry), counts, values, dashed=entry == SCRATCH))
    figure = line_figure("Accuracy", "labels", counts, lines[:5], percent=True, log_x=True)
    return Report(
        "Fine-tuning against labels",
        {"data": data},
        tables=[table(trials)],
        figures=[figure],
        lead=interpretation(trials),
    )


class FinetuneStudy(Study[FinetunePart, Trial]):
    """Fine-tuning against labels and head layer, with training from scratch as the control; a part is a run."""

    name = "finetune"
    Config = FinetuneStudyConfig
    table = staticmethod(table)
    interpretation = staticmethod(interpretation)

    def __init__(self, data: str, config: FinetuneStudyConfig, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder

    def plan(self) -> Sequence[FinetunePart]:
        """One part a run."""
        config = self.config
        self.file = encoder_path(str(config.run))
        head = load_head(self.file)
        parts = plan(config, len(head.layers) if head else 0)
        reading = Pixels.of(read_header(self.file)).fill(config.data)
        self.train, self.test = train_and_test(self.data, config.test, reading, load(self.file).input.channels)
        check_one_label(self.train, self.test)
        self.shared = shared_options(config.config, reading, SET_BY_THE_STUDY)
        for part in (parts[0], parts[-1]):
            OptionsParser(FinetuneConfig).build(merge(self.shared, part.options), config.config or "options")
        for labels in config.labels:
            label_positions(self.train, labels)
        return parts

    def describe(self, part: FinetunePart) -> str:
        """What it starts from, with how many labels, and which draw of them."""
        return f"{title(part.from_head)}, labels {part.labels}, draw {part.draw}"

    def run(self, part: FinetunePart) -> Sequence[Trial]:
        """Fine-tune, or read the result of a run that is done."""
        options, place = merge(self.shared, part.options), self.folder.path / part.name
        result = kept(place, lambda: finetune(self.file, self.train, self.test, place, options, quiet=True))
        if not result.complete:
            raise Stopped.at(f"in {place}", result.stopped_by or signal.SIGINT)
        assert isinstance(result.scores, Scores)  # of one label an image
        return [Trial(part.labels, result.labels, part.from_head, part.draw, result.scores.top1)]

    def measured(self, cell: Trial) -> Mapping[str, float]:
        """Accuracy by start and number of labels."""
        return {f"{title(cell.from_head)}, {cell.count:,} labels: top1": cell.top1}

    def page(self, cells: Sequence[Trial]) -> Report:
        """Accuracy against the number of labels."""
        return page(cells, self.data)
