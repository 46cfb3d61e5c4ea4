"""What protocols have in common that fit a classifier on features: parts, labels, held-out shares, folds, scores.

A protocol of this kind has one function, `fit`: from features and labels of training examples to scores of test
examples.
"""

from __future__ import annotations

import dataclasses
import json
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from twofold.data import Source
from twofold.data.base import class_count
from twofold.data.content import labelled_digests
from twofold.data.groups import group_numbers, groups_of
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.class_weights import check_class_weights
from twofold.evaluation.feature_cache import Features
from twofold.evaluation.features import Extractor
from twofold.evaluation.folds import fold_names, folds_in_words, folds_of
from twofold.evaluation.framing import cut_in_words, framed_in_words, together
from twofold.evaluation.grouped import groups_in_words
from twofold.evaluation.kept import Fitted, Reads, as_classifier, class_names
from twofold.evaluation.label_subsets import labelled_part
from twofold.evaluation.logistic import Affine, Array
from twofold.evaluation.novelty import Novelty
from twofold.evaluation.parts import Parts, labelled_parts
from twofold.evaluation.protocols.base import (
    ClassWeightOptions,
    DataUsed,
    EvaluationConfig,
    FeatureOptions,
    FoldOptions,
    HeadOptions,
    LabelOptions,
    PartsOptions,
    PreprocessingOptions,
    Progress,
    Protocol,
    Result,
    ScoreOptions,
)
from twofold.evaluation.protocols.beside import NAMES, BaselineOptions, majority
from twofold.evaluation.scores import Scores
from twofold.evaluation.splits import (
    Labels,
    check_labels,
    lone_in_words,
    match_classes,
    single_labels,
    stratified_split,
    without_label,
)
from twofold.files import write_atomically
from twofold.kinds import EXAMPLE
from twofold.text import counted


@dataclass(frozen=True)
class LayersConfig(
    FeatureOptions, PartsOptions, LabelOptions, FoldOptions, ScoreOptions, BaselineOptions, EvaluationConfig
):
    """Options of every protocol that fits a classifier."""


@dataclass(frozen=True)
class ClassifierConfig(HeadOptions, PreprocessingOptions, LayersConfig):
    """Options of every protocol that fits a classifier on whatever features an encoder or its head gives."""


@dataclass(frozen=True)
class FitInputs:
    """What a classifier is fitted on and scored on.

    Attributes:
        x, y: features [N, d] and labels [N] to fit on.
        x_test, y_test: to score on, [M, d] and [M]; every class is in `y`.
        split: positions in `x` to fit on and to choose settings on, where the data have a part for that; in the end all
            of `x` is for the fit.
        example: what one example is called: "image" or "recording".
        encoder: that the features are of.
        groups: [N] numbers of what is kept together where a part of `x` is held out to choose settings; None where
            nothing is, or `split` says which.
    """

    x: Array
    y: Labels
    x_test: Array
    y_test: Labels
    split: tuple[Labels, Labels] | None
    example: str
    encoder: Encoder
    groups: Labels | None = None


