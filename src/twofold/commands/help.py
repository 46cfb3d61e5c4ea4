"""What `--help` of a command shows at once: the options that people use, a line each, on one screen.

`--help-all` lists every option with its default, from the parser itself. Nothing heavy is imported here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH, LINES = 100, 40
"""What a screen is."""
_ROOM = 68
"""Characters of a line that are left for what an option is."""

_DATA = {
    "--data.split NAME": "which part, of data that have splits",
    "--data.workers N": "processes that read files ahead; chosen from the cores",
    "--data.download": "fetch a data set of torchvision's that is not there yet",
}
_RUN = {
    "--out FOLDER": "where the run goes: a new or an empty folder (required)",
    "--resume": "go on with the run in --out, bit for bit, or start it",
    "--recipe NAME": "start from a published setting; `twofold recipes` lists them",
    "--config FILE": "options from a YAML file, over the recipe's; a run's config.yaml, too",
}
_MACHINE = {
    "--training.device D": "auto, cpu, cuda or mps (--device)",
    "--training.precision P": "auto, fp32 or bf16",
    "--training.threads N": "CPU threads; all cores unless set",
    "--training.track T": "send the curves to tensorboard, wandb, mlflow or trackio as well",
    "--report false": "leave out the page at the end; `twofold report RUN` makes it",
}
_OPTIM = {
    "--optim.name NAME": "adamw, lars, sgd, ... (--optimizer)",
    "--optim.lr X": "learning rate; chosen from the optimiser and the batch (--lr)",
    "--optim.weight_decay X": "(--wd)",
}
_READ = {
    "--preprocessing P": "auto, none, resize, crop; of long images letterbox or squares",
    "--size N": "pixels a side; the run's own unless set",
    "--batch N": "examples that are read at once (--batch-size)",
    "--device D": "auto, cpu, cuda or mps",
}
_TRAINED = "a run's folder, or an encoder.safetensors"
_IMAGES = "images or recordings: a folder, a table, an array file, or a name"
_FILES = "files; or images or recordings: a folder, a table, an array file, or a name"
_LABELLED = "labelled images or recordings: a folder, a table, an array file, a name"

Section = Mapping[str, str]

BRIEF: dict[str, tuple[Section, Mapping[str, Section]]] = {
    "pretrain": (
        {"DATA": _IMAGES},
        {
            "the run": _RUN,
            "how long": {
                "--epochs N": "passes over the data; chosen from their number",
                "--minutes N": "train for about so long on this machine instead",
                "--extend N": "so many epochs more of a finished run",
                "--start_from RUN": "begin with these weights: a run, or a backbone's file",
            },
            "what is learned": {
                "--encoder.name NAME": "resnet18, resnet50, timm:NAME, speech:small, ... (--model)",
                "--method.name NAME": "simclr, moco, ... (--method)",
                "--method.temperature X": "of the contrastive loss",
                "--batch N": "examples a step over all devices (--batch-size)",
                "--views.size N": "side of the views in pixels (--image-size)",
                "--views.crop_area [A, B]": "share of the image that a crop keeps",
                "--seed N": "of every random number of the run",
                **_OPTIM,
            },
            "the data": _DATA,
            "the machine": _MACHINE,
            "look first": {"--print-config": "print every option as it would be used, and end"},
        },
    ),
    "evaluate": (
        {"RUN": _TRAINED, "DATA": _LABELLED},
        {
            "what is measured": {
                "--protocol NAME": "linear, knn, logistic, imagenet, ctc, ...; --help-all explains each",
                "--test DATA": "data for the score; their own test split, or a held-out fifth",
                "--validation DATA": "data to choose settings on",
                "--labels N": "fit on so many labels: all, 10%, 40, 4/class, or a list file",
                "--folds N": "cross-validation, of data with folds",
                "--seed N": "of the choice of labels and of what is held out",
                "--k N": "neighbours, with knn",
                "--keep_classifier": "keep the classifier for `twofold predict`",
            },
            "how examples are read": _READ,
            "the data": _DATA,
        },
    ),
    "finetune": (
        {"RUN": _TRAINED, "DATA": _LABELLED},
        {
            "the run": _RUN,
            "what is trained": {
                "--labels N": "labels that are used: all, 10%, 40, 4/class, or a list file",
                "--test DATA": "data for the score; their own test split, or a held-out fifth",
                "--freeze WHAT": "nothing, head, or encoder",
                "--from_head N": "layer of the projection head that the classifier reads",
                "--from_scratch": "fresh weights, to compare with",
                "--class_weights W": "balanced, where classes differ in size",
                "--layer_decay X": "learning rate of each layer relative to the one above",
                "--epochs N": "passes over the labelled examples",
                "--batch N": "examples a step over all devices (--batch-size)",
                "--seed N": "of the classifier's start, of order and views and of the labels",
                **_OPTIM,
            },
            "the data": _DATA,
            "the machine": _MACHINE,
        },
    ),
    "distill": (
        {"TEACHER": "a run's folder or an encoder.safetensors with a classifier", "DATA": _IMAGES},
        {
            "the run": _RUN,
            "what is learned": {
                "--encoder.name NAME": "the student; built as its teacher unless named (--model)",
                "--temperature X": "of both softmaxes",
                "--alpha X": "share of the teacher in the loss, the rest being the labels'",
                "--labels N": "labels that the student learns from, with --alpha",
                "--teacher_labels N": "fit a classifier on the teacher first, on so many labels",
                "--test DATA": "labelled data to score both on",
                "--epochs N": "passes over the data; chosen from their number",
                "--batch N": "examples a step over all devices (--batch-size)",
                "--views.size N": "side of the views in pixels (--image-size)",
                "--seed N": "of every random number of the run",
                **_OPTIM,
            },
            "the data": _DATA,
            "the machine": _MACHINE,
        },
    ),
    "embed": (
        {"RUN": _TRAINED, "DATA": _IMAGES},
        {
            "the file": {
                "--out FILE": "a new .npz, .parquet or .faiss file (required)",
                "--resume": "go on with the work that was stopped",
                "--columns [A, B]": "columns of the table that are taken along",
                "--index KIND": "flat, hnsw or ivf, of an .faiss file",
                "--save_every N": "examples after which what is done is saved",
            },
            "what is written": {
                "--features F": "h, the encoder's output, or z, the projection head's",
                "--per_file": "of tiles and frames: one row a file",
                "--level L": "recording, or frame: a row a step of time",
                "--layer N": "which layer's frames",
                "--parts N": "parts of a recording that are pooled apart",
            },
            "how examples are read": _READ,
            "the data": _DATA,
        },
    ),
    "predict": (
        {"RUN": "a fine-tuned run, or one with a classifier that `evaluate` kept", "DATA": _FILES},
        {
            "the predictions": {
                "--out FILE": "a new .csv, .parquet or .jsonl file; without it the first rows are shown",
                "--top N": "classes named for each file, the likeliest first",
                "--batch N": "examples that are read at once (--batch-size)",
                "--device D": "auto, cpu, cuda or mps",
            },
            "the data": _DATA,
        },
    ),
    "search": (
        {"RUN": _TRAINED, "DATA": _IMAGES},
        {
            "what is looked for": {
                "--out FOLDER": "where tables and the contact sheet go (required)",
                "--query A B ...": "files whose neighbours are wanted",
                "--names A B ...": "names of files of the data whose neighbours are wanted",
                "--test DATA": "another split: near-duplicates across both are leaks",
                "--k N": "neighbours of each",
                "--similarity X": "cosine from which two are near-duplicates",
                "--outliers N": "how many of the most unlike are listed",
                "--duplicates": "group what is nearly the same",
                "--sheet false": "leave out the contact sheets",
            },
            "how examples are read": _READ,
            "the data": _DATA,
        },
    ),
    "explore": (
        {"RUN": _TRAINED, "DATA": _IMAGES},
        {
            "the page": {
                "--out FILE": "a new .html file (required)",
                "--most N": "examples that are shown; of more a random part",
                "--neighbours N": "nearest neighbours that are shown of each",
                "--columns [A, B]": "columns of the table that are shown; all unless set",
                "--map M": "tsne or pca",
                "--pictures N": "side of a picture; chosen from their number, 0 for none",
                "--seconds N": "of each recording that can be played",
            },
            "how examples are read": _READ,
            "the data": _DATA,
        },
    ),
    "label": (
        {"RUN": _TRAINED, "DATA": _IMAGES},
        {
            "the round": {
                "--out FOLDER": "where the table to fill in, a sheet and a page go (required)",
                "--labels A B ...": "tables that were filled in: of earlier rounds, or of your own",
                "--count N": "files to label in this round",
                "--by WAY": "typical, uncertain, or auto: typical first, then uncertain",
                "--own_labels false": "leave alone what the data say, as where folders are no classes",
                "--page false": "leave out the page to explore",
                "--seed N": "of the clusterings",
            },
            "how examples are read": _READ,
            "the data": _DATA,
        },
    ),
    "labels": (
        {"RUN": _TRAINED, "DATA": _LABELLED},
        {
            "the study": {
                "--out FOLDER": "where results go",
                "--resume": "go on with the study in --out",
                "--counts [A, B]": "numbers of labels",
                "--ways [A, B]": "logistic regression, fine-tuning, ...: --help-all names them",
                "--draws N": "choices of labels for each number",
                "--test DATA": "data for the score",
                "--seed N": "of the choices",
                "--device D": "auto, cpu, cuda or mps",
            },
            "the data": _DATA,
        },
    ),
    "shard": (
        {"DATA": _IMAGES},
        {
            "the archives": {
                "--out FOLDER": "a new or an empty folder (required)",
                "--shard_mb N": "size of an archive",
                "--stream": "of the hub's data sets: without storing them first",
            },
            "the data": _DATA,
        },
    ),
}  # fmt: skip
"""For each command what comes without a name, and its options by what they are for."""


def wants_help(words: Sequence[str], names: Iterable[str] = ("-h", "--help", "--help-all", "--help_all")) -> bool:
    """Whether help is asked for: the words after a lone ``--`` are none."""
    asked = words[: words.index("--")] if "--" in words else words
    return any(word in names for word in asked)


def brief_help(command: str, summary: str) -> str | None:
    """The help of one screen; None of a command whose whole help is short, or of which no one was written."""
    if command not in BRIEF:
        return None
    return _screen(command, summary, *BRIEF[command])


def screen_of(parser: Any, command: str, summary: str) -> str:
    """The same of any parser: a line for each option of its own, and how many more each group of options has."""
    positional: dict[str, str] = {}
    own: dict[str, str] = {}
    groups: dict[str, int] = {}
    for action in parser._actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        if not names:
            positional[str(action.metavar or action.dest).upper()] = _first_words(action.help)
        elif "." in names[0]:
            group = names[0].split(".")[0]
            groups[group] = groups.get(group, 0) + 1
        elif names[0] not in ("--help", "--json"):
            own[names[0]] = _first_words(action.help)
    many = {f"{group}.NAME ...": f"{count} options" for group, count in groups.items()}
    return _screen(command, summary, positional, {"options": own, **({"groups of options": many} if many else {})})


def _first_words(text: str | None) -> str:
    """The first sentence, on one line of a screen."""
    first = re.split(r"(?<=[a-z0-9)])[.;] ", " ".join((text or "").split()), maxsplit=1)[0].rstrip(".")
    return textwrap.shorten(first.replace("%%", "%"), _ROOM, placeholder=" ...")


def _screen(command: str, summary: str, positional: Section, sections: Mapping[str, Section]) -> str:
    width = max(len(name) for section in (positional, *sections.values()) for name in section)
    lines = [f"usage: twofold {' '.join([command, *positional])} [options]", f"{summary[:1].upper()}{summary[1:]}."]
    for title, section in {"": positional, **sections}.items():
        lines += [f"{title}:"] if title else []
        lines += [f"  {name:<{width}}  {text}".rstrip() for name, text in section.items()]
    return "\n".join([*lines, "--help-all: every option, with its default. Forms in () mean the same; so do - and _."])
