"""Arguments that several commands share, with the words that explain them."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from twofold.errors import UserError

PATH = "path_of_the_data"
"""Where a parser keeps the positional DATA: `data` is the group of options that say how to read them."""
IMAGES = "a folder, table or list of images, an .npz or .npy file, or the name of a torchvision data set"
_RECORDINGS = "a folder of recordings or a manifest of them (.csv, .tsv, .jsonl, .parquet)"
EITHER = f"{IMAGES}; or {_RECORDINGS}"
LABELLED = (
    "labelled images: a folder, an .npz file, or the name of a torchvision data set; or labelled recordings: "
    f"{_RECORDINGS}"
)


def new_parser(description: str) -> ArgumentParser:
    """A parser that raises, and does not end the process; `--json`, which all have, is the caller's to read."""
    parser = ArgumentParser(description=description.replace("%", "%%"), exit_on_error=False)
    parser.add_argument("--json", type=str, help="also write the result to this file, as JSON")
    return parser


def add_data(parser: ArgumentParser, text: str, **more: Any) -> None:
    """The positional DATA."""
    parser.add_argument(PATH, metavar="data", help=text, **more)


def add_out(parser: ArgumentParser, what: str, default: str | None = None) -> None:
    """Where the results go, and whether they go on: the same two options for every command that works in parts."""
    parser.add_argument(
        "--out", type=str, default=default, help=f"the {what}'s folder: new, or empty, or a {what} to --resume"
    )
    add_resume(parser, what)


def add_resume(parser: ArgumentParser, what: str) -> None:
    """Whether what is in --out goes on."""
    parser.add_argument(
        "--resume", action="store_true", help=f"continue the {what} in --out, or start it if there is none"
    )


def add_report(parser: ArgumentParser) -> None:
    """Whether the page is made at the end."""
    parser.add_argument(
        "--report", type=bool, default=True, help="write report.html at the end; `twofold report RUN` makes it anew"
    )


def require_out(options: dict[str, Any], what: str, example: str) -> None:
    """Raise a UserError where --out is not given."""
    if not options.get("out"):
        raise UserError(f"--out is missing: name {what}, e.g. --out {example}")
