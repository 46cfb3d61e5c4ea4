"""Recognition of texts: a linear layer on the frames of an encoder's layers, trained with CTC, judged by WER and CER.

As SUPERB's recognition task in small: features are a learned mixture of all layers; the head is one linear layer, so
that the numbers speak of the features. Characters come from the training texts.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from twofold.data import AudioSource
from twofold.data.groups import group_numbers
from twofold.encoders import Encoder, UtteranceEncoder, Waves
from twofold.encoders.audio.encoder import FilterbankEncoder
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.grouped import groups_in_words
from twofold.evaluation.kept import RECOGNISER, Fitted, KeepRecogniserOptions
from twofold.evaluation.label_subsets import label_positions
from twofold.evaluation.parts import Parts
from twofold.evaluation.protocols.base import EvaluationConfig, LabelOptions, Progress, Protocol, Result, ScoreOptions
from twofold.evaluation.protocols.beside import BaselineOptions
from twofold.evaluation.protocols.recogniser import Reader, Recogniser, readable
from twofold.randomness import derive_seed, permutation
from twofold.text import counted, counted_have

_HELD = 2**30
"""Most bytes of frozen features that are kept from one epoch to the next."""
_FITTED = 200


@dataclass(frozen=True)
class CtcConfig:
    """How the recogniser is trained and read."""

    epochs: int = 20
    """Passes over the training texts."""
    lr: float = 0.01
    """Learning rate of the linear layer and the mixture (Adam)."""
    tune: bool = False
    """Train a copy of the encoder, too."""
    tune_lr: float = 1e-4
    """Learning rate of that copy."""
    beam: int = 1
    """Beginnings that the search for a text keeps; 1 takes the best path (greedy)."""
    batch: int = 16
    """Utterances a step."""

    def __post_init__(self) -> None:
        for name in ("epochs", "beam", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--ctc.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "tune_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"--ctc.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Texts(Parts):
    """Recordings with texts to train on (`train`) and to score (`test`).

    Attributes:
        left_out: recordings left out by reason.
        split: where the test part comes from, in words.
        late: test texts that have more characters than the evaluated encoder has steps.
    """

    left_out: dict[str, int] = field(default_factory=dict)
    split: str = ""
    late: int = 0


@dataclass(frozen=True, kw_only=True)
class Recognition(Result):
    """Error rates: edits over the whole test set divided by its words or characters; above 1 is possible.

    Attributes:
        wer, cer: of the encoder.
        baseline_wer, baseline_cer: of the log-mel filterbank, read in the same way.
        train, test: utterances.
        left_out: utterances left out by reason.
        characters: of the training texts.
        examples: (what was said, what was read) of the first few test utterances.
    """

    wer: float
    cer: float
    baseline_wer: float | None = None
    baseline_cer: float | None = None
    train: int
    test: int
    left_out: dict[str, int]
    characters: str
    examples: list[tuple[str, str]]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The error rates."""
        return {"wer": self.wer, "cer": self.cer}

    def lines(self) -> list[str]:
        """For people."""
        count = f"(ctc, {self.train:,} training and {counted(self.test, 'test utterance')})"
        lines = [f"WER {self.wer:.2%}, CER {self.cer:.2%}  {count}"]
        if self.baseline_wer is not None:
            lines.append(f"filterbank alone: WER {self.baseline_wer:.2%}, CER {self.baseline_cer:.2%}")
        lines += [f"  said: {said}\n  read: {read}" for said, read in self.examples[:2]]
        return lines + [f"left out: {count:,} {reason}" for reason, count in self.left_out.items()]

    def beside(self, others: Mapping[str, Recognition]) -> Recognition:
        """The same with the filterbank's error rates."""
        alone = others.get("filterbank")
        return self if alone is None else dataclasses.replace(self, baseline_wer=alone.wer, baseline_cer=alone.cer)


