"""What a run's classifier or recogniser says of new examples, read exactly as those that it was made of."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from twofold.data import AudioSource, Source
from twofold.data.content import example_digests
from twofold.encoders import Encoder, FilePart, UtteranceEncoder, load_classifier, load_head, load_part, read_header
from twofold.encoders.composed import EncoderWithClassifier, all_layers, below_classifier, in_parts
from twofold.encoders.load import encoder_path, kind_of, load
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels, evaluation_mode
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.framing import cut_in_words
from twofold.evaluation.kept import EVALUATIONS, LEARNED, PREDICTION, RECOGNISER
from twofold.evaluation.novelty import Novelty
from twofold.evaluation.protocols.recogniser import Reader, Reading
from twofold.heads import Classifier
from twofold.kinds import Kind

_MADE_SO = (
    "the classifier was made so; one of twofold evaluate --keep-classifier or twofold finetune with --preprocessing "
    "letterbox sees all"
)


@dataclass(frozen=True)
class Answers:
    """What a classifier says of the examples that could be read.

    Attributes:
        index: [n] their places in the source, ascending.
        probabilities: [n, K] in [0, 1]; rows sum to 1, unless an example can be of several classes.
        distance, unlike: [n] see `Novelty.scores`; None where nothing is known of what was seen.
        text: how examples were prepared, in words.
    """

    index: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    distance: NDArray[np.float64] | None
    unlike: NDArray[np.float64] | None
    text: str


@dataclass(frozen=True)
class Predictor:
    """A classifier with all that it needs to read new examples.

    Attributes:
        file: where it is from.
        reads: gives the features that the classifier reads.
        classifier: of these.
        classes: names, by column.
        many: an example can be of several classes.
        novelty: what training examples looked like; None in files that do not say.
        learned: digests of the examples that it was fitted on, ascending; None in files that do not say.
    """

    file: Path
    reads: Encoder
    classifier: Classifier
    classes: tuple[str, ...]
    many: bool
    novelty: Novelty | None
    learned: NDArray[np.uint64] | None = None

    def __call__(self, source: Source, extractor: Extractor) -> Answers:
        """Say what each example is that can be read; the others come to `source.skipped`."""
        found = extractor.extract(self.reads, source)
        with torch.inference_mode():
            logits = self.classifier.cpu()(torch.from_numpy(found.h)).double()
        probabilities = logits.sigmoid() if self.many else logits.softmax(1)
        distance, unlike = (None, None) if self.novelty is None else self.novelty.scores(found.h)
        told = found.text.removesuffix(cut_in_words(*found.cut)) + cut_in_words(*found.cut, _MADE_SO)
        return Answers(found.index, probabilities.numpy(), distance, unlike, told)

    def known(self, source: Source, index: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """[n] which of some examples it was fitted on, byte for byte; None where that is not known."""
        if self.learned is None:
            return None
        digests = example_digests(source, index)
        return None if digests is None else np.isin(digests, self.learned)


def model_file(run: str | Path) -> Path:
    """The file of a run that can predict: its own where that holds a classifier, else what was kept last.

    Args:
        run: a run's folder, or a file.

    Raises:
        UserError: there is none.
    """
    file = encoder_path(run)
    header = read_header(file)
    if header["classifier"] is not None or RECOGNISER in header["parts"]:
        return file
    kept = sorted((file.parent / EVALUATIONS).glob("*.safetensors"), key=_stamp) if Path(run).is_dir() else []
    if not kept:
        raise UserError(
            f"{run} holds no classifier: keep the one that an evaluation fits, twofold evaluate {run} DATA "
            f"--keep-classifier (of texts with --protocol ctc), or train one, twofold finetune {run} DATA --out FOLDER"
        )
    return kept[-1]


def _stamp(path: Path) -> tuple[str, int]:
    """When an evaluation was made, by the name of its file, and its number within that second."""
    found = re.search(r"(\d{8}-\d{6})(?:-(\d+))?$", path.stem)
    return (found[1], int(found[2] or 1)) if found else ("", 0)


def reading_of(file: Path) -> dict[str, Any]:
    """Options of data that read examples as those were that the file's classifier was made of."""
    header = read_header(file)
    options = Pixels.of(header).options()
    audio = header["extra"].get("options", {}).get("data", {}).get("audio") or {}
    known = {name: audio[name] for name in ("max_seconds", "min_seconds") if name in audio}
    if kind_of_file(file) == "audio" and known:
        options["data"] = options["data"] | {"audio": known}
    return options


