"""A network that classifies, made of a frozen encoder and few labels; and how well two classifiers do and agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from twofold.console import print_rank0
from twofold.data import AudioSource, Source
from twofold.data.base import class_count
from twofold.data.groups import group_numbers
from twofold.encoders import Encoder, adapt, load_classifier, load_encoder, load_head, read_header
from twofold.encoders.adapters import CustomEncoder
from twofold.encoders.composed import EncoderWithClassifier
from twofold.encoders.load import kind_of
from twofold.encoders.options_of import options_of
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.few_labels import SUBSET_GRID, fit_few
from twofold.evaluation.label_subsets import labelled_part
from twofold.evaluation.logistic import LinearModel
from twofold.evaluation.splits import match_classes, single_labels
from twofold.heads import Classifier
from twofold.kinds import EXAMPLE, Kind
from twofold.runs.config import DistillConfig
from twofold.text import counted


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


def classifier_of(model: LinearModel, classes: int, kind: Kind = "image") -> Classifier:
    """A logistic regression as a linear layer on the raw features: its centring and scale go into the weights.

    Raises:
        UserError: the regression has not seen each of the `classes` classes.
    """
    if model.classes.tolist() != list(range(classes)):
        missing = sorted(set(range(classes)) - set(model.classes.tolist()))
        raise UserError(
            f"no labelled {EXAMPLE[kind]} of class {', '.join(map(str, missing[:10]))}: a teacher has to know every "
            "class; give labels of each"
        )
    layer = Classifier(model.weight.shape[1], classes)
    weight = model.weight.astype(np.float64) / model.scale
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(model.bias - weight @ model.mean.astype(np.float64)))
    return layer


def fit_classifier(encoder: Encoder, labelled: Source, extractor: Extractor, seed: int = 0) -> Classifier:
    """Fit a linear classifier on frozen features of labelled images (L-BFGS; the penalty chosen among them alone).

    Raises:
        UserError: see `Extractor.extract`; no labels, several labels an image, or a class without an image.
    """
    result = extractor.extract(encoder, labelled)
    y = single_labels(result.labels, labelled.name)
    x, known = result.h[y >= 0], result.index[y >= 0]
    y, groups = y[y >= 0], group_numbers(labelled)
    model, _ = fit_few(x, y, seed, 0, SUBSET_GRID, None if groups is None else groups[known])
    return classifier_of(model, len(labelled.classes) if labelled.classes else int(y.max()) + 1, encoder.input.kind)


def compare(
    teacher: tuple[Encoder, Extractor], student: tuple[Encoder, Extractor], source: Source, use_labels: bool = True
) -> Comparison:
    """Run both classifiers, whose features are logits, over the images of `source`, each as it takes them at test time.

    Raises:
        UserError: see `Extractor.extract`.
    """
    theirs, ours = (extractor.extract(net, source) for net, extractor in (teacher, student))
    predicted, saw = ours.h.argmax(1), theirs.h.argmax(1)
    right: list[float | None] = [None, None]
    if use_labels and ours.labels is not None and ours.labels.ndim == 1 and (ours.labels >= 0).any():
        known = ours.labels >= 0
        right = [float((answer[known] == ours.labels[known]).mean()) for answer in (saw, predicted)]
    kept = right[1] / right[0] if right[0] and right[1] is not None else None
    sizes = [sum(p.numel() for p in net.parameters()) for net, _ in (teacher, student)]
    return Comparison(right[0], right[1], float((predicted == saw).mean()), kept, len(predicted), *sizes)


def check_classes(
    net: Encoder, names: list[str] | None, config: DistillConfig, train: Source, test: Source | None
) -> None:
    """Refuse labels of other classes than the teacher's before anything is trained."""
    if config.unlabelled:
        return
    kind = EXAMPLE[net.input.kind]
    labelled = [source for source in (train, test) if source is not None and source.labels is not None]
    for source in labelled:
        labels = single_labels(source.labels, source.name, least=1)
        count = class_count(labels, source.classes)
        if count != net.feature_dim:
            raise UserError(
                f"the teacher knows {counted(net.feature_dim, 'class')}, {source.name} has {count}: give a teacher of "
                f"the same classes, or --unlabelled to take the {kind}s without their labels"
            )
        if names and source.classes and list(names) != list(source.classes):
            theirs, ours = (", ".join(map(str, part[:5])) for part in (names, source.classes))
            raise UserError(
                f"the teacher's classes are {theirs}{' ...' if len(names) > 5 else ''}, those of {source.name} in "
                f"their order {ours}{' ...' if len(source.classes) > 5 else ''}: give a teacher of the same classes, "
                f"name them alike, or --unlabelled to take the {kind}s without their labels"
            )
    if len(labelled) == 2:
        first, second = (single_labels(source.labels, source.name, least=1) for source in labelled)
        moved = match_classes(first[first >= 0], train.classes, second[second >= 0], labelled[1].classes)
        if not np.array_equal(moved, second[second >= 0]):
            raise UserError(f"{train.name} and {labelled[1].name} number their classes differently; name them alike")


def load_teacher(
    path: str | Path, classifier_layer: int | None = None, module: nn.Module | None = None
) -> EncoderWithClassifier:
    """A file's encoder, head and classifier as one network in inference mode, whose features are logits.

    Args:
        path: the file.
        classifier_layer: output of the head that the classifier reads, where the file does not say.
        module: your own module, if the encoder was made from one.

    Raises:
        UserError: the file holds no classifier, or does not know what it reads.
    """
    result = load_classifier(path)
    if result is None:
        raise UserError(
            f"{path} holds no classifier, and a teacher has to name classes: give --teacher_labels 40 to fit one on "
            "the frozen encoder with 40 labels, fine-tune it first (`twofold finetune`), or convert a checkpoint that "
            "has one"
        )
    classifier, stored = result
    layer = stored if classifier_layer is None else classifier_layer
    if layer is None:
        raise UserError(
            f"{path} does not know which output of the projection head its classifier reads: give --classifier_layer "
            "0 (the encoder's features) or 1 (fine-tuned on 1 % or 10 %)"
        )
    return EncoderWithClassifier(load_encoder(path, module), classifier, load_head(path), layer).eval()


