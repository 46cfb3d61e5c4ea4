"""Features of every image of a source, with the published test-time preprocessing and the encoder left as it was."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twofold.data import ArraySource, AudioSource, BadImage, DataConfig, DatasetSource, Source
from twofold.data.base import NothingReadable
from twofold.data.batches.cache import CachedSource
from twofold.data.decoding.pixels import DeepPixels
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.pieces import PiecesSource
from twofold.data.sources.subset import SubsetSource
from twofold.devices import usable_cores
from twofold.encoders import Encoder, Waves, read_header
from twofold.errors import Diverged, UserError
from twofold.evaluation.feature_cache import NOTHING_KEPT, FeatureCache, Features
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.framing import Framing, Preprocessing, cut_in_words, framed_in_words
from twofold.evaluation.prepared import Kept, Prepared
from twofold.kinds import EXAMPLE
from twofold.options import upgraded
from twofold.text import counted
from twofold.views.resample import Resample

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Pixels:
    """What decides what a pixel is, and what of a file is an image or a recording, when files are read: options of
    `DataConfig`, None where nobody knows."""

    background: str | None = None
    orient: bool | None = None
    deep_pixels: DeepPixels | None = None
    pixel_range: tuple[float, float] | None = None
    bands: tuple[int, ...] | None = None
    band_ranges: tuple[tuple[float, float], ...] | None = None
    tile: int | None = None
    tile_overlap: int | None = None
    tile_rest: float | None = None
    frames: Literal["first", "all"] | None = None
    frame_step: int | None = None
    trim: float | None = None
    """Of recordings: `data.audio.trim`, 0 where their ends were left as they are."""

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Pixels:
        """How the examples were read that an encoder was trained on, from its file's header (see `read_header`)."""
        options = upgraded(header["extra"].get("options", {})).get("data", {})
        if "audio" in options:
            options = options | {"trim": options["audio"].get("trim") or 0.0}
        return cls(**{field.name: _as_tuple(options.get(field.name)) for field in dataclasses.fields(cls)})

    def known(self) -> dict[str, Any]:
        """The options of images whose values are known."""
        values = dataclasses.asdict(self)
        del values["trim"]
        return {name: value for name, value in values.items() if value is not None}

    def options(self) -> dict[str, Any]:
        """Those that are not the defaults, as the lowest layer of a command's options: what a user gives wins."""
        plain = DataConfig()
        given = {name: value for name, value in self.known().items() if value != getattr(plain, name)}
        return {"data": given | ({"audio": {"trim": self.trim}} if self.trim else {})}

    def of_whole_images(self) -> Pixels:
        """The same without tiles and frames: for data sets whose published scores count images."""
        return dataclasses.replace(self, tile=None, tile_overlap=None, tile_rest=None, frames=None, frame_step=None)

    def fill(self, config: DataConfig) -> DataConfig:
        """The same with what is left at its default as it was in training."""
        plain = DataConfig()
        left = {name for name in self.known() if getattr(config, name) == getattr(plain, name)}
        if self.trim and config.audio.trim is None:
            config = dataclasses.replace(config, audio=dataclasses.replace(config.audio, trim=self.trim))
        return dataclasses.replace(config, **{name: self.known()[name] for name in left})

    def differences(self, source: Source) -> str:
        """What is read otherwise in a source of files than in training, in words; else nothing."""
        if isinstance(source, AudioSource):
            own = source.config.audio.trim or 0.0
            if self.trim is None or own == self.trim:
                return ""
            here, there = (f"trimmed at {trim:g} dB" if trim else "untrimmed" for trim in (own, self.trim))
            return f"the recordings {here} where the encoder was trained with them {there}"
        config = _decoding(source)
        if config is None:
            return ""
        return ", ".join(
            f"data.{name} {getattr(config, name)} where the encoder was trained with {value}"
            for name, value in self.known().items()
            if getattr(config, name) != value
        )


def _as_tuple(value: Any) -> Any:
    """A value as options hold it: a file's lists as tuples."""
    return tuple(_as_tuple(each) for each in value) if isinstance(value, list | tuple) else value


