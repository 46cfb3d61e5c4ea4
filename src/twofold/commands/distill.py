"""`twofold distill`: a student learns from a teacher, with no labels of its own unless they are given."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, add_out, add_report, new_parser, require_out
from twofold.commands.pages import page_or_word
from twofold.data import Source, open_source, splits_of
from twofold.data.base import skipped_of
from twofold.distributed import started_first
from twofold.encoders import read_header
from twofold.encoders.load import encoder_path
from twofold.errors import Stopped
from twofold.evaluation.features import Pixels
from twofold.evaluation.grouped import warn_of_shared_groups
from twofold.evaluation.parts import part_of
from twofold.files import check_out
from twofold.kinds import EXAMPLE
from twofold.options import OptionsParser, add_options, merge
from twofold.recipe import read_layers
from twofold.report.outcome import write_outcome_report
from twofold.results import in_json, measured, unread
from twofold.runs import distill as distillation
from twofold.runs.config import DistillConfig
from twofold.runs.distill import DistillResult
from twofold.training.rundir import RunDirectory


@dataclass(frozen=True)
class DistillReport:
    """A distillation.

    Attributes:
        path: the run's folder, with the student in `encoder.safetensors`.
        result: what came of it: teacher and student compared, in words and numbers.
        page: `report.html`, if it was written.
        skipped: what could not be read: path and reason.
    """

    path: Path
    result: DistillResult
    page: Path | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """`agreement`; with labels `teacher_top1`, `student_top1` and `kept`, the second over the first."""
        return measured(self.result.comparison)

    @property
    def published(self) -> tuple[str, ...]:
        """Lines that set what is published for the recipe beside the result."""
        return self.result.published

    def text(self) -> str:
        """For people."""
        page = [f"report: {self.page}"] if self.page else []
        return "\n".join([self.result.summary(), *self.published, *unread(self.skipped), *page])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        more: dict[str, Any] = {"path": str(self.path), "metrics": self.metrics}
        more |= {"skipped": in_json(self.skipped)}
        return {**more, **in_json(self.result)}


def distill(
    teacher: str | Path | nn.Module,
    data: Any,
    /,
    out: str | Path,
    *,
    recipe: str | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    report: bool = True,
    module: nn.Module | None = None,
    encoder: nn.Module | Mapping[str, Any] | None = None,
    **options: Any,
) -> DistillReport:
    """Train a student on what a teacher says of images or recordings.

    Args:
        teacher: a run's folder or an `encoder.safetensors` with a classifier (fine-tuned, distilled, or converted);
            one without, with `teacher_labels`; or your own module, [n, C, S, S] in [0, 1] -> logits [n, K].
        data: images or recordings: whatever `twofold.pretrain` takes. Labels are not learned from without `alpha`.
        out: the run's folder; must be new or empty unless `resume`.
        recipe: name of a recipe for distillation.
        config: a YAML file of options.
        resume: continue the run in `out`, or start it if there is none yet. Of one that is done the result is read;
            with other test data, both are compared on those.
        module: your own module, if the teacher's run was trained with one.
        encoder: the student: options of a named encoder (``{"name": "resnet18"}``), or your own module, which takes
            [n, C, S, S] in [0, 1] and returns features [n, d]; built as its teacher if not given.
        report: write `report.html` at the end.
        options: fields of `DistillConfig`, nested or dotted; `test` may be data of any kind. They win over `config`,
            which wins over `recipe`.

    Returns:
        Student, teacher, their agreement; the student is in the run's `encoder.safetensors`, with its classifier.

    Raises:
        UserError: for anything wrong in the options, the teacher or the data.
        Stopped: if SIGINT or SIGTERM ended it early; `resume=True` continues it.
    """
    out = Path(out)
    check_out(out, RunDirectory(out).config_file.exists(), "run", resume)
    test_data = options.pop("test", None)
    student = encoder if isinstance(encoder, nn.Module) else None
    if encoder is not None:
        options["encoder"] = {"name": "custom"} if isinstance(encoder, nn.Module) else encoder
    given = read_layers(recipe, config, options, command="distill")
    test_data = given.pop("test", None) if test_data is None else test_data
    where = teacher if isinstance(teacher, nn.Module) else encoder_path(teacher)
    pixels = Pixels() if isinstance(where, nn.Module) else Pixels.of(read_header(where))
    tested = {"test": str(test_data)} if test_data is not None else {}
    asked = OptionsParser(DistillConfig).build(merge(pixels.options(), given, tested))
    train = open_source(data, asked.data, split=asked.data.split)
    test, labelled = _others(data, test_data, train, asked)
    if test_data is not None and test is not None:
        given["test"] = str(test_data) if isinstance(test_data, (str, os.PathLike)) else test.name
    result = distillation.distill(
        where, train, out, given, test=test, labelled=labelled, module=module, student=student, recipe=recipe
    )
    if not result.complete:
        raise Stopped.at(f"at step {result.steps:,}", result.stopped_by or signal.SIGINT)
    page = page_or_word(lambda: write_outcome_report(RunDirectory(out))) if report and started_first() else None
    return DistillReport(Path(out), result, page, skipped_of(train, test, labelled))


def _others(data: Any, test: Any, train: Source, asked: DistillConfig) -> tuple[Source | None, Source | None]:
    """The images to score on, and those with labels for the teacher; None where the training images have to do."""
    config = dataclasses.replace(asked.data, split=None, channels=asked.data.channels or train.channels)
    parts = splits_of(data).evaluation
    if test is not None:
        scored: Source | None = part_of(data, test, config)
    else:
        scored = open_source(data, config, split=parts[1]) if parts and asked.data.split != parts[1] else None
    if scored is not None:
        warn_of_shared_groups({"training": train, "test": scored}, EXAMPLE[train.facts().kind])
    if train.labels is None and parts and asked.teacher_labels is not None:
        return scored, open_source(data, config, split=parts[0])
    return scored, None


def parser() -> ArgumentParser:
    """Of `twofold distill`."""
    parser = new_parser("Train a student on what a teacher says of images or recordings.")
    parser.add_argument("teacher", help="a run's folder or an encoder.safetensors; see --teacher_labels")
    add_data(parser, EITHER)
    add_out(parser, "run")
    parser.add_argument("--recipe", type=str, help="start from a recipe for distillation")
    parser.add_argument("--config", type=str, help="a YAML file of options, over the recipe's")
    add_report(parser)
    add_options(parser, DistillConfig)
    return parser


def run(options: dict[str, Any]) -> DistillReport:
    """`twofold distill`."""
    require_out(options, "a folder for the student", "runs/student")
    return distill(options.pop("teacher"), options.pop(PATH), options.pop("out"), **options)
