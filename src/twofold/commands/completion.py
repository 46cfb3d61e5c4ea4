"""`twofold completion`: a script that makes the shell complete commands, options and their values."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from twofold.commands import COMMANDS
from twofold.commands.arguments import new_parser
from twofold.errors import UserError

Shell = Literal["bash", "zsh", "tcsh"]
_FILES = {"path_of_the_data", "run", "runs", "teacher", "source", "out", "config", "test", "start_from", "json"}
"""What takes the name of a file or a folder."""


@dataclass(frozen=True)
class CompletionResult:
    """The script for one shell."""

    shell: Shell
    script: str

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """The script."""
        return self.script

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"shell": self.shell, "script": self.script}


def completion(shell: Shell) -> CompletionResult:
    """The script that makes a shell complete `twofold`; it asks nothing of Python when a key is pressed.

    Raises:
        UserError: shtab is not installed.
    """
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        raise UserError('completion needs shtab: pip install "twofold[completion]"') from error
    return CompletionResult(shell, shtab.complete(_tree(shtab.FILE), shell))


def _tree(files: Any) -> argparse.ArgumentParser:
    """The commands and their options as shtab reads them; a study is a command within `study`."""
    root = argparse.ArgumentParser("twofold")
    commands = root.add_subparsers()
    studies = None
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        if second and studies is None:
            studies = commands.add_parser(first, help="the papers' questions asked of your data").add_subparsers()
        place = studies if second and studies is not None else commands
        own = place.add_parser(second or first, help=command.summary, add_help=False)
        for action in command.parser()._actions:
            _add(own, action, files)
        for word, text in (("--help", "the options that people use"), ("--help-all", "every option")):
            own.add_argument(word, help=text)
    return root


def _add(parser: argparse.ArgumentParser, action: Any, files: Any) -> None:
    """An option with its values, where they are few."""
    words = [word for word in action.option_strings if word not in ("-h", "--help")]
    if action.option_strings and not words:
        return
    text = str(action.help or "").split(". ")[0].replace("%", "%%")[:80]
    more: dict[str, Any] = {}
    if choices := _choices(getattr(action, "_typehint", None)):
        more["choices"] = choices
    added = parser.add_argument(*(words or [action.dest]), help=text, **more)
    if action.dest in _FILES:
        added.complete = files  # type: ignore[attr-defined]  # where shtab looks


def _choices(hint: Any) -> list[str]:
    """The words that a type allows; none where it allows others."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(each) for each in get_args(hint)]
    parts = [part for part in get_args(hint) if part is not type(None)]
    return _choices(parts[0]) if len(parts) == 1 and get_origin(hint) is not tuple else []


def parser() -> ArgumentParser:
    """Of `twofold completion`."""
    parser = new_parser("Print what makes the shell complete commands and options.")
    parser.add_argument("shell", type=Shell, help="bash, zsh or tcsh")
    return parser


def run(options: dict[str, Any]) -> CompletionResult:
    """`twofold completion`."""
    return completion(options["shell"])