def cut_from(source: Any) -> str:
    """Of what files images are tiles or frames, in words; empty where they are whole."""
    if isinstance(source, SubsetSource | CachedSource):
        return cut_from(source.whole)
    return f"{source.whole.name}: {source.count}" if isinstance(source, PiecesSource) else ""


def _decoding(source: Any) -> DataConfig | None:
    """The options that image files are read with; None where nothing is decoded."""
    if isinstance(source, SubsetSource | CachedSource | PiecesSource):
        return _decoding(source.whole)
    return source.config if isinstance(source, EncodedSource | DatasetSource) else None


@dataclass(frozen=True)
class Extractor:
    """How features are computed: everything but the encoder and the data.

    Args:
        size: side S that the encoder was trained on; by default what the encoder states, else the images' own size.
        preprocessing: "crop": the central square of 0.875 of the shorter side, resized to S (SimCLR's test-time
            preprocessing); "resize": the whole central square, resized to S; "letterbox": the whole image, its longer
            side resized to S, between bars of its mean colour; "squares": as few squares as cover the longer side, 16
            at most, each resized to S, and the mean of their features; "none": pixels as they are. "auto": none for
            images of S x S, resize where S or the image is at most 32 pixels (as tf2/data_util.py), else crop.
        resample: how "crop" and "resize" interpolate; as in pretraining.
        pixels: how the images were read in training; what a source reads otherwise is told in the features' text. None
            compares nothing.
        batch: images or recordings at a time.
        device: where to compute; the encoder moves there and stays. By default where its parameters are.
        workers: threads that read files; by default one a core, at most 8.
        cache: where features are looked for and kept.
        memory: keeps prepared examples from one extraction to the next; None reads them each time.
        role: what features are for that are not the evaluated encoder's, as "untrained": they are kept beside its.

    Raises:
        UserError: fewer than one image at a time.
    """

    size: int | None = None
    preprocessing: Preprocessing = "auto"
    resample: Resample = "antialias"
    pixels: Pixels | None = None
    batch: int = 256
    device: torch.device | str | None = None
    workers: int | None = None
    cache: FeatureCache = NOTHING_KEPT
    memory: Prepared | None = None
    role: str = ""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: give 1 or more")

    @classmethod
    def of(cls, encoder_file: str | Path, **changes: Any) -> Extractor:
        """The same preprocessing that an encoder's training had, as its file tells, with some `changes`.

        A change that is None leaves what the file tells.
        """
        header = read_header(encoder_file)
        views = header["extra"].get("options", {}).get("views", {})
        known = {"size": views.get("size"), "resample": views.get("resample"), "pixels": Pixels.of(header)}
        return cls(**{name: value for layer in (known, changes) for name, value in layer.items() if value is not None})

    def extract(self, encoder: Encoder, source: Source, progress: Callable[[int, int], None] | None = None) -> Features:
        """Run every image of `source` once through `encoder`, in order, in evaluation mode and without gradients.

        Args:
            encoder: each module's training flag is restored afterwards, also after an error.
            source: images of equal or of different sizes, or recordings.
            progress: called with (images done, images in all) after each batch.

        Raises:
            UserError: channels that the encoder does not take; images of different sizes and no S; no readable image;
                more unreadable images than the source allows; features that are not finite (Diverged).
        """
        source = source_for(source, encoder)
        device = torch.device(self.device) if self.device else _place(encoder)
        settings = {
            "size": self.size or encoder.input.size, "preprocessing": self.preprocessing, "resample": self.resample,
            "device": device.type, **({"role": self.role} if self.role else {}),
        }  # fmt: skip
        result = self.cache.features(encoder, source, settings, lambda: self._run(encoder, source, device, progress))
        if result.kept and progress:
            progress(len(source), len(source))
        differing = self.pixels.differences(source) if self.pixels else ""
        words = [result.text, f"the images are pieces of {whole}" if (whole := cut_from(source)) else ""]
        words.append(f"read with {differing}" if differing else "")
        return dataclasses.replace(result, text=", ".join(filter(None, words)) + cut_in_words(*result.cut))

    def _run(
        self, encoder: Encoder, source: Source, device: torch.device, progress: Callable[[int, int], None] | None
    ) -> Features:
        if source.channels != encoder.input.channels:
            raise UserError(
                f"{source.name} gives images of {counted(source.channels, 'channel')}, the encoder takes "
                f"{encoder.input.channels}: set --data.channels {encoder.input.channels}"
            )
        framing = Framing(self.preprocessing, self.size or encoder.input.size, self.resample)
        memory = self.memory or Prepared(0)
        kept_source = memory.of(source, framing)
        encoder.to(device)
        parts: list[Tensor] = []
        index: list[int] = []
        skipped: list[tuple[str, str]] = []
        with evaluation_mode(encoder), torch.inference_mode():
            for begin, images, kept, counts, bad in _batches(kept_source, memory, self.batch, self.workers):
                if len(kept):
                    parts.append(_encoded(encoder, images.to(device, non_blocking=True), counts, self.batch))
                index += kept
                skipped += bad
                if progress:
                    progress(min(begin + self.batch, len(source)), len(source))
        if not parts:
            what = f"{source.name}: none of its {counted(len(source), EXAMPLE[encoder.input.kind])} can be read"
            raise NothingReadable.of(what, source.skipped)
        kept_index = np.array(index, dtype=np.int64)
        order = np.argsort(kept_index)  # recordings come by length
        kept_index, h = kept_index[order], torch.cat(parts).numpy()[order]
        if not np.isfinite(h).all():
            raise Diverged(f"the encoder gives features of {source.name} that are not finite: its weights are spoiled")
        labels = None if source.labels is None else np.asarray(source.labels)[kept_index]
        framing = kept_source.framing
        framed = framing.framed()
        return Features(
            h, labels, kept_index, tuple(skipped), framed_in_words(framed), cut=framing.cut(), framed=framed
        )


