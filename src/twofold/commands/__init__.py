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
    """

    module: str
    summary: str
    arguments: tuple[str, ...] = ()

    def parser(self) -> ArgumentParser:
        """The parser of the command's words."""
        parser: ArgumentParser = import_module(self.module).parser(*self.arguments)
        return parser

    def run(self, options: dict[str, Any]) -> Result | None:
        """Do it; raises UserError and Stopped."""
        result: Result | None = import_module(self.module).run(options, *self.arguments)
        return result


COMMANDS: dict[str, Command] = {
    "pretrain": Command("twofold.commands.pretrain", "learn a representation from unlabelled images or speech"),
    "evaluate": Command(
        "twofold.commands.evaluate", "measure a frozen encoder: linear probe, neighbours, ImageNet, speech"
    ),
    "finetune": Command("twofold.commands.finetune", "train the encoder further on a few labels, or from scratch"),
    "fresh": Command("twofold.commands.fresh", "an encoder with a random start, for training with labels alone"),
    "distill": Command("twofold.commands.distill", "train a small student on what a teacher says"),
    "transfer": Command("twofold.commands.transfer", "measure an encoder on the papers' 12 other data sets"),
    "labels": Command("twofold.commands.labels", "how many labels do I need? accuracy against their number"),
    "predict": Command("twofold.commands.predict", "what new files are, by the classifier that was fitted"),
    "embed": Command("twofold.commands.embed", "write features with names to a file, for whatever comes next"),
    "search": Command("twofold.commands.search", "neighbours, near-duplicates, leaks between splits, outliers"),
    "convert": Command("twofold.commands.convert", "turn an official checkpoint into an encoder of ours"),
    "export": Command("twofold.commands.export", "an encoder in the layout of torchvision, MoCo or detectron2"),
    "shard": Command("twofold.commands.shard", "pack images into tar archives that load fast from any disk"),
    "recipes": Command("twofold.commands.recipes", "list the recipes of the published results"),
    "papers": Command("twofold.commands.papers", "the papers' tables: what makes each, and the published numbers"),
    "demo-speech": Command("twofold.commands.demos.speech", "the same for speech: real voices, five ways"),
    "demo": Command("twofold.commands.demos.digits", "the whole story on 5,000 real digits, in minutes"),
}
"""The commands, in the order of `twofold --help`; a new one is a file and a line here."""

COMMANDS |= {
    f"study {name}": Command("twofold.commands.study", line.summary, (name,)) for name, line in STUDIES.items()
}
