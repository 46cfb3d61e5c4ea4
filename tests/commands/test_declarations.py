"""A new command is a file and a line; a new study is a file and a line."""

from __future__ import annotations

import json

import pytest

from twofold import cli, studies
from twofold.commands import COMMANDS, Command
from twofold.commands.study import study

COMMAND = '''
"""`twofold count`: how many words a file holds."""
from dataclasses import dataclass
from pathlib import Path

from twofold.commands.arguments import new_parser
from twofold.errors import UserError
from twofold.options import OptionsParser, add_options


@dataclass(frozen=True)
class CountConfig:
    """What is counted."""

    least: int = 1
    """Letters that a word has."""


@dataclass(frozen=True)
class CountResult:
    file: Path
    words: int

    @property
    def metrics(self):
        return {"words": self.words}

    def text(self):
        return f"{self.file}: {self.words} words"

    def to_dict(self):
        return {"file": str(self.file), "words": self.words}


def count(path, /, **options):
    """Count the words of a file."""
    config, path = OptionsParser(CountConfig).build(options), Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    return CountResult(path, sum(len(word) >= config.least for word in path.read_text().split()))


def parser():
    parser = new_parser("Count words.")
    parser.add_argument("path", help="a file")
    add_options(parser, CountConfig)
    return parser


def run(options):
    return count(options.pop("path"), **options)
'''
STUDY = '''
from dataclasses import dataclass

from twofold.report import Table
from twofold.studies.base import Study


@dataclass(frozen=True)
class SquaresConfig:
    """What is squared."""

    numbers: tuple[int, ...] = (1, 2)
    """Of which."""


@dataclass(frozen=True)
class Square:
    number: int
    square: int


class SquaresStudy(Study[int, Square]):
    name = "squares"
    Config = SquaresConfig

    def __init__(self, data, config, folder):
        self.data, self.config, self.folder = data, config, folder

    def plan(self):
        return self.config.numbers

    def run(self, part):
        return [Square(part, part**2)]

    def table(self, cells, /):
        return Table("Squares", ["number", "square"], [[str(c.number), c.square] for c in cells])

    def interpretation(self, cells, /):
        return f"The largest is {max(c.square for c in cells)}."

    def measured(self, cell):
        return {f"square of {cell.number}": cell.square}
'''


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_new_command_is_a_file_and_a_line(path, monkeypatch, capsys):
    (path / "toy_count_command.py").write_text(COMMAND)
    monkeypatch.setitem(COMMANDS, "count", Command("toy_count_command", "how many words a file holds"))
    (path / "text.txt").write_text("a new command is one file")
    assert cli.main(["--help"]) == 0
    assert "count        " in (shown := capsys.readouterr().out)
    assert "how many words a file holds" in shown
    assert cli.main(["count", str(path / "text.txt"), "--least", "3"]) == 0
    assert capsys.readouterr().out == f"{path / 'text.txt'}: 4 words\n"
    assert cli.main(["count", str(path / "text.txt"), "--leest", "3"]) == 2
    assert "there is no option '--leest'; did you mean '--least'" in capsys.readouterr().err
    assert cli.main(["count", str(path / "none.txt")]) == 2
    assert cli.main(["count"]) == 2
    assert "the following arguments are required: path" in capsys.readouterr().err


def test_a_new_study_is_a_file_and_a_line(path, monkeypatch):
    (path / "toy_squares.py").write_text(STUDY)
    monkeypatch.setitem(studies.STUDIES, "squares", studies.Line("toy_squares:SquaresStudy", "squares of numbers"))
    result = study("squares", "anything", path / "out", numbers=[3, 5])
    assert result.metrics == {"square of 3": 9, "square of 5": 25}
    assert result.text().splitlines() == [
        "number  square", "3            9", "5           25", "The largest is 25.", str(path / "out" / "study.json"),
    ]  # fmt: skip
    stored = json.loads((path / "out" / "study.json").read_text())
    assert (stored["study"], stored["results"][1]) == ("squares", {"number": 5, "square": 25})
    assert stored["interpretation"] == "The largest is 25."
    assert study("squares", "anything", path / "out", numbers=[3, 5], resume=True).cells == result.cells
