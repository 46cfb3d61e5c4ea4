"""Label subsets as the few-label protocols ask for them: a share, a number, so many of each class, or a published list.

SimCLR's are 1 % and 10 % of ImageNet as balanced as can be, the smaller inside the larger (arXiv 2002.05709, appendix
B.5; imagenet_subsets/*.txt of google-research/simclr, one "n01440764_10026.JPEG" a line).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray

from twofold.data import Source
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.files import at_home
from twofold.randomness import permutation
from twofold.reading import read_text, usable
from twofold.text import counted

_LARGEST = 2**30
"""Bytes of a list that is read."""
_FORM = re.compile(
    r"(?P<share>[0-9]{1,15}(?:\.[0-9]{1,15})?) ?%|(?P<each>[0-9]{1,15}) ?/ ?class|(?P<total>[0-9]{1,15})"
)
_NUMBER = re.compile("[0-9]+")
_FORMS = "all, a share (10%), a number in all (40), so many of each class (4/class), or the path of a list"


def label_positions(source: Source, wanted: str | int = "all", seed: int = 0, draw: int = 0) -> NDArray[np.int64]:
    """Positions of the images of `source` that get a label, ascending.

    Args:
        source: labelled images; those with a label below 0 are unlabelled and never taken.
        wanted: "all"; "10%" (the whole number below that share of the labelled images); "40" or 40 in all; "4/class";
            or a file with one name (with or without folders) or position a line. All but the list are balanced over
            the classes and nested: for one seed and draw the smaller set lies in the larger.
        seed, draw: the address of the random choice, the same on every machine; a list has none.

    Raises:
        UserError: no labels, several labels an image (but for lists), a class that would get no label, fewer images
            than asked for, a list that does not fit the images.
    """
    text = str(wanted).strip()
    labels = source.labels
    if labels is None:
        raise UserError(f"{source.name} has no labels to choose from: put the images of each class in its own folder")
    known = np.arange(len(labels)) if labels.ndim == 2 else np.flatnonzero(labels >= 0)
    if text == "all":
        return known
    form = _FORM.fullmatch(text)
    if form is None:
        return _listed(source, _path(text))
    if labels.ndim == 2:
        raise UserError(
            f"--labels {text}: {source.name} has several labels an image, so that no subset is balanced over classes; "
            "use all, or the path of a list"
        )
    if form["share"] and not 0 < float(form["share"]) <= 100:
        raise UserError(f"--labels {text}: a share lies above 0 % and is at most 100 %")
    try:
        if form["each"] is not None:
            return balanced_subset(labels, per_class=int(form["each"]), seed=seed, draw=draw)
        total = int(form["total"]) if form["total"] else int(float(form["share"]) * len(known) / 100 + 1e-9)
        return balanced_subset(labels, total=total, seed=seed, draw=draw)
    except UserError as error:
        raise UserError(f"--labels {text}: {error}") from error


def is_list(wanted: str | int) -> bool:
    """Whether this choice of labels is a list of images, which is no random choice."""
    return str(wanted).strip() != "all" and _FORM.fullmatch(str(wanted).strip()) is None


def check_draw(labels: str, draw: int) -> None:
    """Raise a UserError where `draw` is given and there is nothing to draw."""
    if draw and (labels == "all" or is_list(labels)):
        raise UserError(
            f"--draw {draw} has no effect with --labels {labels}, which leaves nothing to chance: leave it out, or "
            "choose some of the labels (10%, 40, 4/class)"
        )


def labelled_part(source: Source, wanted: str | int = "all", seed: int = 0, draw: int = 0) -> tuple[Source, str]:
    """The images that get a label, as a source, and the choice in words; see `label_positions`."""
    selection = label_positions(source, wanted, seed, draw)
    if len(selection) == len(source):
        return source, f"all {counted(len(source), 'label')}"
    how = "" if str(wanted) == "all" else f" ({wanted}{'' if is_list(wanted) else f'; seed {seed}, draw {draw}'})"
    return subset(source, selection), f"{len(selection):,} of {counted(len(source), 'label')}{how}"


def _path(text: str) -> Path:
    problem = usable(text)
    if problem is not None:
        raise UserError(f"--labels {text[:100]} {problem}; give {_FORMS}")
    path = at_home(text)
    if not path.is_file():
        raise UserError(f"--labels {text}: there is no such file; give {_FORMS}")
    return path


def _listed(source: Source, path: Path) -> NDArray[np.int64]:
    """The images that a file lists, by name or by position."""
    try:
        lines = [line.strip() for line in read_text(path, _LARGEST).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels {path} cannot be read: {error}") from error
    if not lines:
        raise UserError(f"--labels {path}: the list is empty")
    places = _by_number(source, lines) if all(_NUMBER.fullmatch(line) for line in lines) else _by_name(source, lines)
    unknown = [line for line, place in zip(lines, places, strict=True) if place < 0]
    if unknown:
        raise UserError(f"--labels {path}: {len(unknown)} of {len(lines)} lines name no image of {source.name}: "
                        f"{', '.join(unknown[:5])}; a line is a file's name, or a position from 0")  # fmt: skip
    selection, counts = np.unique(places, return_counts=True)
    if counts.max() > 1:
        twice = lines[places.index(int(selection[counts.argmax()]))]
        raise UserError(f"--labels {path} names {twice} more than once")
    labels = cast(NDArray[np.int64], source.labels)
    if labels.ndim == 1:
        _check_cover(source, labels, selection, path)
    return selection


def _by_number(source: Source, lines: list[str]) -> list[int]:
    numbers = [int(line) if len(line) < 19 else -1 for line in lines]
    return [number if number < len(source) else -1 for number in numbers]


def _by_name(source: Source, lines: list[str]) -> list[int]:
    """The place of each name, -1 where there is none; names without folders will do where they are unique."""
    path = getattr(source, "path", None)
    if path is None:
        raise UserError(f"{source.name} is not made of files: its list must hold positions from 0, one a line")
    wanted = {PurePosixPath(line).name for line in lines}
    result: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for place in range(len(source)):
        parts = Path(path(place)).parts
        if parts[-1] in wanted:
            result.setdefault(parts[-1], []).append((parts, place))
    places = []
    for line in lines:
        tail = PurePosixPath(line).parts
        known = result.get(tail[-1], []) if tail else []  # ("." names nothing)
        fits = [place for parts, place in known if parts[-len(tail) :] == tail]
        if len(fits) > 1:
            raise UserError(
                f"{source.name} has {counted(len(fits), 'image')} called {line}: list them with their folders"
            )
        places.append(fits[0] if fits else -1)
    return places


def _check_cover(source: Source, labels: NDArray[np.int64], chosen: NDArray[np.int64], path: Path) -> None:
    """Every class of the source has an image in the list, and every image of the list has a label."""
    if (labels[chosen] < 0).any():
        raise UserError(
            f"--labels {path} lists {counted((labels[chosen] < 0).sum(), 'image')} of {source.name} without a label"
        )
    missing = np.setdiff1d(labels[labels >= 0], labels[chosen])
    if len(missing):
        names = [source.classes[i] if source.classes else str(i) for i in missing[:10]]
        raise UserError(
            f"--labels {path} holds no image of {len(missing)} class(es) of {source.name}: {', '.join(names)}"
            f"{' ...' if len(missing) > 10 else ''}; add some, or leave these classes out of the data"
        )


def balanced_subset(
    labels: NDArray[np.int64], per_class: int | None = None, total: int | None = None, seed: int = 0, draw: int = 0
) -> NDArray[np.int64]:
    """Positions of the images that get a label: equally many of each class, nested in size, the same everywhere.

    Each class is put in a random order that depends on (seed, draw, class) alone, and images are taken in rounds, one
    of each class a round; so the subset for 50 labels lies within the one for 500.

    Args:
        labels: [N] classes; images with a label below 0 are unlabelled and never taken.
        per_class: images of each class; or
        total: images in all. Where it is not a multiple of the classes, or classes run out, the counts differ as little
            as they can.
        seed, draw: the address of the random choice; a draw is one repetition.

    Returns:
        Positions in ascending order.

    Raises:
        UserError: a class has fewer than `per_class` images; `total` is less than one a class or more than there are.
    """
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    if (per_class is None) == (total is None):
        raise UserError("give either the number of labels a class or the total")
    if per_class is not None:
        short = [f"{label} ({count})" for label, count in zip(classes, counts, strict=True) if count < per_class]
        if short or per_class < 1:
            raise UserError(
                f"{counted(per_class, 'label')} a class were asked for; "
                + (f"classes with fewer images: {', '.join(short[:10])}" if short else "give at least 1")
            )
        total = per_class * len(classes)
    assert total is not None
    if not len(classes) <= total <= counts.sum():
        raise UserError(
            f"{counted(total, 'label')} were asked for; give at least one for each of the "
            f"{counted(len(classes), 'class')} and at most the {counted(counts.sum(), 'labelled image')}"
        )
    turn = permutation(seed, "label subset/classes", draw, len(classes))  # whose turn comes first in each round
    members, rounds, turns = [], [], []
    for label, position in zip(classes, turn, strict=True):
        own = np.flatnonzero(labels == label)
        members.append(own[permutation(seed, f"label subset/{label}", draw, len(own))])
        rounds.append(np.arange(len(own)))
        turns.append(np.full(len(own), position))
    order = np.lexsort((np.concatenate(turns), np.concatenate(rounds)))
    return np.sort(np.concatenate(members)[order[:total]])
