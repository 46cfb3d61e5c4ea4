"""The contract of evaluation protocols: what one is, what it may ask for, and the guards around each.

A protocol is one file with one class. Its `Config` holds its own options beside the groups of options that it supports
(`FeatureOptions`, `LabelOptions`, ...): what it supports, the contract does for it, and what it does not have is
refused. `measure` gives a `Result` of named values.
"""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from twofold.console import duration
from twofold.data import DataConfig, Source
from twofold.data.base import skipped_of
from twofold.encoders import Encoder, UtteranceEncoder, load_head, read_header
from twofold.encoders.composed import EncoderWithHead, InParts, in_parts
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.evaluation.class_weights import ClassWeights, check_class_weights
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.features import AS_IT_COMES, Extractor, Pixels
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.framing import Preprocessing
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.kept import Fitted
from twofold.evaluation.label_subsets import check_draw
from twofold.evaluation.parts import Parts, open_parts
from twofold.evaluation.prepared import Prepared
from twofold.evaluation.protocols.beside import NAMES, Row, beside
from twofold.kinds import EXAMPLE, Kind
from twofold.options import Variant, option, refuse_unused
from twofold.results import unread
from twofold.text import counted
from twofold.views.resample import Resample

Progress = Callable[[str, int, int], None]
"""Called with what is done ("training features", ...), examples done, examples in all."""
PROTOCOLS: dict[str, type[Protocol]] = {}
"""The protocols by name; a class of `Protocol` with a `Config` of its own registers itself."""

_IMAGES: dict[str, tuple[Kind, ...]] = {"kind": ("image",)}
_WHOLE = {"folds": (False,)}


@dataclass(frozen=True)
class EvaluationConfig(Variant):
    """How an encoder is evaluated."""

    chooser: ClassVar[str] = "protocol"
    told: ClassVar[bool] = True

    protocol: str = "linear"
    """What is measured."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data: images are read as in the encoder's training, unless told otherwise"""

    def __post_init__(self) -> None:
        """Groups of options check their own."""


@dataclass(frozen=True)
class ScoreOptions:
    """A part of the data is scored."""

    test: str | None = option(None, when=_WHOLE)
    """Data for the score; without it the data's own test split, or else a fifth of each class, held out."""
    seed: int = 0
    """Of the held-out parts."""


@dataclass(frozen=True)
class LabelOptions:
    """Some of the training examples have a label, and a share is held out where there is no test part."""

    labels: str = option("all", when=_WHOLE)
    """Which training examples have a label (with ctc: a text): all, 10%, 40, 4/class, or a list, as for `twofold
    finetune`."""
    draw: int = 0
    """Which of the random choices of that many labels; `twofold labels` takes several and tells their spread."""
    held_out: float = option(0.2, when=_WHOLE)
    """Share of each class that is held out for the score where there is no test data."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # a group of options stands before EvaluationConfig
        check_draw(self.labels, self.draw)


@dataclass(frozen=True)
class ValidationOptions:
    """Something is chosen on a part of the data."""

    validation: str | None = option(None, when=_WHOLE)
    """Data to choose the penalty on, fitted on as well in the end; without it the data's own validation split, where it
    has one beside a test split and all labels are used, or else a fifth of each class of the training examples."""


@dataclass(frozen=True)
class FoldOptions:
    """Folds of the data can be scored in turn."""

    folds: bool | int = False
    """Leave one fold out: each is scored by a classifier of the others. true takes the data's own folds; a number has
    so many made, with the classes in like shares and groups (`data.group`) kept together."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # a group of options stands before EvaluationConfig
        if type(self.folds) is int and self.folds < 2:
            raise UserError(f"--folds {self.folds}: give 2 folds at least, or true for those of the data")


@dataclass(frozen=True)
class ClassWeightOptions:
    """Classes can count more or less in the fit."""

    class_weights: ClassWeights = None
    """How much the examples of each class count: balanced, inversely to their number; or a number a class, in the
    classes' order. Only their ratios count. The penalty is then chosen by an accuracy that is weighted alike."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # a group of options stands before EvaluationConfig
        check_class_weights(self.class_weights)


@dataclass(frozen=True)
class BatchOptions:
    """Examples go through the encoder one by one."""

    batch: int = 256
    """Images or recordings at a time."""


@dataclass(frozen=True)
class FeatureOptions(BatchOptions):
    """Features are extracted, and kept."""

    keep_features: bool = True
    """Keep the features in the run's folder `features`: the next evaluation of the same data does not encode again."""


