"""`twofold labels`: how many labels do I need? Accuracy against their number, for three ways to use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import LABELLED, PATH, add_data, add_resume, new_parser
from twofold.encoders import read_header
from twofold.encoders.load import encoder_path
from twofold.evaluation.features import Pixels
from twofold.evaluation.few_labels import LabelEfficiency
from twofold.options import OptionsParser, add_options, merge
from twofold.studies.base import StudyResult
from twofold.studies.labels import LabelsConfig, LabelsStudy


def labels(
    run: str | Path,
    data: Any,
    /,
    *,
    test: Any = None,
    encoder: nn.Module | None = None,
    resume: bool = False,
    **options: Any,
) -> StudyResult[LabelEfficiency]:
    """Measure what few labels buy with a pretrained encoder, and without it.

    Args:
        run: a run's folder.
        data: labelled images: whatever `twofold.pretrain` takes.
        test: data for the score; without it the data's own test split, or else a fifth of each class, held out.
        encoder: your own module, if the run was trained with one.
        resume: go on with what is in the folder `out`, or start it if there is nothing yet: each training is a run in
            it, and none is done twice.
        options: fields of `LabelsConfig`, nested or dotted.

    Returns:
        The accuracies and what they say; `labels.json` and `labels.html` in the folder `out` hold them.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data; results of another encoder or other data
            in `out`.
        Stopped: if SIGINT or SIGTERM ended it early; `resume=True` goes on.
    """
    file = encoder_path(run)
    config = OptionsParser(LabelsConfig).build(merge(Pixels.of(read_header(file)).options(), options))
    return LabelsStudy(file, data, test, config, merge(options), encoder, resume).perform()


def parser() -> ArgumentParser:
    """Of `twofold labels`."""
    parser = new_parser("How many labels do I need? Accuracy against their number: linear, fine-tuned, from scratch.")
    parser.add_argument("run", help="a pretrained run's folder")
    add_data(parser, LABELLED)
    parser.add_argument("--test", type=str, help="data for the score; by default the data's own test split")
    add_resume(parser, "study")
    add_options(parser, LabelsConfig)
    return parser


def run(options: dict[str, Any]) -> StudyResult[LabelEfficiency]:
    """`twofold labels`."""
    return labels(options.pop("run"), options.pop(PATH), **options)
