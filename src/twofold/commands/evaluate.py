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
from twofold.console import console
from twofold.devices import choose_device
from twofold.encoders.load import encoder_path
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.kept import EVALUATIONS, save_fitted
from twofold.evaluation.protocols.base import PROTOCOLS, EvaluationConfig, Protocol, Result
from twofold.files import write_atomically
from twofold.options import OptionsParser, add_options, merge, plain
from twofold.recipe import read_layers
from twofold.runs import standing
from twofold.runs.starting import recipe_of

MEASURED_AS = {
    "linear": ("linear",), "imagenet": ("finetune", "supervised", "distill"), "knn": ("knn",), "ctc": ("recogniser",),
}  # fmt: skip
"""Protocol -> how `twofold.published` calls what is measured so; of a classifier that is there, as it came about."""


def evaluate(
    run: str | Path, data: Any, /, *, encoder: nn.Module | None = None, recipe: str | None = None, **options: Any
) -> Result:
    """Evaluate a frozen encoder.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: labelled images or recordings: whatever `twofold.pretrain` takes.
        encoder: your own module, if the run was trained with one.
        recipe: name of a recipe for `evaluate` (`twofold recipes` lists them); the options win over it.
        options: fields of `EvaluationConfig` and of the protocol's own options, nested or dotted; `test` and
            `validation` may be data of any kind, too.

    Returns:
        The protocol's result. Its JSON is in the run's `evaluations` folder, and with `keep_classifier` beside it a
        .safetensors file of the same name for `twofold.predict`.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data.
    """
    given = {name: options.pop(name) for name in ("test", "validation") if options.get(name) is not None}
    options = read_layers(recipe, None, options, command="evaluate")
    parts = {name: given.get(name, options.pop(name, None)) for name in ("test", "validation")}
    named = {name: _name(part) for name, part in parts.items() if part is not None}
    file, parser = encoder_path(run), OptionsParser(EvaluationConfig)
    kind = PROTOCOLS[parser.build(merge(options, named)).protocol]
    config = parser.build(merge(kind.inherited(read_header(file)), options, named))
    device = choose_device(config.device, "--device").type
    protocol = kind(config)
    result = protocol.run(file, data, module=encoder, device=device, progress=Progress(), **parts)
    result = dataclasses.replace(result, published=_published(file, config, result))
    written = _write(file, protocol, result)
    if protocol.fitted is not None and written is not None:
        kept = save_fitted(written.with_suffix(".safetensors"), file, protocol.fitted, config.data, encoder)
        result = dataclasses.replace(result, kept_in=kept)
    return dataclasses.replace(result, file=written)


def _published(file: Path, config: Any, result: Result) -> list[str]:
    """What is published for the recipe of the encoder's run, or for the released file, as far as it was measured so."""
    test = getattr(result, "test", getattr(result, "images", None))
    tested = getattr(test, "images", test)
    told = standing.Result(
        MEASURED_AS.get(result.protocol, ()), list(result.metrics), tested, standing.made(file),
        evaluation=None if result.protocol == "imagenet" else plain(config),
        words=["the mean over folds here"] if result.name.endswith("-folds") else [],
    )  # fmt: skip
    return [*standing.beside(recipe_of(file), told), *standing.of_converted(file, told)]


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
    path = _free_name(encoder.parent / EVALUATIONS, f"{result.name}-{stamp}")
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
    parser.add_argument("--recipe", type=str, help="start from a recipe; `twofold recipes` lists them")
    add_options(parser, EvaluationConfig)
    return parser


def run(options: dict[str, Any]) -> Result:
    """`twofold evaluate`."""
    return evaluate(options.pop("run"), options.pop(PATH), **options)
