"""`twofold explore`: one page with a map of a representation, to zoom, search, colour, draw lassos on and listen to."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, new_parser, require_out
from twofold.commands.evaluate import Progress
from twofold.commands.shelf import Shelf, Shelves
from twofold.console import console
from twofold.data import DataConfig
from twofold.data.decoding.recordings import soundfile
from twofold.data.sources.audio import resampled
from twofold.devices import choose_device
from twofold.encoders.load import encoder_path, load
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.features import Pixels
from twofold.evaluation.neighbours import Kind, build_index
from twofold.evaluation.protocols.base import BatchOptions, HeadOptions, PreprocessingOptions
from twofold.evaluation.searching import neighbours
from twofold.files import at_home
from twofold.options import OptionsParser, add_options, merge, option, refuse_unused
from twofold.randomness import permutation
from twofold.report.explore import Explorer, shown_name, write_explorer
from twofold.report.map import LARGE, Method, project
from twofold.report.sheets import draw_sheets, side_for
from twofold.results import in_json, unread
from twofold.text import counted, printable

MOST = 100_000
"""Points of a page at most."""
_AUDIO: dict[str, tuple[str, ...]] = {"kind": ("audio",)}
_FEW = 10
"""Different whole numbers in a column of a text table up to which they are taken for names."""
_SOUND_RATE, _SOUND_TYPE = 16_000, "audio/mpeg"
_MOST_SOUND = 48 * 2**20
"""Bytes of compressed recordings that a page holds; where more are wanted it links to the files instead."""


@dataclass(frozen=True)
class ExploreConfig(HeadOptions, PreprocessingOptions, BatchOptions):
    """What the page shows."""

    most: int = MOST
    """Points at most, up to 100,000; of more examples a random part is shown."""
    neighbours: int = 12
    """Nearest neighbours that are listed of each example."""
    columns: tuple[str, ...] | None = None
    """Columns of the table or manifest to colour by; all of them when not given, beside classes and groups."""
    map: Method = "tsne"
    """How the map is made: tsne keeps neighbourhoods; pca, two principal components, keeps large distances."""
    pictures: int | None = None
    """Side of the small pictures in pixels; 0 for none. 96 by default, 64 above 1,000 examples, 32 above 10,000."""
    seconds: float = option(4.0, when=_AUDIO)
    """Of each recording so many seconds can be played in the page, while all are within 48 MiB; 0 for links to the
    files alone."""
    index: Kind = "auto"
    """How neighbours are found: exact compares all; flat, hnsw and ivf are faiss's; auto is exact below 100,000
    examples."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data: images are read as in the encoder's training, unless told otherwise"""

    def __post_init__(self) -> None:
        if not 1 <= self.most <= MOST:
            raise UserError(f"--most {self.most}: give 1 to {MOST:,}, which is what a page can hold")
        if not 0 <= self.neighbours <= 100:
            raise UserError(f"--neighbours {self.neighbours}: give 0 to 100")
        if self.pictures is not None and not (self.pictures == 0 or 8 <= self.pictures <= 256):
            raise UserError(f"--pictures {self.pictures}: give a side of 8 to 256 pixels, or 0 for none")
        if not 0 <= self.seconds <= 600:
            raise UserError(f"--seconds {self.seconds:g}: give 0 to 600")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: give 1 or more")


@dataclass(frozen=True)
class ExploreResult:
    """The page.

    Attributes:
        file: the page.
        count: points on its map.
        size: its bytes.
        columns: what it can be coloured by.
        words: how the map was made.
        skipped: what could not be read: path and reason.
    """

    file: Path
    count: int
    size: int
    columns: tuple[str, ...]
    words: str
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.file}: a map of {counted(self.count, 'example')}, {self.size / 1e6:.1f} MB, to be opened in a "
            "browser",
            f"made by {self.words}; colours: {', '.join(self.columns) or 'one'}",
        ]
        lines += unread(self.skipped)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = in_json(self)
        return document


