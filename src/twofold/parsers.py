"""How the shell's words become options: names with dashes, bare flags, and one line for each mistake."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from twofold.commands import COMMANDS
from twofold.console import console
from twofold.distributed import started_first
from twofold.errors import UserError, suggest
from twofold.options import explain, given


def run(name: str, words: Sequence[str]) -> None:
    """Run a command of `COMMANDS` with what the shell gave it, and print what came of it.

    Raises:
        UserError: for anything wrong in the options or the data.
        Stopped: if SIGINT or SIGTERM ended it early.
    """
    command = COMMANDS[name]
    result = command.run(parse(command.parser(), name, words))
    if result is not None and started_first():
        console.print(result.text())


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
        missing = re.search(r"arguments are required: (.+)", str(error))
        if missing:
            shown = {action.dest: str(action.metavar or action.dest) for action in parser._actions}
            names = ", ".join(shown.get(name, name) for name in missing.group(1).split(", "))
            raise UserError(f"the following arguments are required: {names}") from error
        raise UserError(explain(str(error))) from error
    return {name.replace("-", "_"): value for name, value in given(namespace).items()}


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
    hint = getattr(action, "_typehint", None)
    counted = {bool, int} <= set(get_args(hint))  # true, false or a number
    if hint is not bool and not counted:
        return False
    if i + 1 == len(words) or words[i + 1] in ("true", "false", "True", "False"):
        return i + 1 == len(words)
    return not (counted and re.fullmatch(r"-?\d+", words[i + 1]))
