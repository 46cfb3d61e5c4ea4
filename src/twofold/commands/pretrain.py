"""`twofold pretrain`: from a folder of images, or any other source, to an encoder."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, add_out, add_report, new_parser, require_out
from twofold.commands.pages import page_or_word
from twofold.console import console, duration
from twofold.data import open_source
from twofold.devices import choose_device
from twofold.errors import Stopped, UserError
from twofold.kinds import EXAMPLE, Kind
from twofold.options import add_options
from twofold.recipe import read_layers
from twofold.report.run import run_pictures, write_run_report
from twofold.runs import pretrain as runs
from twofold.runs import tracking
from twofold.runs.config import RunConfig, build, to_yaml
from twofold.runs.defaults import choose
from twofold.runs.from_weights import from_start
from twofold.text import counted
from twofold.training.clock import describe_time
from twofold.training.rundir import RunDirectory


@dataclass(frozen=True)
class PretrainResult(RunDirectory):
    """A pretrained run: its folder, with all that `RunDirectory` reads from it, and what it took.

    Attributes:
        path: the run's folder.
        steps: taken in all.
        examples: seen in all, each as often as it was.
        kind: of examples, "image" or "audio".
        seconds: of training, over all resumes.
        clock: what this call's time went into, seconds by part; all 0 where the run was done already.
        page: `report.html`, if it was written.
    """

    path: Path
    steps: int
    examples: int
    kind: Kind
    seconds: float
    clock: Mapping[str, float]
    page: Path | None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The last row of `metrics.jsonl`: loss, monitors and what the method tells, by name."""
        rows = self.rows()
        return {name: value for name, value in rows[-1].items() if name not in _COUNTED} if rows else {}

    def text(self) -> str:
        """For people."""
        seen = f"{counted(self.examples, EXAMPLE[self.kind])} in {duration(self.seconds)}; encoder: {self.encoder_file}"
        time = [describe_time(self.clock)] if any(self.clock.values()) else []
        return "\n".join([seen, *time, *([f"report: {self.page}"] if self.page else [])])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "path": str(self.path), "steps": self.steps, "examples": self.examples, "kind": self.kind,
            "seconds": self.seconds, "page": None if self.page is None else str(self.page), "metrics": self.metrics,
        }  # fmt: skip


_ABOUT_THE_RUN = ("resume", "extend", "out", "report", PATH)
"""What is no option of the configuration."""
_COUNTED = ("step", "epoch", "seconds")
"""What a row of metrics.jsonl says of its place; all else in it was measured."""


def pretrain(
    data: Any,
    /,
    out: str | Path,
    *,
    recipe: str | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    extend: float | None = None,
    minutes: float | None = None,
    start_from: str | Path | None = None,
    encoder: nn.Module | Mapping[str, Any] | None = None,
    report: bool = True,
    **options: Any,
) -> PretrainResult:
    """Pretrain an encoder on unlabelled data.

    Args:
        data: a folder, an .npz or .npy file, the name of a torchvision data set, an array of images, a pair of images
            and labels, or a torch data set. Labels are watched where there are any and never trained on.
        out: the run's folder; must be new or empty unless `resume`.
        recipe: name of a recipe (`twofold recipes` lists them).
        config: a YAML file of options.
        resume: continue the run in `out`; starts it if there is none yet.
        extend: train the finished run in `out` for so many epochs more, from its last checkpoint with the optimiser's
            state. A cosine begins anew over these epochs: it warms up over a tenth of them, at most as long as the run
            did, and falls to 0; other schedules go on. An extension that was stopped is continued with `resume`.
        minutes: train for about so many minutes: the epochs are chosen by a short trial of the run on this machine, in
            place of those of a recipe or file, and stand in the run's `config.yaml`. A run that is resumed keeps its
            epochs, wherever it goes on. The report at the end is not counted.
        start_from: weights that the encoder begins with: a run's folder, an `encoder.safetensors`, or a file with the
            tensors of a backbone (`start_prefix` says which they are, where that is not found). The encoder's options
            and its reading of pixels come with them.
        encoder: options of a named encoder (``{"name": "resnet18"}``), or your own module, which takes
            [n, C, S, S] in [0, 1] and returns [n, d].
        report: write `report.html` at the end.
        options: fields of `RunConfig`, nested (``optim={"lr": 1e-3}``) or dotted (``**{"optim.lr": 1e-3}``).
            They win over `config`, which wins over `recipe`.

    Returns:
        What came of it, with the run's folder: configuration, metrics, checkpoints, `encoder.safetensors`,
        `report.html`.

    Raises:
        UserError: for anything wrong in the options or the data.
        Stopped: if SIGINT, SIGTERM or SIGUSR1 ended it early; `resume=True` continues it.
    """
    module = encoder if isinstance(encoder, nn.Module) else None
    if encoder is not None:
        options["encoder"] = {"name": "custom"} if isinstance(encoder, nn.Module) else encoder
    if start_from is not None:
        options["start_from"] = str(start_from)
    if minutes is not None and options.get("epochs") is not None:
        raise UserError(
            f"--minutes {minutes:g} chooses the epochs, and --epochs {options['epochs']} says them: give one"
        )
    given = read_layers(recipe, config, options)
    if minutes is not None:
        given.pop("epochs", None)
    done = runs.pretrain(data, out, given, recipe=recipe, resume=resume, extend=extend, minutes=minutes, module=module)
    return _leave(done, report, module)


