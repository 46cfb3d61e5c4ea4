"""`twofold finetune`: what a pretrained encoder is worth when a few labels may train it, too."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import LABELLED, PATH, add_data, add_out, add_report, new_parser, require_out
from twofold.commands.pages import page_or_word
from twofold.console import duration
from twofold.data.base import skipped_of
from twofold.distributed import started_first, world_size
from twofold.encoders import read_header
from twofold.encoders.load import encoder_path, kind_of
from twofold.errors import Stopped
from twofold.evaluation.features import Pixels
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.evaluation.scores import Scores
from twofold.files import check_out
from twofold.kinds import EXAMPLE, Kind
from twofold.options import OptionsParser, add_options, merge
from twofold.recipe import read_layers
from twofold.report.outcome import write_outcome_report
from twofold.results import in_json, measured, unread
from twofold.runs.config import FinetuneConfig
from twofold.runs.finetune import FinetuneResult
from twofold.runs.finetune import finetune as fit
from twofold.text import counted
from twofold.training.rundir import RunDirectory


@dataclass(frozen=True)
class FinetuneReport:
    """A fine-tuning run.

    Attributes:
        path: the run's folder.
        result: what it reached.
        page: `report.html`, if it was written.
        kind: of the examples.
        skipped: what could not be read: path and reason.
    """

    path: Path
    result: FinetuneResult
    page: Path | None = None
    kind: Kind = "image"
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The scores on the test data: `top1`, `mean_per_class`, ...; `map11` where an image can have many labels."""
        return measured(self.result.scores)

    @property
    def published(self) -> tuple[str, ...]:
        """Lines that set what is published for the recipe beside the result."""
        return self.result.published

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        more: dict[str, Any] = {"path": str(self.path), "metrics": self.metrics}
        more |= {"skipped": in_json(self.skipped)}
        return {**more, **in_json(self.result)}

    def text(self) -> str:
        """For people."""
        result, scores = self.result, self.result.scores
        if isinstance(scores, Scores):
            first = scores.words()
        else:
            first = f"mean average precision (11 points) {result.metric:.2%}"
        count = scores.count if scores is not None else 0
        return "\n".join([
            f"{first}  ({counted(result.labels, 'label')}, {counted(count, f'test {EXAMPLE[self.kind]}')})",
            *(scores.recalls() if isinstance(scores, Scores) else []),
            *self.published,
            f"protocol: {result.text}",
            *unread(self.skipped),
            f"{counted(result.steps, 'step')} in {duration(result.seconds)}; encoder, head and classifier: "
            f"{self.path / 'encoder.safetensors'}; numbers: {self.path / 'result.json'}",
            *([f"report: {self.page}"] if self.page else []),
        ])  # fmt: skip


def finetune(
    run: str | Path,
    data: Any,
    /,
    out: str | Path,
    *,
    test: Any = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    report: bool = True,
    encoder: nn.Module | None = None,
    **options: Any,
) -> FinetuneReport:
    """Train a classifier on a pretrained encoder, and the encoder with it, on as many labels as `labels` says.

    Args:
        run: a run's folder, or an `encoder.safetensors`. It stays as it is.
        data: labelled images: whatever `twofold.pretrain` takes.
        out: the new run's folder; must be new or empty unless `resume`.
        test: data for the score; without it the data's own test split, or else a fifth of each class, held out.
        recipe: name of a recipe for `finetune` (`twofold recipes` lists them).
        config: a YAML file of options.
        resume: continue the run in `out`, or start it if there is none yet. Of one that is done the result is read;
            with other test data, its net is scored on those.
        encoder: your own module, if the run was trained with one.
        report: write `report.html` at the end.
        options: fields of `FinetuneConfig`, nested or dotted; they win over `config`, which wins over `recipe`.

    Returns:
        The scores, with the new run's folder: configuration, metrics, checkpoints, `encoder.safetensors` (with head
        and classifier), `result.json`.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data.
        Stopped: if SIGINT or SIGTERM ended it early; `resume=True` continues it.
    """
    path = encoder_path(run)
    check_out(Path(out), RunDirectory(out).config_file.exists(), "run", resume)
    given = read_layers(recipe, config, options, command="finetune")
    header = read_header(path)
    checked = OptionsParser(FinetuneConfig).build(merge(Pixels.of(header).options(), given))
    channels = header["spec"].get("channels")
    reading = dataclasses.replace(checked.data, channels=checked.data.channels or channels)
    train, scored = labelled_parts(*evaluation_parts(data, test, reading), seed=checked.seed, labels=checked.labels)
    result = fit(path, train, scored, out, given, module=encoder, recipe=recipe)
    if world_size() > 1:
        AcceleratorState().destroy_process_group()
    if not result.complete:
        raise Stopped.at(f"at step {result.steps:,}", result.stopped_by or signal.SIGINT)
    page = page_or_word(lambda: write_outcome_report(RunDirectory(out))) if report and started_first() else None
    return FinetuneReport(Path(out), result, page, kind_of(header["spec"]), skipped_of(train, scored))


def parser() -> ArgumentParser:
    """Of `twofold finetune`."""
    parser = new_parser("Train a classifier on a pretrained encoder, and the encoder with it, on a few labels.")
    parser.add_argument("run", help="a pretrained run's folder, or an encoder.safetensors")
    add_data(parser, LABELLED)
    add_out(parser, "run")
    parser.add_argument("--test", type=str, help="data for the score; by default the data's own test split")
    parser.add_argument("--recipe", type=str, help="start from a recipe; `twofold recipes` lists them")
    parser.add_argument("--config", type=str, help="a YAML file of options, over the recipe's")
    add_report(parser)
    add_options(parser, FinetuneConfig)
    return parser


def run(options: dict[str, Any]) -> FinetuneReport:
    """`twofold finetune`."""
    require_out(options, "a folder for the new run", "runs/finetuned")
    return finetune(options.pop("run"), options.pop(PATH), options.pop("out"), **options)