def explore(
    run: str | Path, data: Any, /, out: str | Path, *, encoder: nn.Module | None = None, **options: Any
) -> ExploreResult:
    """Write one page that shows what an encoder holds to be alike; it opens from disk and fetches nothing.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: whatever `twofold.pretrain` takes, one file, a list of files, or a file that `twofold.embed` wrote by this
            encoder.
        out: a new .html file.
        encoder: your own module, if the run was trained with one.
        options: fields of `ExploreConfig`, nested or dotted.

    Raises:
        UserError: `out` exists, an option that images have no use for, nothing readable, ...
    """
    path, out = encoder_path(run), Path(out)
    config = OptionsParser(ExploreConfig).build(merge(Pixels.of(read_header(path)).options(), options))
    check_page(out)
    model = load(path, encoder, choose_device(config.device, "--device"))
    refuse_unused(config, kind=model.input.kind)
    progress = Progress()
    columns = True if config.columns is None else config.columns
    parts = out.with_name(out.name + ".parts")
    shelves = Shelves(path, model, config, parts, columns, progress)
    shelf = shelves.of_any(data)
    page = explorer_of(shelf, data, out, config, progress, model.input.kind == "audio")
    size = write_explorer(out, page)
    return ExploreResult(out, len(page.names), size, tuple(page.columns), page.method, tuple(shelves.skipped))


def check_page(out: Path, option: str = "--out") -> None:
    """Raise a UserError for a file that is there already, or of another kind."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{option} {out}: give a name that ends in .html")
    if out.exists():
        raise UserError(f"{option} {out} exists already; choose another name")
    if printable(str(out)) != str(out):
        raise UserError(f"{option} {out}: a name that is not UTF-8, or holds control characters; choose another one")


def explorer_of(
    shelf: Shelf, data: Any, out: Path, config: ExploreConfig, progress: Progress, audio: bool,
    more: dict[str, NDArray[Any]] | None = None, label: str | None = None,
) -> Explorer:  # fmt: skip
    """The page of a shelf.

    Args:
        shelf: the examples.
        data: as the user named them, for the title.
        out: where the page will lie.
        config: see `ExploreConfig`.
        progress: told of pictures and recordings.
        audio: whether these are recordings.
        more: further columns [n], which come first.
        label: of these, the one that an exported table has as labels; by default the data's classes.
    """
    total = len(shelf.features)
    rows = np.sort(permutation(0, "explore", 0, total)[: config.most])
    around = shelf.features[rows]
    if len(rows) > LARGE and config.map == "tsne":
        console.print(f"map: of {counted(len(rows), 'example')}, which takes a minute or more")
    xy, words = project(around, config.map)
    words += f"; {len(rows):,} of {counted(total, 'example')}, drawn at random" if len(rows) < total else ""
    near, similarity = _nearest(around, config)
    columns, classes = _columns(shelf, rows, more or {}, similarity)
    sheets, gone = None, set[int]()

    def picture(place: int) -> NDArray[np.uint8] | None:
        pixels = shelf.picture(int(rows[place]))
        gone.update([] if pixels is not None else [place])
        return pixels

    if config.pictures != 0:
        side = config.pictures or side_for(len(rows))
        sheets = draw_sheets(picture, len(rows), side, lambda done, of: progress("pictures", done, of))
    if gone:
        words += f"; {len(gone):,} of {counted(len(rows), 'picture')} left out, whose files are not where the data were"
    links, odd = _links(shelf, rows, data, out)
    name = Path(data).name if isinstance(data, str | Path) else "examples"
    kind = "recordings" if audio else "images"
    sounds = _sounds(shelf, rows, config, progress) if audio else {}
    names = [str(shelf.found.names[row]) for row in rows.tolist()]
    return Explorer(
        name, f"{len(rows):,} {kind}; those that the encoder holds to be alike lie close together", words,
        xy, names, near, similarity, columns, label or classes, sheets, sounds, _SOUND_TYPE,
        audio, links, odd, _where(data),
    )  # fmt: skip


def _nearest(around: NDArray[np.float32], config: ExploreConfig) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places and cosines [n, k] of the nearest others; -1 where there are no more."""
    count, k = len(around), min(config.neighbours, len(around) - 1)
    near, similarity = np.full((count, k), -1), np.zeros((count, k), dtype=np.float32)
    if k < 1:
        return near, similarity
    own = np.arange(count)
    for row, hits in enumerate(neighbours(build_index(around, config.index), around, k, own)):
        near[row, : len(hits)] = [hit.row for hit in hits]
        similarity[row, : len(hits)] = [hit.similarity for hit in hits]
    return near, similarity


