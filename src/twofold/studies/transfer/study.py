"""`twofold transfer`: what an encoder is worth on the 12 data sets of SimCLR's transfer study."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rich.table import Table
from torch import nn

from twofold.console import console, duration
from twofold.data import DataConfig
from twofold.devices import choose_device
from twofold.encoders import Encoder, read_header
from twofold.encoders.load import encoder_path, load
from twofold.errors import UserError, named
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.logistic import PAPER_GRID
from twofold.files import write_atomically
from twofold.options import OptionsParser, flatten, merge
from twofold.studies.transfer import linear as measuring
from twofold.studies.transfer.finetune import DECAYED, Budget, finetune_grid
from twofold.studies.transfer.linear import DataSplits, TransferResult
from twofold.studies.transfer.sets import METRICS, SETS, Protocol, reported
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
    """Images at a time (linear)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    download: bool = False
    """Fetch missing data sets where that is possible."""
    max_skipped: float = 0.2
    """Share of a part's files that may be unreadable; more is an error."""
    workers: int | None = None
    """Threads that decode (linear); chosen from the number of cores when not given."""
    budget: Budget = field(default_factory=Budget)
    """Fine-tuning: the published budget and grid unless told otherwise"""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"--batch must be at least 1, got {self.batch}")


@named("data.root", "data.download", "data.max_skipped", "data.workers", "training.device")
def transfer(run: str | Path, *, encoder: nn.Module | None = None, **options: object) -> list[TransferResult]:
    """Transfer an encoder to data sets of SimCLR's study.

    Every data set is opened, and looked through for classes without images, before the first is measured.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        encoder: your own module, if the run was trained with one.
        options: fields of `TransferConfig`.

    Returns:
        A cell for each data set and protocol asked for; they are in the folder `out`, with `table.json`, which holds
        the cells of earlier calls as well.

    Raises:
        UserError: missing or incomplete data, wrong options, results of another encoder in `out`.
        Stopped: if SIGINT or SIGTERM ended fine-tuning early; the same call goes on.
    """
    config = OptionsParser(TransferConfig).build(options)
    _refuse_unused(config, options)
    path = encoder_path(run)
    model = load(path, encoder, choose_device(config.device))
    views = read_header(path)["extra"].get("options", {}).get("views", {})
    size: int | None = config.size or views.get("size") or model.input.size
    if size is None:
        raise UserError(f"{path} does not say which side its images had: give --size, 224 for ImageNet's nets")
    resample: Resample = config.resample or views.get("resample", "antialias")
    folder = Path(config.out) if config.out else path.parent / "transfer"
    task = _Task(config, path, model, encoder, size, resample, folder)
    data = DataConfig(
        root=config.root, download=config.download, max_skipped=config.max_skipped, channels=model.input.channels,
        workers=config.workers,
    )  # fmt: skip
    parts = {name: measuring.open_parts(name, data, config.seed) for name in _names(config.data)}
    protocols: tuple[Protocol, ...] = ("linear", "finetune") if config.protocol == "both" else (config.protocol,)
    cells = []
    for name, divided in parts.items():
        for protocol in protocols:
            cell = task.cell(name, protocol, divided)
            message = f"{METRICS[cell.metric]} {cell.value:.2%}"
            console.print(f"{SETS[name].title}, {protocol}: {message} in {duration(cell.seconds)}", markup=False)
            cells.append(cell)
            task.write_table(cell.asked["encoder"])
    return cells


def _refuse_unused(config: TransferConfig, options: dict[str, object]) -> None:
    """Raise a UserError for an option that the protocol has no use for."""
    given = flatten(merge(options))
    unused = {
        "linear": {name: "it is for fine-tuning" for name in given if name.startswith("budget.")},
        "finetune": {"batch": "--budget.batch says how many images a step takes",
                     "workers": "fine-tuning chooses the number of its processes"},
        "both": {},
    }[config.protocol]  # fmt: skip
    for name, why in unused.items():
        if name in given:
            raise UserError(
                f"--{name} {given[name]} has no effect with --protocol {config.protocol}: {why}; leave it out, or "
                "take --protocol both"
            )


def _names(asked: str) -> list[str]:
    """The data sets asked for, in the paper's order."""
    wanted = list(SETS) if asked == "all" else [name.strip() for name in asked.split(",")]
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise UserError(f"--data {', '.join(unknown)}: the transfer study has {', '.join(SETS)}, or all")
    return [name for name in SETS if name in wanted]


@dataclass(frozen=True)
class _Task:
    """What the cells of one call share."""

    config: TransferConfig
    file: Path
    model: Encoder
    module: nn.Module | None
    size: int
    resample: Resample
    folder: Path

    def cell(self, name: str, protocol: Protocol, parts: DataSplits) -> TransferResult:
        """Measure one cell, or read what is there."""
        config, place = self.config, self.folder / f"{name}-{protocol}.json"
        if protocol == "linear":
            question = measuring.question(self.model, parts, self._asked() | {"grid": list(PAPER_GRID)})
            return measuring.measured(
                place, question, name, protocol, parts,
                lambda: measuring.linear(self.model, name, parts, self.size, self.resample, PAPER_GRID, config.batch,
                                         config.workers, FeatureCache.beside(self.file)),
            )  # fmt: skip
        asked = self._asked() | {"budget": asdict(config.budget), "decayed": DECAYED}
        runs = self.folder / "runs" / name
        return measuring.measured(
            place, measuring.question(self.model, parts, asked), name, protocol, parts,
            lambda: finetune_grid(self.file, name, parts, runs, config.budget, self.size, self.resample, config.seed,
                                  self.module, config.device),
        )  # fmt: skip

    def _asked(self) -> dict[str, Any]:
        return {"size": self.size, "resample": self.resample, "seed": self.config.seed}

    def write_table(self, encoder: str) -> None:
        """`table.json`: each result in the folder that was asked for like this call's, beside the paper's.

        Whatever data sets and protocols the call itself is for: they all belong into one table.
        """
        result = (
            measuring.cell_like(self.folder / f"{name}-{protocol}.json", self._asked() | {"encoder": encoder})
            for name in SETS
            for protocol in get_args(Protocol)
        )
        rows = [
            {"data": cell.name, "protocol": cell.protocol, "metric": cell.metric, "result": round(100 * cell.value, 2)}
            | {"paper": reported(cell.name, cell.protocol)}
            for cell in result
            if cell is not None
        ]
        text = json.dumps(rows, indent=2) + "\n"
        write_atomically(self.folder / "table.json", lambda file: file.write(text.encode()))


def table(cells: list[TransferResult]) -> Table:
    """The results beside those that the paper reports for ResNet-50."""
    title = "Transfer: ours beside arXiv 2002.05709 (ResNet-50 1x/4x, ImageNet), in %"
    result = Table(title=title, title_justify="left")
    for heading in ("data", "protocol", "metric"):
        result.add_column(heading)
    starts = ["SimCLR", "supervised", *(["random start"] if any(cell.protocol == "finetune" for cell in cells) else [])]
    for heading in ("ours", *starts):
        result.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)  # 80 columns hold them
    for cell in cells:
        paper = reported(cell.name, cell.protocol)
        # A linear classifier on random features is not in the paper: nothing stands there.
        theirs = ["/".join(f"{value:.1f}" for key, value in paper.items() if key.startswith(start))
                  for start in starts]  # fmt: skip
        result.add_row(SETS[cell.name].title, cell.protocol, METRICS[cell.metric], f"{100 * cell.value:.1f}", *theirs)
    return result
