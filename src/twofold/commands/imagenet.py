"""`twofold evaluate --protocol imagenet`: a published classifier's number, checked in one command."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from twofold.console import console, duration
from twofold.data import DataConfig
from twofold.encoders import load_classifier, load_encoder, load_head, read_header
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.protocols.imagenet import ImageNetResult, evaluate_imagenet
from twofold.views.resample import Resample


@dataclass(frozen=True)
class ImageNetReport:
    """A classifier's scores, and the file that they were written to.

    Attributes:
        result: all that was found.
        file: JSON in the folder `evaluations` beside the encoder.
    """

    result: ImageNetResult
    file: Path

    @property
    def top1(self) -> float:
        """Accuracy in [0, 1]."""
        return self.result.scores.top1

    def text(self) -> str:
        """For people."""
        results, scores = self.result, self.result.scores
        top5 = f", top-5 {scores.top5:.2%}" if scores.top5 is not None else ""
        return "\n".join(
            [
                f"top-1 {scores.top1:.2%}{top5}  (imagenet, {results.images:,} images of {results.classes:,} classes)",
                f"protocol: {results.text}",
                f"net unchanged: sha256 {results.digest[:16]}... before and after",
                f"took {duration(results.seconds)}; written to {self.file}",
            ]
        )


def imagenet(
    encoder_file: Path,
    folder: str | Path,
    *,
    size: int | None = None,
    resample: Resample | None = None,
    classifier_layer: int | None = None,
    batch: int = 256,
    device: str | None = None,
    workers: int | None = None,
) -> ImageNetReport:
    """Score the classifier in an encoder file on ImageNet's validation images (see `evaluate_imagenet`).

    Args:
        encoder_file: what `twofold convert` wrote.
        folder: the validation images, one subfolder a class.
        size: side of the images; by default what the file says, 224 for ImageNet's nets.
        resample: the interpolation; by default that of the code which trained the net.
        classifier_layer: which output of the head the classifier reads, where the file does not know.
        batch, device, workers: images at a time, where to compute, threads that decode.

    Raises:
        UserError: the file holds no classifier, or does not know what it reads; see also `evaluate_imagenet`.
    """
    model = load_classified(encoder_file, classifier_layer)
    views = read_header(encoder_file)["extra"].get("options", {}).get("views", {})

    def progress(done: int, total: int) -> None:
        if done == total or done // 5000 > (done - batch) // 5000:
            console.print(f"{done:,} of {total:,} images")

    result = evaluate_imagenet(
        model,
        folder,
        size=size or views.get("size") or 224,
        resample=resample or views.get("resample", "tf2"),
        config=DataConfig(max_skipped=0.0),
        batch=batch,
        device=device,
        workers=workers,
        progress=progress,
    )
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return ImageNetReport(result, result.write(encoder_file.parent / "evaluations" / f"imagenet-{stamp}.json"))


def load_classified(encoder_file: Path, classifier_layer: int | None = None) -> EncoderWithClassifier:
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
    return EncoderWithClassifier(load_encoder(encoder_file), classifier, head, layer).eval()
