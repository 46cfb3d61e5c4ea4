"""Does transfer get worse with the number of classes, or is it chance that gets lower? (arXiv 2108.00587, third strand)

The abstract states that transfer is better with fewer classes. Accuracy alone must say so, since guessing is right more
often among few: so the chance-corrected accuracy (a - 1/C) / (1 - 1/C) is reported too, at a fixed number of images per
class and, separately, at a fixed total. The protocol is ours; the paper's own was not available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twofold.data import DataConfig
from twofold.data.groups import group_numbers
from twofold.devices import choose_device
from twofold.encoders import read_header
from twofold.encoders.load import encoder_path, load
from twofold.errors import UserError
from twofold.evaluation.feature_cache import FeatureCache, Features
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.few_labels import fit_few
from twofold.evaluation.label_subsets import balanced_subset
from twofold.evaluation.scores import score
from twofold.evaluation.splits import check_test_labels, single_labels
from twofold.randomness import permutation
from twofold.report import Report, Table, line_figure
from twofold.report.tables import curve, spread
from twofold.studies.base import INTERVAL, Folder, Study, train_and_test
from twofold.verdicts import paired

Rule = Literal["per_class", "total"]
RULES: dict[Rule, str] = {"per_class": "images a class fixed", "total": "total fixed"}


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


@dataclass(frozen=True)
class Point:
    """One fit: how many classes, by which rule, which draw; accuracy in [0, 1] and what is left of it above chance."""

    classes: int
    rule: Rule
    draw: int
    images: int
    top1: float
    corrected: float


def chance_corrected(top1: float, classes: int) -> float:
    """(a - 1/C) / (1 - 1/C): 0 for guessing among C classes, 1 for no mistake."""
    return (top1 - 1 / classes) / (1 - 1 / classes)


def class_counts(study: ClassesConfig, available: int) -> list[int]:
    """The numbers of classes, ascending; UserError for more than there are."""
    if study.classes is None:
        return sorted({count for count in (2, 5, 10, 20, 50, 100) if count <= available} | {min(available, 100)})
    if max(study.classes) > available:
        raise UserError(f"--classes {max(study.classes)}: the data have {available} classes")
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
    known = np.intersect1d(y[y >= 0], y_test[y_test >= 0])
    counts = class_counts(study, len(known))
    total = study.total or study.per_class * counts[-1]
    if total < counts[-1]:
        raise UserError(f"--total {total}: {counts[-1]} classes need at least one image each")
    points = []
    order = known[permutation(study.seed, "classes", draw, len(known))]
    for count in counts:
        selection = order[:count]
        own = np.where(np.isin(y, selection), y, -1)
        tested = np.isin(y_test, selection)
        budgets: dict[Rule, int] = {"per_class": study.per_class * count, "total": total}
        for rule, images in budgets.items():
            least = int(np.bincount(own[own >= 0])[selection].min())
            if -(-images // count) > least:
                raise UserError(
                    f"{-(-images // count)} images of each of {count} classes are needed, one class has {least}: "
                    f"lower --{rule}"
                )
            part = balanced_subset(own, total=images, seed=study.seed, draw=draw)
            together = None if groups is None else groups[part]
            model, _ = fit_few(x[part], y[part], study.seed, draw, groups=together)
            top1 = score(model.logits(x_test[tested]), model.classes, y_test[tested]).top1
            points.append(Point(count, rule, draw, images, top1, chance_corrected(top1, count)))
    return points


def table(points: Sequence[Point]) -> Table:
    """A row for each number of classes."""
    counts, rows = sorted({p.classes for p in points}), []
    for count in counts:
        cells = [f"{count} classes"]
        for rule in RULES:
            group = [p for p in points if p.classes == count and p.rule == rule]
            cells += [spread([p.top1 for p in group]), spread([p.corrected for p in group])]
        rows.append(cells)
    heads = [f"{what}, {words}" for words in RULES.values() for what in ("accuracy", "corrected")]
    draws = len({p.draw for p in points})
    note = (
        f"Test accuracy in % and (a - 1/C) / (1 - 1/C), of a logistic regression on frozen features; mean ± standard "
        f"deviation over {draws} draws of classes and images (all classes: of images)."
    )
    return Table("Number of classes", ["", *heads], rows, note)


def interpretation(points: Sequence[Point]) -> str:
    """What came of it, in plain words."""
    counts = sorted({p.classes for p in points})
    parts = []
    for rule, words in RULES.items():
        low, high = ({p.draw: p.corrected for p in points if p.rule == rule and p.classes == c}
                     for c in (counts[0], counts[-1]))  # fmt: skip
        draws = sorted(low.keys() & high.keys())  # a draw's fewer classes are among its more: they belong together
        found = paired([low[draw] for draw in draws], [high[draw] for draw in draws])
        if not found.clear:
            message = "no clear difference"
        else:
            message = "better with fewer classes" if found.mean > 0 else "not better with fewer classes, but worse"
        parts.append(
            f"with the {words}, {100 * np.mean(list(low.values())):.1f} at {counts[0]} and "
            f"{100 * np.mean(list(high.values())):.1f} at {counts[-1]}, {found.times(100).words()}: {message}"
        )
    return f"Chance-corrected accuracy in %, {INTERVAL}: " + "; ".join(parts) + "."


def page(points: Sequence[Point], data: str) -> Report:
    """The page."""
    counts = sorted({p.classes for p in points})

    def curves(name: str) -> list[Any]:
        return [
            curve(words, counts, {c: [getattr(p, name) for p in points if p.rule == rule and p.classes == c]
                                  for c in counts})
            for rule, words in RULES.items()
        ]  # fmt: skip

    figures = [
        line_figure("Accuracy", "classes", counts, curves("top1"), percent=True, log_x=True),
        line_figure("Chance-corrected accuracy", "classes", counts, curves("corrected"), percent=True, log_x=True),
    ]
    return Report(
        "Number of classes", {"data": data}, tables=[table(points)], figures=figures, lead=interpretation(points)
    )


class ClassesStudy(Study[int, Point]):
    """Transfer of one encoder against the number of classes; a part is a draw of classes and images."""

    name = "classes"
    Config = ClassesConfig
    table = staticmethod(table)
    interpretation = staticmethod(interpretation)

    def __init__(self, data: str, config: ClassesConfig, folder: Folder) -> None:
        self.data, self.config, self.folder = data, config, folder

    def plan(self) -> Sequence[int]:
        """One part a draw."""
        file = encoder_path(str(self.config.run))
        device = choose_device(self.config.device, "--device")
        self.file, self.model = file, load(file, device=device)
        reading = Pixels.of(read_header(file)).fill(self.config.data)
        self.train, self.test = train_and_test(self.data, self.config.test, reading, self.model.input.channels)
        self.targets = check_test_labels(self.train, self.test)
        single_labels(self.train.labels, self.train.name)
        return range(self.config.draws)

    def run(self, part: int) -> Sequence[Point]:
        """The fits of a draw."""
        bank, queries = self._features
        groups, labels = group_numbers(self.train), np.asarray(bank.labels)
        together = None if groups is None else groups[bank.index]
        return measure_draw(self.config, part, bank.h, labels, queries.h, self.targets[queries.index], together)

    @cached_property
    def _features(self) -> tuple[Features, Features]:
        """Of all training and test images."""
        extractor = Extractor.of(self.file, cache=FeatureCache.beside(self.file))
        bank, queries = (extractor.extract(self.model, part) for part in (self.train, self.test))
        return bank, queries

    def measured(self, cell: Point) -> Mapping[str, float]:
        """Accuracy and what is left of it above chance, by number of classes and rule."""
        name = f"{cell.classes} classes, {RULES[cell.rule]}"
        return {f"{name}: top1": cell.top1, f"{name}: corrected": cell.corrected}

    def page(self, cells: Sequence[Point]) -> Report:
        """Both accuracies against the number of classes."""
        return page(cells, self.data)
