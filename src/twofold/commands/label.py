"""`twofold label`: which files to label next, as a table to fill in with a sheet beside it; it takes the table back."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, new_parser, require_out
from twofold.commands.evaluate import Progress
from twofold.commands.explore import ExploreConfig, explorer_of
from twofold.commands.shelf import Shelf, Shelves
from twofold.data import DataConfig
from twofold.data.sources.tables import ASKED, GivenLabel
from twofold.devices import choose_device
from twofold.encoders.load import encoder_path, load
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.choosing import Choice, Guess, Way, choose, guess
from twofold.evaluation.features import Pixels
from twofold.evaluation.given_labels import read_labels, read_tables
from twofold.evaluation.protocols.base import BatchOptions, HeadOptions, PreprocessingOptions
from twofold.evaluation.rows import write_rows
from twofold.files import at_home, check_out, write_atomically
from twofold.options import OptionsParser, add_options, merge, refuse_unused
from twofold.report.contact import MOST_ACROSS, MOST_ROWS, Shot, Strip, write_sheet
from twofold.report.explore import write_explorer
from twofold.results import in_json, unread
from twofold.text import counted, counted_have

TABLE, SHEET, PAGE = "label.csv", "label.png", "label.html"
"""Files of a round."""
_COLUMNS = ("path", "label", "proposed", "probability", ASKED)
_DONE, _EMPTY = "labelled", "left empty before"
_ROOM = 10
"""Examples for each label below which typical ones were no better than random ones (see docs/label.md)."""
_FEW = 20
"""Proposals that nobody need make fewer of."""


@dataclass(frozen=True)
class LabelConfig(HeadOptions, PreprocessingOptions, BatchOptions):
    """What is proposed."""

    count: int = 50
    """Files to label in this round; fewer where fewer have no label."""
    by: Way = "auto"
    """typical: of groups of what is alike, those without a label first, the most typical (TypiClust); uncertain: what a
    classifier of the labels so far is in doubt of, spread out; auto: typical until the classes have 20 labels each on
    average, then uncertain."""
    own_labels: bool = True
    """Labels that the data bring, by a table's column or by classes' folders, count as known; false: they are not
    looked at, as where folders are no classes."""
    page: bool = True
    """Write a page to explore, on which groups can be labelled at once (see `twofold explore`)."""
    seed: int = 0
    """Of the clusterings, and of what is held out to choose the classifier's penalty."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data: images are read as in the encoder's training, unless told otherwise"""

    def __post_init__(self) -> None:
        for name in ("count", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: give 1 or more")


@dataclass(frozen=True)
class Proposal:
    """One row of the table.

    Attributes:
        path: the file, from the table's folder; the example's name where it is no file.
        label: what is known; empty for what is to be filled in.
        proposed: the likeliest class by the labels so far; None where it has one, or these are of fewer than two.
        probability: of it, in [0, 1].
        why: it is proposed.
    """

    path: str
    label: str
    proposed: str | None
    probability: float | None
    why: str


@dataclass(frozen=True)
class LabelResult:
    """A round of labelling.

    Attributes:
        path: the folder.
        table: the table to fill in: what is labelled first, then what is proposed, the most worth a label first.
        known: examples that have a label.
        unlabelled: examples that have none.
        classes: labels by class.
        proposals: what is proposed.
        notes: what may be slips in the tables that were given.
        words: how the proposals were chosen.
        skipped: what could not be read: path and reason.
        left_empty: examples that were proposed before and got no label.
    """

    path: Path
    table: Path
    known: int
    unlabelled: int
    classes: dict[str, int]
    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...]
    words: str
    skipped: tuple[tuple[str, str], ...] = ()
    left_empty: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people: what to do next."""
        lines = [f"{len(self.proposals):,} of {self.unlabelled:,} without a label are proposed, {self.words}"]
        if self.known:
            counts = ", ".join(f"{name} {count:,}" for name, count in list(self.classes.items())[:12])
            lines.append(f"{self.known:,} have one: {counts}{', ...' if len(self.classes) > 12 else ''}")
        lines += [f"look at this: {note}" for note in self.notes]
        lines += [f"  {each.path}: {each.proposed} {each.probability:.0%}; {each.why}" if each.proposed is not None
                  else f"  {each.path}: {each.why}" for each in self.proposals[:3]]  # fmt: skip
        lines += unread(self.skipped)
        lines.append(f"fill in the column label of {self.table}; then the same command with --labels {self.table} and "
                     "another --out gives the next")  # fmt: skip
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = in_json(self)
        return document


