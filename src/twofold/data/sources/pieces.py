"""Tiles of large images, and frames of animated and multi-page files, as images of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import DataFacts, Source, class_count, sample_indices
from twofold.data.config import DataConfig
from twofold.data.decoding.frames import Frame
from twofold.data.decoding.parts import Part
from twofold.data.sources.arrays import ArraySource
from twofold.data.sources.encoded import EncodedSource
from twofold.errors import UserError
from twofold.text import counted

PIECE = np.dtype([
    ("file", "<i8"), ("frame", "<i4"), ("left", "<i4"), ("top", "<i4"), ("width", "<i4"), ("height", "<i4"),
    ("whole", "?"),
])  # fmt: skip
"""One image: which file, frame and box, and whether the box is the whole frame."""


def in_pieces(source: Source, config: DataConfig) -> Source:
    """The source itself, or, where `config` asks for it and an image is large or has frames, one of its pieces.

    Raises:
        UserError: images of a data set of the user's own that are larger than a tile.
    """
    if not config.in_pieces:
        return source
    if isinstance(source, EncodedSource):
        headers, source.headers = source.headers or [], None
        frames = [header.frames[:: config.frame_step] or (Frame(0, header.height, header.width),) for header in headers]
    elif isinstance(source, ArraySource):
        frames = [(Frame(0, *source.size(0)),)] * len(source)
    elif config.tile is None:
        return source
    else:
        sizes = [source.size(int(index)) for index in sample_indices(len(source))]
        if np.max(sizes) > config.tile:
            raise UserError(
                f"--data.tile {config.tile} cuts image files and arrays, and {source.name} is neither: cut the tiles "
                "in the data set, or leave it out (--data.tile null where the encoder was trained with it)"
            )
        return source
    pieces = cut_up(frames, config)
    return PiecesSource(source, pieces) if len(pieces) > len(source) or not pieces["whole"].all() else source


def cut_up(frames: Sequence[Sequence[Frame]], config: DataConfig) -> NDArray[np.void]:
    """The pieces of files, given the frames of each: in the order of files, frames, rows and columns."""
    rows: list[tuple[int, int, int, int, int, int, bool]] = []
    for file, series in enumerate(frames):
        for number, height, width in series:
            if config.tile is None or max(height, width) <= config.tile:
                rows.append((file, number, 0, 0, width, height, True))
                continue
            side = config.tile
            across, down = (_starts(length, side, config.tile_overlap, config.tile_rest) for length in (width, height))
            size = (min(side, width), min(side, height))
            rows += [(file, number, left, top, *size, False) for top in down for left in across]
    return np.array(rows, dtype=PIECE)


def _starts(length: int, side: int, overlap: int, rest: float) -> list[int]:
    """Where tiles begin along a line; what is left over gets one that ends with the line, if it is wide enough."""
    starts = list(range(0, max(length - side, 0) + 1, side - overlap))
    left = length - starts[-1] - side
    return [*starts, length - side] if left > 0 and left >= rest * side else starts


class PiecesSource:
    """Pieces of another source's images.

    The label of a piece is that of its file. Its group, which parts of the data never share, is that of its file too,
    or the file itself.

    Args:
        whole: the files, or arrays.
        pieces: [n] PIECE.
    """

    def __init__(self, whole: EncodedSource | ArraySource, pieces: NDArray[np.void]) -> None:
        self._whole, self._pieces = whole, pieces
        self.channels, self.classes, self.skipped = whole.channels, whole.classes, whole.skipped
        self.pixel_range, self.band_ranges, self.pixels = whole.pixel_range, whole.band_ranges, whole.pixels
        self.labels = None if whole.labels is None else whole.labels[pieces["file"]]
        self.groups = self._groups()
        self.count = self._count()
        self.name = f"{whole.name} ({self.count})"

    @property
    def whole(self) -> EncodedSource | ArraySource:
        """What the pieces are of."""
        return self._whole

    @property
    def files(self) -> NDArray[np.int64]:
        """[n] the file of each piece, by its position in the whole."""
        files: NDArray[np.int64] = self._pieces["file"]
        return files

    def __len__(self) -> int:
        return len(self._pieces)

    def after(self, index: int) -> int:
        """The first piece of the next file, or as many as there are pieces after the last file."""
        return int(np.searchsorted(self._pieces["file"], self._pieces["file"][index], side="right"))

    def file(self, index: int) -> str:
        """The file of one piece: its path, or what tells people where it is."""
        number = int(self._pieces["file"][index])
        return self._whole.path(number) if isinstance(self._whole, EncodedSource) else f"{self._whole.name}[{number}]"

    def path(self, index: int) -> str:
        """``file#frame#left,top``; without the frame where it is the only one, without a place where it is whole."""
        piece = self._pieces[index]
        frame = f"#{piece['frame']}" if self._many_frames[piece["file"]] else ""
        return f"{self.file(index)}{frame}" + ("" if piece["whole"] else f"#{piece['left']},{piece['top']}")

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels [H, W, C] of one piece; raises BadImage with the file's path."""
        piece = self._pieces[index]
        file, frame, left, top, width, height, whole = piece.tolist()
        if isinstance(self._whole, ArraySource):
            return self._whole.read(file)[top : top + height, left : left + width]
        if whole and not frame:
            return self._whole.read(file)
        return self._whole.read_part(file, Part(frame, None if whole else (left, top, left + width, top + height)))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one piece."""
        return int(self._pieces["height"][index]), int(self._pieces["width"][index])

    def sizes(self) -> NDArray[np.int32]:
        """[n, 2] heights and widths."""
        return np.stack([self._pieces["height"], self._pieces["width"]], axis=1)

    def facts(self) -> DataFacts:
        """Of the pieces."""
        sizes = self.sizes()
        height, width = (int(side) for side in np.median(sizes, axis=0))
        words = self._whole.in_words() if isinstance(self._whole, EncodedSource) else ""
        return DataFacts(
            len(self), height, width, self.channels, bool((sizes == sizes[0]).all()), self.labels is not None,
            class_count(self.labels, self.classes), pixels=self.pixels, pixel_range=self.pixel_range,
            band_ranges=self.band_ranges, layout=f"{words or self._whole.name}; {self.count}",
        )  # fmt: skip

    def fingerprint(self) -> str:
        """sha256 of the whole's fingerprint and the pieces."""
        return hashlib.sha256(self._whole.fingerprint().encode() + self._pieces.tobytes()).hexdigest()

    def _groups(self) -> list[str]:
        files, several = self._pieces["file"], np.bincount(self._pieces["file"], minlength=len(self._whole)) > 1
        frames = np.zeros(len(self._whole), dtype=np.int64)
        np.maximum.at(frames, files, self._pieces["frame"])
        self._many_frames = frames > 0
        own = getattr(self._whole, "groups", None) or [""] * len(self._whole)
        names: dict[int, str] = {}
        for place in np.unique(files, return_index=True)[1].tolist():
            number = int(files[place])
            names[number] = own[number] or (self.file(place) if several[number] else "")
        return [names[number] for number in files.tolist()]

    def _count(self) -> str:
        """How many files, frames and tiles, in words."""
        pieces = self._pieces
        files, frames = len(np.unique(pieces["file"])), len(np.unique(pieces[["file", "frame"]]))
        words = [
            f"{counted(files, 'file')}" if isinstance(self._whole, EncodedSource) else f"{counted(files, 'image')}"
        ]
        words += [f"{counted(frames, 'frame')}"] if frames > files else []
        words += [f"{counted(len(pieces), 'tile')}"] if len(pieces) > frames or not pieces["whole"].all() else []
        return ", ".join(words)


def file_means(
    source: Source, index: NDArray[np.int64], h: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Mean features of each file.

    Args:
        source: pieces of files.
        index: [n] those that features are of, ascending.
        h: [n, d].

    Returns:
        [m] the first of the pieces of each file, and [m, d].

    Raises:
        UserError: the source is not of pieces.
    """
    if not isinstance(source, PiecesSource):
        raise UserError(
            f"--per_file is for tiles and frames, and {source.name} is read one image a file: leave it out, or give "
            "--data.tile or --data.frames all"
        )
    _, first, place = np.unique(source.files[index], return_index=True, return_inverse=True)
    sums = np.zeros((len(first), h.shape[1]), dtype=np.float64)
    np.add.at(sums, place, h)
    return index[first], (sums / np.bincount(place)[:, None]).astype(np.float32)