@dataclass(frozen=True)
class ImageOptions:
    """Images are brought to the encoder's size."""

    size: int | None = option(None, when=_IMAGES)
    """Side of the images in pixels; the side that the encoder was trained on when not given."""
    resample: Resample | None = option(None, when=_IMAGES)
    """How images are resized; as in the encoder's training when not given."""


@dataclass(frozen=True)
class PreprocessingOptions(ImageOptions):
    """Which part of an image is taken can be chosen."""

    preprocessing: Preprocessing = option("auto", when=_IMAGES)
    """crop: central 0.875 of the shorter side, resized; resize: the whole central square; none: pixels as they are;
    auto: none for images of that size, resize up to 32 pixels, else crop. Of long images these see the middle;
    letterbox: the whole image between bars of its mean colour; squares: several along the longer side, whose features
    are averaged."""


@dataclass(frozen=True)
class HeadOptions:
    """The projection head's output can be evaluated."""

    features: Literal["h", "z"] = "h"
    """What is evaluated: h, the encoder's output; z, the projection head's, as MoCo's kNN monitor does."""


@dataclass(frozen=True)
class PartsOptions:
    """A recording can be read by parts."""

    parts: int = option(1, when={"kind": ("audio",)}, instead="leave it at 1")
    """Parts of equal length that a recording's frames are pooled by, side by side: 1 for one mean over all, 3 for
    beginning, middle and end, which tell the order of sounds. The filterbank beside is read alike."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # a group of options stands before EvaluationConfig
        check_parts(self.parts)


def check_parts(parts: int) -> None:
    """Raise a UserError for a number of parts that there cannot be."""
    if not 1 <= parts <= 100:
        raise UserError(f"--parts {parts}: give 1 (one mean over all frames) to 100, such as 3")


@dataclass(frozen=True)
class DataUsed:
    """One part of the data: where from, how many examples took part, what was left out, and a hash of the source.

    `kept` says that its features are those of an earlier evaluation of the same encoder (see `FeatureCache`).
    """

    name: str
    images: int
    skipped: int
    unlabelled: int
    fingerprint: str
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """What a protocol found; everything in it is plain data.

    Attributes:
        protocol: its name.
        kind: of the examples.
        words: the protocol in words: data, classifier, preprocessing.
        digest: SHA-256 over every tensor of the encoder, the same before and after.
        seconds: that it took, by part.
        file: the JSON document that it was written to; None if it was not.
        kept_in: the file of what was fitted, for `twofold.predict`; None if it was not to be kept.
        published: lines that set what is published for the run's recipe beside it.
        skipped: files that could not be read: path and reason.
    """

    protocol: str
    kind: Kind = "image"
    words: str
    digest: str = ""
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    file: Path | None = field(default=None, compare=False)
    kept_in: Path | None = field(default=None, compare=False)
    published: list[str] = field(default_factory=list, compare=False)
    skipped: list[tuple[str, str]] = field(default_factory=list, compare=False)

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, float]:
        """What was measured, by name, without what this data has no use for (top-5 of three classes, ...)."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What was measured, for people; the protocol and the proof of the freeze follow."""

    def beside(self, others: Mapping[str, Any]) -> Result:  # noqa: ARG002  # of protocols without baselines
        """The same with results of others by the same protocol beside it, by their names in `beside.NAMES`."""
        return self

    @property
    def kept(self) -> bool:
        """Whether features of an earlier evaluation were used."""
        return False

    @property
    def name(self) -> str:
        """What its document is called by."""
        return self.protocol

    def text(self) -> str:
        """For people."""
        kept = " (some features kept from an earlier evaluation)" if self.kept else ""
        others = self.seconds.get("baselines")
        beside = "" if others is None else f", {duration(others)} of it for what stands beside (--baselines false)"
        took = f"took {duration(sum(self.seconds.values()))}{beside}{kept}"
        return "\n".join(
            [
                *self.lines(),
                *self.published,
                f"protocol: {self.words}",
                *unread(self.skipped),
                f"encoder unchanged: sha256 {self.digest[:16]}... before and after",
                took + (f"; written to {self.file}" if self.file else ""),
                *([f"for twofold predict: {self.kept_in}"] if self.kept_in else []),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        values = dataclasses.asdict(self)
        del values["file"], values["kept_in"]
        return {"metrics": dict(self.metrics), **values}

    def to_json(self) -> str:
        """As a JSON document."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


class Protocol(ABC):
    """One way to evaluate a frozen encoder. A subclass has a `Config`, says what it needs, and measures.

    Args:
        config: its options; the defaults when not given.
    """

    Config: ClassVar[Any]
    """Its options: a frozen dataclass, ``class Config(ClassifierConfig, variant="name")``."""
    name: ClassVar[str]
    """What `--protocol` calls it: the variant of its `Config`."""
    kinds: ClassVar[tuple[Kind, ...]] = ("image", "audio")
    """The kinds of data that it is for."""
    needs_frames: ClassVar[bool] = False
    """Whether it reads the layers of a speech encoder over time."""
    same_classes: ClassVar[bool] = False
    """Whether each class of the training part has to occur in the data's own test part."""
    fitted: Fitted | None
    """What `measure` leaves to be kept, where `keep_classifier` asks for it."""
    untrained_beside: ClassVar[bool] = True
    """Whether an untrained encoder is measured beside the encoder; one that has to be trained on takes too long."""
    written_beside_any_file: ClassVar[bool] = False
    """Whether the JSON is written beside an encoder that belongs to no run, too."""

    def __init_subclass__(cls) -> None:
        if "Config" in vars(cls):
            cls.name = cls.Config.protocol
            PROTOCOLS[cls.name] = cls

    def __init__(self, config: Any = None) -> None:
        self.config = config if config is not None else self.Config()
        self.fitted: Fitted | None = None

    @abstractmethod
    def measure(self, encoder: Encoder, parts: Any, extractor: Extractor, progress: Progress | None) -> Result:
        """Measure one encoder on what `select` gave; called again with the filterbank alone for recordings."""

    def select(self, encoder: Encoder, parts: Parts) -> Any:  # noqa: ARG002  # protocols that look at it override this
        """What of the data takes part, checked before anything is encoded; raises UserError."""
        return parts

    @classmethod
    def inherited(cls, header: Mapping[str, Any]) -> dict[str, Any]:
        """Options that an encoder's file gives, below those of the user: how its training read images."""
        return Pixels.of(header).options()

    def load(self, file: Path, module: nn.Module | None, device: str) -> Encoder:
        """The network of a file that is evaluated."""
        return load(file, module, device)

    def extractor(self, file: Path) -> Extractor:
        """How features are computed: as in the encoder's training where the options do not say."""
        config = self.config
        names = {each.name for each in dataclasses.fields(config)} & {"size", "resample", "preprocessing", "batch"}
        cache = FeatureCache.beside(file) if getattr(config, "keep_features", False) else None
        return Extractor.of(
            file, workers=config.data.workers, cache=cache, **{name: getattr(config, name) for name in names}
        )

    def open(self, encoder: Encoder, data: Any, test: Any, validation: Any) -> Parts:
        """The parts of the data, as the options ask for them."""
        config = self.config
        reading = dataclasses.replace(config.data, channels=config.data.channels or encoder.input.channels)
        own = isinstance(config, ValidationOptions) and getattr(config, "labels", "all") == "all"
        folds = getattr(config, "folds", False)
        parts = open_parts(data, test, validation, reading, whole=folds, same_classes=self.same_classes, choose=own)
        held_out = getattr(config, "held_out", None)
        if parts.test is not None and held_out != getattr(self.Config, "held_out", None):
            raise UserError(
                f"--held_out {held_out:g} has no effect: {parts.test.name} is what is scored; leave it out, or divide "
                "one part by --data.split train"
            )
        return parts

    def run(
        self, file: Path, data: Any, *, module: nn.Module | None = None, test: Any = None, validation: Any = None,
        device: str = "cpu", progress: Progress | None = None,
    ) -> Result:  # fmt: skip
        """Evaluate the encoder of a file.

        Args:
            file: what `save_encoder` wrote.
            data, test, validation: data of any kind, see `open_source`.
            module: your own module, if the encoder was made from one.
            device: where to compute.
            progress: see `Progress`.

        Raises:
            UserError: for anything wrong in the options, the encoder or the data.
            NotFrozenError: the encoder changed.
        """
        model = self.load(file, module, device)
        self.check(model)
        if getattr(self.config, "features", "h") == "z":
            model = with_head(model, file)
        parts = self.open(model, data, test, validation)
        extractor = dataclasses.replace(self.extractor(file), device=device)
        seed = read_header(file)["extra"].get("options", {}).get("seed", 0)
        return self.evaluate(model, parts, extractor=extractor, progress=progress, seed=seed)

    def check(self, encoder: Encoder) -> None:
        """Refuse an encoder, and options, that this protocol has no use for."""
        kind = encoder.input.kind
        refuse_unused(self.config, kind=kind)
        base = encoder.encoder if isinstance(encoder, EncoderWithHead) else encoder
        if kind not in self.kinds or (self.needs_frames and not isinstance(base, UtteranceEncoder)):
            fit = [name for name, each in PROTOCOLS.items() if kind in each.kinds and not each.needs_frames]
            raise UserError(
                f"--protocol {self.name} is for {EXAMPLE[self.kinds[0]]}s{' and their frames' * self.needs_frames}, "
                f"and the encoder takes {EXAMPLE[kind]}s: use {' or '.join(fit)}"
            )

    def evaluate(
        self, encoder: Encoder, parts: Parts | Source, test: Source | None = None, *,
        validation: Source | None = None, extractor: Extractor = AS_IT_COMES, progress: Progress | None = None,
        seed: int = 0,
    ) -> Result:  # fmt: skip
        """Evaluate an encoder on sources; it stays as it is, which is proved by hashes.

        Args:
            encoder: what is evaluated.
            parts: the parts of the data; or a source to fit on, with `test` and `validation` beside it.
            test: what is scored; without it a share is held out.
            validation: what settings are chosen on, by protocols that choose any.
            extractor: how features are computed.
            progress: see `Progress`.
            seed: of the untrained encoder that stands beside it.

        Raises:
            UserError: data or an encoder of another kind than this protocol is for, labels that it cannot use, classes
                of which one part has no example; see also `Extractor.extract`.
            NotFrozenError: the encoder changed.
        """
        self.check(encoder)
        self.fitted = None
        parts = parts if isinstance(parts, Parts) else Parts(parts, test, validation)
        if parts.validation is not None and not isinstance(self.config, ValidationOptions):
            raise UserError(f"--protocol {self.name} chooses nothing: leave the validation data out")
        for source in (parts.train, parts.test, parts.validation):
            if source is not None:
                source_for(source, encoder)
        if getattr(self.config, "baselines", False) and extractor.memory is None:  # all read the same examples
            extractor = dataclasses.replace(extractor, memory=Prepared())
        number = getattr(self.config, "parts", 1)
        reader, selection = in_parts(encoder, number), self.select(encoder, parts)
        result = self._measured(reader, selection, extractor, progress)
        bad = skipped_of(parts.train, parts.test, parts.validation)
        result = dataclasses.replace(result, skipped=list(bad))
        if not getattr(self.config, "baselines", False):
            return result

        def measure(row: Row) -> Result:
            tell = (lambda what, *done: progress(f"{NAMES[row.name]}: {what}", *done)) if progress else None
            return self._measured(row.encoder, selection, row.extractor, tell)

        found, words, seconds = beside(
            encoder, selection, extractor, self.config, seed if self.untrained_beside else None, measure
        )  # fmt: skip
        told = "; ".join([result.words, *(["beside it, by the same protocol, " + "; ".join(words)] if words else [])])
        spent = dict(result.seconds) | {"baselines": round(seconds, 3)}
        return dataclasses.replace(result.beside(found), words=told, seconds=spent)

    def _measured(self, encoder: Encoder, parts: Any, extractor: Extractor, progress: Progress | None) -> Result:
        """`measure`, with the proof that every tensor of the encoder stayed as it was."""
        own = encoder.encoder if isinstance(encoder, InParts) else encoder
        before, begun = tensor_digests(own), time.monotonic()
        result = self.measure(encoder, parts, extractor, progress)
        seconds = result.seconds or {"all": round(time.monotonic() - begun, 3)}
        assert_frozen(before, tensor_digests(own))
        words = result.words
        if isinstance(encoder, EncoderWithHead):
            words += "; features are z, the projection head's output"
        if isinstance(encoder, InParts):
            words += f"; features are those of {counted(encoder.parts, 'part')} of equal length, side by side"
        words += "; encoder frozen and in evaluation mode, every tensor hashed before and after"
        return dataclasses.replace(
            result, kind=encoder.input.kind, words=words, digest=digest(before), seconds=seconds
        )  # fmt: skip


def with_head(model: Encoder, path: Path) -> Encoder:
    """The encoder with the projection head of its file on top."""
    head = load_head(path)
    if head is None:
        raise UserError(f"--features z: {path} holds no projection head; use --features h")
    return EncoderWithHead(model, head.to(next(model.parameters()).device), head.out_dim).eval()
