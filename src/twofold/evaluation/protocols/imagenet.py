"""Top-1 and top-5 of a whole classifier over ImageNet's validation images, preprocessed as the SimCLR code does it.

Nothing is fitted: encoder, as much of the projection head as was fine-tuned, and linear classifier are taken as they
are, which checks a published number in one pass.

Source: google-research/simclr, data_util.py and tf2/data_util.py (preprocess_for_eval),
tf2/colabs/imagenet_results.ipynb.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from twofold.data import DataConfig, FileSource
from twofold.data.sources.files import folder_splits, open_folder
from twofold.encoders import Encoder, load_classifier, load_encoder, load_head, read_header
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.framing import SMALL
from twofold.evaluation.parts import Parts
from twofold.evaluation.protocols.base import BatchOptions, EvaluationConfig, ImageOptions, Progress, Protocol, Result
from twofold.evaluation.scores import Scores, score
from twofold.evaluation.splits import without_label
from twofold.options import flatten
from twofold.text import counted

IMAGENET_CLASSES = 1000
AS_PUBLISHED = Extractor(size=224, resample="tf2")
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class ImageNetResult(Result):
    """What a classifier reached.

    Attributes:
        scores: over the images below; top-5 is None with five classes or fewer.
        images, classes: how many.
        data: the folder, and a hash of its files' names and sizes.
    """

    scores: Scores
    images: int
    classes: int
    data: tuple[str, str]

    @property
    def top1(self) -> float:
        """Accuracy in [0, 1]."""
        return self.scores.top1

    @property
    def metrics(self) -> Mapping[str, float]:
        """The accuracies, in [0, 1]."""
        return self.scores.metrics()

    def lines(self) -> list[str]:
        """For people."""
        top5 = f", top-5 {self.scores.top5:.2%}" if self.scores.top5 is not None else ""
        count = f"(imagenet, {counted(self.images, 'image')} of {counted(self.classes, 'class')})"
        return [f"top-1 {self.scores.top1:.2%}{top5}  {count}"]


class ImageNet(Protocol):
    """Scores a classifier on a folder of validation images, one subfolder a class.

    Each image becomes floats in [0, 1], its central square of 0.875 of the shorter side is resized without
    antialiasing, and clipped; there is no normalisation here (an encoder that needs it normalises inside). Images of
    nets for up to 32 pixels are taken as they are. EXIF orientation is not applied: TensorFlow does not, either.

    Class k is the k-th subfolder in the order of names: for ImageNet, of WordNet IDs. "tf2" is the TF2 code's bicubic
    interpolation, "tf1" the TF1 code's; "antialias" is Pillow's, "bilinear" Pillow's bilinear.
    """

    kinds = ("image",)
    written_beside_any_file = True

    @dataclass(frozen=True)
    class Config(ImageOptions, BatchOptions, EvaluationConfig, variant="imagenet"):
        """top-1 and top-5 of the classifier in the encoder's file, on ImageNet's images preprocessed as in SimCLR."""

        classifier_layer: int | None = None
        """Output of the projection head that the classifier reads, where the file does not say."""

    @classmethod
    def inherited(cls, header: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003  # how images are read is published
        """Nothing."""
        return {}

    def load(self, file: Path, module: nn.Module | None, device: str) -> EncoderWithClassifier:
        """Encoder, head and classifier as one net; raises UserError for a file without a classifier."""
        return load_classified(file, self.config.classifier_layer, module).to(device)

    def extractor(self, file: Path) -> Extractor:
        """With the side of ImageNet's nets and the published code's interpolation, where the file does not tell."""
        config, views = self.config, read_header(file)["extra"].get("options", {}).get("views", {})
        return Extractor(
            size=config.size or views.get("size") or AS_PUBLISHED.size,
            resample=config.resample or views.get("resample", AS_PUBLISHED.resample), batch=config.batch,
            workers=config.data.workers,
        )  # fmt: skip

    def open(self, encoder: Encoder, data: Any, test: Any, validation: Any) -> Parts:  # noqa: ARG002  # refused options
        """The validation images; raises UserError (see `open_validation`), also for unreadable images later."""
        given, plain = flatten(dataclasses.asdict(self.config.data)), flatten(dataclasses.asdict(DataConfig()))
        for name, value in given.items():
            if name != "workers" and value != plain[name]:
                raise UserError(
                    f"--data.{name} {value} has no effect with --protocol imagenet, which reads images as published: "
                    "leave it out"
                )
        if not isinstance(data, str | Path):
            raise UserError(f"--protocol imagenet scores a folder of ImageNet's validation images, got {type(data)}")
        return Parts(open_validation(Path(data), encoder.feature_dim, DataConfig(max_skipped=0.0)))

    def measure(
        self, encoder: Encoder, parts: Parts, extractor: Extractor, progress: Progress | None
    ) -> ImageNetResult:
        """One pass over all images."""
        assert isinstance(encoder, EncoderWithClassifier)
        source, side = parts.train, extractor.size or AS_PUBLISHED.size or 0
        published = dataclasses.replace(extractor, size=side, preprocessing="none" if side <= SMALL else "crop")
        report = (lambda done, total: progress("images", done, total)) if progress else None
        result = published.extract(encoder, source, report)
        classes = np.arange(encoder.classifier.out_features)
        assert result.labels is not None  # open_validation has seen them
        known = result.labels >= 0
        left_out = without_label({"": int((~known).sum())})
        below = f"output {encoder.layer} of the projection head" if encoder.layer else "the encoder's features"
        return ImageNetResult(
            protocol=self.name,
            words=f"{result.text}; linear classifier on {below}, nothing fitted{left_out and f'; {left_out}'}",
            scores=score(result.h[known], classes, result.labels[known]), images=int(known.sum()), classes=len(classes),
            data=(source.name, source.fingerprint()),
        )  # fmt: skip


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
            f"{source.name} has {len(source.classes)} class folders, but the classifier knows "
            f"{counted(classes, 'class')}; give the whole validation set that it was trained for"
        )
    strange = [name for name in source.classes if not _WORDNET_ID.fullmatch(name)]
    if classes == IMAGENET_CLASSES and strange:
        raise UserError(
            f"{source.name}: ImageNet's classes are numbered in the order of WordNet IDs (n01440764, ...), but these "
            f"folders have other names: {', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''}; rename them"
        )
    return source


def load_classified(
    encoder_file: str | Path, classifier_layer: int | None = None, module: nn.Module | None = None
) -> EncoderWithClassifier:
    """Encoder, head and classifier of a file as one net in inference mode; raises UserError."""
    result = load_classifier(encoder_file)
    if result is None:
        raise UserError(
            f"{encoder_file} holds no classifier, which --protocol imagenet scores (`twofold convert` keeps a "
            "checkpoint's); to fit one on its features, use --protocol linear"
        )
    classifier, stored = result
    layer = stored if classifier_layer is None else classifier_layer
    if layer is None:
        raise UserError(
            f"{encoder_file} does not know which output of the projection head its classifier reads: give "
            "--classifier_layer 0 (the features: pretrained, all labels, supervised) or 1 (fine-tuned on 1 % or 10 %)"
        )
    head = load_head(encoder_file)
    return EncoderWithClassifier(load_encoder(encoder_file, module), classifier, head, layer).eval()
