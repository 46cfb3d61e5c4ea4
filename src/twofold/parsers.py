"""The options of every command, and how the shell's words become calls of `twofold.commands`."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from twofold.commands import SUMMARIES
from twofold.commands.convert import convert, describe
from twofold.commands.demos.digits import demo
from twofold.commands.demos.speech import demo_speech
from twofold.commands.distill import distill
from twofold.commands.embed import EmbedConfig, embed
from twofold.commands.evaluate import EvaluationConfig, evaluate
from twofold.commands.export import Format, export
from twofold.commands.finetune import finetune
from twofold.commands.pretrain import describe_config, pretrain
from twofold.commands.recipes import recipes
from twofold.commands.shard import ShardConfig, shard
from twofold.commands.study import STUDIES, study
from twofold.console import console
from twofold.errors import UserError, suggest
from twofold.options import add_options, explain, given
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig
from twofold.studies.labels import LabelsConfig, labels
from twofold.studies.transfer.study import TransferConfig, table, transfer

_DATA = "where_the_data_are"  # "data" is the group of options that say how to read them
IMAGES = "a folder of images, an .npz or .npy file, or the name of a torchvision data set"
_SOUNDS = "a folder of recordings or a manifest of them (.csv, .tsv, .jsonl, .parquet)"
EITHER = f"{IMAGES}; or {_SOUNDS}"
LABELLED = (
    f"labelled images: a folder, an .npz file, or the name of a torchvision data set; or labelled recordings: {_SOUNDS}"
)


def _add_data(parser: ArgumentParser, text: str) -> None:
    parser.add_argument(_DATA, metavar="data", help=text)


def _add_run(parser: ArgumentParser) -> None:
    """Where a run goes, and whether it goes on."""
    parser.add_argument("--out", type=str, help="the run's folder: new, or empty, or a run to --resume")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, or start it if there is none")


def _require_out(options: dict[str, Any], what: str, example: str) -> None:
    if not options.get("out"):
        raise UserError(f"--out is missing: name {what}, e.g. --out {example}")


def _pretrain_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Learn a representation from unlabelled images or speech.", exit_on_error=False)
    _add_data(parser, EITHER)
    _add_run(parser)
    parser.add_argument("--recipe", type=str, help="start from a recipe; `twofold recipes` lists them")
    parser.add_argument(
        "--config", type=str, help="a YAML file of options, over the recipe's; a run's config.yaml will do"
    )
    parser.add_argument("--print-config", action="store_true", help="print every option as it would be used, and end")
    add_options(parser, RunConfig)
    return parser


def _run_pretrain(options: dict[str, Any]) -> None:
    if options.pop("print_config", False):
        options.pop("resume", None)
        options.pop("out", None)
        print(describe_config(options.pop("data"), **options), end="")
        return
    _require_out(options, "a folder for the run", "runs/first")
    pretrain(options.pop("data"), options.pop("out"), **options)


def _evaluate_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Measure what a frozen encoder's representation is worth.", exit_on_error=False)
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    _add_data(parser, LABELLED)
    add_options(parser, EvaluationConfig)
    return parser


def _run_evaluate(options: dict[str, Any]) -> None:
    console.print(evaluate(options.pop("run"), options.pop("data"), **options).text(), markup=False)


def _finetune_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Train a classifier on a pretrained encoder, and the encoder with it, on a few labels.",
        exit_on_error=False,
    )
    parser.add_argument("run", help="a pretrained run's folder, or an encoder.safetensors")
    _add_data(parser, LABELLED)
    parser.add_argument("--out", type=str, help="the new run's folder; the same command again goes on where it stopped")
    parser.add_argument("--test", type=str, help="data for the score; by default the data's own test split")
    parser.add_argument("--recipe", type=str, help="start from a recipe; `twofold recipes` lists them")
    parser.add_argument("--config", type=str, help="a YAML file of options, over the recipe's")
    add_options(parser, FinetuneConfig)
    return parser


def _run_finetune(options: dict[str, Any]) -> None:
    _require_out(options, "a folder for the new run", "runs/finetuned")
    result = finetune(options.pop("run"), options.pop("data"), options.pop("out"), **options)
    console.print(result.text(), markup=False)


def _labels_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="How many labels do I need? Accuracy against their number: linear, fine-tuned, from scratch.",
        exit_on_error=False,
    )
    parser.add_argument("run", help="a pretrained run's folder")
    _add_data(parser, LABELLED)
    parser.add_argument("--test", type=str, help="data for the score; by default the data's own test split")
    add_options(parser, LabelsConfig)
    return parser


def _run_labels(options: dict[str, Any]) -> None:
    console.print(labels(options.pop("run"), options.pop("data"), **options).text(), markup=False)


def _embed_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Write features, names and labels of all that the data hold to an .npz file.",
                            exit_on_error=False)  # fmt: skip
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    _add_data(parser, EITHER)
    parser.add_argument("--out", type=str, help="a new .npz file")
    add_options(parser, EmbedConfig)
    return parser


def _run_embed(options: dict[str, Any]) -> None:
    _require_out(options, "a new file", "features.npz")
    console.print(embed(options.pop("run"), options.pop("data"), options.pop("out"), **options).text, markup=False)


def _recipes_parser() -> ArgumentParser:
    parser = ArgumentParser(description="List the recipes, or show one.", exit_on_error=False)
    parser.add_argument("name", nargs="?", default=None, help="show this one's options, too")
    return parser


def _run_recipes(options: dict[str, Any]) -> None:
    console.print(recipes(options.get("name")), markup=False)


def _demo_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="SimCLR on 5,000 real digits: how many labels do I need? Takes about four minutes on two cores.",
        exit_on_error=False,
    )
    parser.add_argument("--out", type=str, default="runs/demo", help="the run's folder (default: runs/demo)")
    parser.add_argument(
        "--epochs", type=float, help="passes over the 4,000 training digits; the recipe's when not given"
    )
    parser.add_argument("--resume", action="store_true", help="continue a demo that was stopped")
    return parser


def _run_demo(options: dict[str, Any]) -> None:
    demo(**options)


def _demo_speech_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Speech SimCLR on two hours of real telephone prompts, five ways, on voices without labels.",
        exit_on_error=False,
    )
    parser.add_argument(
        _DATA, metavar="data", nargs="?", default=None, help="folder of the Debian packages' recordings"
    )
    parser.add_argument("--out", type=str, default="runs/demo-speech", help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="pretrainings of each way (default: 3)")
    parser.add_argument("--epochs", type=float, help="passes over the clips; the recipe's when not given")
    parser.add_argument("--ablation", type=bool, default=False, help="also with waveforms as they are (default: false)")
    return parser


def _run_demo_speech(options: dict[str, Any]) -> None:
    demo_speech(options.pop("data", None), **options)


def _convert_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Turn an official checkpoint of SimCLR (TensorFlow) or MoCo (.pth.tar) into an encoder of ours.",
        exit_on_error=False,
    )
    parser.add_argument("source", help="a TF1 checkpoint or its folder, a TF2 SavedModel, or MoCo's .pth.tar")
    parser.add_argument("--out", type=str, help="a new folder for encoder.safetensors and conversion.json")
    parser.add_argument(
        "--weights",
        type=Literal["auto", "base", "ema"],
        default="auto",
        help="base weights or their moving average; auto: base where there are both (default: auto)",
    )
    parser.add_argument(
        "--classifier_layer", type=int, help="output of the head that the classifier reads, if nothing says it"
    )
    return parser


def _run_convert(options: dict[str, Any]) -> None:
    _require_out(options, "a new folder for the converted encoder", "encoders/r50")
    console.print(describe(convert(options.pop("source"), options.pop("out"), **options)), markup=False)


def _export_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Write an encoder in the layout of another library.", exit_on_error=False)
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    parser.add_argument(
        "--format",
        type=Format,
        default="torchvision",
        help="torchvision: a state dict without classifier; moco: MoCo's .pth.tar; detectron2: the pickle that MoCo's "
        "detection experiments start from; torch_export: a speech encoder as a program of torch.export (default: "
        "torchvision)",
    )
    parser.add_argument("--out", type=str, help="a new file")
    return parser


def _run_export(options: dict[str, Any]) -> None:
    _require_out(options, "a new file", "encoder.pth")
    done = export(options.pop("run"), options.pop("out"), **options)
    console.print(f"{done.file}: {done.text}", markup=False)


def _study_parser(name: str) -> ArgumentParser:
    parser = ArgumentParser(description=f"{SUMMARIES[f'study {name}']}.", exit_on_error=False)
    _add_data(parser, "a folder, an .npz file, or the name of a torchvision data set")
    parser.add_argument("--out", type=str, help="the study's folder: new, or empty, or a study to --resume")
    parser.add_argument("--resume", action="store_true", help="go on with the study in --out; what is done is kept")
    add_options(parser, STUDIES[name].config)
    return parser


def _run_study(name: str, options: dict[str, Any]) -> None:
    _require_out(options, "a folder for the study", f"studies/{name}")
    console.print(study(name, options.pop("data"), options.pop("out"), **options), markup=False)


def _shard_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Pack images into tar archives as WebDataset names them, or index archives that are there.",
        exit_on_error=False,
    )
    _add_data(parser, "images: whatever `twofold pretrain` takes; with --index, a folder of .tar")
    parser.add_argument("--out", type=str, help="a new folder for the archives and their index")
    add_options(parser, ShardConfig)
    return parser


def _run_shard(options: dict[str, Any]) -> None:
    console.print(shard(options.pop("data"), options.pop("out", None), **options), markup=False)


def _distill_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Train a student on what a teacher says of images.", exit_on_error=False)
    parser.add_argument("teacher", help="a run's folder or an encoder.safetensors; see --teacher_labels")
    _add_data(parser, IMAGES)
    _add_run(parser)
    parser.add_argument("--recipe", type=str, help="start from a recipe for distillation")
    parser.add_argument("--config", type=str, help="a YAML file of options, over the recipe's")
    add_options(parser, DistillConfig)
    return parser


def _run_distill(options: dict[str, Any]) -> None:
    _require_out(options, "a folder for the student", "runs/student")
    result = distill(options.pop("teacher"), options.pop("data"), options.pop("out"), **options)
    console.print(result.summary(), markup=False)


def _transfer_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="What an encoder is worth on the 12 data sets of SimCLR's transfer study.", exit_on_error=False
    )
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_options(parser, TransferConfig)
    return parser


def _run_transfer(options: dict[str, Any]) -> None:
    console.print(table(transfer(options.pop("run"), **options)))


_Command = tuple[Callable[[], ArgumentParser], Callable[[dict[str, Any]], None]]
COMMANDS: dict[str, _Command] = {
    "pretrain": (_pretrain_parser, _run_pretrain),
    "evaluate": (_evaluate_parser, _run_evaluate),
    "finetune": (_finetune_parser, _run_finetune),
    "distill": (_distill_parser, _run_distill),
    "transfer": (_transfer_parser, _run_transfer),
    "labels": (_labels_parser, _run_labels),
    "embed": (_embed_parser, _run_embed),
    "convert": (_convert_parser, _run_convert),
    "export": (_export_parser, _run_export),
    "shard": (_shard_parser, _run_shard),
    "recipes": (_recipes_parser, _run_recipes),
    "demo-speech": (_demo_speech_parser, _run_demo_speech),
    "demo": (_demo_parser, _run_demo),
}
COMMANDS |= {f"study {name}": (partial(_study_parser, name), partial(_run_study, name)) for name in STUDIES}


def run(command: str, words: Sequence[str]) -> None:
    """Run a command of `COMMANDS` with what the shell gave it.

    Raises:
        UserError: for anything wrong in the options or the data.
        Stopped: if SIGINT or SIGTERM ended it early.
    """
    make, call = COMMANDS[command]
    call(parse(make(), command, words))


def parse(parser: ArgumentParser, command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The options given, nested, without defaults (those lie below recipes and files)."""
    parser.prog = f"twofold {command}"
    words = [_underscores(word) for word in arguments]
    words = [f"{word}=true" if _is_bare_flag(parser, words, i) else word for i, word in enumerate(words)]
    try:
        namespace: Namespace = parser.parse_args(words, defaults=False)
    except ArgumentError as error:
        unknown = re.search(r"unrecognized arguments: (--\S+)|does not accept option '(\S+)'", str(error))
        if unknown:
            name = (unknown.group(1) or unknown.group(2)).split("=")[0]
            raise UserError(f"there is no option '{name}'{suggest(name, _options(parser))}") from error
        raise UserError(explain(str(error)).replace(_DATA, "data")) from error
    options = {name.replace("-", "_"): value for name, value in given(namespace).items()}
    where = options.pop(_DATA, None)
    if where is not None:
        options |= {f"data.{name}": value for name, value in options.pop("data", {}).items()} | {"data": where}
    return options


def _options(parser: ArgumentParser) -> list[str]:
    return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]


def _underscores(word: str) -> str:
    """Option names may be written with dashes or underscores."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return ("--print-config" if name == "--print_config" else name) + equals + value


def _is_bare_flag(parser: ArgumentParser, words: Sequence[str], i: int) -> bool:
    """Whether a true-or-false option stands without a value, which then is true."""
    action = parser._option_string_actions.get(words[i])
    if action is None or getattr(action, "_typehint", None) is not bool:
        return False
    return i + 1 == len(words) or words[i + 1] not in ("true", "false", "True", "False")
