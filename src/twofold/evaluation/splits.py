"""Stratified splits fixed by a seed, and the checks that a supervised evaluation needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from twofold.data import Source
from twofold.data.groups import group_numbers
from twofold.errors import UserError
from twofold.evaluation.grouped import held_out_groups
from twofold.randomness import permutation

Labels = NDArray[np.int64]


def stratified_split(
    labels: Labels, held_out: float = 0.2, seed: int = 0, stream: str = "test split", draw: int = 0,
    first: Labels | None = None, groups: Labels | None = None, lone: bool = False,
    classes: Sequence[str] | None = None,
) -> tuple[Labels, Labels]:  # fmt: skip
    """Split positions 0..N-1 in two, each class in the same proportion, or as nearly as whole groups allow.

    Args:
        labels: [N] class of each image.
        held_out: share of each class in the second part, in (0, 1); rounded, at least one image in either part.
        seed, stream, draw: the address of the random order within a class; other addresses give other splits.
        first: positions that stay in the first part; the second gets as many of the others as it would of all.
        groups: [N] number of the group of each, all of which goes to one part (see `held_out_groups`).
        lone: a class of a single image, or that lies in a single group, stays in the first part, which else is an
            error.
        classes: names, by label, for messages.

    Returns:
        Positions of the first part and of the second, each in ascending order.

    Raises:
        UserError: a class with a single image or group, or one whose images are all to stay in the first part; with
            `lone` no class with two images.
    """
    if not 0 < held_out < 1:
        raise UserError(f"the held-out share must lie between 0 and 1, got {held_out}")
    if groups is not None:
        selection = held_out_groups(labels, groups, held_out, seed, stream, draw, first, lone, names=classes)
        return np.setdiff1d(np.arange(len(labels)), selection), selection
    second = []
    for label in np.unique(labels):
        members, name = np.flatnonzero(labels == label), classes[label] if classes else label
        if len(members) < 2 and lone:
            continue
        if len(members) < 2:
            raise UserError(
                f"class {name} has 1 labelled image; a split into two parts needs at least 2 of each class: "
                "add images, leave the class out, or give a test set of its own"
            )
        count = int(np.clip(round(held_out * len(members)), 1, len(members) - 1))
        order = members[permutation(seed, f"{stream}/{label}", draw, len(members))]
        free = order if first is None else order[~np.isin(order, first)]
        if not len(free):
            raise UserError(
                f"every image of class {name} is to be trained on, which leaves none to hold out for the score: give "
                "--test with images of their own"
            )
        second.append(free[:count])
    if not second:
        raise UserError(
            "no class has 2 labelled images, of which one could be held out for the score: label more, or give a test "
            "set of its own"
        )
    selection = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), selection), selection


def lone_in_words(labels: Labels, classes: Sequence[str] | None, example: str = "image") -> str:
    """What to say of classes of a single example, which a division leaves in its first part; empty without any.

    Args:
        labels: [N], none below 0.
        classes: names, by label.
        example: what one is called.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    names = [classes[number] if classes else str(number) for number in numbers[counts == 1].tolist()]
    if not names:
        return ""
    shown = f"{', '.join(names[:5])}{f' and {len(names) - 5:,} more' if len(names) > 5 else ''}"
    alone = f"class {shown} has" if len(names) == 1 else f"classes {shown} have"
    each = "" if len(names) == 1 else " each"
    return f"{alone} 1 labelled {example}{each}, which is trained on and leaves none to score"


def single_labels(labels: NDArray[np.int64] | None, where: str, least: int = 2) -> Labels:
    """The labels of `where` as [N], below 0 for unlabelled images.

    Raises UserError without labels, with several labels an image, or with fewer than `least` classes.
    """
    if labels is None:
        raise UserError(
            f"{where} has no labels, which this protocol needs: put the images of each class in a folder of its own, "
            "or give a table with a column of labels, or arrays with labels"
        )
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise UserError(
            f"{where} has several labels an image (an array of shape {labels.shape}); linear and kNN evaluation "
            "count one right class an image: give single labels, or score average precision by `twofold finetune "
            "--freeze encoder` or `twofold transfer`"
        )
    if (classes := len(np.unique(labels[labels >= 0]))) < least:
        raise UserError(f"{where} has labelled images of {classes} class(es); this protocol needs at least {least}")
    return labels.astype(np.int64)


def match_classes(
    train_labels: Labels, train_classes: Sequence[str] | None, test_labels: Labels, test_classes: Sequence[str] | None,
    what: str = "test",
) -> Labels:  # fmt: skip
    """Express the test labels in the training set's numbers.

    Two folders number their classes on their own, so classes are matched by name where both sets name them and by
    number otherwise. `what` names the set in the message.

    Returns:
        [N] test labels in the numbering of `train_labels`.

    Raises:
        UserError: the test set holds classes of which the training set has no image.
    """
    known = {int(label) for label in np.unique(train_labels)}
    if (train_classes is None) != (test_classes is None):  # numbers are their own names, where the names are numbers
        given = train_classes if test_classes is None else test_classes
        if given is not None and all(name.isdigit() for name in given):
            most = int(max(train_labels.max(initial=0), test_labels.max(initial=0))) + 1
            train_classes, test_classes = (
                [str(number) for number in range(most)] if classes is None else classes
                for classes in (train_classes, test_classes)
            )
    if train_classes is not None and test_classes is not None:
        numbers = {name: number for number, name in enumerate(train_classes)}
        mapping = {int(old): numbers.get(test_classes[int(old)], -1) for old in np.unique(test_labels)}
        names = {old: test_classes[old] for old in mapping}
    else:
        mapping = {int(old): int(old) for old in np.unique(test_labels)}
        names = {old: str(old) for old in mapping}
    unknown = [names[old] for old, new in mapping.items() if new not in known]
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise UserError(
            f"the {what} set has classes without a training image: {shown}. Give training images of these classes, "
            f"or leave them out of the {what} set"
        )
    return np.array([mapping[int(label)] for label in test_labels], dtype=np.int64)


