"""`twofold.load`: a run's encoder that knows its preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from twofold.data import ArraySource, DataConfig
from twofold.data.decoding.opening import BadImage, asks_for_bands, upright_picture
from twofold.data.decoding.pixels import to_uint8
from twofold.data.sources.files import FileSource
from twofold.data.sources.listed import as_list
from twofold.encoders import Encoder, load_encoder, read_header
from twofold.encoders.base import Preprocessing
from twofold.encoders.load import encoder_path
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.framing import CROP, SMALL, Framing
from twofold.evaluation.framing import Preprocessing as Rule
from twofold.views.resample import Resample


def load(run: str | Path, encoder: nn.Module | None = None, device: str | torch.device = "cpu") -> Encoder:
    """Load a pretrained encoder, with the preprocessing of its images.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        encoder: your own module, if the run was trained with one: its weights are filled in.
        device: where to put it.

    Returns:
        The encoder in evaluation mode. It takes images as floats in [0, 1], [n, C, H, W], and returns [n, d]; what it
        is to be given otherwise, `preprocess` makes: pictures of Pillow's, paths and arrays of any size. What that does
        stands in `encoder.input.preprocessing`.

    Raises:
        UserError: if there is no finished or stopped run, or the file is damaged.
    """
    file = encoder_path(run)
    result = load_encoder(file, encoder)
    if result.input.kind == "image":
        known = preprocessing_of(file, result)
        result.input = dataclasses.replace(result.input, preprocessing=known)
        result.preprocessor = ImagePreprocessor(known, result.input.channels)
    return result.to(device).eval()


def preprocessing_of(encoder_file: str | Path, encoder: Encoder) -> Preprocessing:
    """What `Extractor.of` the same file does to images, in data.

    How training cut its images into tiles and frames is left out: an image that is preprocessed is one example.
    """
    extractor = Extractor.of(encoder_file)
    pixels = Pixels.of(read_header(encoder_file)).of_whole_images().known()
    rule = read_header(encoder_file)["extra"].get("options", {}).get("preprocessing", "auto")
    return Preprocessing(extractor.size or encoder.input.size, CROP, SMALL, extractor.resample, rule, pixels)


@dataclass(frozen=True)
class ImagePreprocessor:
    """From images of any kind and size to what an encoder takes, as `Extractor` does it for a source.

    Args:
        known: what is to be done.
        channels: of the encoder.
    """

    known: Preprocessing
    channels: int

    def __call__(self, images: Any) -> Tensor:
        """One image or several as float32 [n, channels, S, S] in [0, 1]; see `Encoder.preprocess`."""
        images = as_list(images)
        several = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        if not several:
            raise UserError("there is no image to preprocess: the list is empty")
        parts = [self._one(image) for image in several]
        sizes = sorted({tuple(part.shape[2:]) for part in parts})
        if len(sizes) > 1:
            raise UserError(
                f"the images are of different sizes ({sizes[0]} and {sizes[1]}), and the encoder's file names no size "
                "to bring them to: resize them, or give them one by one"
            )
        return torch.cat(parts)

    def _one(self, image: Any) -> Tensor:
        config = Pixels(**self.known.pixels).fill(DataConfig(channels=self.channels))
        if isinstance(image, str | Path):
            pixels = self._of_file(Path(image), config)
        elif isinstance(image, Image.Image):
            pixels = self._of_picture(image, config)
        elif isinstance(image, np.ndarray | Tensor):
            pixels = self._of_array(image, config)
        else:
            raise UserError(
                f"an image of type {type(image).__name__}: give a path, a picture of Pillow's, or an array or tensor "
                f"[H, W, {self.channels}]"
            )
        if pixels.shape[1] != self.channels:
            raise UserError(f"the image has {pixels.shape[1]} channels, the encoder takes {self.channels}")
        return self._square(pixels)

    def pixels(self, image: NDArray[np.uint8]) -> Tensor:
        """Of one image that a source has read, [H, W, C], float32 [1, C, S, S]."""
        return self._square(_channels_first(image))

    def _square(self, pixels: Tensor) -> Tensor:
        if self.known.rule == "squares":
            raise UserError(
                "this classifier averages the features of several squares of an image, which one input cannot hold: "
                "use twofold predict, or twofold.predict"
            )
        rule, resample = cast(Rule, self.known.rule), cast(Resample, self.known.resample)
        square = Framing(rule, self.known.size, resample)(pixels)
        return square if square.is_floating_point() else square / 255

    def _of_file(self, path: Path, config: DataConfig) -> Tensor:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; give the path of an image")
        source = FileSource(path.parent, [path.name], config, name=str(path))
        try:
            pixels = source.read(0)
        except BadImage as error:
            raise UserError(f"{error}; give another image") from error
        return _channels_first(pixels)

    def _of_picture(self, image: Image.Image, config: DataConfig) -> Tensor:
        if asks_for_bands(config):
            raise UserError(
                f"the encoder takes {self.channels} bands, and a picture of Pillow's holds no bands by number: give "
                "the file's path, or an array"
            )
        try:
            upright = upright_picture(image, config)
            pixels = to_uint8(upright, self.channels, config.background, config.deep_pixels, config.pixel_range)
        except (OSError, ValueError) as error:
            raise UserError(f"a picture of mode {image.mode} cannot be read: {error}") from error
        return _channels_first(pixels)

    def _of_array(self, image: Any, config: DataConfig) -> Tensor:
        if image.ndim not in (2, 3, 4):
            raise UserError(
                f"an image of shape {tuple(image.shape)}: give [H, W], [H, W, {self.channels}] or "
                f"[{self.channels}, H, W], or several as one array of four dimensions"
            )
        return ArraySource.of(image if image.ndim == 4 else image[None], None, config, name="the image").images


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """[H, W, C] -> [1, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
