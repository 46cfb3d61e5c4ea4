"""`twofold embed`: the features of every image or sound of some data, with names, as one file of arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from twofold.commands.evaluate import with_head
from twofold.data import DataConfig, Source, open_source
from twofold.devices import choose_device
from twofold.encoders.load import encoder_path, load
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.features import extract
from twofold.files import write_atomically
from twofold.options import OptionsParser


@dataclass(frozen=True)
class EmbedConfig:
    """How features are computed."""

    features: Literal["h", "z"] = "h"
    """What is written: h, the encoder's output; z, the projection head's."""
    size: int | None = None
    """Side of the images in pixels; the side that the encoder was trained on when not given."""
    preprocessing: Literal["auto", "none", "resize", "crop"] = "auto"
    """What is done to images first, as `twofold evaluate` has it."""
    resample: Literal["tf2", "tf1", "antialias"] | None = None
    """How images are resized; as in the encoder's training when not given."""
    batch: int = 256
    """Images or recordings at a time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: give 1 or more")


@dataclass(frozen=True)
class Embedded:
    """The file, the shape of its features, and what was done in words."""

    file: Path
    shape: tuple[int, int]
    text: str


def embed(run: str | Path, data: Any, out: str | Path, *, encoder: nn.Module | None = None, **options: Any) -> Embedded:
    """Write features [n, d] float32, names [n] and, where there are any, labels (and their classes' names) to an .npz.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: whatever `twofold.pretrain` takes; of data with splits the one that `data.split` names, or the training
            part.
        out: a new .npz file. Names in it are paths relative to `data`, or positions where there are no files. Those of
            what could not be read are missing.
        encoder: your own module, if the run was trained with one.
        options: fields of `EmbedConfig`, nested or dotted.

    Raises:
        UserError: `out` exists, an option that recordings have no use for, nothing readable, ...
    """
    config, out = OptionsParser(EmbedConfig).build(options), Path(out)
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file holds several arrays: give a name that ends in .npz")
    if out.exists():
        raise UserError(f"--out {out} exists already; choose another name")
    path, device = encoder_path(run), choose_device(config.device, "--device")
    model = load(path, encoder, device)
    given = [name for name in ("size", "preprocessing", "resample") if getattr(config, name) not in (None, "auto")]
    if given and model.input.kind == "audio":
        raise UserError(
            f"--{given[0]} {getattr(config, given[0])} is for images, and {run} takes recordings: leave it out"
        )
    if config.features == "z":
        model = with_head(model, path)
    views = read_header(path)["extra"].get("options", {}).get("views", {})
    source = open_source(data, dataclasses.replace(config.data, channels=config.data.channels or model.input.channels))
    result = extract(
        model, source, config.size or views.get("size"), config.batch, device, config.preprocessing,
        config.resample or views.get("resample", "antialias"), config.data.workers,
    )  # fmt: skip
    arrays: dict[str, Any] = {"features": result.h, "names": _names(source, result.index, data)}
    if result.labels is not None:
        arrays["labels"] = result.labels
        if source.classes:
            arrays["classes"] = np.array(source.classes)
    write_atomically(out, lambda file: np.savez(file, **arrays))
    text = f"{out}: features [{result.h.shape[0]:,}, {result.h.shape[1]}] of {source.name} ({result.text}), with names"
    text += "" if result.labels is None else " and labels"
    if source.skipped:
        text += f"; {len(source.skipped):,} file(s) left out:\n{source.skipped.summary(10)}"
    return Embedded(out, (len(result.h), result.h.shape[1]), text)


def _names(source: Source, index: NDArray[np.int64], data: Any) -> NDArray[np.str_]:
    """Paths below the data's folder, whole ones elsewhere; positions where the data are not made of files."""
    path = getattr(source, "path", None)
    if path is None:
        return index.astype(np.str_)
    base = Path(data).expanduser() if isinstance(data, str | Path) else Path()
    base = base.parent if base.is_file() else base
    names = [Path(path(int(i))) for i in index]
    return np.array([(name.relative_to(base) if name.is_relative_to(base) else name).as_posix() for name in names])
