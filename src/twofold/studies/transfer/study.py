"""What an encoder is worth on the 12 data sets of SimCLR's transfer study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from twofold.console import duration, print_rank0
from twofold.data import DataConfig
from twofold.devices import choose_device
from twofold.encoders import read_header
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.logistic import PAPER_GRID
from twofold.files import check_out, write_atomically
from twofold.options import option
from twofold.report import Report, Table
from twofold.studies.base import Study
from twofold.studies.transfer import linear as measuring
from twofold.studies.transfer.finetune import DECAYED, Budget, finetune_grid
from twofold.studies.transfer.linear import DataSplits, TransferResult
from twofold.studies.transfer.sets import METRICS, SETS, Protocol, reported

_LINEAR = {"protocol": ("linear", "both")}


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
    With --resume, what is there already is not measured again."""
    seed: int = 0
    """Of the held-out validation parts and of fine-tuning."""
    size: int | None = None
    """Side of the images in pixels; the side that the encoder was trained on when not given."""
    resample: Literal["tf2", "tf1", "antialias"] | None = None
    """How images are resized; as in the encoder's training when not given."""
    batch: int = option(256, when=_LINEAR, instead="use --budget.batch")
    """Images at a time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    download: bool = False
    """Fetch missing data sets where that is possible."""
    max_skipped: float = 0.2
    """Share of a part's files that may be unreadable; more is an error."""
    workers: int | None = option(None, when=_LINEAR)
    """Threads that decode; chosen from the number of cores when not given."""
    budget: Budget = option(factory=Budget, when={"protocol": ("finetune", "both")})
    """Fine-tuning: the published budget and grid unless told otherwise"""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"--batch must be at least 1, got {self.batch}")


class TransferPart(NamedTuple):
    """One data set under one protocol, with its parts."""

    name: str
    protocol: Protocol
    splits: DataSplits