AS_IT_COMES = Extractor()
"""Images at the size that the encoder states, else at their own."""


def _place(encoder: Encoder) -> torch.device:
    """Where an encoder's parameters are."""
    return next((p.device for p in encoder.parameters()), torch.device("cpu"))


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule's own mode again (a frozen part of a net may differ)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _encoded(encoder: Encoder, images: Tensor | Waves, counts: list[int] | None, batch: int) -> Tensor:
    """Features [n, d] of a batch; of images of several squares, `counts` of each, their means."""
    if counts is None or isinstance(images, Waves):
        features: Tensor = encoder(images).float().cpu()
        return features
    h = torch.cat([encoder(part).float().cpu() for part in images.split(batch)])
    return torch.stack([own.mean(0) for own in h.split(counts)])


_Part = tuple[int, Tensor | Waves, list[int], list[int] | None, list[tuple[str, str]]]


def _batches(kept: Kept, memory: Prepared, batch: int, workers: int | None) -> Iterator[_Part]:
    """(first index, images or recordings, indices read, squares of each where there can be several, skipped)."""
    source, framing = kept.source, kept.framing
    several = framing.rule == "squares"
    if isinstance(source, AudioSource):
        framing.used["recordings"] = set()
        read = partial(_read_wave, source, kept, memory)
        for begin, waves, indices, bad in _audio_parts(source, batch, workers, read):
            yield begin, waves, indices, None, bad
        return
    if isinstance(source, ArraySource):
        height, width = source.images.shape[2:]
        for begin in range(0, len(source), batch):
            images = source.images[begin : begin + batch]
            indices = list(range(begin, begin + len(images)))
            for index in indices:
                framing.note(index, height, width)
            yield begin, framing(images), indices, [framing.count(height, width)] * len(images) if several else None, []
        return
    if (framing.size is None or framing.rule == "none") and not source.facts().equal_sized:
        raise UserError(
            f"{source.name} has images of different sizes: give the size that the encoder was trained on"
            + (", and preprocessing 'auto', 'crop' or 'resize'" if framing.rule == "none" else "")
        )
    with ThreadPoolExecutor(_threads(workers)) as pool:  # decoding releases Python's lock
        waiting: deque[tuple[int, list[Future[Tensor | BadImage]]]] = deque()
        starts = deque(range(0, len(source), batch))
        while starts or waiting:
            while starts and len(waiting) < _BATCHES_AHEAD:
                begin = starts.popleft()
                indices = list(range(begin, min(begin + batch, len(source))))
                waiting.append((begin, [pool.submit(_read, kept, memory, i) for i in indices]))
            yield _collect(source, *waiting.popleft(), several)


