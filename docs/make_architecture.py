"""Rewrite the generated part of docs/architecture.md from the imports: `python docs/make_architecture.py`."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "twofold"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- begin: python docs/make_architecture.py -->", "<!-- end -->"


def floors() -> list[list[str]]:
    """The rooms of each floor, lowest floor first, as the import rules of pyproject.toml have them."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[name.strip().removeprefix("twofold.") for name in floor.split(":")] for floor in reversed(rules)]


def path_of(room: str) -> Path:
    """A room's folder, or its file."""
    return PACKAGE / room if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"


def files_of(room: str) -> list[Path]:
    """The files of a room."""
    path = path_of(room)
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports anything from, here or inside a function."""
    rooms = [room for floor in floors() for room in floor]
    result: dict[str, set[str]] = {}
    for room in rooms:
        names = set()
        for file in files_of(room):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
                elif isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
        parts = [name.split(".") for name in names]
        result[room] = {part[1] for part in parts if part[0] == "twofold" and part[1] in rooms} - {room}
    return result


def needed(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no longer way replaces."""
    below: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in below:
            below[room] = set().union(*({other} | reach(other) for other in arrows[room]))
        return below[room]

    return {
        room: {other for other in others if not any(other in reach(between) for between in others)}
        for room, others in arrows.items()
    }


def title(room: str) -> str:
    """A room as people write it: `losses/`, `heads.py`."""
    return f"{room}/" if path_of(room).is_dir() else f"{room}.py"


def inner_rooms(room: str) -> list[Path]:
    """The files that open the rooms within a room."""
    return [file for file in files_of(room)[1:] if file.name == "__init__.py"]


def summary(file: Path) -> str:
    """The first line of a file's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text()))
    if not text:
        raise ValueError(f"{file} does not say what it is for")
    return text.split("\n")[0]


def diagram() -> list[str]:
    """The floors and their rooms, highest first, and who imports whom."""
    lines = ["```mermaid", "flowchart TD"]
    for number, floor in reversed(list(enumerate(floors()))):
        lines.append(f'  subgraph floor{number}["floor {number}"]')
        lines += [f'    {room}["{title(room)}"]' for room in floor]
        lines.append("  end")
    for room, others in needed(imports()).items():
        lines += [f"  {room} --> {other}" for other in sorted(others)]
    return [*lines, "```"]


def table() -> list[str]:
    """The rooms of each floor, lowest first, and what each is for."""
    lines = ["| floor | room | what lives there |", "|---|---|---|"]
    for number, floor in enumerate(floors()):
        for room in floor:
            lines.append(f"| {number} | `{title(room)}` | {summary(files_of(room)[0])} |")
            lines += [f"| | `{room}/{inner.parent.name}/` | {summary(inner)} |" for inner in inner_rooms(room)]
    return lines


def page() -> str:
    """The page's text: what people wrote, and between the marks what the imports say."""
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    return "\n".join([before + BEGIN, *diagram(), "", *table(), "", END + after])


if __name__ == "__main__":
    PAGE.write_text(page())
