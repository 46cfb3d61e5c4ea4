"""Does transfer get worse with the number of classes, or is it chance that gets lower? (arXiv 2108.00587, third strand)

The abstract states that transfer is better with fewer classes. Accuracy alone must say so, since guessing is right more
often among few: so the chance-corrected accuracy (a - 1/C) / (1 - 1/C) is reported too, at a fixed number of images per
class and, separately, at a fixed total; by a classifier on frozen features, or by fine-tuning; on one data set or on
several. The protocol is ours; the paper's own was not available.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twofold.data import DataConfig, Source
from twofold.data.groups import group_numbers
from twofold.data.sources.subset import of_classes
from twofold.devices import choose_device
from twofold.encoders import read_header
from twofold.encoders.load import encoder_path, load
from twofold.errors import Diverged, Stopped, UserError
from twofold.evaluation.feature_cache import FeatureCache, Features
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.few_labels import fit_few
from twofold.evaluation.label_subsets import balanced_subset
from twofold.evaluation.scores import Scores, score
from twofold.evaluation.splits import check_test_labels, single_labels
from twofold.options import OptionsParser, merge
from twofold.randomness import permutation
from twofold.report import Report, Table, line_figure
from twofold.report.tables import averaged, curve, spread
from twofold.runs.config import FinetuneConfig
from twofold.runs.finetune import finetune
from twofold.studies.base import INTERVAL, Folder, Study, shared_options, train_and_test
from twofold.studies.diverging import kept
from twofold.text import counted
from twofold.verdicts import paired

Rule = Literal["per_class", "total"]
RULES: dict[Rule, str] = {"per_class": "images a class fixed", "total": "total fixed"}
Protocol = Literal["linear", "finetune"]
PROTOCOLS: dict[Protocol, str] = {"linear": "frozen features", "finetune": "fine-tuned"}
SET_BY_THE_STUDY = {
    "labels": "the study chooses them, by --per_class and --total",
    "draw": "and say how many by --draws",
    "seed": "each draw has its own; say how many by --draws",
    "from_scratch": "it is the pretrained encoder that is asked about",
    "data": "and give it to the study, as --data.*",
}
"""Options of fine-tuning that a file of options cannot set, and what to do instead."""


@dataclass(frozen=True)
class ClassesConfig:
    """What is compared."""

    run: str | None = None
    """The pretrained encoder: a run's folder, or an encoder.safetensors."""
    classes: tuple[int, ...] | None = None
    """Numbers of classes; when not given 2, 5, 10, 20, 50 and 100, as far as the data go."""
    per_class: int = 10
    """Labelled images of each class where their number is fixed."""
    total: int | None = None
    """Labelled images in all where that is fixed; as many as the largest number of classes has when not given."""
    draws: int = 5
    """Random choices of classes and images."""
    seed: int = 0
    """Of the choices."""
    test: str | None = None
    """Labelled data for the scores; the data's own test split when not given."""
    protocols: tuple[Protocol, ...] = ("linear",)
    """linear: a classifier on frozen features; finetune: the encoder is trained with it."""
    sets: tuple[str, ...] = ()
    """Further labelled data sets, each with a test split of its own, measured like the first."""
    epochs: float | None = None
    """Passes of fine-tuning over the labelled images; chosen from their number when not given."""
    batch: int | None = None
    """Images per step of fine-tuning; chosen from their number when not given."""
    config: str | None = None
    """A YAML file of further options of fine-tuning."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("--run is missing: name the pretrained run whose features are classified")
        if self.per_class < 1 or self.draws < 1:
            raise UserError(f"--per_class and --draws must be at least 1, got {self.per_class} and {self.draws}")
        if self.classes is not None and (not self.classes or min(self.classes) < 2):
            raise UserError(f"--classes must be 2 or more each, got {list(self.classes)}")
        if not self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise UserError(f"--protocols must name at least one, none twice; got {list(self.protocols)}")
        if len(set(self.sets)) < len(self.sets):
            raise UserError(f"--sets names one twice: {list(self.sets)}")
        given = [name for name in ("epochs", "batch", "config") if getattr(self, name) is not None]
        if given and "finetune" not in self.protocols:
            raise UserError(f"--{given[0]} is of fine-tuning: ask for it, too, with --protocols '[linear, finetune]'")


@dataclass(frozen=True)
class Point:
    """One fit: how many classes, by which rule, which draw; accuracy in [0, 1] and what is left of it above chance; the
    protocol and the data set, "" where there is one alone."""

    classes: int
    rule: Rule
    draw: int
    images: int
    top1: float
    corrected: float
    protocol: Protocol = "linear"
    data: str = ""


class Choice(NamedTuple):
    """What one fit is made of: the classes, the rule, how many images, and which of the training images."""

    selection: NDArray[np.int64]
    rule: Rule
    images: int
    part: NDArray[np.int64]


def chance_corrected(top1: float, classes: int) -> float:
    """(a - 1/C) / (1 - 1/C): 0 for guessing among C classes, 1 for no mistake."""
    return (top1 - 1 / classes) / (1 - 1 / classes)


def class_counts(study: ClassesConfig, available: int) -> list[int]:
    """The numbers of classes, ascending; UserError for more than there are."""
    if study.classes is None:
        return sorted({count for count in (2, 5, 10, 20, 50, 100) if count <= available} | {min(available, 100)})
    if max(study.classes) > available:
        raise UserError(f"--classes {max(study.classes)}: the data have {counted(available, 'class')}")
    return sorted(set(study.classes))


def measure(
    study: ClassesConfig, x: NDArray[np.float32], y: NDArray[np.int64], x_test: NDArray[np.float32],
    y_test: NDArray[np.int64],
) -> list[Point]:  # fmt: skip
    """Fit a logistic regression for each number of classes, rule and draw (see `measure_draw`)."""
    return [point for draw in range(study.draws) for point in measure_draw(study, draw, x, y, x_test, y_test)]


def measure_draw(
    study: ClassesConfig, draw: int, x: NDArray[np.float32], y: NDArray[np.int64], x_test: NDArray[np.float32],
    y_test: NDArray[np.int64], groups: NDArray[np.int64] | None = None,
) -> list[Point]:  # fmt: skip
    """Fit a logistic regression for each number of classes and rule, on features [N, d].

    A draw's fewer classes are among its more classes. Test images are all those of the chosen classes. `groups` [N] are
    kept together where a penalty is chosen.

    Raises:
        UserError: more classes, or images of a class, are asked for than there are.
    """
    points = []
    for selection, rule, images, part in choices(study, draw, y, y_test):
        tested = np.isin(y_test, selection)
        together = None if groups is None else groups[part]
        model, _ = fit_few(x[part], y[part], study.seed, draw, groups=together)
        top1 = score(model.logits(x_test[tested]), model.classes, y_test[tested]).top1
        points.append(Point(len(selection), rule, draw, images, top1, chance_corrected(top1, len(selection))))
    return points


def choices(study: ClassesConfig, draw: int, y: NDArray[np.int64], y_test: NDArray[np.int64]) -> Iterator[Choice]:
    """What is fitted in a draw: numbers of classes by rules.

    Raises:
        UserError: more classes, or images of a class, are asked for than there are.
    """
    known = np.intersect1d(y[y >= 0], y_test[y_test >= 0])
    counts = class_counts(study, len(known))
    total = study.total or study.per_class * counts[-1]
    if total < counts[-1]:
        raise UserError(f"--total {total}: {counted(counts[-1], 'class')} need at least one image each")
    order = known[permutation(study.seed, "classes", draw, len(known))]
    for count in counts:
        selection = order[:count]
        own = np.where(np.isin(y, selection), y, -1)
        budgets: dict[Rule, int] = {"per_class": study.per_class * count, "total": total}
        for rule, images in budgets.items():
            least = int(np.bincount(own[own >= 0])[selection].min())
            if -(-images // count) > least:
                raise UserError(
                    f"{counted(-(-images // count), 'image')} of each of {counted(count, 'class')} are needed, one "
                    f"class has {least}: lower --{rule}"
                )
            yield Choice(selection, rule, images, balanced_subset(own, total=images, seed=study.seed, draw=draw))


def _kinds(points: Sequence[Point]) -> list[tuple[str, Protocol]]:
    """Every data set and protocol that was measured."""
    return list(dict.fromkeys((p.data, p.protocol) for p in points))


def _title(kind: tuple[str, Protocol], kinds: Sequence[tuple[str, Protocol]]) -> str:
    """What tells one of several data sets and protocols from the others; empty where there is one alone."""
    data, protocol = kind
    sets = {each for each, _ in kinds}
    short = len({Path(each).name for each in sets}) == len(sets)
    parts = [Path(data).name if short else data] if len(sets) > 1 else []
    return ", ".join([*parts, *([PROTOCOLS[protocol]] if len({each for _, each in kinds}) > 1 else [])])


def table(points: Sequence[Point]) -> Table:
    """A row for each data set, protocol and number of classes."""
    kinds, rows = _kinds(points), []
    for kind in kinds:
        own = [p for p in points if (p.data, p.protocol) == kind]
        for count in sorted({p.classes for p in own}):
            cells = [", ".join(part for part in (_title(kind, kinds), f"{counted(count, 'class')}") if part)]
            for rule in RULES:
                group = [p for p in own if p.classes == count and p.rule == rule]
                cells += [spread([p.top1 for p in group]), spread([p.corrected for p in group])]
            rows.append(cells)
    heads = [f"{what}, {words}" for words in RULES.values() for what in ("accuracy", "corrected")]
    draws, asked = len({p.draw for p in points}), {p.protocol for p in points}
    of = {"linear": "of a logistic regression on frozen features", "finetune": "of fine-tuned networks"}
    whose = " or ".join(of[each] for each in PROTOCOLS if each in asked)
    note = (
        f"Test accuracy in % and (a - 1/C) / (1 - 1/C), {whose}; {averaged(draws, 'draw', ' of classes and images')} "
        "(all classes: of images)."
    )
    return Table("Number of classes", ["", *heads], rows, note)


def interpretation(points: Sequence[Point]) -> str:
    """What came of it, in plain words."""
    kinds, told = _kinds(points), []
    for kind in kinds:
        own = [p for p in points if (p.data, p.protocol) == kind]
        title = _title(kind, kinds)
        if words := _against(own):
            told.append(f"{title}: {words}" if title else words)
    return f"Chance-corrected accuracy in %, {INTERVAL}: " + ". ".join(told) + "." if told else ""


def _against(points: Sequence[Point]) -> str:
    """The fewest classes against the most, by both rules, of one data set and protocol; empty where no draw has
    both."""
    counts = sorted({p.classes for p in points})
    parts = []
    for rule, words in RULES.items():
        low, high = ({p.draw: p.corrected for p in points if p.rule == rule and p.classes == c}
                     for c in (counts[0], counts[-1]))  # fmt: skip
        draws = sorted(low.keys() & high.keys())  # a draw's fewer classes are among its more: they belong together
        if not draws:
            continue
        found = paired([low[draw] for draw in draws], [high[draw] for draw in draws])
        if not found.clear:
            message = "no clear difference"
        else:
            message = "better with fewer classes" if found.mean > 0 else "not better with fewer classes, but worse"
        parts.append(
            f"with the {words}, {100 * np.mean(list(low.values())):.1f} at {counts[0]} and "
            f"{100 * np.mean(list(high.values())):.1f} at {counts[-1]}, {found.times(100).words()}: {message}"
        )
    return "; ".join(parts)


def page(points: Sequence[Point], data: str) -> Report:
    """The page: of each data set and protocol both accuracies against the number of classes."""
    kinds, figures = _kinds(points), []
    for kind in kinds:
        own = [p for p in points if (p.data, p.protocol) == kind]
        counts = sorted({p.classes for p in own})
        for name, what in (("top1", "Accuracy"), ("corrected", "Chance-corrected accuracy")):
            lines = [
                curve(words, counts, {c: [getattr(p, name) for p in own if p.rule == rule and p.classes == c]
                                      for c in counts})
                for rule, words in RULES.items() if any(p.rule == rule for p in own)
            ]  # fmt: skip
            title = ", ".join(part for part in (what, _title(kind, kinds)) if part)
            figures.append(line_figure(title, "classes", counts, lines, percent=True, log_x=True))
    return Report(
        "Number of classes", {"data": data}, tables=[table(points)], figures=figures, lead=interpretation(points)
    )


class ClassesPart(NamedTuple):
    """A draw of classes and images of one data set: its folder's name, the set's number, the draw."""

    name: str
    number: int
    draw: int


class ClassesStudy(Study[ClassesPart, Point]):
    """Transfer of one encoder against the number of classes; a part is a draw of classes and images of a data set."""

    name = "classes"
    Config = ClassesConfig
    table = staticmethod(table)
    interpretation = staticmethod(interpretation)

    def __init__(self, data: str, config: ClassesConfig, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder
        self._features: dict[int, tuple[Features, Features]] = {}

    def plan(self) -> Sequence[ClassesPart]:
        """One part a data set and draw."""
        config, file = self.config, encoder_path(str(self.config.run))
        device = choose_device(config.device, "--device")
        self.file, self.model = file, load(file, device=device)
        reading = Pixels.of(read_header(file)).fill(config.data)
        self.names = [self.data, *config.sets]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"--sets names {self.data}, which is measured anyway")
        self.opened: list[tuple[Source, Source, NDArray[np.int64]]] = []
        for name, test in zip(self.names, [config.test, *[None] * len(config.sets)], strict=True):
            train, scored = train_and_test(name, test, reading, self.model.input.channels)
            targets = check_test_labels(train, scored)
            single_labels(train.labels, train.name)
            self.opened.append((train, scored, targets))
        budget = {k: v for k, v in (("epochs", config.epochs), ("batch", config.batch)) if v is not None}
        self.shared = merge(shared_options(config.config, reading, SET_BY_THE_STUDY), budget)
        if "finetune" in config.protocols:
            OptionsParser(FinetuneConfig).build(self.shared, config.config or "options")
        for train, _, targets in self.opened:
            try:
                for draw in range(config.draws):
                    list(choices(config, draw, np.asarray(train.labels), targets))
            except UserError as error:
                raise UserError(f"{train.name}: {error}") from error
        several = len(self.names) > 1
        return [
            ClassesPart(f"set{number}-draw{draw}" if several else f"draw{draw}", number, draw)
            for number in range(len(self.names))
            for draw in range(config.draws)
        ]

    def describe(self, part: ClassesPart) -> str:
        """The set, where there are several, and the draw."""
        return f"{self.names[part.number]}, draw {part.draw}" if len(self.names) > 1 else f"draw {part.draw}"

    def run(self, part: ClassesPart) -> Sequence[Point]:
        """The fits of a draw, by each protocol."""
        points = []
        if "linear" in self.config.protocols:
            points += self._frozen(part)
        if "finetune" in self.config.protocols:
            points += self._fine_tuned(part)
        name = self.names[part.number] if len(self.names) > 1 else ""
        return [dataclasses.replace(point, data=name) for point in points]

    def _frozen(self, part: ClassesPart) -> list[Point]:
        train, test, targets = self.opened[part.number]
        if part.number not in self._features:
            extractor = Extractor.of(self.file, cache=FeatureCache.beside(self.file))
            self._features[part.number] = extractor.extract(self.model, train), extractor.extract(self.model, test)
        bank, queries = self._features[part.number]
        groups, labels = group_numbers(train), np.asarray(bank.labels)
        together = None if groups is None else groups[bank.index]
        return measure_draw(self.config, part.draw, bank.h, labels, queries.h, targets[queries.index], together)

    def _fine_tuned(self, part: ClassesPart) -> list[Point]:
        """A run for each number of classes and images; where both rules ask for as many, one for both."""
        train, test, targets = self.opened[part.number]
        points: list[Point] = []
        for selection, rule, images, chosen in choices(self.config, part.draw, np.asarray(train.labels), targets):
            place = self.folder.path / f"{part.name}-{len(selection)}classes-{images}images"
            own = of_classes(train, np.asarray(train.labels), chosen, selection, train.classes)
            scored = of_classes(test, targets, np.flatnonzero(np.isin(targets, selection)), selection, train.classes)
            options = merge(self.shared, {"labels": "all", "seed": part.draw})
            try:
                result = kept(place, partial(finetune, self.file, own, scored, place, options, quiet=True))
            except Diverged as error:
                words = f"{counted(len(selection), 'class')} and {counted(images, 'image')} fine-tuned"
                self.leave_out(f"{self.describe(part)}, {words}", error)
                continue
            if not result.complete:
                raise Stopped.at(f"in {place}", result.stopped_by or signal.SIGINT)
            assert isinstance(result.scores, Scores)  # of one label an image
            top1, count = result.scores.top1, len(selection)
            points.append(Point(count, rule, part.draw, images, top1, chance_corrected(top1, count), "finetune"))
        return points

    def measured(self, cell: Point) -> Mapping[str, float]:
        """Accuracy and what is left of it above chance, by number of classes and rule."""
        of = [cell.data] if cell.data else []
        of += [PROTOCOLS[cell.protocol]] if cell.protocol != "linear" else []
        name = ", ".join([*of, f"{cell.classes} classes, {RULES[cell.rule]}"])
        return {f"{name}: top1": cell.top1, f"{name}: corrected": cell.corrected}

    def page(self, cells: Sequence[Point]) -> Report:
        """Both accuracies against the number of classes."""
        return page(cells, self.data)
