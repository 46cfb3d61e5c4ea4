"""`twofold transfer`: what an encoder is worth on the 12 data sets of SimCLR's transfer study."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from torch import nn

from twofold.commands.load import encoder_path, load
from twofold.data import DataConfig
from twofold.encoders import Encoder, read_header
from twofold.errors import UserError
from twofold.evaluation import transfer as measuring
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.logistic import PAPER_GRID
from twofold.evaluation.transfer import Cell, Parts
from twofold.evaluation.transfer_finetune import Budget, finetune_grid
from twofold.evaluation.transfer_sets import METRICS, SETS, Protocol, reported
from twofold.training.checkpoint import write_atomically
from twofold.training.config import OptionsParser
from twofold.training.progress import console, duration
from twofold.views.resample import Resample


@dataclass(frozen=True)
class TransferConfig:
    """How an encoder is transferred."""

    data: str = "all"
    """Data sets of the study by name, divided by commas, or all 12."""
    root: str = "data"
    """Folder in which the data sets live, each in its own layout."""
    protocol: Literal["linear", "finetune", "both"] = "linear"
    """linear: L-BFGS on frozen features, 45 penalties; finetune: the whole net, a grid of 7 rates x 8 decays."""
    out: str | None = None
    """Folder of the results, one JSON file a data set and protocol; `transfer` in the run's folder when not given.
    What is there already is not measured again."""
    seed: int = 0
    """Of the held-out validation parts and of fine-tuning."""
    size: int | None = None
    """Side of the images in pixels; the side that the encoder was trained on when not given."""
    resample: Literal["tf2", "tf1", "antialias"] | None = None
    """How images are resized; as in the encoder's training when not given."""
    batch: int = 256
    """Images at a time."""
    download: bool = False
    """Fetch missing data sets where that is possible."""
    workers: int | None = None
    """Threads that decode; chosen from the number of cores when not given."""
    budget: Budget = field(default_factory=Budget)
    """Fine-tuning: the published budget and grid unless told otherwise"""


def transfer(run: str | Path, *, encoder: nn.Module | None = None, **options: object) -> list[Cell]:
    """Transfer an encoder to data sets of SimCLR's study.

    Every data set is opened, and looked through for classes without images, before the first is measured.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        encoder: your own module, if the run was trained with one.
        options: fields of `TransferConfig`.

    Returns:
        A cell for each data set and protocol; they are in the folder `out`, with `table.json`.

    Raises:
        UserError: missing or incomplete data, wrong options, results of another encoder in `out`.
    """
    config = OptionsParser(TransferConfig).build(options)
    path = encoder_path(run)
    model = load(path, encoder)
    views = read_header(path)["extra"].get("options", {}).get("views", {})
    size: int | None = config.size or views.get("size") or model.input.size
    if size is None:
        raise UserError(f"{path} does not say which side its images had: give --size, 224 for ImageNet's nets")
    resample: Resample = config.resample or views.get("resample", "antialias")
    folder = Path(config.out) if config.out else path.parent / "transfer"
    data = DataConfig(root=config.root, download=config.download, channels=model.input.channels, workers=config.workers)
    parts = {name: measuring.open_parts(name, data, config.seed) for name in _names(config.data)}
    protocols: tuple[Protocol, ...] = ("linear", "finetune") if config.protocol == "both" else (config.protocol,)
    cells = []
    for name, divided in parts.items():
        for protocol in protocols:
            cell = _cell(model, path, encoder, name, protocol, divided, size, resample, config, folder)
            told = f"{METRICS[cell.metric]} {cell.value:.2%}"
            console.print(f"{SETS[name].title}, {protocol}: {told} in {duration(cell.seconds)}", markup=False)
            cells.append(cell)
    _write_table(cells, folder)
    return cells


def _names(asked: str) -> list[str]:
    """The data sets asked for, in the paper's order."""
    wanted = list(SETS) if asked == "all" else [name.strip() for name in asked.split(",")]
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise UserError(f"--data {', '.join(unknown)}: the transfer study has {', '.join(SETS)}, or all")
    return [name for name in SETS if name in wanted]


def _cell(
    model: Encoder, file: Path, module: nn.Module | None, name: str, protocol: Protocol, parts: Parts, size: int,
    resample: Resample, config: TransferConfig, folder: Path,
) -> Cell:  # fmt: skip
    """Measure one cell, or read what is there."""
    place = folder / f"{name}-{protocol}.json"
    if protocol == "linear":
        asked: dict[str, Any] = {"size": size, "resample": resample, "seed": config.seed, "grid": list(PAPER_GRID)}
        question = measuring.question(model, parts, asked)
        return measuring.measured(
            place, question, name, protocol, parts,
            lambda: measuring.linear(model, name, parts, size, resample, PAPER_GRID, config.batch, config.workers,
                                     FeatureCache.beside(file)),
        )  # fmt: skip
    asked = {"size": size, "resample": resample, "seed": config.seed, "budget": asdict(config.budget)}
    question = measuring.question(model, parts, asked)
    runs = folder / "runs" / name
    return measuring.measured(
        place, question, name, protocol, parts,
        lambda: finetune_grid(file, name, parts, runs, config.budget, size, resample, config.seed, module),
    )  # fmt: skip


def _write_table(cells: list[Cell], folder: Path) -> None:
    """`table.json`: each result beside the paper's."""
    rows = [
        {"data": cell.name, "protocol": cell.protocol, "metric": cell.metric, "result": round(100 * cell.value, 2)}
        | {"paper": reported(cell.name, cell.protocol)}
        for cell in cells
    ]
    text = json.dumps(rows, indent=2) + "\n"
    write_atomically(folder / "table.json", lambda file: file.write(text.encode()))


def table(cells: list[Cell]) -> Table:
    """The results beside those that the paper reports for ResNet-50."""
    found = Table(title="Transfer: ours beside arXiv 2002.05709 (ResNet-50, ImageNet), in %", title_justify="left")
    for heading in ("data", "protocol", "metric", "ours", "SimCLR 1x", "supervised 1x", "SimCLR 4x", "supervised 4x"):
        found.add_column(heading, justify="left" if heading in ("data", "protocol", "metric") else "right")
    for cell in cells:
        paper = reported(cell.name, cell.protocol)
        theirs = [f"{paper[key]:.1f}" for key in ("SimCLR 1x", "supervised 1x", "SimCLR 4x", "supervised 4x")]
        found.add_row(SETS[cell.name].title, cell.protocol, METRICS[cell.metric], f"{100 * cell.value:.1f}", *theirs)
    return found