def kind_of_file(file: Path) -> Kind:
    """What examples a file's encoder takes."""
    return kind_of(read_header(file)["spec"])


def extractor_of(file: Path, **changes: Any) -> Extractor:
    """How the file's classifier was given its examples, with some `changes`; one that is None leaves what it was."""
    prepared = read_header(file)["extra"].get("options", {}).get("preprocessing")
    return Extractor.of(file, **{"preprocessing": prepared} | {k: v for k, v in changes.items() if v is not None})


def load_predictor(file: Path, module: nn.Module | None, device: str | torch.device) -> Predictor | Reader:
    """The classifier or recogniser of a file, ready to use.

    Args:
        file: see `model_file`.
        module: your own module, if the run was trained with one.
        device: where the encoder goes.

    Raises:
        UserError: the file is damaged, or does not know what its classifier reads.
    """
    part, recogniser = load_part(file, PREDICTION), load_part(file, RECOGNISER)
    model = load(file, module, device)
    try:
        if recogniser is not None:
            if not isinstance(model, UtteranceEncoder):
                raise ValueError("it reads recordings over time, and the encoder does not")
            reader = Reader.stored(model, recogniser)
            return dataclasses.replace(reader, head=reader.head.to(device))
        return _classifier(file, model, part)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{file}: its classifier cannot be built: {error}; make the file anew") from error


def _classifier(file: Path, model: Encoder, part: FilePart | None) -> Predictor:
    stored = load_classifier(file)
    if stored is None:
        raise UserError(f"{file} holds no classifier: make one with twofold evaluate --keep-classifier")
    classifier, layer = stored
    facts = part.facts if part is not None else {}
    layers, parts = facts.get("reads") == "layers", facts.get("in_parts", 1)
    if type(parts) is not int or not 1 <= parts <= 100:
        raise ValueError(f"it reads a recording in {parts!r} parts")
    if layers or parts > 1:
        if not isinstance(model, UtteranceEncoder):
            raise ValueError("it reads frames over time, and the encoder has none")
        reads: Encoder = in_parts(model, parts)
        if not layers and reads.feature_dim != classifier.in_features:
            raise ValueError(f"it takes {classifier.in_features} numbers, not the {reads.feature_dim} of {parts} parts")
        reads = all_layers(reads) if layers else reads
    elif layer is None:
        raise UserError(
            f"{file} does not know which output of the projection head its classifier reads: fit one of your own with "
            "twofold evaluate --keep-classifier"
        )
    else:
        reads = below_classifier(EncoderWithClassifier(model, classifier, load_head(file), layer).eval())
        reads.to(next(iter(model.parameters())).device)
    names = facts.get("classes") or read_header(file)["extra"].get("class_names")
    names = names or [str(number) for number in range(classifier.out_features)]
    if len(names) != classifier.out_features or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{len(names)} names for {classifier.out_features} classes")
    novelty = Novelty.stored(facts, part.tensors, classifier.in_features) if part is not None else None
    learned = part.tensors.get(LEARNED) if part is not None else None
    if learned is not None and (learned.ndim != 1 or learned.dtype != torch.int64):
        raise ValueError(f"digests {tuple(learned.shape)} of {learned.dtype}")
    digests = None if learned is None else learned.numpy().view(np.uint64)
    return Predictor(file, reads.eval(), classifier, tuple(names), facts.get("many") is True, novelty, digests)


def read_recordings(reader: Reader, source: Source, batch: int) -> dict[int, Reading]:
    """What a recogniser reads of each recording, by its place in the source."""
    source = source_for(source, reader.encoder)
    assert isinstance(source, AudioSource)  # source_for refuses images
    with evaluation_mode(reader.encoder):
        return reader.read(source, batch)