def label(
    run: str | Path, data: Any, /, out: str | Path, *, labels: str | Path | Sequence[str | Path] | None = None,
    encoder: nn.Module | None = None, **options: Any,
) -> LabelResult:  # fmt: skip
    """Say which examples to label next, and take back what was labelled.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: whatever `twofold.pretrain` takes, or a file that `twofold.embed` wrote by this encoder.
        out: a new folder for the table `label.csv`, a contact sheet, a page and `label.json`.
        labels: tables that were filled in: of earlier rounds, exported from a page, or any with a column of paths or
            names and one of labels. They go above the data's own labels.
        encoder: your own module, if the run was trained with one.
        options: fields of `LabelConfig`, nested or dotted.

    Raises:
        UserError: a row of no example, or two that disagree; nothing is left without a label; `out` is no empty
            folder; ...
    """
    path, folder = encoder_path(run), Path(out)
    config = OptionsParser(LabelConfig).build(merge(Pixels.of(read_header(path)).options(), options))
    check_out(folder, False, "round of labels", False)
    given = [labels] if isinstance(labels, str | Path) else labels or []
    tables = read_tables([at_home(each) for each in given], config.data.encoding)
    model = load(path, encoder, choose_device(config.device, "--device"))
    refuse_unused(config, kind=model.input.kind)
    progress = Progress()
    shelves = Shelves(path, model, config, folder / "parts", progress=progress)
    shelf = shelves.of_any(data)
    known, left_empty, notes = _known(shelf, tables, config)
    round_ = _Round.of(shelf, known, left_empty, config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    proposals = round_.write()
    if config.page:
        round_.write_page(data, progress, model.input.kind == "audio")
    counts = dict(Counter(known.values()).most_common())
    result = LabelResult(
        folder, folder / TABLE, len(known), len(shelf.features) - len(known), counts, proposals, notes + round_.notes(),
        round_.words, tuple(shelves.skipped), len(left_empty),
    )  # fmt: skip
    document = json.dumps(result.to_dict(), indent=2) + "\n"
    write_atomically(folder / "label.json", lambda file: file.write(document.encode()))
    return result


def _known(
    shelf: Shelf, tables: Mapping[Path, Sequence[GivenLabel]], config: LabelConfig
) -> tuple[dict[int, str], frozenset[int], tuple[str, ...]]:
    """The label of each example that has one, which ones were asked for in vain, and what may be slips."""
    own: dict[int, str] = {}
    if config.own_labels and shelf.found.labels is not None:
        if shelf.found.labels.ndim != 1:
            raise UserError("these data give an example several classes, and one is proposed here: give --own_labels "
                            "false to leave theirs alone")  # fmt: skip
        own = {row: name for row in range(len(shelf.features)) if (name := shelf.class_of(row)) is not None}
    names = [str(name) for name in shelf.found.names]
    given = read_labels(tables, names, shelf.place)
    known = own | given.labels
    left_empty = given.left_empty - known.keys()
    if len(known) == len(shelf.features):
        remedy = ": where folders or the column are no classes, give --own_labels false" if own else ""
        raise UserError(
            f"all {counted(len(known), 'example')} have a label already, and none is left to propose{remedy}"
        )
    if len(known) + len(left_empty) == len(shelf.features):
        raise UserError(
            f"{counted_have(len(known), 'example')} a label, the other {len(left_empty):,} were proposed before and "
            "left empty, and none is left to propose: fill these in, or delete their rows to have them proposed again"
        )
    return known, left_empty, given.notes


@dataclass(frozen=True)
class _Round:
    """What is known, what is guessed, and what is proposed."""

    shelf: Shelf
    known: dict[int, str]
    left_empty: frozenset[int]
    classes: tuple[str, ...]
    guessed: Guess | None
    choices: tuple[Choice, ...]
    config: LabelConfig
    folder: Path

    @classmethod
    def of(
        cls, shelf: Shelf, known: dict[int, str], left_empty: frozenset[int], config: LabelConfig, folder: Path
    ) -> _Round:
        """Fit a classifier on what is known, and choose."""
        classes = tuple(sorted(set(known.values())))
        number = {name: place for place, name in enumerate(classes)}
        labels = np.array([number[known[row]] if row in known else -1 for row in range(len(shelf.features))])
        guessed = guess(shelf.found.features, labels, config.seed)
        if config.by == "uncertain" and guessed is None:
            raise UserError(
                f"--by uncertain needs labels of two classes, and {len(classes) or 'none'} is known: begin with --by "
                "typical, or give --labels"
            )
        passed = np.isin(np.arange(len(shelf.features)), list(left_empty))
        chosen = choose(shelf.features, labels, config.count, guessed, config.by, config.seed, passed)
        return cls(shelf, known, left_empty, classes, guessed, tuple(chosen), config, folder)

    @property
    def words(self) -> str:
        """How they were chosen."""
        return "those that the labels so far leave most in doubt" if self.doubtful else "typical ones of what is alike"

    @property
    def doubtful(self) -> bool:
        """Whether they were chosen by what a classifier is in doubt of."""
        return bool(self.choices) and self.choices[0].why.startswith("uncertain")

    def notes(self) -> tuple[str, ...]:
        """What to think of before labelling."""
        wanted, count = len(self.known) + len(self.choices), len(self.shelf.features)
        if self.doubtful or _ROOM * wanted <= count or len(self.choices) <= _FEW:
            return ()
        return (
            f"{counted(wanted, 'label')} for {counted(count, 'example')} leave groups of fewer than {_ROOM}, whose "
            "typical ones are worth no more than any: ask for fewer by --count, label these, and go on",
        )

    def best(self, row: int) -> tuple[str | None, float | None]:
        """The likeliest class of an example and its probability."""
        if self.guessed is None:
            return None, None
        place, probability = self.guessed.best(row)
        return self.classes[place], round(probability, 4)

    def proposal(self, row: int, label: str, why: str) -> Proposal:
        """A row of the table."""
        file, name = self.shelf.place(row), str(self.shelf.found.names[row])
        own = file is not None and Path(name).name == file.name  # a piece's name goes on: a.png#0,64
        path = os.path.relpath(file.absolute(), self.folder.absolute()) if own and file is not None else name
        return Proposal(path.replace(os.sep, "/"), label, *((None, None) if label else self.best(row)), why)

    def write(self) -> tuple[Proposal, ...]:
        """The table and the sheet; returns what is proposed."""
        done = [self.proposal(row, name, _DONE) for row, name in sorted(self.known.items())]
        asked = tuple(self.proposal(each.row, "", each.why) for each in self.choices)
        passed = [self.proposal(row, "", _EMPTY) for row in sorted(self.left_empty)]
        rows = [{name: getattr(each, name) for name in _COLUMNS} for each in (*done, *asked, *passed)]
        write_rows(self.folder / TABLE, _COLUMNS, rows)
        lines = [self.choices[i : i + MOST_ACROSS] for i in range(0, len(self.choices), MOST_ACROSS)]
        strips = []
        for place, line in enumerate(lines):
            first = place * MOST_ACROSS
            drawn = line if place < MOST_ROWS else ()
            shots = [self._shot(first + i + 1, each, asked[first + i]) for i, each in enumerate(drawn)]
            title = f"{first + 1} to {first + len(line)}, in the order of the rows to fill in"
            strips.append(Strip(title, shots))
        write_sheet(self.folder / SHEET, strips)
        return asked

    def _shot(self, number: int, choice: Choice, proposal: Proposal) -> Shot:
        said = f"{proposal.proposed}?" if proposal.proposed is not None else Path(proposal.path).name
        return self.shelf.shot(choice.row, f"{number}  {said}")

    def write_page(self, data: Any, progress: Progress, audio: bool) -> None:
        """The page to explore, coloured by what is to be labelled."""
        count = len(self.shelf.features)
        states = dict.fromkeys(self.left_empty, _EMPTY) | dict.fromkeys(self.known, _DONE)
        states |= dict.fromkeys((each.row for each in self.choices), "to label")
        state = [states.get(row, "") for row in range(count)]
        more: dict[str, NDArray[Any]] = {
            "round": np.array(state), "label": np.array([self.known.get(row, "") for row in range(count)])
        }  # fmt: skip
        if self.guessed is not None:
            best = [self.best(row) for row in range(count)]
            more |= {"proposed": np.array([name for name, _ in best]), "probability": np.array([p for _, p in best])}
        shared = {name: getattr(self.config, name) for name in ("data", "features", "device", "batch")}
        page = explorer_of(
            self.shelf, data, self.folder / PAGE, ExploreConfig(**shared), progress, audio, more, label="label"
        )  # fmt: skip
        write_explorer(self.folder / PAGE, page)


def parser() -> ArgumentParser:
    """Of `twofold label`."""
    parser = new_parser("Say which files to label next, as a table to fill in, and take the table back.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_data(parser, f"{EITHER}; or a file that twofold embed wrote")
    parser.add_argument("--out", type=str, help="a new folder for the table, a contact sheet and a page")
    parser.add_argument("--labels", nargs="+", type=str, help="tables that were filled in")
    add_options(parser, LabelConfig)
    return parser


def run(options: dict[str, Any]) -> LabelResult:
    """`twofold label`."""
    require_out(options, "a new folder", "round-1")
    return label(options.pop("run"), options.pop(PATH), options.pop("out"), **options)