def _read(kept: Kept, memory: Prepared, index: int) -> Tensor | BadImage:
    known = kept.examples.get(index)
    if known is not None:
        return known
    example: Tensor | BadImage
    try:
        pixels = kept.source.read(index)
        kept.framing.note(index, *pixels.shape[:2])
        example = kept.framing(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None])
    except BadImage as error:
        example = error
    memory.keep(kept, index, example)
    return example


def _collect(source: Source, begin: int, futures: list[Future[Tensor | BadImage]], several: bool) -> _Part:
    images: list[Tensor] = []
    kept: list[int] = []
    bad: list[tuple[str, str]] = []
    for index, future in enumerate(futures, begin):
        result = future.result()
        if isinstance(result, BadImage):
            source.skipped.add(result.path, result.reason)
            bad.append((result.path, result.reason))
        else:
            images.append(result if result.is_floating_point() else result / 255)
            kept.append(index)
    counts = [len(each) for each in images] if several else None
    return begin, torch.cat(images) if images else torch.empty(0), kept, counts, bad


SECONDS_AT_ONCE = 400.0
"""Most seconds of sound in a batch, padding included: attention over long recordings takes memory."""


Part = tuple[int, Waves, list[int], list[tuple[str, str]]]


def _threads(workers: int | None) -> int:
    return max(1, workers if workers is not None else min(8, usable_cores()))


def _read_wave(source: AudioSource, kept: Kept | None, memory: Prepared | None, index: int) -> Tensor | BadImage:
    known = None if kept is None else kept.examples.get(index)
    if known is not None:
        return known
    example: Tensor | BadImage
    try:
        example = torch.from_numpy(source.read(index))
    except BadImage as error:
        example = error
    if kept is not None and memory is not None:
        memory.keep(kept, index, example)
    return example


def audio_batches(source: AudioSource, batch: int, workers: int | None = None) -> Iterator[Part]:
    """(recordings given before, recordings, their indices, skipped) of batches of like lengths, each recording once.

    They are read by so many threads, one a core and at most 8 if not given. Recordings longer than
    `data.audio.max_seconds` give their beginning. Source: at the encoder's rate.
    """
    yield from _audio_parts(source, batch, workers, partial(_read_wave, source, None, None))


def _audio_parts(
    source: AudioSource, batch: int, workers: int | None, read: Callable[[int], Tensor | BadImage]
) -> Iterator[Part]:
    lengths = source.lengths()
    order = np.argsort(lengths, kind="stable")
    rate, begin = float(source.rate or source.rates[0]), 0
    with ThreadPoolExecutor(_threads(workers)) as pool:
        while begin < len(order):
            end = begin + 1
            while (
                end < min(len(order), begin + batch)
                and (end + 1 - begin) * lengths[order[end]] / rate <= SECONDS_AT_ONCE
            ):  # fmt: skip
                end += 1
            waves, kept, bad = [], [], []
            indices = order[begin:end].tolist()
            for index, wave in zip(indices, pool.map(read, indices), strict=True):
                if isinstance(wave, BadImage):
                    source.skipped.add(wave.path, wave.reason)
                    bad.append((wave.path, wave.reason))
                else:
                    waves.append(wave)
                    kept.append(index)
            yield begin, Waves.of(waves), kept, bad
            begin = end