class TransferFolder:
    """A JSON file for each data set and protocol, `table.json` with all of them, and the runs of fine-tuning."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path, self.resume = path, resume

    @property
    def path(self) -> Path:
        return self._path

    @property
    def file(self) -> Path:
        return self._path / "table.json"

    def cell(self, name: str, protocol: Protocol) -> Path:
        """The file of a data set under a protocol."""
        return self._path / f"{name}-{protocol}.json"

    def start(self) -> None:
        """Raise a UserError where results are there, and nobody said that they go on."""
        names = [self.cell(name, protocol) for name in SETS for protocol in get_args(Protocol)]
        begun = any(path.exists() for path in (self.file, self._path / "runs", *names))
        check_out(self._path, begun, "study", self.resume)

    def finish(self, results: Sequence[dict[str, Any]], interpretation: str, report: Report | None) -> None:
        """Nothing is left to write: each result and the table were, as soon as they were measured."""

    def write_table(self, asked: dict[str, Any]) -> None:
        """`table.json`: each result in the folder that was asked for like this call's, beside the paper's.

        Whatever data sets and protocols the call itself is for: they all belong into one table.
        """
        cells = (
            measuring.cell_like(self.cell(name, protocol), asked) for name in SETS for protocol in get_args(Protocol)
        )
        rows = [
            {"data": cell.name, "protocol": cell.protocol, "metric": cell.metric, "result": round(100 * cell.value, 2)}
            | {"paper": reported(cell.name, cell.protocol)}
            for cell in cells
            if cell is not None
        ]
        text = json.dumps(rows, indent=2) + "\n"
        write_atomically(self.file, lambda file: file.write(text.encode()))


class TransferStudy(Study[TransferPart, TransferResult]):
    """What an encoder is worth on the data sets of SimCLR's study; a part is a data set under a protocol."""

    name = "transfer"
    Config = TransferConfig

    def __init__(self, file: Path, config: TransferConfig, module: nn.Module | None, resume: bool) -> None:
        self.encoder, self.config, self.module = file, config, module
        self.folder: TransferFolder = TransferFolder(
            Path(config.out) if config.out else file.parent / "transfer", resume
        )

    def plan(self) -> Sequence[TransferPart]:
        """Opens every data set, and looks through it for classes without images, before the first is measured."""
        config = self.config
        self.model = load(self.encoder, self.module, choose_device(config.device, "--device"))
        self.extractor = Extractor.of(
            self.encoder, size=config.size, preprocessing="resize", resample=config.resample, batch=config.batch,
            workers=config.workers, cache=FeatureCache.beside(self.encoder),
        )  # fmt: skip
        size = self.extractor.size or self.model.input.size
        if size is None:
            raise UserError(
                f"{self.encoder} does not say which side its images had: give --size, 224 for ImageNet's nets"
            )
        self.size: int = size
        data = Pixels.of(read_header(self.encoder)).of_whole_images().fill(DataConfig(
            root=config.root, download=config.download, max_skipped=config.max_skipped,
            channels=self.model.input.channels, workers=config.workers,
        ))  # fmt: skip
        splits = {name: measuring.open_parts(name, data, config.seed) for name in _names(config.data)}
        protocols: tuple[Protocol, ...] = ("linear", "finetune") if config.protocol == "both" else (config.protocol,)
        return [TransferPart(name, protocol, parts) for name, parts in splits.items() for protocol in protocols]

    def run(self, part: TransferPart) -> Sequence[TransferResult]:
        """Measure a data set, or read its result."""
        cell = self._cell(*part)
        value = f"{METRICS[cell.metric]} {cell.value:.2%}"
        print_rank0(f"{SETS[part.name].title}, {part.protocol}: {value} in {duration(cell.seconds)}")
        self.folder.write_table(self._asked() | {"encoder": cell.asked["encoder"]})
        return [cell]

    def _cell(self, name: str, protocol: Protocol, parts: DataSplits) -> TransferResult:
        config, place = self.config, self.folder.cell(name, protocol)
        if protocol == "linear":
            question = measuring.question(self.model, parts, self._asked() | {"grid": list(PAPER_GRID)})
            return measuring.measured(
                place, question, name, protocol, parts,
                lambda: measuring.linear(self.model, name, parts, self.extractor, PAPER_GRID),
            )  # fmt: skip
        asked = self._asked() | {"budget": asdict(config.budget), "decayed": DECAYED}
        runs = self.folder.path / "runs" / name
        return measuring.measured(
            place, measuring.question(self.model, parts, asked), name, protocol, parts,
            lambda: finetune_grid(self.encoder, name, parts, runs, config.budget, self.size, self.extractor.resample,
                                  config.seed, self.module, config.device),
        )  # fmt: skip

    def _asked(self) -> dict[str, Any]:
        pixels: dict[str, Any] = (
            (self.extractor.pixels or Pixels()).of_whole_images().options()["data"]
        )  # of the defaults nothing, as ever
        return {"size": self.size, "resample": self.extractor.resample, "seed": self.config.seed} | pixels

    def measured(self, cell: TransferResult) -> Mapping[str, float]:
        """The data set's own metric, by data set and protocol."""
        return {f"{cell.name}, {cell.protocol}: {cell.metric}": cell.value}

    def table(self, cells: Sequence[TransferResult]) -> Table:
        """The results beside those that the paper reports for ResNet-50."""
        tuned = any(cell.protocol == "finetune" for cell in cells)
        starts = ["SimCLR", "supervised", *(["random start"] if tuned else [])]
        rows = []
        for cell in cells:
            paper = reported(cell.name, cell.protocol)
            # A linear classifier on random features is not in the paper: nothing stands there.
            theirs = ["/".join(f"{value:.1f}" for key, value in paper.items() if key.startswith(start))
                      for start in starts]  # fmt: skip
            rows.append(
                [SETS[cell.name].title, cell.protocol, METRICS[cell.metric], f"{100 * cell.value:.1f}", *theirs]
            )
        note = "In %; the paper's (arXiv 2002.05709) are of a ResNet-50 at widths 1x/4x, from ImageNet."
        return Table("Transfer", ["data", "protocol", "metric", "ours", *starts], rows, note)


def _names(asked: str) -> list[str]:
    """The data sets asked for, in the paper's order."""
    wanted = list(SETS) if asked == "all" else [name.strip() for name in asked.split(",")]
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise UserError(f"--data {', '.join(unknown)}: the transfer study has {', '.join(SETS)}, or all")
    return [name for name in SETS if name in wanted]
