"""`twofold embed`: the features of every image or sound of some data, with names, as a file of arrays or an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, add_resume, new_parser, require_out
from twofold.data import AudioSource, DataConfig, Source
from twofold.data.base import NothingReadable
from twofold.data.groups import groups_of
from twofold.data.sources.given import names_of, open_given
from twofold.data.sources.pieces import file_means
from twofold.data.sources.tables import table_columns
from twofold.devices import choose_device
from twofold.encoders import Encoder, UtteranceEncoder
from twofold.encoders.composed import in_parts
from twofold.encoders.load import encoder_path, load
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.embeddings import (
    Embeddings,
    Part,
    as_column,
    check_form,
    finished,
    piecewise,
)
from twofold.evaluation.feature_cache import decode_options
from twofold.evaluation.features import Extractor, Pixels, audio_batches, evaluation_mode
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.framing import cut_in_words, framed_in_words
from twofold.evaluation.frozen import digest
from twofold.evaluation.protocols.base import (
    BatchOptions,
    HeadOptions,
    PreprocessingOptions,
    Progress,
    check_parts,
    with_head,
)
from twofold.options import OptionsParser, add_options, merge, option, refuse_unused
from twofold.results import in_json
from twofold.text import counted

_AUDIO: dict[str, tuple[str, ...]] = {"kind": ("audio",)}


@dataclass(frozen=True)
class EmbedConfig(HeadOptions, PreprocessingOptions, BatchOptions):
    """How features are computed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    per_file: bool = option(False, when={"kind": ("image",)})
    """Of tiles and frames (data.tile, data.frames): one row a file, the mean of the features of its pieces."""
    parts: int = option(1, when={**_AUDIO, "level": ("recording",)}, instead="leave it at 1")
    """Parts of equal length that a recording's frames are pooled by, side by side: 1 for one mean over all, 3 for
    beginning, middle and end, which tell the order of sounds."""
    level: Literal["recording", "frame"] = option("recording", when=_AUDIO)
    """frame: what a layer gives over time, a row a step, instead of one row a recording."""
    layer: int | None = option(None, when={"level": ("frame",)})
    """Which layer's frames: 0 is the first that the encoder gives; the last when not given."""
    columns: tuple[str, ...] = ()
    """Columns of the table or manifest that are taken along."""
    index: Literal["auto", "flat", "hnsw", "ivf"] = "auto"
    """Of an .faiss file: flat, which is exact, HNSW, or IVF; auto takes flat below 100,000 rows and HNSW below a
    million."""
    save_every: int = 5000
    """Examples after which what is done is saved, for --resume."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data: images are read as in the encoder's training, unless told otherwise"""

    def __post_init__(self) -> None:
        check_parts(self.parts)
        if self.save_every < 1:
            raise UserError(f"--save_every {self.save_every}: give 1 or more")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: give 1 or more")


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
    run: str | Path, data: Any, /, out: str | Path, *, encoder: nn.Module | None = None, resume: bool = False,
    **options: Any,
) -> EmbedResult:  # fmt: skip
    """Write features [n, d] float32, names [n] and, where there are any, labels (with names of classes) and groups.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: whatever `twofold.pretrain` takes, or one file, or a list of files; of data with splits the one that
            `data.split` names, or the training part.
        out: a new .npz or .parquet file, or a .faiss index, with names and labels in a .npz file beside it. Names are
            paths relative to `data`, or positions where there are no files; of tiles and frames ``file#left,top``,
            ``file#frame`` or ``file#frame#left,top``. What could not be read is missing. Frames of recordings have
            [total, d] features, `starts` [n + 1], where those of each begin, and `step`, seconds from one to the next.
        encoder: your own module, if the run was trained with one.
        resume: go on with what an earlier call that was stopped has left beside `out`.
        options: fields of `EmbedConfig`, nested or dotted.

    Raises:
        UserError: `out` exists, an option that recordings have no use for, nothing readable, ...
    """
    path, out = encoder_path(run), Path(out)
    config = OptionsParser(EmbedConfig).build(merge(Pixels.of(read_header(path)).options(), options))
    check_form(out)
    if config.index != "auto" and out.suffix != ".faiss":
        raise UserError(f"--index {config.index} is for a file that ends in .faiss, and --out is {out}: leave it out")
    if out.exists():
        raise UserError(f"--out {out} exists already; choose another name")
    model = load(path, encoder, choose_device(config.device, "--device"))
    refuse_unused(config, kind=model.input.kind)
    if config.level == "frame" and out.suffix == ".faiss":
        raise UserError(f"--level frame has a row a step, and {out} is an index of examples: write .npz or .parquet")
    parts = out.with_name(out.name + ".parts")
    found, source, _ = embeddings(path, model, data, config, parts=parts, resume=resume)
    written = found.write(out, config.index)
    finished(parts)
    return EmbedResult(out, (len(found.features), found.features.shape[1]), _note(found, source, config, written))


