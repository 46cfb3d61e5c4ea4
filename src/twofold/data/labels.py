"""Labels of any form as class numbers: whole numbers, names, or one column of 0 and 1 a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.errors import UserError
from twofold.text import counted

Labels = NDArray[np.int64]
UNLABELLED = -1
"""The number of an example whose label is not known."""


def class_labels(
    values: Any, count: int, name: str, classes: Sequence[str] | None = None
) -> tuple[Labels, list[str] | None]:
    """Labels as numbers from 0, and the classes' names where there are any.

    Args:
        values: an array, tensor or list of `count` labels: class numbers, -1 (or not a number, None, an empty name) for
            an unlabelled example; names; or [count, K] of 0 and 1 where an example can have many. [count, 1] is
            [count].
        count: examples.
        name: of the data, for messages.
        classes: names of the classes by number, if the data bring them.

    Returns:
        int64 [count] or [count, K], and names. Numbers of which more than half would stand for no class (7, 1234,
        300000) become 0, 1, 2, ..., and are the names.

    Raises:
        UserError: wrong shape, fractions, negative numbers, a number or name that `classes` lacks.
    """
    array = _as_array(values, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or len(array) != count:
        raise UserError(
            f"{name}: labels must be [{count}] or [{count}, K] as there are {counted(count, 'image')}, got "
            f"{array.shape}"
        )
    if array.dtype.kind in "UO":
        return _from_names(array, name, classes)
    numbers = _whole(array, name)
    if array.ndim == 2:
        if numbers.size and (numbers.min() < 0 or numbers.max() > 1):
            raise UserError(
                f"{name}: labels must be 0 and 1 with one column a class; got {numbers.min()} to {numbers.max()}"
            )
        return numbers.astype(np.int64), None if classes is None else list(classes)
    if numbers.size and numbers.min() < UNLABELLED:
        raise UserError(
            f"{name}: labels must be class indices from 0, -1 for unlabelled, or 0 and 1 with one column a class; got "
            f"{numbers.min()} to {numbers.max()}"
        )
    return _numbered(numbers, name, classes)


def is_label(value: Any) -> bool:
    """Whether one example's value can be a label: a whole number, a name, None or nan, or a row of 0 and 1."""
    if value is None or isinstance(value, str | int):
        return True
    if not isinstance(value, float | np.ndarray | np.generic | torch.Tensor):
        return False
    array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    if array.ndim == 0 and array.dtype.kind == "f":  # beside missing ones whole numbers come as floats
        return bool(np.isnan(array) or array == np.rint(array))
    return array.ndim <= 1 and (array.dtype.kind in "iubU" or (array.ndim == 1 and array.dtype.kind == "f"))


def _as_array(values: Any, name: str) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        return values.astype(object) if values.dtype.kind == "U" else values
    rows = [value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value for value in values]
    if any(value is None or isinstance(value, str) for value in rows):
        array = np.empty(len(rows), dtype=object)
        array[:] = rows
        return array
    if rows and all(type(value) is int for value in rows):
        return _integers(rows, name)
    try:
        return np.asarray(rows)
    except (ValueError, TypeError, OverflowError) as error:  # rows of several lengths, and other things in things
        raise UserError(f"{name}: labels must be numbers, names, or rows of 0 and 1 of one length: {error}") from error


def _integers(numbers: Sequence[Any], name: str) -> NDArray[Any]:
    """Whole numbers as an array that holds each of them exactly; numpy makes floats of those that need 64 bits."""
    if min(numbers) >= -(2**63) and max(numbers) < 2**63:
        return np.array(numbers, dtype=np.int64)
    if min(numbers) >= 0 and max(numbers) < 2**64:
        return np.array(numbers, dtype=np.uint64)
    largest = max(numbers, key=abs)
    raise UserError(f"{name}: the label {largest} is no class's number: number the classes from 0, or name them")


def _whole(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Whole numbers of a type that can hold them; of floats, what is not a number is unlabelled."""
    if array.dtype.kind == "f":
        known = np.isfinite(array) if array.ndim == 1 else np.ones(array.shape, dtype=bool)
        whole = np.where(known, array, UNLABELLED)
        if np.isfinite(whole).all() and (whole == np.rint(whole)).all() and np.abs(whole).max(initial=0) < 2**53:
            return whole.astype(np.int64)
    elif array.dtype.kind in "iub":
        return array
    raise UserError(f"{name}: labels must be whole numbers or names, got {array.dtype}; number the classes from 0")


def _numbered(numbers: NDArray[Any], name: str, classes: Sequence[str] | None) -> tuple[Labels, list[str] | None]:
    """Numbers as they are where they are those of classes, else in the order of the different ones."""
    different = np.unique(numbers[numbers >= 0])  # before any conversion: uint64 goes beyond int64
    if classes is not None:
        if len(different) and int(different[-1]) >= len(classes):
            raise UserError(
                f"{name} has the label {different[-1]}, and names for {counted(len(classes), 'class')}, 0 to "
                f"{len(classes) - 1}: name every class, or number them as they are named"
            )
        return numbers.astype(np.int64), list(classes)
    if not len(different) or int(different[-1]) + 1 <= 2 * len(different):
        return numbers.astype(np.int64), None
    places = np.searchsorted(different, numbers)
    known = numbers >= 0
    return np.where(known, places, UNLABELLED).astype(np.int64), [str(number) for number in different]


def _from_names(array: NDArray[Any], name: str, classes: Sequence[str] | None) -> tuple[Labels, list[str] | None]:
    """Names, or names and numbers mixed, in the order of the names; None and "" are unlabelled."""
    if array.ndim != 1:
        raise UserError(f"{name}: labels of several columns must be 0 and 1, got names")
    texts = ["" if value is None or value != value else str(value) for value in array.tolist()]  # (nan is not itself)
    known = [value for value in array.tolist() if value is not None and value == value]
    if known and all(isinstance(value, int) or (isinstance(value, float) and value.is_integer()) for value in known):
        numbers = [UNLABELLED if value is None or value != value else int(value) for value in array.tolist()]
        return class_labels(_integers(numbers, name), len(numbers), name, classes)
    names = sorted(set(texts) - {""}) if classes is None else list(classes)
    number = {text: place for place, text in enumerate(names)} | {"": UNLABELLED}
    unknown = sorted(set(texts) - number.keys())
    if unknown:
        raise UserError(f"{name} has the label {unknown[0]!r}, which is none of its classes: {', '.join(names[:10])}")
    return np.array([number[text] for text in texts], dtype=np.int64), names
