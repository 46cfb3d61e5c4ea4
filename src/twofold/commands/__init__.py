"""The commands: each is one file, which declares its parser and its call, and one line below.

Nothing else is loaded here, so that `twofold --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from twofold.studies import STUDIES

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from twofold.results import Result


@dataclass(frozen=True)
class Command:
    """A command as `twofold --help` lists it; its file declares the rest.

    Attributes:
        module: the file. It holds `parser(...)`, which makes the parser of the command's words, and `run(options,
            ...)`, which does it with the options that were given, nested, and returns what came of it, or None where
            it has printed that itself. Only a call of one of them loads the file, and PyTorch and all that it needs.
        summary: what it does, in a line.
        arguments: for both functions, where several commands share a file.
        task: what people have in mind when they look for it, under which `twofold --help` lists it.
    """

    module: str
    summary: str
    arguments: tuple[str, ...] = ()
    task: str = "more"

    def parser(self) -> ArgumentParser:
        """The parser of the command's words."""
        parser: ArgumentParser = import_module(self.module).parser(*self.arguments)
        return parser

    def run(self, options: dict[str, Any]) -> Result | None:
        """Do it; raises UserError and Stopped."""
        result: Result | None = import_module(self.module).run(options, *self.arguments)
        return result


_LEARN, _MEASURE, _USE = "learn a representation", "measure it", "use it"
_OTHERS, _STUDY, _ABOUT = "files from and for other programs", "ask your data", "find your way"
TASKS = (_LEARN, _MEASURE, _USE, _OTHERS, _STUDY, _ABOUT)
"""The tasks in the order of `twofold --help`."""


def _command(module: str, summary: str, task: str) -> Command:
    return Command(f"twofold.commands.{module}", summary, task=task)


COMMANDS: dict[str, Command] = {
    "pretrain": _command("pretrain", "learn a representation from unlabelled images or speech", _LEARN),
    "finetune": _command("finetune", "train the encoder further on a few labels, or from scratch", _LEARN),
    "fresh": _command("fresh", "an encoder with a random start, for training with labels alone", _LEARN),
    "distill": _command("distill", "train a small student on what a teacher says", _LEARN),
    "evaluate": _command("evaluate", "measure a frozen encoder: linear probe, neighbours, ImageNet, speech", _MEASURE),
    "compare": _command("compare", "runs beside one another: curves, options, results with spread", _MEASURE),
    "report": _command("report", "the page that shows a run, made anew from its files", _MEASURE),
    "transfer": _command("transfer", "measure an encoder on the papers' 12 other data sets", _MEASURE),
    "labels": _command("labels", "how many labels do I need? accuracy against their number", _MEASURE),
    "predict": _command("predict", "what new files are, by the classifier that was fitted", _USE),
    "embed": _command("embed", "write features with names to a file, for whatever comes next", _USE),
    "search": _command("search", "neighbours, near-duplicates, leaks between splits, outliers", _USE),
    "explore": _command("explore", "a page with a map to zoom, search, colour and draw lassos on", _USE),
    "label": _command("label", "which files to label next, as a table to fill in", _USE),
    "convert": _command("convert", "turn an official checkpoint into an encoder of ours", _OTHERS),
    "export": _command("export", "an encoder in the layout of torchvision, MoCo or detectron2", _OTHERS),
    "shard": _command("shard", "pack images into tar archives that load fast from any disk", _OTHERS),
    "recipes": _command("recipes", "list the recipes of the published results", _ABOUT),
    "papers": _command("papers", "the papers' tables: what makes each, and the published numbers", _ABOUT),
    "doctor": _command("doctor", "what this machine and this installation can do", _ABOUT),
    "completion": _command("completion", "what makes the shell complete commands and options", _ABOUT),
    "demo": _command("demos.digits", "the whole story on 5,000 real digits, in minutes", _ABOUT),
    "demo-speech": _command("demos.speech", "the same for speech: real voices, five ways", _ABOUT),
}
"""The commands, in the order of `twofold --help`; a new one is a file and a line here."""

COMMANDS |= {
    f"study {name}": Command("twofold.commands.study", line.summary, (name,), _STUDY) for name, line in STUDIES.items()
}
