"""A network that classifies, made of a frozen encoder and few labels; and how well two classifiers do and agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from twofold.classifier import Classifier
from twofold.data import Source
from twofold.encoders import Encoder, load_classifier, load_encoder, load_head
from twofold.errors import UserError
from twofold.evaluation.features import extract
from twofold.evaluation.imagenet import ClassifiedImages
from twofold.evaluation.labels import SUBSET_GRID, fit_few
from twofold.evaluation.logistic import LinearModel
from twofold.evaluation.splits import single_labels
from twofold.views.resample import Resample


@dataclass(frozen=True)
class Comparison:
    """A student beside its teacher, on the same images.

    Attributes:
        teacher_top1, student_top1: accuracies in [0, 1]; None without labels.
        agreement: share of images for which both name the same class.
        kept: student_top1 / teacher_top1.
        images: how many.
        teacher_parameters, student_parameters: of the whole networks, classifiers included.
    """

    teacher_top1: float | None
    student_top1: float | None
    agreement: float
    kept: float | None
    images: int
    teacher_parameters: int
    student_parameters: int


def classifier_of(model: LinearModel, classes: int) -> Classifier:
    """A logistic regression as a linear layer on the raw features: its centring and scale go into the weights.

    Raises:
        UserError: the regression has not seen each of the `classes` classes.
    """
    if model.classes.tolist() != list(range(classes)):
        missing = sorted(set(range(classes)) - set(model.classes.tolist()))
        raise UserError(
            f"no labelled image of class {', '.join(map(str, missing[:10]))}: a teacher has to know every class; "
            "give labels of each"
        )
    layer = Classifier(model.weight.shape[1], classes)
    weight = model.weight.astype(np.float64) / model.scale
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(model.bias - weight @ model.mean.astype(np.float64)))
    return layer


def fit_classifier(
    encoder: Encoder,
    labelled: Source,
    size: int | None = None,
    resample: Resample = "antialias",
    seed: int = 0,
    batch: int = 256,
) -> Classifier:
    """Fit a linear classifier on frozen features of labelled images (L-BFGS; the penalty chosen among them alone).

    Raises:
        UserError: see `extract`; no labels, several labels an image, or a class without an image.
    """
    found = extract(encoder, labelled, size, batch, resample=resample)
    y = single_labels(found.labels, labelled.name)
    x, y = found.h[y >= 0], y[y >= 0]
    model, _ = fit_few(x, y, seed, 0, SUBSET_GRID)
    return classifier_of(model, len(labelled.classes) if labelled.classes else int(y.max()) + 1)


def compare(
    teacher: Encoder,
    student: Encoder,
    source: Source,
    size: int | None = None,
    resample: Resample = "antialias",
    use_labels: bool = True,
    batch: int = 256,
    teacher_size: int | None = None,
) -> Comparison:
    """Run both classifiers, whose features are logits, over the images of `source`, preprocessed as at test time.

    Raises:
        UserError: see `extract`.
    """
    theirs = extract(teacher, source, teacher_size or size, batch, resample=resample)
    ours = extract(student, source, size, batch, resample=resample)
    said, saw = ours.h.argmax(1), theirs.h.argmax(1)
    right: list[float | None] = [None, None]
    if use_labels and ours.labels is not None and ours.labels.ndim == 1 and (ours.labels >= 0).any():
        known = ours.labels >= 0
        right = [float((answer[known] == ours.labels[known]).mean()) for answer in (saw, said)]
    kept = right[1] / right[0] if right[0] and right[1] is not None else None
    sizes = [sum(p.numel() for p in net.parameters()) for net in (teacher, student)]
    return Comparison(right[0], right[1], float((said == saw).mean()), kept, len(said), *sizes)


def load_teacher(path: str | Path, classifier_layer: int | None = None) -> ClassifiedImages:
    """A file's encoder, head and classifier as one network in inference mode, whose features are logits.

    Raises:
        UserError: the file holds no classifier, or does not know what it reads.
    """
    found = load_classifier(path)
    if found is None:
        raise UserError(
            f"{path} holds no classifier, and a teacher has to name classes: give --teacher_labels 40 to fit one on "
            "the frozen encoder with 40 labels, fine-tune it first (`twofold finetune`), or convert a checkpoint that "
            "has one"
        )
    classifier, stored = found
    layer = stored if classifier_layer is None else classifier_layer
    if layer is None:
        raise UserError(
            f"{path} does not know which output of the projection head its classifier reads: give --classifier_layer "
            "0 (the encoder's features) or 1 (fine-tuned on 1 % or 10 %)"
        )
    return ClassifiedImages(load_encoder(path), classifier, load_head(path), layer).eval()
