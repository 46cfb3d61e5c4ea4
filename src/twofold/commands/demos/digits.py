"""`twofold demo`: SimCLR on 5,000 real digits, and the question it answers: how many labels do I need?"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from twofold.commands.pretrain import pretrain
from twofold.console import console, duration
from twofold.data import ArraySource, DataConfig, open_source
from twofold.encoders import build_encoder
from twofold.encoders.load import load
from twofold.evaluation.features import extract
from twofold.evaluation.few_labels import LabelEfficiency, label_efficiency
from twofold.report import label_figure, label_table
from twofold.report.run import write_run_report
from twofold.runs.config import RunConfig

DATA = "mnist5k"
COUNTS = (50, 500, 4000)
DRAWS = 3


def demo(out: str | Path = "runs/demo", epochs: float | None = None, resume: bool = False) -> dict[str, Any]:
    """Pretrain without labels on 4,000 digits, then measure what a few labels buy.

    Three kinds of features get the same labelled images: raw pixels, the encoder before training, and the encoder
    after. The classifier is a logistic regression; its penalty is chosen among the labelled images alone, and the
    1,000 test digits are used for nothing but the score.

    Args:
        out: the run's folder.
        epochs: passes over the training digits; the recipe's when not given.
        resume: continue a demo that was stopped.

    Returns:
        What was written to `demo.json` in the run: accuracies by features and number of labels, seconds, machine.

    Raises:
        UserError: if the digits' package is missing or `out` is in use.
    """
    options: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    run = pretrain(DATA, out, recipe="demo-mnist", resume=resume, report=False, **options)
    config, _ = run.read(RunConfig)
    train, test = (open_source(DATA, DataConfig(), split=split) for split in ("train", "test"))
    if not (isinstance(train, ArraySource) and isinstance(test, ArraySource)):
        raise TypeError(f"{DATA} is read as {type(train).__name__}, not as arrays")
    torch.manual_seed(config.seed)  # the very weights that training started from
    untrained = build_encoder(config.encoder, config.views.size).eval()
    features = {"raw pixels": (_pixels(train), _pixels(test))}
    for name, encoder in (("untrained encoder", untrained), ("pretrained encoder", load(run.path))):
        side = config.views.size
        features[name] = extract(encoder, train, size=side).h, extract(encoder, test, size=side).h
    console.print("fitting logistic regressions on 50, 500 and 4,000 labels")
    cells = label_efficiency(features, np.asarray(train.labels), np.asarray(test.labels), COUNTS, DRAWS, config.seed)
    seconds = run.metrics()[-1]["seconds"]
    result = {
        "test_top1": [dataclasses.asdict(cell) | {"mean": cell.mean, "std": cell.std} for cell in cells],
        "train_images": len(train), "test_images": len(test), "pretraining_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine(),
    }  # fmt: skip
    run.write_json("demo.json", result)
    report = write_run_report(
        run, train, shown=test, lead=_lead(cells), tables=[label_table(cells)], figures=[label_figure(cells)]
    )
    console.print(_for_terminal(cells, list(features)))
    console.print(f"pretrained on {len(train):,} unlabelled digits in {duration(seconds)}; report: {report}")
    return result


def _pixels(source: ArraySource) -> NDArray[np.float32]:
    """[n, pixels] in [0, 1]."""
    return source.images.flatten(1).float().div(255).numpy()


def _words(cell: LabelEfficiency) -> str:
    spread = f" ± {cell.std:.3f}" if cell.std is not None else ""
    return f"{cell.mean:.3f}{spread}"


def _rows(cells: list[LabelEfficiency], names: list[str]) -> list[list[str]]:
    by_key = {(cell.features, cell.labels): cell for cell in cells}
    return [[name, *(_words(by_key[name, count]) for count in COUNTS)] for name in names]


HEADINGS = ["logistic regression on", *(f"{count:,} labels" for count in COUNTS)]
CAPTION = (
    f"How many labels do I need? Accuracy on 1,000 test digits, mean ± standard deviation over {DRAWS} draws of labels "
    "(4,000 are all there are: one draw)"
)


def _for_terminal(cells: list[LabelEfficiency], names: list[str]) -> Table:
    table = Table(title=CAPTION, title_justify="left")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left")
    for row in _rows(cells, names):
        table.add_row(*row, style="bold" if row[0].startswith("pretrained") else "")
    return table


def _lead(cells: list[LabelEfficiency]) -> str:
    """What came of it, in a sentence."""
    few = {cell.features: cell.mean for cell in cells if cell.labels == COUNTS[0]}
    pixels = {cell.labels: cell.mean for cell in cells if cell.features == "raw pixels"}
    ours = few["pretrained encoder"]
    matched = next((count for count in COUNTS if pixels[count] >= ours), None)
    against = (
        f"raw pixels need {matched:,} labels for as much"
        if matched
        else f"raw pixels with all {COUNTS[-1]:,} stay below it"
    )
    return f"With {COUNTS[0]} labels the pretrained encoder reads {ours:.1%} of 1,000 unseen digits right; {against}."