def _columns(
    shelf: Shelf, rows: NDArray[np.int64], more: dict[str, NDArray[Any]], similarity: NDArray[np.float32]
) -> tuple[dict[str, NDArray[Any]], str | None]:
    """What the page can be coloured by, and which of it are the examples' labels."""
    columns, label = {name: values[rows] for name, values in more.items()}, None
    if shelf.found.labels is not None:
        label = _free("class", columns)
        columns[label] = np.array([shelf.classes_of(row) or "" for row in rows.tolist()])
    if shelf.found.groups is not None:
        columns[_free("group", columns)] = shelf.found.groups[rows]
    for name, values in shelf.columns.items():
        same = label is not None and [str(each) for each in values[rows].tolist()] == columns[label].tolist()
        if not same:  # the column of labels is there already
            columns[_free(name, columns)] = _typed(values)[rows]
    if similarity.shape[1]:
        columns[_free("nearest similarity", columns)] = similarity[:, 0]
    return columns, label


def _typed(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers that a table has as text, unless they are a few whole ones, which are rather names."""
    if values.dtype.kind in "iufb":
        return values
    texts = [str(value).strip() for value in values.tolist()]
    try:
        numbers = np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return values
    different = np.unique(numbers[np.isfinite(numbers)])
    few = len(different) <= _FEW and bool((different == np.rint(different)).all())
    return values if few else numbers


def _free(name: str, taken: dict[str, Any]) -> str:
    return name if name not in taken else _free(f"{name} (2)", taken)


def _sounds(shelf: Shelf, rows: NDArray[np.int64], config: ExploreConfig, progress: Progress) -> dict[int, bytes]:
    """The beginning of each recording as MP3; none where they would be too much for a page."""
    sounds: dict[int, bytes] = {}
    size = 0
    for place, row in enumerate(rows.tolist() if config.seconds else []):
        heard = shelf.sound(row)
        if heard is None:
            continue
        samples, rate = heard[0][: int(config.seconds * heard[1])], heard[1]
        buffer = io.BytesIO()
        soundfile().write(buffer, np.clip(resampled(samples, rate, _SOUND_RATE), -1, 1), _SOUND_RATE, format="MP3")
        sounds[place] = buffer.getvalue()
        size += len(sounds[place])
        if size > _MOST_SOUND:
            return {}
        progress("recordings", place + 1, len(rows))
    return sounds


def _links(shelf: Shelf, rows: NDArray[np.int64], data: Any, out: Path) -> tuple[str | None, dict[int, str | None]]:
    """Where the files lie, seen from the page, and what does not follow from that and the example's name."""
    base = _base(shelf, data)
    begin = os.path.relpath(base.absolute(), out.parent.absolute())
    odd: dict[int, str | None] = {}
    found = False
    for place, row in enumerate(rows.tolist()):
        file, name = shelf.place(row), str(shelf.found.names[row])
        if file is not None and shown_name(name) == name and Path(base, name) == file and not name.startswith("/"):
            found = True
            continue
        found = found or file is not None
        odd[place] = None if file is None else _address(os.path.relpath(file.absolute(), out.parent.absolute()))
    return (_address(begin), odd) if found else (None, {})


def _base(shelf: Shelf, data: Any) -> Path:
    """The folder that names are relative to."""
    if isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 1:
        data = data[0]
    held = shelf.found.facts.get("data") or ""
    base = at_home(held or (data if isinstance(data, str | Path) else "."))
    return base.parent if base.is_file() else base


def _address(path: str) -> str:
    return quote(os.fsencode(path.replace(os.sep, "/")))


def _where(data: Any) -> str:
    if not isinstance(data, str | Path):
        return "The table has a row for each, path and label."
    return (
        f"Paths are relative to {data}: a table or list that lies there is read by every command, and "
        "twofold label --labels takes it from anywhere."
    )


def parser() -> ArgumentParser:
    """Of `twofold explore`."""
    parser = new_parser("Write one page with a map of what is alike: zoom, search, colour, lasso, export, listen.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_data(parser, f"{EITHER}; or a file that twofold embed wrote")
    parser.add_argument("--out", type=str, help="a new .html file")
    add_options(parser, ExploreConfig)
    return parser


def run(options: dict[str, Any]) -> ExploreResult:
    """`twofold explore`."""
    require_out(options, "a new file", "explore.html")
    return explore(options.pop("run"), options.pop(PATH), options.pop("out"), **options)