@dataclass(frozen=True)
class Outcome:
    """What a classifier reached: scores, settings that were chosen or given, and how it was made, in words.

    A linear one comes with its weights and biases, of which row j is the label classes[j], and with `anew`, which fits
    another with the same settings on features [N, d] and labels [N].
    """

    scores: Scores
    settings: Mapping[str, float | int | None]
    words: str
    affine: Affine | None = field(default=None, compare=False)
    classes: Labels | None = field(default=None, compare=False)
    anew: Callable[[Array, Labels], tuple[Affine, Labels]] | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """The outcome of one evaluation by a classifier.

    Attributes:
        scores: of the test examples.
        settings: what the protocol chose, or was given.
        train, test: the data.
        validation: what settings were chosen on, where the data have a part for that.
        baselines: scores of others by the same protocol: "majority", the most frequent training class; of images
            "pixels"; of recordings "filterbank" (mean and deviation over time, by as many parts as the encoder is read
            by) and "filterbank_thirds", where the encoder is read whole; "untrained", the encoder before training.
        feature_dim: d.
        seed: of the split and of the validation part.
    """

    scores: Scores
    settings: Mapping[str, float | int | None]
    train: DataUsed
    test: DataUsed
    validation: DataUsed | None = None
    baselines: Mapping[str, Scores] = field(default_factory=dict)
    feature_dim: int
    seed: int

    @property
    def top1(self) -> float:
        """Test accuracy in [0, 1]."""
        return self.scores.top1

    @property
    def metrics(self) -> Mapping[str, float]:
        """The accuracies, in [0, 1]."""
        return self.scores.metrics()

    @property
    def kept(self) -> bool:
        """Whether features of an earlier evaluation were used."""
        return self.train.kept or self.test.kept

    def lines(self) -> list[str]:
        """For people."""
        count = f"({self.protocol}, {counted(self.test.images, f'test {EXAMPLE[self.kind]}')})"
        lines = [f"{self.scores.words()}  {count}", *self.scores.recalls()]
        return lines + [f"{words}: {self.baselines[name].words()}" for name, words in NAMES.items()
                        if name in self.baselines]  # fmt: skip

    def beside(self, others: Mapping[str, Evaluation]) -> Evaluation:
        """The same with the scores of others."""
        own = {name: other.scores for name, other in others.items()}
        return dataclasses.replace(self, baselines={**self.baselines, **own})

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what `to_json` wrote, of any version; UserError for anything else."""
        try:
            values = _upgraded(json.loads(text))
            values.pop("metrics", None)  # what the rest says
            parts = {name: DataUsed(**values[name]) for name in ("train", "test", "validation") if values.get(name)}
            others = {name: Scores(**scores) for name, scores in values["baselines"].items()}
            return cls(**{**values, **parts, "scores": Scores(**values["scores"]), "baselines": others})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is not an evaluation's JSON: {error!r}") from error

    def write(self, path: str | Path) -> Path:
        """Write the JSON document to `path`, whole or not at all; UserError if the disk refuses."""
        path = Path(path)
        write_atomically(path, lambda file: file.write(self.to_json().encode()))
        return path


_BEFORE = {"baseline": "filterbank", "baseline_thirds": "filterbank_thirds"}


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """An evaluation's document with the names of today: before, each baseline was a field of its own, and at first
    `result` held the scores and `floor` the baseline."""
    values = _of_results(values)
    before = {new: found for old, new in _BEFORE.items() if (found := values.pop(old, None)) is not None}
    return {"baselines": before, **values}


def _of_results(values: dict[str, Any]) -> dict[str, Any]:
    if "result" not in values:
        return values
    result = values.pop("result")
    values["scores"], words = result.pop("scores"), result.pop("text")
    values["words"], values["settings"] = f"{words}; {values.pop('text')}", result
    values["digest"] = values.pop("digest_before")
    del values["digest_after"]
    baseline = values.pop("floor", values.pop("baseline", None))
    return values | {"baseline": baseline, "kind": "image" if baseline is None else "audio"}


@dataclass(frozen=True, kw_only=True)
class FoldsEvaluation(Result):
    """Scores of each fold, each scored once by a classifier of the others.

    Attributes:
        folds: their names.
        scores: one for each fold.
        baselines: the same of others by name, see `Evaluation`.
        features_kept: features of an earlier evaluation were used.
    """

    folds: tuple[str, ...]
    scores: tuple[Scores, ...]
    baselines: Mapping[str, tuple[Scores, ...]] = field(default_factory=dict)
    features_kept: bool = False

    @property
    def name(self) -> str:
        """What its document is called by."""
        return f"{self.protocol}-folds"

    @property
    def top1(self) -> float:
        """Mean accuracy over folds in [0, 1]."""
        return float(np.mean([scores.top1 for scores in self.scores]))

    @property
    def metrics(self) -> Mapping[str, float]:
        """The accuracies' means over folds, in [0, 1]."""
        return {name: float(np.mean([getattr(scores, name) for scores in self.scores])) for name, _ in _OVER_FOLDS}

    @property
    def kept(self) -> bool:
        """Whether features of an earlier evaluation were used."""
        return self.features_kept

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{_over_folds(self.scores)}  (mean ± deviation over {counted(len(self.folds), 'fold')})"]
        rows = ((words, self.baselines[name]) for name, words in NAMES.items() if name in self.baselines)
        lines += [f"{words}: {_over_folds(scores)}" for words, scores in rows]
        each = (f"{name} {s.top1:.2%} of {s.count}" for name, s in zip(self.folds, self.scores, strict=True))
        return [*lines, f"accuracy of each: {', '.join(each)}"]

    def beside(self, others: Mapping[str, FoldsEvaluation]) -> FoldsEvaluation:
        """The same with the scores of others."""
        own = {name: other.scores for name, other in others.items()}
        return dataclasses.replace(self, baselines={**self.baselines, **own})


