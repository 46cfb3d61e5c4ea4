"""What several commands do first: features of some data around their mean, with names, classes and pictures at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twofold.commands.embed import EmbedConfig, embeddings
from twofold.data import AudioSource, BadImage, DataConfig, Source
from twofold.data.sources.given import open_given
from twofold.data.sources.tables import columns_of, table_columns
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.embeddings import Embeddings, as_column, holds_embeddings
from twofold.evaluation.frozen import digest
from twofold.evaluation.neighbours import FaissIndex, Index, centred
from twofold.evaluation.protocols.base import Progress, with_head
from twofold.files import at_home
from twofold.report.contact import Shot


@dataclass(frozen=True)
class Shelf:
    """Examples with their features around a common mean, names, classes and pictures.

    Attributes:
        features: [n, d] of length 1 around `mean`.
        mean: [d].
        found: what is known of the examples.
        picture: pixels [H, W, 1 or 3] of one, of recordings a spectrogram; None where it cannot be read any more.
        sound: samples [m] of one in [-1, 1] and their rate; None of images, and where it cannot be read any more.
        place: the file of one, on this disk; None where it is no file of its own.
        columns: of the user's table, by name.
        index: that a file holds; None without.
    """

    features: NDArray[np.float32]
    mean: NDArray[np.float32]
    found: Embeddings
    picture: Callable[[int], NDArray[np.uint8] | None]
    sound: Callable[[int], tuple[NDArray[np.float32], int] | None]
    place: Callable[[int], Path | None]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    index: Index | None = None

    def entry(self, row: int) -> dict[str, Any]:
        """What a table says of one example."""
        return {"name": str(self.found.names[row]), "class": self.class_of(row)}

    def class_of(self, row: int) -> str | None:
        """Its class by name, or number; None where nobody says."""
        labels = self.found.labels
        if labels is None or labels.ndim != 1 or labels[row] < 0:
            return None
        return self.found.classes[labels[row]] if self.found.classes else str(labels[row])

    def classes_of(self, row: int) -> str | None:
        """Its class, or where it can have several all of them, joined by ``|``; None where nobody says."""
        labels = self.found.labels
        if labels is None or labels.ndim == 1:
            return self.class_of(row)
        names = self.found.classes or [str(number) for number in range(labels.shape[1])]
        return "|".join(names[number] for number in np.flatnonzero(labels[row] > 0).tolist()) or None

    def shot(self, row: int, text: str, marked: bool = False) -> Shot:
        """Its picture for a sheet."""
        return Shot(self.picture(row), text, marked)


class Reading(Protocol):
    """What the options of such a command have in common; further ones of `EmbedConfig` are taken by name."""

    @property
    def data(self) -> DataConfig:
        """How data are read."""

    @property
    def features(self) -> Any:
        """Whose output is taken: h or z."""


@dataclass(frozen=True)
class Shelves:
    """Makes shelves by one encoder.

    Attributes:
        file: of the encoder.
        model: the encoder, where it computes.
        config: the command's options.
        parts: a folder that is not there.
        columns: whether those of the user's table are read: True for all of them, or their names.
        progress: told of the features.
        skipped: what could not be read.
    """

    file: Path
    model: Encoder
    config: Reading
    parts: Path
    columns: bool | Sequence[str] = False
    progress: Progress | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def of_any(self, data: Any) -> Shelf:
        """Data of any kind, or a file that `twofold embed` wrote by this encoder."""
        path = at_home(data) if isinstance(data, str | Path) else None
        if path is None or not holds_embeddings(path):
            return self.of(data, None)
        found = Embeddings.read(path)
        model = with_head(self.model, self.file) if self.config.features == "z" else self.model
        if found.facts.get("encoder") != digest(model):
            raise UserError(
                f"{path} was made by another encoder than that of {self.file}: make it anew by twofold embed"
            )
        wanted = getattr(self.config, "preprocessing", "auto")
        rule = found.facts.get("preprocessing", wanted)  # not told in files of before
        if rule != wanted:
            raise UserError(
                f"--preprocessing {wanted}: the images of {path} were embedded with {rule}; give --preprocessing {rule}"
            )
        if found.starts is not None:
            raise UserError(f"{path} holds frames of recordings, and here recordings are compared: embed without "
                            "--level")  # fmt: skip
        around, mean = centred(found.features)
        named = _Named(found, self.config.data, self.model)
        index = FaissIndex.from_bytes(path.read_bytes()) if path.suffix == ".faiss" else None
        columns = _picked(found.columns, self.columns, path)
        return Shelf(around, mean, found, named.picture, named.sound, named.place, columns, index)

    def of(self, data: Any, mean: NDArray[np.float32] | None) -> Shelf:
        """Data with features around a mean, or around their own."""
        config: Any = self.config
        given = EmbedConfig()
        shared = {each.name for each in dataclasses.fields(config)} & {each.name for each in dataclasses.fields(given)}
        asked = dataclasses.replace(given, **{name: getattr(config, name) for name in shared - {"index", "columns"}},
                                    save_every=2**62)  # fmt: skip
        found, source, places = embeddings(
            self.file, self.model, data, asked, parts=self.parts, progress=self.progress
        )  # fmt: skip
        self.skipped.extend(source.skipped)
        around, mean = centred(found.features, mean)
        names = self.columns
        if isinstance(names, bool):
            names = columns_of(source, data, config.data) if names else ()
        table = table_columns(source, places, data, names, config.data) if names else {}
        return Shelf(
            around, mean, found, lambda row: _picture(source, int(places[row])),
            lambda row: _sound(source, int(places[row])), lambda row: _place(source, int(places[row])),
            {name: as_column(values) for name, values in table.items()},
        )  # fmt: skip


@dataclass(frozen=True)
class _Named:
    """Pictures and sounds of files that a file of features names, where they still lie there."""

    found: Embeddings
    reading: DataConfig
    model: Encoder

    def place(self, row: int) -> Path | None:
        """The file of that name."""
        base = at_home(self.found.facts.get("data") or ".")
        path = (base.parent if base.is_file() else base) / str(self.found.names[row])
        return path if path.is_file() else None

    def picture(self, row: int) -> NDArray[np.uint8] | None:
        """See `Shelf`; None where the file is gone, or there was none."""
        source = self._opened(row)
        return None if source is None else _picture(source, 0)

    def sound(self, row: int) -> tuple[NDArray[np.float32], int] | None:
        """See `Shelf`."""
        source = self._opened(row)
        return None if source is None else _sound(source, 0)

    def _opened(self, row: int) -> Source | None:
        place = self.place(row)
        if place is None:
            return None
        config = dataclasses.replace(self.reading, channels=self.model.input.channels, max_skipped=1.0)
        try:
            return open_given([str(place)], config, self.model.input.kind)
        except UserError:  # it is there, and cannot be read any more
            return None


def _picked(columns: dict[str, NDArray[Any]], wanted: bool | Sequence[str], path: Path) -> dict[str, NDArray[Any]]:
    """Some of the columns that a file of features holds."""
    if isinstance(wanted, bool):
        return columns if wanted else {}
    missing = next((name for name in wanted if name not in columns), None)
    if missing is not None:
        raise UserError(
            f"--columns {missing}: {path} holds no such column; it has {', '.join(columns) or 'none'}: "
            "twofold embed --columns takes them along"
        )
    return {name: columns[name] for name in wanted}


def _picture(source: Source, index: int) -> NDArray[np.uint8] | None:
    """Pixels [H, W, 1 or 3], of recordings a spectrogram; None where it cannot be read any more."""
    try:
        if isinstance(source, AudioSource):
            return source.picture(index)
        pixels = source.read(index)
    except BadImage:
        return None
    return pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]


def _sound(source: Source, index: int) -> tuple[NDArray[np.float32], int] | None:
    """Samples in [-1, 1] and their rate; None of an image, and where it cannot be read any more."""
    if not isinstance(source, AudioSource):
        return None
    try:
        return source.read(index), source.rate or int(source.rates[index])
    except BadImage:
        return None


def _place(source: Source, index: int) -> Path | None:
    """The file of one example, where it is one of its own."""
    name = getattr(source, "file", None) or getattr(source, "path", None)
    path = at_home(name(index)) if callable(name) else None
    try:
        return path if path is not None and path.is_file() else None
    except (OSError, ValueError):  # no name of a file
        return None
