"""What can be chosen about the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageColor

from twofold.errors import Option, UserError
from twofold.options import option

_IMAGES = {"kind": ("image",)}


@dataclass(frozen=True)
class AudioConfig:
    """How recordings are read and put in order."""

    max_seconds: float = 15.99
    """Of longer recordings a part of this length is taken, at another place each time in training."""
    min_seconds: float = 0.1
    """Shorter recordings are left out."""
    path: str | None = None
    """Column of a manifest that holds the paths; path, file_name, audio_filepath and the like are known."""
    text: str | None = None
    """Column of a manifest that holds what is said; text, transcript, sentence and the like are known."""
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


@dataclass(frozen=True)
class TableConfig:
    """Which columns of a table of images say what."""

    path: str | None = None
    """Column of the images' paths; path, image, file_name and the like are known."""
    label: str | None = None
    """Column of the labels, names or numbers; label, class, target and category are known."""
    split: str | None = None
    """Column that divides the table; split, part and subset are known."""
    group: str | None = None
    """Column of what belongs together: the video, patient or slide that images come from."""


@dataclass(frozen=True)
class DataConfig:
    """How images or recordings are found, read and put in order."""

    split: str | None = None
    """Which part of the data: train, val, test, ... as the data has them; by default the part made for training."""
    root: str = "data"
    """Folder in which data sets called by name (cifar10, ...) live."""
    download: bool = False
    """Fetch a named data set into `root` where it is missing."""
    channels: int | None = None
    """1 (grey) or 3 (colour); by default 1 if every image looked at is stored as grey, else 3."""
    background: str = option("white", when=_IMAGES)
    """Colour behind transparent pixels: a name, or a code such as #808080."""
    orient: bool = option(True, when=_IMAGES)
    """Turn photographs as their EXIF tag says (the published ImageNet numbers were made without)."""
    deep_pixels: Literal["full", "stretch"] = option("full", when=_IMAGES)
    """Pixels of more than 8 bits: full takes one range for all images (see pixel_range), stretch each image's own."""
    pixel_range: tuple[float, float] | None = option(None, when=_IMAGES)
    """Values of black and white among pixels of more than 8 bits, such as [0, 4095] for a 12-bit camera; what lies
    beyond is black or white. When not given 0 and 65535 for 16-bit pixels, and for floats 0 and the first of 1, 255 and
    65535 that all images looked at keep to."""
    max_pixels: int = option(2 * 89_478_485, when=_IMAGES)
    """Files with more pixels are skipped; the default is the size beyond which Pillow suspects an attack."""
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
            raise UserError(f"--data.channels {self.channels}: give 1 (grey) or 3 (colour), or leave it out")
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
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UserError(
                f"--data.background {self.background}: no colour; give a name such as white or a code such as #808080"
            ) from error
