"""`twofold embed`: the features of every image or sound of some data, with names, as one file of arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, new_parser, require_out
from twofold.data import DataConfig, Source, open_source
from twofold.data.groups import groups_of
from twofold.data.sources.pieces import file_means
from twofold.devices import choose_device
from twofold.encoders.composed import in_parts
from twofold.encoders.load import encoder_path, load
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.protocols.base import (
    BatchOptions,
    HeadOptions,
    PreprocessingOptions,
    check_parts,
    with_head,
)
from twofold.files import write_atomically
from twofold.options import OptionsParser, add_options, merge, option, refuse_unused
from twofold.results import in_json


@dataclass(frozen=True)
class EmbedConfig(HeadOptions, PreprocessingOptions, BatchOptions):
    """How features are computed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    per_file: bool = option(False, when={"kind": ("image",)})
    """Of tiles and frames (data.tile, data.frames): one row a file, the mean of the features of its pieces."""
    parts: int = option(1, when={"kind": ("audio",)}, instead="leave it at 1")
    """Parts of equal length that a recording's frames are pooled by, side by side: 1 for one mean over all, 3 for
    beginning, middle and end, which tell the order of sounds."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data: images are read as in the encoder's training, unless told otherwise"""

    def __post_init__(self) -> None:
        check_parts(self.parts)


@dataclass(frozen=True)
class EmbedResult:
    """The file, the shape of its features, and what was done in words."""

    file: Path
    shape: tuple[int, int]
    note: str

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        return self.note

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = in_json(self)
        return document


def embed(
    run: str | Path, data: Any, /, out: str | Path, *, encoder: nn.Module | None = None, **options: Any
) -> EmbedResult:
    """Write features [n, d] float32, names [n] and, where there are any, labels (with names of classes) and groups.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: whatever `twofold.pretrain` takes; of data with splits the one that `data.split` names, or the training
            part.
        out: a new .npz file. `names` in it are paths relative to `data`, or positions where there are no files; of
            tiles and frames ``file#left,top``, ``file#frame`` or ``file#frame#left,top``. What could not be read is
            missing.
        encoder: your own module, if the run was trained with one.
        options: fields of `EmbedConfig`, nested or dotted.

    Raises:
        UserError: `out` exists, an option that recordings have no use for, nothing readable, ...
    """
    path, out = encoder_path(run), Path(out)
    config = OptionsParser(EmbedConfig).build(merge(Pixels.of(read_header(path)).options(), options))
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file holds several arrays: give a name that ends in .npz")
    if out.exists():
        raise UserError(f"--out {out} exists already; choose another name")
    device = choose_device(config.device, "--device")
    model = load(path, encoder, device)
    refuse_unused(config, kind=model.input.kind)
    extractor = Extractor.of(
        path, size=config.size, preprocessing=config.preprocessing, resample=config.resample, batch=config.batch,
        device=device, workers=config.data.workers,
    )  # fmt: skip
    if config.features == "z":
        model = with_head(model, path)
    model = in_parts(model, config.parts)
    source = open_source(data, dataclasses.replace(config.data, channels=config.data.channels or model.input.channels))
    result = extractor.extract(model, source)
    h, index, labels = result.h, result.index, result.labels
    if config.per_file:
        index, h = file_means(source, index, h)
        labels = None if source.labels is None else source.labels[index]
    arrays: dict[str, Any] = {"features": h, "names": _names(source, index, data, config.per_file)}
    if labels is not None:
        arrays["labels"] = labels
        if source.classes:
            arrays["classes"] = np.array(source.classes)
    if (groups := groups_of(source)) is not None:
        arrays["groups"] = np.array([groups[place] for place in index.tolist()])
    write_atomically(out, lambda file: np.savez(file, **arrays))
    text = f"{out}: features [{h.shape[0]:,}, {h.shape[1]}] of {source.name} ({result.text}), with names"
    text += "" if labels is None else " and labels"
    text += ", means of the pieces of each file" if config.per_file else ""
    text += f", of {config.parts} parts of each recording" if config.parts > 1 else ""
    if source.skipped:
        text += f"; {len(source.skipped):,} file(s) left out:\n{source.skipped.summary(10)}"
    return EmbedResult(out, (len(h), h.shape[1]), text)


def _names(source: Source, index: NDArray[np.int64], data: Any, per_file: bool) -> NDArray[np.str_]:
    """Paths below the data's folder, whole ones elsewhere; positions where the data are not made of files."""
    path = getattr(source, "file" if per_file else "path", None)
    if path is None:
        return index.astype(np.str_)
    base = Path(data).expanduser() if isinstance(data, str | Path) else Path()
    base = base.parent if base.is_file() else base
    names = [Path(path(int(i))) for i in index]
    return np.array([(name.relative_to(base) if name.is_relative_to(base) else name).as_posix() for name in names])


def parser() -> ArgumentParser:
    """Of `twofold embed`."""
    parser = new_parser("Write features, names and labels of all that the data hold to an .npz file.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_data(parser, EITHER)
    parser.add_argument("--out", type=str, help="a new .npz file")
    add_options(parser, EmbedConfig)
    return parser


def run(options: dict[str, Any]) -> EmbedResult:
    """`twofold embed`."""
    require_out(options, "a new file", "features.npz")
    return embed(options.pop("run"), options.pop(PATH), options.pop("out"), **options)