class Ctc(Protocol):
    """Trains a recogniser of characters on an encoder's frames and counts its errors."""

    kinds = ("audio",)
    needs_frames = True
    untrained_beside = False

    @dataclass(frozen=True)
    class Config(KeepRecogniserOptions, LabelOptions, ScoreOptions, BaselineOptions, EvaluationConfig, variant="ctc"):
        """word and character error rate of a recogniser trained on the frames, from recordings with texts."""

        ctc: CtcConfig = field(default_factory=CtcConfig)
        """Recognition (--protocol ctc)"""

    def select(self, encoder: Encoder, parts: Parts) -> Texts:
        """The recordings with texts that can be learned and scored.

        Raises:
            UserError: no texts, or nothing left to train on or to score.
        """
        config, train, test = self.config, parts.train, parts.test
        assert isinstance(train, AudioSource)  # both kinds were checked
        assert isinstance(encoder, UtteranceEncoder)
        assert test is None or isinstance(test, AudioSource)
        split = "test set as given"
        if test is None:
            train, test = split_by_text(train, config.held_out, config.seed)
            split = f"{config.held_out:.0%} of the different texts held out (seed {config.seed})"
        together = groups_in_words(config.data.group, {"training": train.groups, "test": test.groups})
        split += f"; {together}" if together else ""
        left_out: dict[str, int] = {}
        train, test = (part.subset(np.array(fitting(part, kind, left_out), dtype=np.int64))
                       for kind, part in (("training", train), ("test", test)))  # fmt: skip
        train = _long_enough(train, encoder, left_out)
        if not len(train) or not len(test):
            use = "score" if len(train) else "train on"
            raise UserError(f"--protocol ctc: no utterance is left to {use}: {left_out}")
        train, selection = _with_texts(train, config.labels, config.seed, config.draw)
        late = int((~enough_steps(test, encoder)).sum())
        return Texts(train, test, words=selection, left_out=left_out, split=split, late=late)

    def measure(
        self, encoder: Encoder, parts: Texts, extractor: Extractor, progress: Progress | None
    ) -> Recognition:  # fmt: skip
        """Train and read; with `ctc.tune` a copy of the encoder is trained, but never of the filterbank."""
        config, train, test = self.config.ctc, parts.train, parts.test
        assert isinstance(train, AudioSource)
        assert isinstance(test, AudioSource)
        assert isinstance(encoder, UtteranceEncoder)
        tune = config.tune and not isinstance(encoder, FilterbankEncoder)
        place = str(next((p.device for p in encoder.parameters()), extractor.device or "cpu"))
        work = _Work(copy.deepcopy(encoder) if tune else encoder, train, config, tune, self.config.seed, place)
        hypotheses, references = work.train().read(test)
        if self.config.keep_classifier and self.fitted is None and not isinstance(encoder, FilterbankEncoder):
            trained = work.encoder if tune else None
            self.fitted = Fitted(_words(config), train, parts={RECOGNISER: work.reader.part()}, encoder=trained)
        if progress:
            progress("test utterances", len(references), len(references))
        wer, cer = error_rates(references, hypotheses)
        words = f"{_words(config)}; {parts.split}; {parts.words}{_limits(test, parts.late, work.characters)}"
        return Recognition(
            protocol=self.name, words=words, wer=wer, cer=cer, train=len(train), test=len(references),
            left_out=parts.left_out, characters=work.characters,
            examples=list(zip(references[:5], hypotheses[:5], strict=True)),
        )  # fmt: skip


