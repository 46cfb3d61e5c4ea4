"""`twofold.Embedder`: images to features, as a transformer of scikit-learn."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError

from twofold.commands.pretrain import pretrain
from twofold.console import console
from twofold.data import AudioSource, DataConfig, DatasetSource, Source
from twofold.data.sources.given import open_given
from twofold.data.sources.listed import Listed, as_bytes, as_listed
from twofold.devices import choose_device
from twofold.encoders import Encoder
from twofold.encoders.load import encoder_path
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.framing import Preprocessing
from twofold.evaluation.loading import load
from twofold.kinds import EXAMPLE
from twofold.options import merge

_STEPS_OF = ("epochs", "batch")


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of images by an encoder that is pretrained on them without labels, or by that of a trained run.

    It clones, pickles, and works in pipelines and grid searches. `fit` pretrains as `twofold.pretrain` does, on the
    images in memory, and keeps the encoder's file in the object; with a `run` nothing is trained, and `transform` works
    at once. Source of the method: arXiv 2002.05709.

    Images are an array or tensor of uint8, or of floats in [0, 1]: arrays [n, H, W] and [n, H, W, C], tensors
    [n, C, H, W]; or a list of images of any sizes, each a path, a picture of Pillow's, an array [H, W] or [H, W, C], or
    a tensor [C, H, W]; one picture, an iterator over images, or a table's column of paths; or the path of a folder.
    Floats are rounded to the 256 values of uint8, as files have them.

    Args:
        run: a run's folder, an `encoder.safetensors`, or the file of a classifier that was kept; None pretrains.
        epochs: passes over the images; chosen from their number when not given.
        batch: images a step; chosen from their number when not given.
        size: side of the views in pixels; chosen from the images when not given.
        encoder: name of the encoder, such as "resnet18"; chosen from the images and the device when not given.
        random_state: seed of the pretraining, 0 or above.
        device: "auto", "cpu", "cuda" or "mps".
        preprocessing: how images are brought to the encoder's size, as `twofold embed` has it: "auto", "crop",
            "resize", "letterbox", "squares" or "none"; None as the run has it.
        options: further options of `twofold.pretrain`, nested or dotted, such as ``{"optim.lr": 1e-3}``.
        verbose: print what the pretraining prints.

    Attributes:
        encoder_: the encoder, a torch module in evaluation mode.
        weights_: its file, as bytes.
    """

    def __init__(
        self,
        run: str | Path | None = None,
        *,
        epochs: float | None = None,
        batch: int | None = None,
        size: int | None = None,
        encoder: str | None = None,
        random_state: int = 0,
        device: str = "auto",
        preprocessing: Preprocessing | None = None,
        options: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.run = run
        self.epochs = epochs
        self.batch = batch
        self.size = size
        self.encoder = encoder
        self.random_state = random_state
        self.device = device
        self.preprocessing = preprocessing
        self.options = options
        self.verbose = verbose

    @classmethod
    def from_run(cls, run: str | Path, **parameters: Any) -> Self:
        """An embedder of a trained run, ready to transform; `parameters` as of the class."""
        return cls(run, **parameters).fit()

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: ARG002  # scikit-learn's names; labels are unused
        """Pretrain on images, or take the encoder of `run`.

        Args:
            X: images; with a `run` they are not looked at.
            y: ignored.

        Raises:
            UserError: images or options that will not do, or no encoder at `run`.
        """
        if self.run is not None:
            self._refuse_training()
            self.weights_ = encoder_path(self.run).read_bytes()
        else:
            self.weights_ = self._pretrained(X)
        self._reader: _Reader | None = None
        self._of = self.run
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features [n, d] of images, row i of image i.

        Raises:
            NotFittedError: there is no encoder yet.
            UserError: an image that cannot be read, or images of another kind than the encoder takes.
        """
        reader = self._read()
        found = reader.extractor.extract(reader.encoder, opened(X, reader.config, reader.encoder.input.kind))
        if found.skipped:
            path, reason = found.skipped[0]
            raise UserError(f"{path} cannot be read: {reason}; every image has to give a row")
        return found.h

    @property
    def encoder_(self) -> Encoder:
        """The encoder, a torch module in evaluation mode."""
        return self._read().encoder

    @property
    def _n_features_out(self) -> int:
        return self.encoder_.feature_dim

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_") or self.run is not None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.requires_fit = self.run is None
        tags.non_deterministic = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_reader", None)  # made from the weights where it is needed
        return state

    def _refuse_training(self) -> None:
        given = [name for name in ("epochs", "batch", "size", "encoder", "options") if getattr(self, name) is not None]
        if given:
            raise UserError(f"{given[0]} is for pretraining, and run {self.run} is trained already: leave it out")

    def _pretrained(self, images: Any) -> bytes:
        """The file of an encoder that was pretrained on images."""
        if images is None:
            raise UserError("there is nothing to pretrain on: give images, or a trained run as `run`")
        given = {name: getattr(self, name) for name in _STEPS_OF if getattr(self, name) is not None}
        given |= {} if self.size is None else {"views.size": self.size}
        given |= {} if self.encoder is None else {"encoder.name": self.encoder}
        given |= {"seed": self.random_state, "training.device": self.device}
        options = merge({"data.workers": 0} if not _of_files(images) else {}, self.options or {}, given)
        source = opened(images, DataConfig(), None)
        with (
            tempfile.TemporaryDirectory(prefix="twofold-") as folder,
            _quiet(not self.verbose),
            torch.random.fork_rng(devices=[]),  # the caller's random numbers are its own
        ):
            run = pretrain(source, Path(folder) / "run", report=False, **options)
            return run.encoder_file.read_bytes()

    def _read(self) -> _Reader:
        """Encoder and preprocessing of the weights, made once."""
        if self.run is not None and getattr(self, "_of", None) != self.run:
            self.fit()
        known: _Reader | None = getattr(self, "_reader", None)
        if known is not None and known.preprocessing == self.preprocessing and known.device == self.device:
            return known
        if not hasattr(self, "weights_"):
            raise NotFittedError("this Embedder has no encoder yet: call fit with images, or give it a run")
        with tempfile.TemporaryDirectory(prefix="twofold-") as folder:
            file = Path(folder) / "encoder.safetensors"
            file.write_bytes(self.weights_)
            self._reader = reader = _Reader.of(file, self.preprocessing, self.device)
        return reader


@dataclass(frozen=True)
class _Reader:
    """What transforms: an encoder, how images are brought to it, and how they are read."""

    encoder: Encoder
    extractor: Extractor
    config: DataConfig
    preprocessing: Preprocessing | None
    device: str

    @classmethod
    def of(cls, file: Path, preprocessing: Preprocessing | None, device: str) -> _Reader:
        encoder = load(file, device=choose_device(device, "device"))
        known = encoder.input.preprocessing
        rule = preprocessing or (None if known is None else known.rule)
        extractor = Extractor.of(file, preprocessing=rule)
        pixels = extractor.pixels or Pixels()
        config = pixels.of_whole_images().fill(DataConfig(channels=encoder.input.channels, max_skipped=0.0))
        return cls(encoder, extractor, config, preprocessing, device)


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    before, console.quiet = console.quiet, console.quiet or wanted
    try:
        yield
    finally:
        console.quiet = before


def opened(images: Any, config: DataConfig, kind: str | None) -> Source:
    """Images of any form that `Embedder` takes as a source, in their order.

    Args:
        kind: of the encoder's examples; None for images.

    Raises:
        UserError: they are none.
    """
    images = as_listed(images)
    if isinstance(images, str | Path) or _of_files(images):
        source = open_given(images if isinstance(images, str | Path) else list(images), config, kind or "image")  # type: ignore[arg-type]
        given = "audio" if isinstance(source, AudioSource) else "image"
        if kind not in (None, given):
            raise UserError(f"the encoder takes {EXAMPLE[kind]}s, and {source.name} holds {EXAMPLE[given]}s")  # type: ignore[index]
        return source
    if kind == "audio":
        raise UserError("the encoder takes recordings: give the paths of files")
    if isinstance(images, Listed | list | tuple):
        return DatasetSource(images if isinstance(images, Listed) else Listed(images), config)
    array = as_bytes(images, "the images")
    if array.ndim == 3 and array.shape[2] in (3, 4) and isinstance(images, np.ndarray):
        raise UserError(
            f"images of shape {tuple(array.shape)}: that is one image [H, W, C], or images of width "
            f"{array.shape[2]}; give image[None] for the one, images[..., None] for the others"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and isinstance(images, np.ndarray):
        array = array.permute(0, 3, 1, 2)
    if array.ndim != 4 or not len(array):
        raise UserError(
            f"images of shape {tuple(array.shape)}: give arrays [n, H, W] or [n, H, W, C], tensors [n, C, H, W], or a "
            "list of images"
        )
    return open_given(array.contiguous(), config, "image")


def _of_files(images: Any) -> bool:
    """Whether images are given by their paths alone."""
    if isinstance(images, str | Path):
        return True
    several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.dtype.kind in "OU")
    return several and len(images) > 0 and all(isinstance(each, str | Path) for each in images)