def describe_config(
    data: Any, /, *, recipe: str | None = None, config: str | Path | None = None, **options: Any
) -> str:
    """Every option of `pretrain` as it would be used on `data`, as YAML that `config` reads back."""
    resolved = build(from_start(read_layers(recipe, config, options))[1])
    source = open_source(data, resolved.data, split=resolved.data.split)
    return to_yaml(choose(resolved, source.facts(), choose_device(resolved.training.device))[0])


def _leave(done: runs.PretrainOutcome, report: bool, module: nn.Module | None) -> PretrainResult:
    """Say what was skipped, write the report, and give the result; raises `Stopped` where steps are left."""
    if done.first:
        for path, reason in list(done.source.skipped)[:10]:
            console.print(f"skipped {path}: {reason}")
        if done.source.skipped:
            console.print(
                f"{len(done.source.skipped)} file(s) skipped in all; listed in {done.run.path / 'skipped.tsv'}"
            )
    if not done.complete:
        tracking.finish(done.trackers, done.step)
        raise Stopped.at(f"at step {done.step:,} of {done.steps:,}", done.stopped_by or signal.SIGINT)
    page = None
    if done.first and report:
        page = page_or_word(lambda: write_run_report(done.run, done.source, module=module))
    if done.first:
        tracking.finish(done.trackers, done.step, lambda: run_pictures(done.run, done.source, module))
    return PretrainResult(done.run.path, done.step, done.seen, done.kind, round(done.seconds, 3), dict(done.time), page)


def parser() -> ArgumentParser:
    """Of `twofold pretrain`."""
    parser = new_parser("Learn a representation from unlabelled images or speech.")
    add_data(parser, EITHER)
    add_out(parser, "run")
    parser.add_argument(
        "--extend", type=float, help="train the finished run in --out for so many epochs more; a cosine begins anew"
    )
    parser.add_argument(
        "--minutes", type=float, help="train for about so many minutes here: epochs are chosen by a short trial"
    )
    parser.add_argument("--recipe", type=str, help="start from a recipe; `twofold recipes` lists them")
    parser.add_argument(
        "--config", type=str, help="a YAML file of options, over the recipe's; a run's config.yaml will do"
    )
    parser.add_argument("--print-config", action="store_true", help="print every option as it would be used, and end")
    add_report(parser)
    add_options(parser, RunConfig)
    return parser


def run(options: dict[str, Any]) -> PretrainResult | None:
    """`twofold pretrain`."""
    if options.pop("print_config", False):
        if options.pop("minutes", None) is not None:
            raise UserError("--minutes needs a trial of the run, and --print-config makes none: leave one out")
        given = {name: value for name, value in options.items() if name not in _ABOUT_THE_RUN}
        print(describe_config(options[PATH], **given), end="")
        return None
    require_out(options, "a folder for the run", "runs/first")
    return pretrain(options.pop(PATH), options.pop("out"), **options)
