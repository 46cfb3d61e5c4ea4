"""Top-1 and top-5 of a whole classifier over ImageNet's validation images, preprocessed as the SimCLR code does it.

Nothing is fitted: encoder, as much of the projection head as was fine-tuned, and linear classifier are taken as they
are, which checks a published number in one pass.

Source: google-research/simclr, data_util.py and tf2/data_util.py (preprocess_for_eval),
tf2/colabs/imagenet_results.ipynb.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twofold.data import DataConfig, FileSource
from twofold.data.sources.files import folder_splits, open_folder
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.features import SMALL, extract
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.scores import Scores, score
from twofold.files import write_atomically
from twofold.views.resample import Resample

IMAGENET_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ImageNetResult:
    """What a classifier reached; everything in it is plain data.

    Attributes:
        scores: over the images below; top-5 is None with five classes or fewer.
        images, classes: how many.
        data: the folder, and a hash of its files' names and sizes.
        text: preprocessing and classifier in words.
        digest: SHA-256 over every tensor of the net, the same before and after.
        seconds: how long it took.
    """

    scores: Scores
    images: int
    classes: int
    data: tuple[str, str]
    text: str
    digest: str
    seconds: float

    def to_json(self) -> str:
        """As a JSON document."""
        return json.dumps({"protocol": "imagenet", **asdict(self)}, indent=2) + "\n"

    def write(self, path: str | Path) -> Path:
        """Write the JSON document to `path`, whole or not at all; UserError if the disk refuses."""
        path = Path(path)
        write_atomically(path, lambda file: file.write(self.to_json().encode()))
        return path


def evaluate_imagenet(
    model: EncoderWithClassifier,
    folder: str | Path,
    *,
    size: int = 224,
    resample: Resample = "tf2",
    config: DataConfig | None = None,
    batch: int = 256,
    device: torch.device | str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageNetResult:
    """Score a classifier on a folder of validation images, one subfolder a class.

    Each image becomes floats in [0, 1], its central square of 0.875 of the shorter side is resized to `size` without
    antialiasing, and clipped; there is no normalisation here (an encoder that needs it normalises inside). Images of
    nets for up to 32 pixels are taken as they are. EXIF orientation is not applied: TensorFlow does not, either.

    Args:
        model: the net. Class k is the k-th subfolder in the order of names: for ImageNet, of WordNet IDs.
        folder: ImageNet's validation folder, or a folder with a `val` folder in it.
        size: side of the net's images.
        resample: "tf2" is the TF2 code's bicubic interpolation, "tf1" the TF1 code's; "antialias" is Pillow's.
        config: how files are read; unreadable images are an error unless it allows them.
        batch, device, workers, progress: as in `extract`.

    Raises:
        UserError: no class folders, not as many as the classifier knows, names that are no WordNet IDs where it knows
            1,000 classes, an unreadable image.
    """
    source = open_validation(Path(folder), model.classifier.out_features, config or DataConfig(max_skipped=0.0))
    before, begun = tensor_digests(model), time.monotonic()
    rule: Any = "none" if size <= SMALL else "crop"
    result = extract(model, source, size, batch, device, rule, resample, workers, progress)
    assert_frozen(before, tensor_digests(model))
    classes = np.arange(model.classifier.out_features)
    assert result.labels is not None  # open_validation has seen them
    below = f"output {model.layer} of the projection head" if model.layer else "the encoder's features"
    return ImageNetResult(
        scores=score(result.h, classes, result.labels),
        images=len(result.h),
        classes=len(classes),
        data=(source.name, source.fingerprint()),
        text=f"{result.text}; linear classifier on {below}, in inference mode, nothing fitted",
        digest=digest(before),
        seconds=round(time.monotonic() - begun, 3),
    )


def open_validation(folder: Path, classes: int, config: DataConfig) -> FileSource:
    """The images of a validation folder, labelled by the order of its subfolders' names; raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of ImageNet's validation images")
    split = "val" if "val" in folder_splits(folder) else None
    source = open_folder(folder, split, dataclasses.replace(config, channels=3, orient=False, split=None))
    if source.labels is None or source.classes is None:
        raise UserError(
            f"{source.name} holds images but no class folders; sort them into one folder a class, named by its WordNet "
            "ID (n01440764, ...)"
        )
    if len(source.classes) != classes:
        raise UserError(
            f"{source.name} has {len(source.classes)} class folders, but the classifier knows {classes} classes; "
            "give the whole validation set that it was trained for"
        )
    strange = [name for name in source.classes if not _WORDNET_ID.fullmatch(name)]
    if classes == IMAGENET_CLASSES and strange:
        raise UserError(
            f"{source.name}: ImageNet's classes are numbered in the order of WordNet IDs (n01440764, ...), but these "
            f"folders have other names: {', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''}; rename them"
        )
    return source
