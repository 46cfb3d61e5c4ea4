"""Rewrite the table of docs/reading.md from the files as they are now: `python docs/make_reading.py`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "data/decoding/images.py": "from image file to pixels",
    "views/images.py": "two random views of each image: what is drawn, and how it is applied",
    "views/color.py": "the colour operators",
    "encoders/resnet.py": "the encoder f",
    "heads.py": "the projection head g",
    "losses/nt_xent.py": "the loss",
    "methods/simclr.py": "one step: views in, loss out",
    "training/loop.py": "the loop",
    "evaluation/protocols/linear.py": "linear accuracy of the frozen encoder",
}


def page() -> str:
    """The page's text."""
    rows, total = [], 0
    for name, what in FILES.items():
        path = f"src/twofold/{name}"
        lines = len((ROOT / path).read_text().splitlines())
        total += lines
        rows.append(f"| `{path}` | {lines} | {what} |")
    return "\n".join(
        [
            "# Read SimCLR in an hour",
            "",
            f"From image file to linear accuracy, SimCLR is these files, in this order: **{total}** lines in all, "
            "comments and",
            "docstrings included. Everything else in the package is sources of data, other options, checkpoints, "
            "commands and proofs.",
            "",
            "| file | lines | what it does |",
            "|---|---|---|",
            *rows,
            "",
            "Beside them, as the paper trains with them: `src/twofold/optim/lars.py` (LARS),",
            "`src/twofold/optim/schedules.py` (warm-up and cosine), `src/twofold/views/boxes.py` (how a crop's box is "
            "drawn).",
            "",
        ]
    )


if __name__ == "__main__":
    (ROOT / "docs" / "reading.md").write_text(page())
