"""`twofold shard`: pack images into tar archives, or index archives that are there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from twofold.commands.arguments import PATH, add_data, new_parser
from twofold.data import AudioSource, DataConfig, EncodedSource, SkipList, open_source, splits_of
from twofold.data.sources.hub import PREFIX, stream
from twofold.data.sources.pack import items, streamed_items, write_shards
from twofold.data.sources.shards import archives, index_tars, shard_splits
from twofold.data.sources.tars import write_index
from twofold.errors import UserError
from twofold.files import at_home, check_out
from twofold.options import OptionsParser, add_options
from twofold.results import in_json
from twofold.text import counted


@dataclass(frozen=True)
class ShardConfig:
    """How images are packed."""

    shard_mb: float = 512.0
    """Most megabytes (10^6 bytes) of an archive."""
    stream: bool = False
    """Read hf:NAME as a stream: nothing but the archives is kept on disk."""
    index: bool = False
    """Make the index of tar archives that are there (no --out): later runs open them without walking them."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        if not self.shard_mb > 0:
            raise UserError(f"--shard_mb {self.shard_mb}: give megabytes above 0")


@dataclass(frozen=True)
class ShardPart:
    """Archives in one folder: how many, their bytes, how many images were left out, and all that in words."""

    path: Path
    archives: int
    size: int
    skipped: int
    note: str


@dataclass(frozen=True)
class ShardResult:
    """What was packed or indexed.

    Attributes:
        path: the folder of it all.
        parts: a folder of archives for each split.
    """

    path: Path
    parts: tuple[ShardPart, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        return "\n".join(part.note for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = in_json(self)
        return document


def shard(data: Any, /, out: str | Path | None = None, **options: Any) -> ShardResult:
    """Pack `data` into tar archives: KEY.jpg with its label in KEY.cls.

    Images keep their encoded bytes; each is decoded once to see that it can be. The same data give the same bytes.
    Data with splits are packed split by split, into subfolders, unless `data.split` names one.

    Args:
        data: whatever `pretrain` takes; with `index`, a folder of archives.
        out: a new folder.
        options: fields of `ShardConfig`, nested or dotted.

    Returns:
        What was done: the archives of each split.

    Raises:
        UserError: `out` holds something, too many unreadable images, ...
    """
    config = OptionsParser(ShardConfig).build(options)
    if config.index:
        if out is not None:
            raise UserError("--index true indexes archives where they are: leave out --out")
        return _index(at_home(data), config)
    if out is None:
        raise UserError("--out is missing: name a new folder for the archives, e.g. --out shards/photos")
    folder = Path(out)
    check_out(folder, False, "archive", resume=False)
    most = int(config.shard_mb * 1e6)
    if config.stream:
        return _pack_stream(data, folder, most, config)
    splits: tuple[str | None, ...] = (config.data.split,)
    if config.data.split is None:
        splits = splits_of(data).names or (None,)
    parts = []
    for split in splits:
        source = open_source(data, config.data, split=split)
        if isinstance(source, AudioSource):
            raise UserError(
                f"{data} holds recordings, and `twofold shard` packs images: leave the recordings in their files"
            )
        if isinstance(source, EncodedSource) and config.data.bands is not None:
            raise UserError(
                f"--data.bands {list(config.data.bands)}: images keep their bytes in archives; choose bands when they "
                "are read (`twofold pretrain`)"
            )
        target = folder if split is None or len(splits) == 1 else folder / split
        paths = write_shards(items(source), target, most, source.classes)
        parts.append(_report(paths, target, source.skipped))
    return ShardResult(folder, tuple(parts))


def _pack_stream(data: Any, folder: Path, most: int, config: ShardConfig) -> ShardResult:
    if not str(data).startswith(PREFIX):
        raise UserError(f"--stream true is for {PREFIX}NAME; got {data}")
    cells, classes = stream(str(data), config.data.split)
    skipped = SkipList(10**9, 1.0)  # how many there will be is not known: told at the end
    paths = write_shards(streamed_items(cells, skipped), folder, most, classes)
    return ShardResult(folder, (_report(paths, folder, skipped),))


def _index(folder: Path, config: ShardConfig) -> ShardResult:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --index true wants the folder that holds the .tar archives")
    parts = []
    for base in [folder] if archives(folder) else list(shard_splits(folder).values()):
        paths = archives(base)
        index = index_tars(paths, config.data, checksums=True)
        if index.problems:
            listing = "\n".join(f"  {path}: {reason}" for path, reason in index.problems[:5])
            raise UserError(f"{base}: an index would hide what is wrong with its archives:\n{listing}")
        write_index(base, [path.name for path in paths], index)
        size = sum(path.stat().st_size for path in paths)
        held = f"{counted(len(index.records), 'image')} in {counted(len(paths), 'archive')}"
        note = f"{base}: {held}; index: {base / 'index.json'}"
        parts.append(ShardPart(base, len(paths), size, 0, note))
    if not parts:
        raise UserError(f"{folder}: no .tar archives in it or in folders such as train, val or test")
    return ShardResult(folder, tuple(parts))


def _report(paths: list[Path], folder: Path, skipped: SkipList) -> ShardPart:
    size = sum(path.stat().st_size for path in paths)
    text = f"{folder}: {counted(len(paths), 'archive')}, {size / 1e6:,.1f} MB"
    if len(skipped):
        text += f"; {len(skipped)} image(s) skipped:\n{skipped.summary(10)}"
    return ShardPart(folder, len(paths), size, len(skipped), text)


def parser() -> ArgumentParser:
    """Of `twofold shard`."""
    parser = new_parser("Pack images into tar archives as WebDataset names them, or index archives that are there.")
    add_data(parser, "images: whatever `twofold pretrain` takes; with --index, a folder of .tar")
    parser.add_argument("--out", type=str, help="a new folder for the archives and their index")
    add_options(parser, ShardConfig)
    return parser


def run(options: dict[str, Any]) -> ShardResult:
    """`twofold shard`."""
    return shard(options.pop(PATH), options.pop("out", None), **options)