def clean_text(text: str) -> str:
    """Lower case, composed characters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).lower().replace("\u2019", "'").split())


def fitting(source: AudioSource, kind: str, left_out: dict[str, int]) -> list[int]:
    """Recordings whose text can be learned or told; the reasons of others are counted in `left_out`."""
    kept = []
    for i, (text, seconds) in enumerate(zip(source.texts, source.seconds(), strict=True)):
        words = clean_text(text or "")
        reason = None
        if not words:
            reason = "without a text"
        elif any(c.isdigit() or c in "[]()<>{}" for c in words):
            reason = "with digits or brackets in the text, which are not said as written"
        elif seconds > source.config.audio.max_seconds:
            reason = "longer than data.audio.max_seconds, so that the text would not fit"
        if reason:
            left_out[f"{kind} {reason}"] = left_out.get(f"{kind} {reason}", 0) + 1
        else:
            kept.append(i)
    return kept


def enough_steps(source: AudioSource, encoder: UtteranceEncoder) -> NDArray[np.bool_]:
    """[n] whether the encoder gives a recording the steps that CTC needs to say its text at all.

    It needs one for each character, and one for a blank between two equal ones.
    """
    samples = source.at_rate(encoder.frontend.sample_rate).lengths()
    frames = encoder.frontend.frames(torch.from_numpy(samples)).numpy()
    texts = [clean_text(text or "") for text in source.texts]
    needed = [len(text) + sum(a == b for a, b in itertools.pairwise(text)) for text in texts]
    return np.asarray(np.array(needed) <= -(-frames // encoder.stack))


def split_by_text(source: AudioSource, share: float, seed: int) -> tuple[AudioSource, AudioSource]:
    """Two parts with no text in both: a share of the different texts, with all who say them, is held out.

    Where the source has groups, none of them is in both either: texts that share one go together.
    """
    texts = [clean_text(text or "") for text in source.texts]
    different = sorted(set(texts) - {""})
    if len(different) < 2:
        raise UserError(f"{source.name}: texts are needed, two different ones at least, or give --test")
    if source.groups is not None:
        held_apart = _texts_and_groups_apart(source, texts, share, seed)
        return source.subset(np.flatnonzero(~held_apart)), source.subset(np.flatnonzero(held_apart))
    count = int(np.clip(round(share * len(different)), 1, len(different) - 1))
    held = {different[i] for i in permutation(seed, "held-out texts", 0, len(different))[:count]}
    test = np.array([text in held for text in texts])
    return source.subset(np.flatnonzero(~test)), source.subset(np.flatnonzero(test))


def _texts_and_groups_apart(source: AudioSource, texts: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """[n] whether held out: what hangs together by texts and groups, in random order, as much as the share allows."""
    _, text = np.unique(texts, return_inverse=True)
    group = np.asarray(group_numbers(source))
    first, size = int(text.max()) + 1, int(text.max()) + 2 + int(group.max())
    links = coo_array((np.ones(len(text)), (text, first + group)), shape=(size, size))
    part = connected_components(links, directed=False)[1][text]
    parts = np.unique(part)
    if len(parts) < 2:
        raise UserError(
            f"--data.group {source.config.group}: all groups of {source.name} hang together by the texts that they "
            "share, so that none can be held out without its texts: give --test with recordings of their own"
        )
    order = parts[permutation(seed, "held-out texts", 0, len(parts))]
    sizes = {int(each): len(np.unique(text[part == each])) for each in order}
    held: list[int] = []
    for each in order.tolist():
        if sum(sizes[other] for other in held) + sizes[each] <= share * first:
            held.append(each)
    return np.isin(part, held or [min(sizes, key=sizes.__getitem__)])


def _long_enough(train: AudioSource, encoder: UtteranceEncoder, left_out: dict[str, int]) -> AudioSource:
    """What can be learned: of the rest CTC's loss is infinite."""
    enough = enough_steps(train, encoder)
    if not enough.all():
        left_out["training with more characters in the text than the encoder has steps"] = int((~enough).sum())
    return train.subset(np.flatnonzero(enough))


def _with_texts(train: AudioSource, labels: str, seed: int, draw: int) -> tuple[AudioSource, str]:
    """The recordings whose texts are known, and the choice in words; a text is a label, all of one class."""
    if re.fullmatch(r"\d+ ?/ ?class", labels):
        raise UserError(f"--labels {labels}: texts have no classes; give a share (10%), a number (40) or a list")
    if labels == "all":
        return train, f"all {counted(len(train), 'training text')}"
    labelled: Any = train.with_labels(["text"] * len(train))
    selection = label_positions(labelled, labels, seed, draw)
    words = f"{len(selection):,} of {counted(len(train), 'training text')} ({labels}; seed {seed}, draw {draw})"
    return train.subset(selection), words


def _words(config: CtcConfig) -> str:
    search = "best path" if config.beam == 1 else f"prefix beam search of {config.beam}, no language model"
    return (
        f"linear layer on a learned mixture of all layers, encoder {'tuned, too' if config.tune else 'frozen'}, CTC, "
        f"{counted(config.epochs, 'epoch')}, Adam {config.lr:g}; {search}"
    )


def _limits(test: AudioSource, late: int, characters: str) -> str:
    """What no recogniser could read: it counts as wrong, because the test set is the same for all encoders."""
    unknown = set("".join(clean_text(text or "") for text in test.texts)) - set(characters)
    message = f"; {counted(len(characters), 'character')} from the training texts"
    if unknown:
        message += f", {len(unknown)} of the test texts unknown"
    if late:
        message += f"; {counted_have(late, 'test text')} more characters than the encoder has steps, and "
        message += "counts as wrong" if late == 1 else "count as wrong"
    return message


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, float]:
    """(WER, CER) over all texts together; UserError without jiwer."""
    try:
        import jiwer
    except ImportError as error:
        raise UserError('word error rates need an extra: pip install "twofold[speech]"') from error
    return float(jiwer.wer(list(references), list(hypotheses))), float(jiwer.cer(list(references), list(hypotheses)))


