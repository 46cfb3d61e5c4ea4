"""What a cell's pretrained encoder is asked beside its linear classifier: fine-tuning on few labels, and what h keeps.

Each is done in the cell's own folder, is read where it was done already, and goes on where it was stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from twofold.data import DataConfig, Source
from twofold.encoders import load_head, read_header
from twofold.encoders.load import load
from twofold.errors import Diverged, Stopped
from twofold.evaluation.features import Pixels
from twofold.evaluation.label_subsets import label_positions
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.evaluation.splits import check_test_labels
from twofold.options import OptionsParser, merge
from twofold.runs.config import FinetuneConfig
from twofold.runs.finetune import finetune
from twofold.studies.diverging import kept
from twofold.studies.kept import transformation


class After(NamedTuple):
    """One thing that is measured of a cell's encoder.

    Attributes:
        name: of what is measured.
        kind: how.
        options: of fine-tuning, or the number of images that a transformation is told from.
    """

    name: str
    kind: Literal["finetune", "transformation"]
    options: dict[str, Any]


def check(afters: Sequence[After], data: Any, test: Any, config: DataConfig) -> None:
    """Raise a UserError for what could not be measured, before anything is trained."""
    if not afters:
        return
    train, scored = labelled_parts(*evaluation_parts(data, test, config))
    check_test_labels(train, scored)
    for after in afters:
        if after.kind == "finetune":
            built = OptionsParser(FinetuneConfig).build(after.options, after.name)
            label_positions(train, built.labels, built.seed, built.draw)


def measure(
    place: Path, file: Path, afters: Sequence[After], data: Any, test: Any, shared: dict[str, Any]
) -> tuple[dict[str, float], dict[str, str]]:
    """Do what a cell is asked, or read what was done.

    Args:
        place: the cell's folder.
        file: its encoder.
        afters: what is measured.
        data, test: of the study.
        shared: options of reading the data and of the machine, the cell's.

    Returns:
        Test accuracies in [0, 1] by name; of a transformation two, "NAME, h" and "NAME, z", and "NAME, chance". And of
        what diverged, by name, why.

    Raises:
        Stopped: a signal ended it early.
    """
    if not afters:
        return {}, {}
    header = read_header(file)
    config = OptionsParser(FinetuneConfig).build(merge(Pixels.of(header).options(), {"data": shared.get("data", {})}))
    train, scored = labelled_parts(*evaluation_parts(data, test, config.data))
    found: dict[str, float] = {}
    lost: dict[str, str] = {}
    for number, after in enumerate(afters):
        if after.kind == "finetune":
            options = merge(shared, after.options)
            try:
                found[after.name] = _finetuned(file, train, scored, place / f"after{number:02}", options)
            except Diverged as error:
                lost[after.name] = str(error)
        else:
            head = load_head(file)
            assert head is not None  # the study sees to it
            views = header["extra"]["options"]["views"]
            found |= transformation(load(file), head, views, after.name, train, scored, **after.options)
    return found, lost


def _finetuned(file: Path, train: Source, test: Source, place: Path, options: dict[str, Any]) -> float:
    result = kept(place, lambda: finetune(file, train, test, place, options, quiet=True))
    if not result.complete:
        raise Stopped.at(f"in {place}", result.stopped_by or signal.SIGINT)
    return result.metric
