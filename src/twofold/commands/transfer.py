"""`twofold transfer`: what an encoder is worth on the 12 data sets of SimCLR's transfer study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import add_resume, new_parser
from twofold.encoders.load import encoder_path
from twofold.errors import called
from twofold.options import OptionsParser, add_options
from twofold.studies.base import StudyResult
from twofold.studies.transfer.linear import TransferResult
from twofold.studies.transfer.study import TransferConfig, TransferStudy


@called({f"data.{name}": name for name in ("root", "download", "max_skipped", "workers")})
def transfer(
    run: str | Path, /, *, encoder: nn.Module | None = None, resume: bool = False, **options: Any
) -> StudyResult[TransferResult]:
    """Transfer an encoder to data sets of SimCLR's study.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        encoder: your own module, if the run was trained with one.
        resume: go on with what is in the folder `out`, or start it if there is nothing yet: what is there is not
            measured again, whichever call measured it.
        options: fields of `TransferConfig`, nested or dotted.

    Returns:
        A cell for each data set and protocol asked for; they are in the folder `out`, with `table.json`, which holds
        the cells of earlier calls as well.

    Raises:
        UserError: missing or incomplete data, wrong options, results of another encoder in `out`.
        Stopped: if SIGINT or SIGTERM ended fine-tuning early; `resume=True` goes on.
    """
    config = OptionsParser(TransferConfig).build(options)
    return TransferStudy(encoder_path(run), config, encoder, resume).perform()


def parser() -> ArgumentParser:
    """Of `twofold transfer`."""
    parser = new_parser("What an encoder is worth on the 12 data sets of SimCLR's transfer study.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_resume(parser, "study")
    add_options(parser, TransferConfig)
    return parser


def run(options: dict[str, Any]) -> StudyResult[TransferResult]:
    """`twofold transfer`."""
    return transfer(options.pop("run"), **options)