class _Work:
    """One recogniser in the making."""

    def __init__(
        self, encoder: UtteranceEncoder, source: AudioSource, config: CtcConfig, tune: bool, seed: int, device: str
    ) -> None:
        self.encoder, self.config, self.tune, self.seed = encoder.to(device), config, tune, seed
        self.source = source.at_rate(encoder.frontend.sample_rate)
        self.device = torch.device(device)
        self.texts = [clean_text(text or "") for text in source.texts]
        self.characters = "".join(sorted(set("".join(self.texts))))
        self._held: dict[int, tuple[Tensor, Tensor, list[int]]] = {}
        self._room = 0 if tune else _HELD
        order = np.argsort(self.source.lengths(), kind="stable")
        self.batches = [order[i : i + config.batch].tolist() for i in range(0, len(order), config.batch)]
        encoder.eval()
        torch.manual_seed(derive_seed(seed, "ctc", 0, 0))
        mean, std = self._scale()
        self.head = Recogniser(mean, std, len(self.characters) + 1).to(device)

    def train(self) -> _Work:
        """All epochs, batches in another order in each."""
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": self.config.lr}]
        if self.tune:
            groups.append({"params": list(self.encoder.parameters()), "lr": self.config.tune_lr})
        optimizer = torch.optim.Adam(groups)
        trained = [p for group in groups for p in group["params"]]
        self.encoder.train(self.tune)
        for epoch in range(self.config.epochs):
            for place in permutation(self.seed, "ctc order", epoch, len(self.batches)).tolist():
                states, frames, kept = self._states(self.source, self.batches[place], place)
                if not kept:
                    continue
                symbols = [[self.characters.index(c) + 1 for c in self.texts[i]] for i in kept]
                # Texts that do not fit were left out; rounding in resampling may still take a step from one.
                loss = F.ctc_loss(
                    self.head(states).transpose(0, 1), torch.tensor([s for row in symbols for s in row]),
                    frames.cpu(), torch.tensor([len(row) for row in symbols]), zero_infinity=True,
                )  # fmt: skip
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
        self.encoder.eval()
        return self

    @property
    def reader(self) -> Reader:
        """What was trained, to read with."""
        return Reader(self.encoder, self.head, self.characters, self.config.beam)

    def read(self, source: AudioSource) -> tuple[list[str], list[str]]:
        """What is read of each recording, and what was said."""
        source = source.at_rate(self.encoder.frontend.sample_rate)
        read = self.reader.read(source, self.config.batch)
        if not read:
            raise UserError(f"{source.name}: none of its recordings can be read")
        return [each.text for each in read.values()], [clean_text(source.texts[i] or "") for i in read]

    def _states(
        self, source: AudioSource, indices: list[int], place: int | None = None
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Layers [n, T, L, d], frames [n], and which recordings these are; kept for the next epoch where frozen."""
        if place in self._held:
            return self._held[place]
        waves, kept = readable(source, indices)
        if not kept:
            return torch.empty(0), torch.empty(0), kept
        with torch.set_grad_enabled(self.tune and torch.is_grad_enabled()):
            layers, frames = self.encoder.hidden_states(Waves.of(waves).to(self.device))
            states = torch.stack(layers, dim=2)
        if place is not None and 2 * states.numel() <= self._room:
            self._room -= 2 * states.numel()
            self._held[place] = states.half() if states.is_cuda else states.bfloat16(), frames, kept
        return states, frames, kept

    @torch.no_grad()
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [L, d] of each layer over the frames of some training recordings."""
        parts = [state for batch in self._some() for state in batch]
        if not parts:
            raise UserError(f"{self.source.name}: none of its recordings can be read")
        x = torch.cat(parts).float()
        return x.mean(0), x.std(0) + 1e-5

    def _some(self) -> Iterator[list[Tensor]]:
        for index in permutation(self.seed, "ctc scale", 0, len(self.source))[:_FITTED].tolist():
            states, frames, kept = self._states(self.source, [index])
            if kept:
                yield [states[0, : frames[0]]]
