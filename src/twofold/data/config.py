"""What can be chosen about the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageColor

from twofold.errors import Option, UserError
from twofold.options import GIVEN, option

_IMAGES = {"kind": ("image",)}


@dataclass(frozen=True)
class AudioConfig:
    """How recordings are read and put in order."""

    max_seconds: float = 15.99
    """Of longer recordings a part of this length is taken, at another place each time in training."""
    min_seconds: float = 0.1
    """Shorter recordings are left out."""
    trim: float | None = None
    """Cut silence off both ends: what lies before the first and after the last frame (25 ms) whose energy is at most so
    many dB below that of the recording's loudest frame. 35 suits words in quiet; it has to be less than the distance of
    speech to the noise behind it. Pauses inside stay. Each recording is decoded once more, before all else; silent ones
    are left out then."""
    path: str | None = None
    """Column of a manifest that holds the paths; path, file_name, audio_filepath and the like are known."""
    text: str | None = None
    """Column of a manifest that holds what is said; text, transcript, sentence and the like are known. Of TIMIT's
    folder it can be words or phones."""
    speaker: str | None = None
    """Column of a manifest that says who speaks; speaker and client_id are known."""
    label: str | None = None
    """Column of a manifest that holds the labels, "label" if there is one; of a folder it can be speaker, where the
    layout tells who speaks."""
    fold: str = "fold"
    """Column of a manifest that holds the folds of `twofold evaluate --folds`; of a folder it can be speaker."""
    distinct: Literal["none", "label", "text"] = "none"
    """No two recordings of one label, or of one text, in a batch: they would be wrong negatives of each other."""
    bucket: bool = True
    """Batches of like lengths: less padding, and length tells nothing apart."""
    one_speaker: bool = False
    """Batches of one speaker each, as far as a speaker's recordings go: who speaks tells nothing apart, then. Speakers
    are a column of a manifest, or come with LibriSpeech, VoxCeleb1 and IEMOCAP."""

    def __post_init__(self) -> None:
        if not 0.025 <= self.min_seconds < self.max_seconds:
            raise UserError(
                f"--data.audio.min_seconds {self.min_seconds} and max_seconds {self.max_seconds}: give at least 0.025 "
                "(one frame), and more"
            )
        if self.trim is not None and not 0 < self.trim <= 120:
            raise UserError(
                f"--data.audio.trim {self.trim:g}: give dB below the loudest frame, above 0 and at most 120, such as 35"
            )


@dataclass(frozen=True)
class TableConfig:
    """Which columns of a table of images say what."""

    path: str | None = None
    """Column of the images' paths; path, image, file_name and the like are known."""
    label: str | None = None
    """Column of the labels, names or numbers; label, class, target and category are known."""
    split: str | None = None
    """Column that divides the table; split, part and subset are known."""


