"""`twofold evaluate`: what a frozen encoder's representation is worth on labelled images or recordings."""

from __future__ import annotations

import dataclasses
import datetime
import os
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import LABELLED, PATH, add_data, new_parser
from twofold.console import console, print_rank0
from twofold.devices import choose_device
from twofold.encoders.load import encoder_path
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.kept import save_fitted
from twofold.evaluation.protocols.base import PROTOCOLS, EvaluationConfig, Protocol, Result
from twofold.files import write_atomically
from twofold.options import OptionsParser, add_options, merge
from twofold.recipe import load, names
from twofold.training.rundir import RunDirectory


def evaluate(run: str | Path, data: Any, /, *, encoder: nn.Module | None = None, **options: Any) -> Result:
    """Evaluate a frozen encoder.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: labelled images or recordings: whatever `twofold.pretrain` takes.
        encoder: your own module, if the run was trained with one.
        options: fields of `EvaluationConfig` and of the protocol's own options, nested or dotted; `test` and
            `validation` may be data of any kind, too.

    Returns:
        The protocol's result. Its JSON is in the run's `evaluations` folder, and with `keep_classifier` beside it a
        .safetensors file of the same name for `twofold.predict`.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data.
    """
    parts = {name: options.pop(name, None) for name in ("test", "validation")}
    named = {name: _name(part) for name, part in parts.items() if part is not None}
    file, parser = encoder_path(run), OptionsParser(EvaluationConfig)
    kind = PROTOCOLS[parser.build(merge(options, named)).protocol]
    config = parser.build(merge(kind.inherited(read_header(file)), options, named))
    device = choose_device(config.device, "--device").type
    protocol = kind(config)
    result = protocol.run(file, data, module=encoder, device=device, progress=Progress(), **parts)
    written = _write(file, protocol, result)
    if protocol.fitted is not None and written is not None:
        kept = save_fitted(written.with_suffix(".safetensors"), file, protocol.fitted, config.data, encoder)
        result = dataclasses.replace(result, kept_in=kept)
    return dataclasses.replace(result, file=written)


def _name(part: Any) -> str:
    """Data of any kind as the options record it."""
    return str(part) if isinstance(part, str | os.PathLike) else type(part).__name__


class Progress:
    """Tells of each part once, when it is done; of long parts also every 5,000 examples."""

    def __init__(self) -> None:
        self.told: set[tuple[str, int]] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        step = (what, -1 if done == total else done // 5000)
        if step not in self.told and step[1] != 0:
            console.print(f"{what}: {done:,}" + (f" of {total:,}" if done < total else ""))
        self.told.add(step)


def _write(encoder: Path, protocol: Protocol, result: Result) -> Path | None:
    """Write an evaluation's JSON into the run's folder, if the encoder lies in one, or something is kept with it."""
    asked = protocol.written_beside_any_file or protocol.fitted is not None
    if not asked and not (encoder.parent / "config.yaml").exists():
        return None
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = _free_name(encoder.parent / "evaluations", f"{result.name}-{stamp}")
    write_atomically(path, lambda file: file.write(result.to_json().encode()))
    return path


def _free_name(folder: Path, stem: str) -> Path:
    """A file name that no earlier evaluation has."""
    folder.mkdir(exist_ok=True)
    names = (folder / f"{stem}{suffix}.json" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    free = next((path for path in names if not path.exists()), None)
    if free is None:
        raise UserError(f"{folder} holds 999 evaluations of this second; move some of them")
    return free


def parser() -> ArgumentParser:
    """Of `twofold evaluate`."""
    parser = new_parser("Measure what a frozen encoder's representation is worth.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_data(parser, LABELLED)
    add_options(parser, EvaluationConfig)
    return parser


def _published(folder: Path) -> str | None:
    """What the recipe of a run should reach, to stand above what this evaluation finds; None without a recipe."""
    try:
        name = RunDirectory(folder).facts().get("recipe")
    except UserError:  # no run, or a damaged one, whose encoder can be measured all the same
        return None
    if name not in names():
        return None
    recipe = load(name)
    return f"published for the recipe {name}, on {recipe.data}: {recipe.result} ({recipe.source})"


def run(options: dict[str, Any]) -> Result:
    """`twofold evaluate`."""
    if (told := _published(encoder_path(options["run"]).parent)) is not None:
        print_rank0(told)
    return evaluate(options.pop("run"), options.pop(PATH), **options)