_OVER_FOLDS = (("top1", "accuracy"), ("mean_per_class", "mean per class (UA)"), ("macro_f1", "macro F1"))


def _over_folds(folds: Sequence[Scores]) -> str:
    parts = []
    for metric, name in _OVER_FOLDS:
        values = [100 * getattr(scores, metric) for scores in folds]
        parts.append(f"{name} {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} %")
    return ", ".join(parts)


class ClassifierProtocol(Protocol):
    """A protocol that fits a classifier on features of examples with one label each."""

    same_classes = True

    @abstractmethod
    def fit(self, inputs: FitInputs) -> Outcome:
        """Fit a classifier and score it once; settings are chosen without the test examples."""

    @property
    def read(self) -> Reads:
        """What a classifier that is kept is of."""
        features: Reads = getattr(self.config, "features", "h")
        return features

    def reads(self, encoder: Encoder) -> Encoder:
        """What gives the features."""
        return encoder

    def select(self, encoder: Encoder, parts: Parts) -> Parts:  # noqa: ARG002  # one label each is all that counts
        """The examples that have a label, as `labels` asks for them; raises UserError for labels that do not fit."""
        config = self.config
        if isinstance(config, ClassWeightOptions):
            y = single_labels(parts.train.labels, parts.train.name)
            check_class_weights(config.class_weights, class_count(y, parts.train.classes), parts.train.classes)
        if config.folds:
            fold_names(parts.train, folds_of(parts.train, config.folds, config.seed))
            return parts
        if config.labels != "all":
            train, test = labelled_parts(parts.train, parts.test, config.seed, config.held_out, config.labels)
            train, words = labelled_part(train, config.labels, config.seed, config.draw)
            parts = dataclasses.replace(parts, train=train, test=test, words=words)
        check_labels(parts.train, parts.test, config.seed, config.held_out, parts.validation)
        return parts

    def measure(
        self, encoder: Encoder, parts: Parts, extractor: Extractor, progress: Progress | None
    ) -> Evaluation | FoldsEvaluation:
        """Features of all parts, a classifier, and its scores."""
        if self.config.folds:
            return self._over_folds(encoder, parts.train, extractor, progress)
        begun, reads = time.monotonic(), self.reads(encoder)

        def features(source: Source, what: str) -> Features:
            report = (lambda done, total: progress(f"{what} features", done, total)) if progress else None
            return extractor.extract(reads, source, report)

        bank = features(parts.train, "training")
        choice = features(parts.validation, "validation") if parts.validation is not None else None
        queries = features(parts.test, "test") if parts.test is not None else None
        extracted = time.monotonic()
        inputs, words = self._inputs(encoder, parts, bank, choice, queries)
        outcome = self.fit(inputs)
        kept = self._keep(parts, extractor, inputs, outcome)
        source, chosen = parts.test or parts.train, len(inputs.split[1]) if inputs.split else 0
        used = {"training": bank, "validation": choice, "test": queries}
        counts = {what: _unlabelled(each) for what, each in used.items() if each is not None}
        prepared = _prepared([each for each in used.values() if each is not None])
        left_out = without_label(counts, EXAMPLE[encoder.input.kind])
        return Evaluation(
            protocol=self.name, scores=outcome.scores.named(parts.train.classes), settings=outcome.settings,
            words="; ".join(each for each in (outcome.words, kept, parts.words, prepared, words, left_out) if each),
            train=_used(parts.train, bank, len(inputs.y) - chosen),
            test=_used(source, queries or bank, len(inputs.y_test)),
            validation=_used(parts.validation, choice, chosen) if parts.validation is not None and choice else None,
            feature_dim=inputs.x.shape[1], seed=self.config.seed, baselines=self._majority(parts.train, inputs),
            seconds={"features": round(extracted - begun, 3), "classifier": round(time.monotonic() - extracted, 3)},
        )  # fmt: skip

    def _majority(self, train: Source, inputs: FitInputs) -> dict[str, Scores]:
        """The baseline that needs no features, where baselines are asked for."""
        asked = self.config.baselines
        return {"majority": majority(inputs.y, inputs.y_test).named(train.classes)} if asked else {}

    def _keep(self, parts: Parts, extractor: Extractor, inputs: FitInputs, outcome: Outcome) -> str:
        """Leave the classifier in `fitted` where it is to be kept; that of the filterbank comes later and is not.

        Where a share of the labelled examples was held out for the score, these are learned from in the end, too.

        Returns:
            How what is kept differs from what was scored, in words; empty where it does not.
        """
        if self.fitted is not None or not getattr(self.config, "keep_classifier", False):
            return ""
        assert outcome.affine is not None  # of every protocol with this option
        assert outcome.classes is not None
        affine, classes, told = outcome.affine, outcome.classes, ""
        if parts.test is None and outcome.anew is not None:
            y = np.concatenate([inputs.y, inputs.y_test])
            affine, classes = outcome.anew(np.concatenate([inputs.x, inputs.x_test]), y)
            told = (
                f"kept for prediction is one fitted anew with the same penalty on all {len(y)} labelled "
                f"{inputs.example}s, the {len(inputs.y_test)} held out for the score among them"
            )
        self.fitted = Fitted(
            "; ".join(filter(None, (outcome.words, told))), parts.train, extractor, as_classifier(affine),
            class_names(parts.train.classes, classes.tolist()), self.read, getattr(self.config, "parts", 1),
            Novelty.of(inputs.x, inputs.x_test), _learned(parts.train, parts.validation),
        )  # fmt: skip
        return told

    def _inputs(
        self, encoder: Encoder, parts: Parts, bank: Features, choice: Features | None, queries: Features | None
    ) -> tuple[FitInputs, str]:
        """Features and labels in one numbering of classes, and the split in words."""
        x, y, split = *_labelled(parts.train, bank), None
        config, example = self.config, EXAMPLE[encoder.input.kind]
        groups = _of_labelled(group_numbers(parts.train), bank)
        names = {"training": _names(parts.train, bank)}
        if parts.test is None or queries is None:
            first, second = stratified_split(
                y, config.held_out, config.seed, groups=groups, lone=groups is None, classes=parts.train.classes
            )
            share = f"{config.held_out:.0%} of each class held out for the score (seed {config.seed})"
            x, y, x_test, y_test = x[first], y[first], x[second], y[second]
            alone = "" if groups is not None else lone_in_words(y, parts.train.classes, example)
            words = "; ".join(filter(None, (f"no test set given: {share}", alone)))
            if groups is not None and (whole := names["training"]) is not None:
                groups, names = groups[first], {"training": whole[first], "test": whole[second]}
        else:
            x_test, y_test = _labelled(parts.test, queries)
            y_test = match_classes(y, parts.train.classes, y_test, parts.test.classes)
            present, known = len(np.unique(y_test)), len(np.unique(y))
            words = "test set as given"
            words += f", which has {example}s of {present} of the {counted(known, 'class')}" if present < known else ""
            names["test"] = _names(parts.test, queries)
        if parts.validation is not None and choice is not None:
            x_val, y_val = _labelled(parts.validation, choice)
            y_val = match_classes(y, parts.train.classes, y_val, parts.validation.classes, "validation")
            places = np.arange(len(y) + len(y_val))
            split, groups = (places[: len(y)], places[len(y) :]), None
            x, y = np.concatenate([x, x_val]), np.concatenate([y, y_val])
            names["validation"] = _names(parts.validation, choice)
        told = [words, groups_in_words(config.data.group, names)]
        return FitInputs(x, y, x_test, y_test, split, example, encoder, groups), "; ".join(filter(None, told))

    def _over_folds(
        self, encoder: Encoder, source: Source, extractor: Extractor, progress: Progress | None
    ) -> FoldsEvaluation:
        """Score each fold once, by a classifier of the others; features are made once."""
        given = folds_of(source, self.config.folds, self.config.seed)
        y, folds = single_labels(source.labels, source.name), np.array([str(fold) for fold in given])
        report = (lambda done, total: progress("features", done, total)) if progress else None
        h = extractor.extract(self.reads(encoder), source, report)
        names, part = fold_names(source, given, h.index)
        groups = group_numbers(source)
        rounds, guesses = [], []
        for name in names:
            present = part[h.index]
            fit, held = present & (folds[h.index] != name), present & (folds[h.index] == name)
            arrays = h.h[fit], y[h.index[fit]], h.h[held], y[h.index[held]]
            together = None if groups is None else groups[h.index[fit]]
            outcome = self.fit(FitInputs(*arrays, None, EXAMPLE[encoder.input.kind], encoder, together))
            rounds.append(outcome.scores.named(source.classes))
            guesses.append(majority(arrays[1], arrays[3]).named(source.classes))
        left_out = without_label({"": _unlabelled(h)}, EXAMPLE[encoder.input.kind])
        made = f" made for it (seed {self.config.seed})" if self.config.folds is not True else ""
        told = folds_in_words(source, given, self.config.data.group), left_out
        words = f"{self.name}, leaving out each of {counted(len(names), 'fold')}{made} in turn, scored once; {h.text}"
        words = "; ".join([words, *filter(None, told)])
        return FoldsEvaluation(
            protocol=self.name, words=words, folds=tuple(names), scores=tuple(rounds), features_kept=h.kept,
            baselines={"majority": tuple(guesses)} if self.config.baselines else {},
        )  # fmt: skip


