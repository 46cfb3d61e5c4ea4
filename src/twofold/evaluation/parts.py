"""Which part of some data a classifier is fitted on, which settings are chosen on, and which it is scored on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.console import print_rank0
from twofold.data import AudioSource, DataConfig, Source, open_source, splits_of
from twofold.data.groups import group_numbers
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.evaluation.grouped import warn_of_shared_examples, warn_of_shared_groups
from twofold.evaluation.label_subsets import is_list, label_positions
from twofold.evaluation.splits import check_cover, lone_in_words, stratified_split
from twofold.files import at_home
from twofold.kinds import EXAMPLE
from twofold.text import printable


@dataclass(frozen=True)
class Parts:
    """Parts of some data.

    Attributes:
        train: what is fitted on; all there is where nothing else is given.
        test: what is scored; None where a share of `train` has to be held out.
        validation: what settings are chosen on, where the data have a part for that.
        words: which examples have a label, in words; empty where all have.
    """

    train: Source
    test: Source | None = None
    validation: Source | None = None
    words: str = ""


def open_parts(
    data: Any,
    test: Any,
    validation: Any,
    config: DataConfig,
    *,
    whole: bool = False,
    same_classes: bool = True,
    choose: bool = False,
) -> Parts:
    """Open the data's own parts where they have them and no others are given.

    Args:
        data, test, validation: data of any kind, see `open_source`; the last two may name a part of the first.
        config: how they are read.
        whole: the data are not divided.
        same_classes: see `evaluation_parts`.
        choose: take the data's own validation part, where they have one beside a test part and nothing else is given.
            With some of the labels only, it would be labels that nobody counted.
    """
    if whole:
        return Parts(open_source(data, config))
    known = splits_of(data)
    given = any(each is not None for each in (test, validation, config.split))
    if choose and known.validation and known.evaluation and not given:
        names = (*known.validation, known.evaluation[1])
        train, chosen_on, tested = (open_source(data, config, split=name) for name in names)
        check_cover(train, tested, "--test with the images to score on")
        warn_of_shared_groups({"training": train, "validation": chosen_on, "test": tested})
        return Parts(train, tested, chosen_on)
    choice = part_of(data, validation, config) if validation is not None else None
    parts = Parts(*evaluation_parts(data, test, config, same_classes), choice)
    if choice is not None:
        warn_of_shared_groups({"training": parts.train, "validation": choice})
        warn_of_shared_groups({"validation": choice, "test": parts.test})
    return parts


def evaluation_parts(
    data: Any, test: Any, config: DataConfig, same_classes: bool = True
) -> tuple[Source, Source | None]:
    """The parts that the classifier is fitted on and scored on; without a second part the first has to be divided.

    `test` may be data of any kind, or the name of another part of the same data, where no file is called that.

    Raises:
        UserError: see `open_source`; with `same_classes`, a class of the data's own training part that their test part
            lacks.
    """
    if test is not None:
        train, tested = open_source(data, config), part_of(data, test, config)
        warn_of_shared_groups({"training": train, "test": tested})
        warn_of_shared_examples(train, tested)
        return train, tested
    parts = splits_of(data).evaluation
    if config.split is not None or parts is None:
        return open_source(data, config), None
    train, tested = (open_source(data, config, split=part) for part in parts)
    if same_classes:
        check_cover(train, tested, "--test with the images to score on")
    warn_of_shared_groups({"training": train, "test": tested})
    return train, tested


def part_of(data: Any, part: Any, config: DataConfig) -> Source:
    """Data of their own, or the part of the same data that has this name, where no file is called that."""
    if isinstance(part, str) and not at_home(part).exists():
        known = splits_of(data)
        if part in known.names + known.others:
            return open_source(data, config, split=part)
    return open_source(part, dataclasses.replace(config, split=None), least=1)  # one can be scored


def labelled_parts(
    train: Source, test: Source | None, seed: int = 0, held_out: float = 0.2, labels: str | int = "all"
) -> tuple[Source, Source]:
    """Training and test images; where there is no test part, a share of each class is held out for it, in whole groups.

    `labels` is the choice of training images that will be made of the first part (see `label_positions`). A list is of
    the whole of the data: none of its images is held out, and the whole is what it is to be looked up in.

    Raises:
        UserError: no labels, or several an image and no test part; a list that leaves nothing of a class to hold out.
    """
    if test is not None:
        return train, test
    if train.labels is None or train.labels.ndim != 1:
        raise UserError(f"{train.name}: give --test; only images with one label each can be divided for you")
    known = np.flatnonzero(train.labels >= 0)
    listed = np.searchsorted(known, label_positions(train, labels)) if is_list(labels) else None
    groups = group_numbers(train)
    together = None if groups is None else groups[known]
    names = train.classes
    y = train.labels[known]
    first, second = stratified_split(
        y, held_out, seed, first=listed, groups=together, lone=groups is None, classes=names
    )
    example = EXAMPLE["audio" if isinstance(train, AudioSource) else "image"]
    if groups is None and (alone := lone_in_words(y, names, example)):
        print_rank0(f"warning: {printable(alone)}")
    return train if is_list(labels) else subset(train, known[first]), subset(train, known[second])