def embeddings(
    path: Path, model: Encoder, data: Any, config: EmbedConfig, *, parts: Path, resume: bool = False,
    progress: Progress | None = None,
) -> tuple[Embeddings, Source, NDArray[np.int64]]:  # fmt: skip
    """Features of data with all that is known of them, the source that they are of, and their places in it.

    Args:
        path: of the encoder's file.
        model: the encoder, where it computes.
        data: see `embed`.
        parts: the folder in which parts are saved that are done.
        resume: whether it may hold some.
        progress: told of the features of what is read in one piece (see `EmbedConfig.save_every`).
    """
    if config.features == "z":
        model = with_head(model, path)
    model = in_parts(model, config.parts)
    reading = dataclasses.replace(config.data, channels=config.data.channels or model.input.channels)
    source = source_for(open_given(data, reading, model.input.kind), model)
    extract, settings = _extraction(path, model, config, progress)
    encoder = digest(model)
    reading_of = {"reading": decode_options(source), "parts": config.parts}
    key = {"encoder": encoder, "data": source.fingerprint(), **reading_of, **settings}
    part = piecewise(source, extract, parts, key, config.save_every, resume)
    index, h, starts = part.index, part.h, None
    if not len(index):
        raise NothingReadable.of(f"{source.name}: none of its {counted(len(source), 'file')} can be read", part.skipped)
    if config.per_file:
        index, h = file_means(source, index, h)
    if config.level == "frame":
        starts = np.concatenate([[0], np.cumsum(part.counts)])
    groups, labels = groups_of(source), None if source.labels is None else np.asarray(source.labels)[index]
    table = table_columns(source, index, data, config.columns, config.data) if config.columns else {}
    facts = {
        "encoder": encoder,
        "data": str(data) if isinstance(data, str | Path) else "",
        "text": framed_in_words(part.framed) + part.text + cut_in_words(*part.cut),
        "preprocessing": config.preprocessing,
    }
    found = Embeddings(
        h, names_of(source, index, data, config.per_file), facts, labels,
        tuple(source.classes) if labels is not None and source.classes else (),
        None if groups is None else np.array([groups[place] for place in index.tolist()]),
        {name: as_column(values) for name, values in table.items()}, starts,
        _step(model) if config.level == "frame" else None,
    )  # fmt: skip
    return found, source, index


def _extraction(
    path: Path, model: Encoder, config: EmbedConfig, progress: Progress | None
) -> tuple[Callable[[Source], Part], dict[str, Any]]:
    """How the features of a part of the data are made, and what they depend on beside the encoder and the data."""
    if config.level == "frame":
        assert isinstance(model, UtteranceEncoder)  # refuse_unused has seen that these are recordings
        return lambda source: _frames(model, source, config), {"level": "frame", "layer": config.layer}
    extractor = Extractor.of(
        path, size=config.size, preprocessing=config.preprocessing, resample=config.resample, batch=config.batch,
        workers=config.data.workers,
    )  # fmt: skip

    report = (lambda done, total: progress("features", done, total)) if progress else None

    def extract(source: Source) -> Part:
        try:
            found = extractor.extract(model, source, report)
        except NothingReadable as nothing:  # of a part: others may hold some
            nowhere = np.empty(0, dtype=np.int64)
            return Part(np.empty((0, 0), np.float32), nowhere, nowhere, nothing.skipped, "")
        ones, text = np.ones(len(found.h), dtype=np.int64), found.text.removesuffix(cut_in_words(*found.cut))
        text = text.removeprefix(framed_in_words(found.framed))
        return Part(found.h, found.index, ones, found.skipped, text, found.cut, found.framed)

    settings = {name: getattr(extractor, name) for name in ("size", "preprocessing", "resample")}
    return extract, settings | {"features": config.features, "level": "recording"}


@torch.inference_mode()
def _frames(model: UtteranceEncoder, source: Any, config: EmbedConfig) -> Part:
    """What one layer gives over time."""
    assert isinstance(source, AudioSource)
    device, found, bad = next(model.parameters()).device, dict[int, Any](), list[tuple[str, str]]()
    layers = 0
    with evaluation_mode(model):
        for _, waves, kept, skipped in audio_batches(source, config.batch, config.data.workers):
            bad += skipped
            if not kept:
                continue
            states, frames = model.hidden_states(waves.to(device))
            layers, layer = len(states), -1 if config.layer is None else config.layer
            if not -1 <= layer < layers:
                raise UserError(f"--layer {layer}: the encoder has layers 0 to {layers - 1}")
            chosen = states[layer].float().cpu().numpy()
            found |= {index: chosen[row, : int(frames[row])] for row, index in enumerate(kept)}
    index = np.array(sorted(found), dtype=np.int64)
    rows = [found[place] for place in index.tolist()]
    h = np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
    which = "the last layer" if config.layer is None else f"layer {config.layer} of {layers}"
    return Part(h, index, np.array([len(row) for row in rows], dtype=np.int64), tuple(bad), f"frames of {which}")


def _step(model: Encoder) -> float:
    """Seconds from one frame to the next."""
    assert isinstance(model, UtteranceEncoder)
    return model.stack * model.frontend.shift / model.frontend.sample_rate


def _note(found: Embeddings, source: Source, config: EmbedConfig, written: str) -> str:
    """What was written, for people."""
    shape = f"[{found.features.shape[0]:,}, {found.features.shape[1]}]"
    text = f"{written}: features {shape} of {source.name} ({found.facts['text']}), with names"
    text += "" if found.labels is None else " and labels"
    text += f" and {', '.join(found.columns)}" if found.columns else ""
    text += ", means of the pieces of each file" if config.per_file else ""
    text += f", of {config.parts} parts of each recording" if config.parts > 1 else ""
    text += (
        f", {counted(len(found.names), 'recording')}, a frame each {found.step:g} s" if found.step is not None else ""
    )
    if source.skipped:
        text += f"; {len(source.skipped):,} file(s) left out:\n{source.skipped.summary(10)}"
    return text


def parser() -> ArgumentParser:
    """Of `twofold embed`."""
    parser = new_parser("Write features, names and labels of all that the data hold to a file, or to an index.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_data(parser, EITHER)
    parser.add_argument("--out", type=str, help="a new .npz, .parquet or .faiss file")
    add_resume(parser, "work")
    add_options(parser, EmbedConfig)
    return parser


def run(options: dict[str, Any]) -> EmbedResult:
    """`twofold embed`."""
    require_out(options, "a new file", "features.npz")
    return embed(options.pop("run"), options.pop(PATH), options.pop("out"), **options)