@dataclass(frozen=True)
class DataConfig:
    """How images or recordings are found, read and put in order."""

    split: str | None = None
    """Which part of the data: train, val, test, ... as the data has them; by default the part made for training."""
    group: str | None = None
    """What belongs together and is never divided: the video, patient, slide or speaker that examples come from. A
    column of a table, manifest or data set, an array of an .npz file, "speaker" where a folder's layout tells it; or a
    regular expression that is searched for in the names of files below the folder, whose first group is the name."""
    root: str = "data"
    """Folder in which data sets called by name (cifar10, ...) live."""
    download: bool = False
    """Fetch a named data set into `root` where it is missing."""
    channels: int | None = None
    """1 (grey), 3 (colour), or as many bands as the images have; by default 1 if every image looked at is stored as
    grey, 3 if most are pictures, else as many bands as most of them have."""
    bands: tuple[int, ...] | None = option(None, when=_IMAGES)
    """Which bands of each image become its channels, and in which order: numbers from 1, such as [4, 3, 2]. All but
    transparency when not given."""
    background: str = option("white", when=_IMAGES)
    """Colour behind transparent pixels: a name, or a code such as #808080."""
    orient: bool = option(True, when=_IMAGES)
    """Turn photographs as their EXIF tag says (the published ImageNet numbers were made without)."""
    deep_pixels: Literal["full", "bands", "stretch", "window"] = option("full", when=_IMAGES)
    """Pixels of more than 8 bits: full takes one range for all images (see pixel_range), bands one for each band, from
    the 1st to the 99th percentile of some images, stretch each image's own, and window the one that a DICOM file says
    it is to be looked at with."""
    pixel_range: tuple[float, float] | None = option(None, when=_IMAGES)
    """Values of black and white among pixels of more than 8 bits, such as [0, 4095] for a 12-bit camera; what lies
    beyond is black or white. When not given what DICOM files and 12-bit TIFF files state, 0 and 65535 for other 16-bit
    pixels, and for floats 0 and the first of 1, 255 and 65535 that all images looked at keep to."""
    band_ranges: tuple[tuple[float, float], ...] | None = option(None, when=_IMAGES)
    """Values of black and white of each band in the order in which the bands are read, such as [[0, 3000],
    [200, 5000]]; deep_pixels bands measures them."""
    max_pixels: int = option(2 * 89_478_485, when=_IMAGES)
    """Files with more pixels are skipped; the default is the size beyond which Pillow suspects an attack."""
    tile: int | None = option(None, when=_IMAGES)
    """Side in pixels: an image with a longer side is read as square tiles of this one, each an image of its own with
    the label of its file. Of tiled TIFF files a tile is read alone, so that they may have more than max_pixels."""
    tile_overlap: int = option(0, when={"tile": (GIVEN,)}, instead="leave it at 0")
    """Pixels that neighbouring tiles share."""
    tile_rest: float = option(0.5, when={"tile": (GIVEN,)}, instead="leave it at 0.5")
    """Share of the side: what is left over at the right or bottom edge gets a tile that ends there if it is at least so
    wide, and is left out if it is narrower."""
    frames: Literal["first", "all"] = option("first", when=_IMAGES)
    """Of animated and multi-page files (GIF, APNG, WebP, TIFF, MPO, DICOM) read the first frame, or all as images."""
    frame_step: int = option(1, when={"frames": ("all",)}, instead="leave it at 1")
    """Read every so many frames of a file, beginning with its first: neighbours in an animation are nearly equal."""
    max_skipped: float = 0.2
    """Share of the files that may be unreadable; more is an error."""
    last_batch: Literal["straddle", "drop"] | None = None
    """straddle: a batch may reach into the next epoch, as in SimCLR; drop: leave out an epoch's rest, as in MoCo. When
    not given straddle; recordings are put into batches of like lengths, and an epoch's rest is left out."""
    workers: int | None = None
    """Processes that decode files; 0 decodes in the main process; by default chosen from the number of cores."""
    patience: float = option(60.0, when=_IMAGES)
    """Seconds that decoding one image may take in a decoding process; beyond, it counts as unreadable."""
    cache: Literal["auto", "off", "ram"] = "auto"
    """Keep decoded files in memory: ram always, off never, auto if they fit in `cache_gb` and half the free memory; of
    recordings auto keeps as many as fit. Recordings of more than `audio.max_seconds` are read anew each time."""
    cache_gb: float = 2.0
    """What cache=auto may hold, in GiB for each training process."""
    jpeg_draft: bool = option(False, when=_IMAGES)
    """Decode JPEG files at 1/2, 1/4 or 1/8 where the crops keep 2 pixels for each of theirs: photographs of 12
    megapixels load four times as fast, small ones no faster; crops differ by less than 1 in 255 on average."""
    encoding: str = "utf-8"
    """How manifests and files of texts are written."""
    outside: bool = False
    """Read files, too, that lie outside the folder of the table, manifest or saved data set that names them: by an
    absolute path, or by one with `..`."""
    table: TableConfig = option(factory=TableConfig, when=_IMAGES)
    """Tables of images"""
    audio: AudioConfig = option(factory=AudioConfig, when={"kind": ("audio",)})
    """Recordings"""

    def __post_init__(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise UserError(
                f"--data.channels {self.channels}: give 1 (grey), 3 (colour) or a number of bands, or leave it out"
            )
        self._check_bands()
        if self.pixel_range is not None and not self.pixel_range[0] < self.pixel_range[1]:
            raise UserError(f"--data.pixel_range {list(self.pixel_range)}: give black, and a larger number for white")
        if not 0 <= self.max_skipped <= 1:
            raise UserError(Option("data.max_skipped"), f" {self.max_skipped}: a share of the files lies in 0..1")
        if self.workers is not None and self.workers < 0:
            raise UserError(Option("data.workers"), f" {self.workers}: give 0 or more, or leave it out")
        if not self.patience > 0:
            raise UserError(Option("data.patience"), f" {self.patience}: give seconds above 0")
        if self.cache_gb < 0:
            raise UserError(f"--data.cache_gb {self.cache_gb}: give 0 or more")
        limit = 2 * (Image.MAX_IMAGE_PIXELS or self.max_pixels)
        if not 1 <= self.max_pixels <= limit:
            raise UserError(
                f"--data.max_pixels {self.max_pixels}: give 1..{limit}; Pillow refuses larger images "
                "(in Python, raise PIL.Image.MAX_IMAGE_PIXELS first)"
            )
        if self.jpeg_draft and self.cache == "ram":
            raise UserError("--data.jpeg_draft decodes anew for every crop: use it with --data.cache off, not ram")
        self._check_pieces()
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UserError(
                f"--data.background {self.background}: no colour; give a name such as white or a code such as #808080"
            ) from error

    @property
    def in_pieces(self) -> bool:
        """Whether one file can be several images."""
        return self.tile is not None or self.frames == "all"

    def _check_pieces(self) -> None:
        if self.tile is not None and not 1 <= self.tile**2 <= self.max_pixels:
            raise UserError(f"--data.tile {self.tile}: give a side from 1 whose square is within --data.max_pixels")
        if not 0 <= self.tile_overlap < (self.tile or self.tile_overlap + 1):
            raise UserError(f"--data.tile_overlap {self.tile_overlap}: give 0 or more, and less than --data.tile")
        if not 0 <= self.tile_rest <= 1:
            raise UserError(f"--data.tile_rest {self.tile_rest:g}: a share of the side lies in 0..1")
        if self.frame_step < 1:
            raise UserError(f"--data.frame_step {self.frame_step}: give 1 or more")
        if self.in_pieces and self.jpeg_draft:
            what = "--data.tile" if self.tile is not None else "--data.frames all"
            raise UserError(f"--data.jpeg_draft decodes whole files smaller, which {what} cannot use: leave it out")

    def _check_bands(self) -> None:
        given, ranges = self.bands, self.band_ranges
        if given is not None:
            if not given or min(given) < 1 or len(set(given)) < len(given):
                raise UserError(f"--data.bands {list(given)}: give numbers from 1, each once, such as '[4, 3, 2]'")
            if self.channels not in (None, len(given)):
                raise UserError(
                    f"--data.bands {list(given)} gives {len(given)} channels, and --data.channels or the encoder asks "
                    f"for {self.channels}: name as many bands"
                )
        if ranges is not None:
            wrong = [list(pair) for pair in ranges if not pair[0] < pair[1]]
            if wrong or not ranges:
                raise UserError(f"--data.band_ranges {wrong}: give black, and a larger number for white, of each band")
            if self.pixel_range is not None or self.deep_pixels == "stretch":
                other = "pixel_range" if self.pixel_range is not None else "deep_pixels stretch"
                raise UserError(f"--data.band_ranges and --data.{other} both say what black and white are: give one")
            channels = len(given) if given is not None else self.channels
            if channels not in (None, len(ranges)):
                raise UserError(
                    f"--data.band_ranges has {len(ranges)} ranges for {channels} channel(s): give one for each band"
                )
        if self.pixel_range is not None and self.deep_pixels == "bands":
            raise UserError("--data.pixel_range is one range for all bands: leave out --data.deep_pixels bands")
