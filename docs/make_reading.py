"""Rewrite docs/reading.md from a run of the README's two commands under coverage: `python docs/make_reading.py`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "twofold"
SMALL = ["--data.workers", "0"]  # decode in this process, where coverage and the order of calls see it
SHORT = ["--epochs", "1", "--batch", "8", "--encoder.name", "resnet18", "--encoder.width", "0.125"]
COMMANDS = (
    ["pretrain", "photos", "--out", "runs/photos", *SMALL, *SHORT],
    ["evaluate", "runs/photos", "photos", *SMALL],
)
SKIP = {
    "__init__.py": "the same as functions",
    "cli.py": "the shell's words",
    "parsers.py": "the shell's words",
    "commands": "what was asked for, handed on",
    "options": "until you add an option",
    "console.py": "messages",
    "files.py": "writing a file whole or not at all",
    "devices.py": "what the machine has",
    "versions.py": "what is written down beside a result",
    "report": "the page that shows a run",
    "recipe.py": "published settings; none was named here",
    "data/sources/audio_layouts.py": "recordings; here it finds none",
    "data/sources/hub.py": "Hugging Face; here it only looks",
    "data/sources/shards.py": "archives; here it only looks",
    "data/batches/cache.py": "decoded images kept in memory",
    "views/audio/views.py": "recordings; their options are checked, too",
    "evaluation/protocols/ctc.py": "recordings; its options are checked, too",
    "views/studies/views.py": "the paper's study of views; here it only looks",
    "training/checkpoint.py": "resuming",
    "training/rundir.py": "what a run writes",
    "training/progress.py": "the bar",
    "training/clock.py": "where the time goes",
    "interrupts.py": "Ctrl-C",
    "evaluation/feature_cache.py": "features kept for the next evaluation",
    "evaluation/frozen.py": "the proof that nothing was trained",
    "encoders/weights.py": "the encoder's file",
    "encoders/load.py": "the encoder's file",
}
"""Rooms and files of the list that a first reading leaves out, and what they are about."""


class Entry(NamedTuple):
    """A file that was entered: its path in the package, lines that ran, lines that could."""

    file: str
    ran: int
    lines: int


def photos(folder: Path) -> None:
    """Forty small images of mixed sizes in two classes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(40):
        side = int(rng.integers(32, 48))
        y, x = np.mgrid[:side, :side] / side
        mask = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.06 if i % 2 else abs(x - 0.5) < 0.12
        pixels = np.clip(mask[..., None] * rng.uniform(0.4, 1, 3) + rng.uniform(0, 0.2, (side, side, 3)), 0, 1)
        path = folder / ("disc" if i % 2 else "bar") / f"{i}.{'png' if i % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * pixels).astype(np.uint8)).save(path)


def trace(main: Callable[[list[str]], int]) -> list[Entry]:
    """Run the commands in this folder: every file of the package in which a function was called, by its first call."""
    import coverage

    order: dict[str, None] = {}
    prefix = f"{PACKAGE}/"

    def called(frame: FrameType, event: str, _value: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(prefix) and name not in order and not importing(frame):
            order[name] = None

    def importing(frame: FrameType | None) -> bool:
        """Whether a file of the package is being imported: what that calls says nothing of the run."""
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(prefix):
                return True
            frame = frame.f_back
        return False

    measured = coverage.Coverage(data_file=None, config_file=False, include=[f"{PACKAGE}/*"])
    measured.start()
    sys.setprofile(called)
    threading.setprofile(called)
    try:
        for command in COMMANDS:
            if main(command) != 0:
                raise RuntimeError(f"twofold {' '.join(command)} failed")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # as documented
        measured.stop()
    if not order:
        raise RuntimeError(f"the package that ran is not the one in {PACKAGE}")
    entries = []
    for name in order:
        _, statements, _, missing, _ = measured.analysis2(name)
        entries.append(Entry(name.removeprefix(prefix), len(statements) - len(missing), len(statements)))
    return entries


def measure() -> list[Entry]:
    """The same in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder) / "photos")
        command = [sys.executable, str(Path(__file__).resolve()), "--trace"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stdout[-2000:] + result.stderr[-2000:])
    return [Entry(*entry) for entry in json.loads(result.stdout.splitlines()[-1])]


def room_of(file: str) -> str:
    """The room that a file lies in: a folder of the package, or the file itself where it lies in none."""
    return file.split("/")[0]


def why_skip(file: str) -> str | None:
    """What a file that a first reading leaves out is about; None for one to be read."""
    return SKIP.get(file, SKIP.get(room_of(file)))


def summary(file: str) -> str:
    """The first line of a file's docstring, without its full stop."""
    import ast

    text = ast.get_docstring(ast.parse((PACKAGE / file).read_text())) or ""
    return text.split("\n")[0].rstrip(".")


def total(entries: Iterable[Entry]) -> int:
    """Lines that ran."""
    return sum(entry.ran for entry in entries)


def rows(entries: Iterable[Entry]) -> list[str]:
    """A table of files, grouped by room, rooms in the order in which they are entered first."""
    entries = list(entries)
    lines = ["| file | lines | what it is |", "|---|---|---|"]
    for room in dict.fromkeys(room_of(entry.file) for entry in entries):
        for file, ran, count in (entry for entry in entries if room_of(entry.file) == room):
            lines.append(f"| `src/twofold/{file}` | {ran} of {count} | {why_skip(file) or summary(file)} |")
    return lines


def page(entries: list[Entry]) -> str:
    """The page's text."""
    core = [entry for entry in entries if why_skip(entry.file) is None]
    rest = [entry for entry in entries if why_skip(entry.file) is not None]
    return "\n".join(
        [
            "# Read SimCLR",
            "",
            "From image files to linear accuracy: these are the files that `twofold pretrain photos` and",
            "`twofold evaluate runs/photos photos` really enter, in the order in which they do, room by room. A file",
            "counts when one of its functions is called. Lines are those that run of those that could, as",
            "`coverage` counts them: without docstrings, comments and blank lines. `python docs/make_reading.py` runs",
            "both commands and writes this page.",
            "",
            f"All in all **{len(entries)}** files and **{total(entries):,}** lines. A first reading takes",
            f"{len(core)} of them, {total(core):,} lines:",
            "",
            *rows(core),
            "",
            f"and leaves out {len(rest)}, {total(rest):,} lines:",
            "",
            *rows(rest),
            "",
            "The images were decoded in one process (`--data.workers 0`). Other machines run a few other lines: a GPU,",
            "a processor without bfloat16. Beside the list, as the paper trains: `src/twofold/optim/lars.py` (LARS).",
            "",
        ]
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--trace"]:
        from twofold.cli import main

        result = trace(main)
        print(json.dumps(result))
    else:
        (ROOT / "docs" / "reading.md").write_text(page(measure()))
