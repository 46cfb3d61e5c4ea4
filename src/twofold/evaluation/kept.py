"""Classifiers that an evaluation fitted, in a file that holds all that prediction needs: encoder, head, reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twofold.data import AudioSource, DataConfig, Source
from twofold.encoders import Encoder, FilePart, load_encoder, load_head, load_part, read_header, save_encoder
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.logistic import Affine
from twofold.evaluation.novelty import Novelty
from twofold.heads import Classifier
from twofold.options import option

EVALUATIONS = "evaluations"
"""The folder of a run that evaluations write into."""
PREDICTION, RECOGNISER = "prediction", "recogniser"
"""Parts of an encoder file."""
LEARNED = "learned"
"""A tensor of the first of these: digests of what the classifier was fitted on, [n] int64, ascending."""
Reads = Literal["h", "z", "layers"]
"""What a classifier is of: the encoder's features, the head's output, or all layers side by side."""


@dataclass(frozen=True)
class KeepOptions:
    """What was fitted can be kept."""

    keep_classifier: bool = option(False, when={"folds": (False,)})
    """Keep what was fitted, with the encoder, in the run's folder `evaluations`, for `twofold predict`: the very
    classifier that was scored, or, where a share of the labelled examples was held out for the score, one fitted anew
    on all of them with the same penalty."""


@dataclass(frozen=True)
class KeepRecogniserOptions:
    """What was trained can be kept."""

    keep_classifier: bool = False
    """Keep what was trained, with the encoder, in the run's folder `evaluations`, for `twofold predict`: the very
    recogniser that was scored."""


@dataclass(frozen=True)
class Fitted:
    """What an evaluation leaves for prediction.

    Attributes:
        words: how it was fitted.
        source: the training part, as it was read.
        extractor: how its features were computed; None where whole recordings are read over time.
        classifier: of features [n, d].
        classes: their names, by column.
        reads: what the classifier is of.
        in_parts: parts of a recording whose features lie side by side.
        novelty: what the training and the scored examples looked like.
        learned: digests of the examples that it was fitted on, see `example_digests`; None where they are not known.
        parts: what else belongs into the file.
        encoder: another encoder than the evaluated one, where a copy was trained.
    """

    words: str
    source: Source | AudioSource
    extractor: Extractor | None = None
    classifier: Classifier | None = None
    classes: tuple[str, ...] = ()
    reads: Reads = "h"
    in_parts: int = 1
    novelty: Novelty | None = None
    learned: NDArray[np.uint64] | None = None
    parts: dict[str, FilePart] = dataclasses.field(default_factory=dict)
    encoder: Encoder | None = None


def as_classifier(affine: Affine) -> Classifier:
    """A linear layer of weights [K, d] and biases [K]."""
    weight, bias = affine
    result = Classifier(weight.shape[1], len(weight))
    with torch.no_grad():
        result.weight.copy_(torch.from_numpy(weight))
        result.bias.copy_(torch.from_numpy(bias))
    return result.eval()


def class_names(classes: Sequence[str] | None, columns: Sequence[int]) -> tuple[str, ...]:
    """Names of the labels that columns stand for: numbers where the data have no names."""
    return tuple(str(each) if classes is None else classes[each] for each in columns)


def named_classes(file: Path) -> list[str] | None:
    """The classes that a file names for its classifier, by column; None where it names none.

    An evaluation names them beside the classifier that it kept; a fine-tuning, in what it tells of itself.
    """
    header, part = read_header(file), load_part(file, PREDICTION)
    names = (part.facts.get("classes") if part is not None else None) or header["extra"].get("class_names")
    return [str(name) for name in names] if isinstance(names, list) and names else None


def prediction_part(
    classes: Sequence[str],
    reads: Reads,
    many: bool,
    words: str,
    novelty: Novelty | None,
    in_parts: int = 1,
    learned: NDArray[np.uint64] | None = None,
) -> FilePart:
    """What prediction needs beside the networks.

    Args:
        classes: names, by column of the classifier.
        reads: see `Reads`; of a classifier on a hidden output of the head the file itself says which.
        many: an example can be of several classes.
        words: how the classifier was made.
        novelty: None where nothing is known of the examples.
        in_parts, learned: see `Fitted`.
    """
    facts: dict[str, Any] = {"classes": list(classes), "reads": reads, "many": many, "words": words}
    facts |= {"in_parts": in_parts} if in_parts > 1 else {}
    tensors: dict[str, Tensor] = {}
    if novelty is not None:
        facts, tensors = facts | novelty.facts(), novelty.tensors()
    if learned is not None:
        tensors[LEARNED] = torch.from_numpy(np.unique(learned).view(np.int64))
    return FilePart(facts, tensors)


def save_fitted(path: Path, file: Path, fitted: Fitted, config: DataConfig, module: nn.Module | None = None) -> Path:
    """Write what an evaluation fitted to `path`, with the encoder and head of `file`.

    The options in it say how examples were read and prepared for the classifier, as those of a run do.

    Args:
        config: how the data were read.
        module: your own module, if the encoder was made from one.
    """
    header, head = read_header(file), load_head(file)
    options = dict(header["extra"].get("options", {}))
    data = dict(options.get("data", {}))
    data |= {each.name: getattr(config, each.name) for each in dataclasses.fields(Pixels) if each.name != "trim"}
    data |= {name: _measured(fitted.source, config, name) for name in ("pixel_range", "band_ranges")}
    data["audio"] = dict(data.get("audio", {})) | {
        name: getattr(config.audio, name) for name in ("max_seconds", "min_seconds", "trim")
    }
    options["data"] = data
    if fitted.extractor is not None and not isinstance(fitted.source, AudioSource):
        views = {"size": fitted.extractor.size, "resample": fitted.extractor.resample}
        options |= {"views": dict(options.get("views", {})) | views, "preprocessing": fitted.extractor.preprocessing}
    parts = dict(fitted.parts)
    if fitted.classifier is not None:
        parts[PREDICTION] = prediction_part(
            fitted.classes,
            fitted.reads,
            False,
            fitted.words,
            fitted.novelty,
            fitted.in_parts,
            fitted.learned,
        )
    layer = len(head.layers) if fitted.reads == "z" and head is not None else 0
    whole = fitted.reads != "layers" and fitted.in_parts == 1  # of one output of encoder or head
    path.parent.mkdir(exist_ok=True)
    save_encoder(
        path, fitted.encoder or load_encoder(file, module), head, header["extra"] | {"options": options},
        fitted.classifier, layer if whole else None, parts,
    )  # fmt: skip
    return path


def _measured(source: Any, config: DataConfig, name: str) -> Any:
    """A range of pixels that was given, or that was measured on the training part."""
    given = getattr(config, name)
    return given if given is not None else getattr(source, name, None)