def _labelled(source: Source, features: Features) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    y = single_labels(features.labels, source.name, least=1)
    return features.h[y >= 0], y[y >= 0]


def _learned(*sources: Source | None) -> NDArray[np.uint64] | None:
    """Digests of the labelled examples of all sources; None where those of one are not known."""
    found = [labelled_digests(source) for source in sources if source is not None]
    known = [digests for digests in found if digests is not None]
    return np.concatenate(known) if len(known) == len(found) else None


def _of_labelled(values: NDArray[Any] | None, features: Features) -> Any:
    """Of values [n] of all examples those of the ones that were read and have a label."""
    return None if values is None else values[features.index[np.asarray(features.labels) >= 0]]


def _names(source: Source, features: Features) -> NDArray[Any] | None:
    """The groups of the examples that were read and have a label; None without groups."""
    groups = groups_of(source)
    names: NDArray[Any] | None = _of_labelled(None if groups is None else np.array(groups, dtype=object), features)
    return names


def _used(source: Source, features: Features, images: int) -> DataUsed:
    skipped, unlabelled = len(source.skipped), _unlabelled(features)
    return DataUsed(source.name, images, skipped, unlabelled, source.fingerprint(), features.kept)


def _prepared(parts: Sequence[Features]) -> str:
    """How the examples of all parts were prepared, as the first part tells it, but counted over them all."""
    first = parts[0]
    text = first.text.removesuffix(cut_in_words(*first.cut))
    if all(part.framed for part in parts):  # (an earlier version kept features without)
        own = framed_in_words(first.framed)
        text = framed_in_words(together(part.framed for part in parts)) + text.removeprefix(own)
    cut, seen = (sum(part.cut[at] for part in parts) for at in (0, 1))
    return text + cut_in_words(cut, seen)


def _unlabelled(features: Features) -> int:
    return int((cast(Any, features.labels) < 0).sum())
