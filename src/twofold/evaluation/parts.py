"""Which part of some data a classifier is fitted on, and which it is scored on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from twofold.data import DataConfig, Source, open_source, splits_of
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.evaluation.label_subsets import is_list, label_positions
from twofold.evaluation.splits import check_cover, stratified_split


def evaluation_parts(
    data: Any, test: Any, config: DataConfig, same_classes: bool = True
) -> tuple[Source, Source | None]:
    """The parts that the classifier is fitted on and scored on; without a second part the first has to be divided.

    Raises:
        UserError: see `open_source`; with `same_classes`, a class of the data's own training part that their test part
            lacks.
    """
    if test is not None:
        return open_source(data, config), open_source(test, dataclasses.replace(config, split=None))
    parts = splits_of(data).evaluation
    if config.split is not None or parts is None:
        return open_source(data, config), None
    train, tested = (open_source(data, config, split=part) for part in parts)
    if same_classes:
        check_cover(train, tested, "--test with the images to score on")
    return train, tested


def labelled_parts(
    train: Source, test: Source | None, seed: int = 0, held_out: float = 0.2, labels: str | int = "all"
) -> tuple[Source, Source]:
    """Training and test images; where there is no test part, a share of each class is held out for it.

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
    first, second = stratified_split(train.labels[known], held_out, seed, first=listed)
    return train if is_list(labels) else subset(train, known[first]), subset(train, known[second])