@dataclass
class TeacherSource:
    """A teacher as it was given.

    Attributes:
        where: a file, or a module of the user's own.
        labelled: where labels for its classifier are.
        module: the user's own module that the file's encoder was made from.
    """

    where: str | Path | nn.Module
    labelled: Source | None = None
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.module is not None and isinstance(self.where, nn.Module):
            raise UserError("the teacher is given as a module already: leave `module` out")

    @property
    def name(self) -> str:
        """For people."""
        return type(self.where).__name__ if isinstance(self.where, nn.Module) else str(self.where)

    def file(self) -> Path | None:
        """The teacher's file, if it is one."""
        return None if isinstance(self.where, nn.Module) else Path(self.where)

    def custom(self) -> nn.Module | None:
        """The module that rebuilds a file of it, where that needs one."""
        if isinstance(self.where, CustomEncoder):
            return self.where.module
        plain = isinstance(self.where, nn.Module) and not isinstance(self.where, Encoder)
        return self.where if plain else self.module  # type: ignore[return-value]  # seen to be a module

    def header(self) -> dict[str, Any]:
        """What the file says of it, or as much as a module does."""
        file = self.file()
        if file is not None:
            return read_header(file)
        return {"spec": self.where.spec() if isinstance(self.where, Encoder) else {}, "extra": {}}

    def kind(self) -> Kind:
        """What examples it takes."""
        if isinstance(self.where, Encoder):
            return self.where.input.kind
        return kind_of(self.header()["spec"])

    def check_kind(self, source: Source) -> None:
        """Raise a UserError where the examples of `source` are not what it takes."""
        kind: Kind = "audio" if isinstance(source, AudioSource) else "image"
        if kind != self.kind():
            raise UserError(
                f"the teacher {self.name} takes {EXAMPLE[self.kind()]}s, and {source.name} holds {EXAMPLE[kind]}s: "
                f"give a teacher of {EXAMPLE[kind]}s"
            )

    def default_options(self) -> dict[str, Any]:
        """How its images were read and its geometry of views, without colour and blur; all that was done to recordings.

        That is crop and flip, as published.
        """
        if self.kind() == "audio":
            return {"waves": self.header()["extra"].get("options", {}).get("waves", {})}
        seen = self.views()
        size = seen.get("size") or self.header()["spec"].get("size")
        geometry = ("crop_area", "crop_aspect", "crop_rule", "resample", "flip", "rotation")
        views = ({"size": size} if size else {}) | {name: seen[name] for name in geometry if name in seen}
        return Pixels.of(self.header()).options() | {
            "views": views | {"color_strength": 0.0, "grayscale": 0.0, "blur": 0.0}
        }

    def student_options(self) -> dict[str, Any]:
        """Options of an encoder like its own; UserError for a module of the user's own."""
        spec = self.header()["spec"]
        if spec.get("kind") in (None, CustomEncoder.kind):
            raise UserError(
                "the teacher is a module of your own, which no student can be built like: give --encoder.name"
            )
        return options_of(spec)

    def views(self) -> dict[str, Any]:
        """Options of the views that it was trained on."""
        return dict(self.header()["extra"].get("options", {}).get("views", {}))

    def extractor(self, config: DistillConfig) -> Extractor:
        """How its test images are made: as in its own training, and as the student's where that is not known."""
        views = self.views()
        size, resample = views.get("size") or config.views.size, views.get("resample", config.views.resample)
        return Extractor(size=size, resample=resample, pixels=Pixels.of(self.header()))

    def class_names(self, config: DistillConfig) -> list[str] | None:
        """Names of the classes of its classifier: of the labels that it is fitted on, or as the file has them."""
        if config.teacher_labels is not None:
            return None if self.labelled is None else self.labelled.classes
        names: list[str] | None = self.header()["extra"].get("class_names")
        return names

    def load(self, config: DistillConfig, channels: int, device: torch.device) -> Encoder:
        """The teacher as a network whose features are logits; fits its classifier, on `device`, if that is asked for.

        Raises:
            UserError: no classifier, none to be fitted, other channels, or an option without effect.
        """
        file = self.file()
        if file is None and config.classifier_layer is not None:
            raise UserError(
                f"--classifier_layer {config.classifier_layer} is for the head of a teacher's file, and a module has "
                "none: leave it out"
            )
        encoder = (
            load_encoder(file, self.module)
            if file
            else adapt(self.where, channels, image_size=config.views.size).eval()  # type: ignore[arg-type]
        )
        if encoder.input.channels != channels:
            raise UserError(
                f"the teacher takes images of {encoder.input.channels} channel(s), the data have {channels}: set "
                f"--data.channels {encoder.input.channels}"
            )
        if config.teacher_labels is None:
            return load_teacher(file, config.classifier_layer, self.module) if file else encoder
        if self.labelled is None:
            raise UserError(f"--teacher_labels {config.teacher_labels}: the data have no labels to fit a classifier on")
        part, words = labelled_part(self.labelled, config.teacher_labels, config.seed)
        print_rank0(f"fitting the teacher's classifier on {words}")
        classifier = fit_classifier(encoder.to(device), part, self.extractor(config), config.seed)
        return EncoderWithClassifier(encoder, classifier.to(device)).eval()
