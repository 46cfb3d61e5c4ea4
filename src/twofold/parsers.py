"""How the shell's words become options: names with dashes, bare flags, and one line for each mistake."""

from __future__ import annotations

import json
import re
from argparse import ArgumentError
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace

from twofold.commands import COMMANDS
from twofold.commands.aliases import Names, resolve
from twofold.commands.help import LINES, screen_of, wants_help
from twofold.console import console
from twofold.distributed import started_first
from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.options import explain, given, texts_alone


def run(name: str, words: Sequence[str]) -> int:
    """Run a command of `COMMANDS` with what the shell gave it, and print what came of it; returns the exit status.

    `--json FILE`, which every parser of `new_parser` takes, writes the result there as well.

    Raises:
        UserError: for anything wrong in the options or the data.
        Stopped: if SIGINT or SIGTERM ended it early.
    """
    command = COMMANDS[name]
    if wants_help(words):
        parser = command.parser()
        parser.prog = f"twofold {name}"
        whole = parser.format_help()
        if whole.count("\n") > LINES and not wants_help(words, ("--help-all", "--help_all")):
            whole = f"{screen_of(parser, name, command.summary)}\n"
        print(whole, end="")
        return 0
    options = parse(command.parser(), name, words)
    file = options.pop("json", None)
    if file is not None and Path(file).exists():
        raise UserError(f"--json {file} exists already; choose another name")
    result = command.run(options)
    if result is None:
        return 0
    if started_first():
        console.print(result.text())
        if file is not None:
            text = json.dumps(result.to_dict(), indent=2, default=str) + "\n"
            write_atomically(Path(file), lambda out: out.write(text.encode()))
    status: int = getattr(result, "status", 0)
    return status


def parse(parser: ArgumentParser, command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The options given, nested, without defaults (those lie below recipes and files)."""
    parser.prog = f"twofold {command}"
    words = resolve(_names(parser, command), arguments)
    words = [f"{word}=true" if _is_bare_flag(parser, words, i) else word for i, word in enumerate(words)]
    words = _bracketed(parser, words)
    try:
        namespace: Namespace = parser.parse_args(words, defaults=False)
    except ArgumentError as error:
        missing = re.search(r"arguments are required: (.+)", str(error))
        if missing:
            shown = {action.dest: str(action.metavar or action.dest) for action in parser._actions}
            names = ", ".join(shown.get(name, name) for name in missing.group(1).split(", "))
            raise UserError(f"the following arguments are required: {names}") from error
        more = re.search(r"unrecognized arguments: (.+)", str(error))
        if more:
            raise UserError(_too_many(parser, command, words, more.group(1))) from error
        raise UserError(explain(str(error))) from error
    return {name.replace("-", "_"): value for name, value in given(namespace).items()}


def _names(parser: ArgumentParser, command: str) -> Names:
    """The names of a parser's options."""
    options = [word[2:] for action in parser._actions for word in action.option_strings if word.startswith("--")]
    before = [str(action.metavar or action.dest) for action in parser._actions if not action.option_strings]
    return Names(command, options, before)


def _too_many(parser: ArgumentParser, command: str, words: Sequence[str], more: str) -> str:
    """Says that words are left over, and which the command takes."""
    last = more.split()[-1]
    before = next((word for word, value in pairwise(words) if value == last), "")
    if before.startswith("--") and "=" not in before:
        return f"{before} takes no value, and {last} stands after it: leave it out"
    takes = " ".join(name.upper() for name in _names(parser, command).before) or "options alone"
    return f"too many words: {more}; `twofold {command}` takes {takes}, and options by name"


def _bracketed(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words with brackets around the values of options that take several: ``--columns a,b`` is ``[a,b]``."""
    result: list[str] = []
    for word in words:
        before = result[-1] if result else ""
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals and _takes_several(parser, name):
            result.append(f"{name}={_in_brackets(value, _takes_texts(parser, name))}")
        elif not word.startswith("--") and _takes_several(parser, before):
            result.append(_in_brackets(word, _takes_texts(parser, before)))
        else:
            result.append(word)
    return result


def _takes_several(parser: ArgumentParser, name: str) -> bool:
    hint = getattr(parser._option_string_actions.get(name), "_typehint", None)
    kinds = (hint,) if get_origin(hint) is tuple else tuple(each for each in get_args(hint) if each is not type(None))
    return bool(kinds) and all(get_origin(each) is tuple for each in kinds)


def _takes_texts(parser: ArgumentParser, name: str) -> bool:
    return texts_alone(getattr(parser._option_string_actions.get(name), "_typehint", None))


def _in_brackets(value: str, texts: bool) -> str:
    """The value in brackets, what looks like a number in quotes where the option takes texts: ``40,all`` are labels."""
    if value in ("", "null", "~"):
        return value
    whole = value if value[:1] in ("[", "(", "{") else f"[{value}]"
    try:
        node = yaml.compose(whole, yaml.SafeLoader) if texts else None
    except yaml.YAMLError:  # what is wrong with it is said where it is read
        return whole
    if not isinstance(node, yaml.SequenceNode) or not all(isinstance(each, yaml.ScalarNode) for each in node.value):
        return whole
    return json.dumps([each.value for each in node.value], ensure_ascii=False)


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
