"""`twofold demo`: SimCLR on 5,000 real digits, and the question it answers: how many labels do I need?"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from numpy.typing import NDArray

from twofold.commands.arguments import add_out, new_parser
from twofold.commands.demos import DemoResult
from twofold.commands.pretrain import pretrain
from twofold.console import console, duration
from twofold.data import ArraySource, DataConfig, open_source
from twofold.encoders.load import load
from twofold.encoders.untrained import untrained
from twofold.evaluation.features import Extractor
from twofold.evaluation.few_labels import LabelEfficiency, label_efficiency
from twofold.report import label_figure, label_table
from twofold.report.run import write_run_report
from twofold.runs.config import RunConfig

DATA = "mnist5k"
COUNTS = (50, 500, 4000)
DRAWS = 3


def demo(out: str | Path = "runs/demo", epochs: float | None = None, resume: bool = False) -> DemoResult:
    """Pretrain without labels on 4,000 digits, then measure what a few labels buy.

    Three kinds of features get the same labelled images: raw pixels, the encoder before training, and the encoder
    after. The classifier is a logistic regression; its penalty is chosen among the labelled images alone, and the
    1,000 test digits are used for nothing but the score.

    Args:
        out: the run's folder.
        epochs: passes over the training digits; the recipe's when not given.
        resume: continue the demo in `out`, or start it if there is none yet.

    Returns:
        Accuracies by features and number of labels, seconds, machine; `demo.json` in the run holds them.

    Raises:
        UserError: if the digits' package is missing or `out` is in use.
    """
    options: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    run = pretrain(DATA, out, recipe="demo-mnist", resume=resume, report=False, **options)
    config, _ = run.read(RunConfig)
    train, test = (open_source(DATA, DataConfig(), split=split) for split in ("train", "test"))
    if not (isinstance(train, ArraySource) and isinstance(test, ArraySource)):
        raise TypeError(f"{DATA} is read as {type(train).__name__}, not as arrays")
    pretrained = load(run.path)
    before = untrained(pretrained, config.seed)  # the very weights that training started from
    features = {"raw pixels": (_pixels(train), _pixels(test))}
    extractor = Extractor(size=config.views.size)
    for name, encoder in (("untrained encoder", before), ("pretrained encoder", pretrained)):
        features[name] = extractor.extract(encoder, train).h, extractor.extract(encoder, test).h
    console.print("fitting logistic regressions on 50, 500 and 4,000 labels")
    cells = label_efficiency(features, np.asarray(train.labels), np.asarray(test.labels), COUNTS, DRAWS, config.seed)
    seconds = run.rows()[-1]["seconds"]
    result = {
        "test_top1": [dataclasses.asdict(cell) | {"mean": cell.mean, "std": cell.std} for cell in cells],
        "train_images": len(train), "test_images": len(test), "pretraining_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine(),
    }  # fmt: skip
    file, table = run.write_json("demo.json", result), label_table(cells)
    page = write_run_report(run, train, shown=test, lead=_lead(cells), tables=[table], figures=[label_figure(cells)])
    note = f"pretrained on {len(train):,} unlabelled digits in {duration(seconds)}"
    metrics = {f"{cell.features}, {cell.labels:,} labels: top1": cell.mean for cell in cells}
    return DemoResult(run.path, file, page, table, note, result, metrics)


def _pixels(source: ArraySource) -> NDArray[np.float32]:
    """[n, pixels] in [0, 1]."""
    return source.images.flatten(1).float().div(255).numpy()


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


def parser() -> ArgumentParser:
    """Of `twofold demo`."""
    parser = new_parser(
        "SimCLR on 5,000 real digits: how many labels do I need? Takes about four minutes on two cores."
    )
    add_out(parser, "demo", default="runs/demo")
    parser.add_argument(
        "--epochs", type=float, help="passes over the 4,000 training digits; the recipe's when not given"
    )
    return parser


def run(options: dict[str, Any]) -> DemoResult:
    """`twofold demo`."""
    return demo(**options)