def check_cover(train: Source, part: Source, option: str) -> None:
    """Raise a UserError if `part`, a split of the data that `train` is of, has no image of one of its classes.

    Args:
        train: what classes there are; with labels of another kind than one a class, nothing is checked here.
        part: where each of them has to occur.
        option: the way out to name: how the user can give other images.
    """
    if train.labels is None or part.labels is None or train.labels.ndim != 1 or part.labels.ndim != 1:
        return
    named = bool(train.classes and part.classes)

    def classes(source: Source) -> set[str]:
        labels = np.asarray(source.labels)
        result = np.unique(labels[labels >= 0]).tolist()
        return {source.classes[i] if named and source.classes else str(i) for i in result}

    if missing := sorted(classes(train) - classes(part)):
        raise UserError(
            f"{part.name} has no image of {', '.join(missing[:10])}{' ...' if len(missing) > 10 else ''}, of which "
            f"{train.name} has: add images, leave the class out of both, or give {option}"
        )


def check_labels(
    train: Source, test: Source | None, seed: int = 0, held_out: float = 0.2, validation: Source | None = None
) -> None:
    """Find what is wrong with the labels before minutes go into features (a UserError)."""
    y = single_labels(train.labels, train.name)
    if test is None:
        groups = group_numbers(train)
        together = None if groups is None else groups[y >= 0]
        lone = groups is None
        stratified_split(y[y >= 0], held_out, seed, groups=together, lone=lone, classes=train.classes)
    else:
        y_test = single_labels(test.labels, test.name, least=1)
        match_classes(y[y >= 0], train.classes, y_test[y_test >= 0], test.classes)
    if validation is not None:
        y_val = single_labels(validation.labels, validation.name, least=1)
        match_classes(y[y >= 0], train.classes, y_val[y_val >= 0], validation.classes, "validation")
        check_cover(train, validation, "--validation")


def check_test_labels(train: Source, test: Source) -> NDArray[np.int64]:
    """The labels of `test`, [M] (below 0: unlabelled) or [M, K] of 0 and 1, in the numbering of `train`.

    Raises:
        UserError: no labels, one kind of labels here and another there, test classes that training does not know, or a
            class without a positive image where an image can have many labels.
    """
    if train.labels is None or test.labels is None or (train.labels.ndim == test.labels.ndim == 1):
        y = single_labels(train.labels, train.name)
        y_test = single_labels(test.labels, test.name, least=1)
        known = y_test >= 0
        y_test[known] = match_classes(y[y >= 0], train.classes, y_test[known], test.classes)
        return y_test
    if train.labels.shape[1:] != test.labels.shape[1:]:
        raise UserError(
            f"the labels of {train.name} have the shape {train.labels.shape} and those of {test.name} "
            f"{test.labels.shape}: both need one column a class, or one class an image"
        )
    if train.classes and test.classes and list(train.classes) != list(test.classes):
        raise UserError(f"{train.name} and {test.name} name their classes differently; give them in one order")
    for source in (train, test):
        check_positives(np.asarray(source.labels), source.name, source.classes)
    return np.asarray(test.labels)


def check_positives(labels: Labels, where: str, classes: Sequence[str] | None = None) -> None:
    """Raise a UserError if a class of [N, K] labels has no positive image in this part."""
    empty = [classes[k] if classes else str(k) for k in np.flatnonzero(labels.sum(axis=0) == 0).tolist()]
    if empty:
        raise UserError(
            f"{where} has no image of {', '.join(empty[:10])}{' ...' if len(empty) > 10 else ''}: average precision "
            "needs one of each class in each part; give more images, or leave these columns out"
        )


def without_label(counts: Mapping[str, int], example: str = "image") -> str:
    """How many examples of each part (by its name) were left out for want of a label, in words; empty without any."""
    some = " and ".join(f"{count:,} {part}".strip() for part, count in counts.items() if count)
    plural = "" if sum(counts.values()) == 1 else "s"
    return f"{some} {example}{plural} without a label left out" if some else ""


def labels_fingerprint(source: Source) -> str:
    """A hash that changes with the images of `source`, their labels, or the names of the classes."""
    digest = hashlib.sha256(f"{source.fingerprint()} {json.dumps(source.classes)}".encode())
    if source.labels is not None:
        digest.update(np.ascontiguousarray(source.labels).tobytes())
    return digest.hexdigest()
