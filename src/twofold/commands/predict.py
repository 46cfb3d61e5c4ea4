"""`twofold predict`: what a fine-tuned or linear classifier, or a recogniser, says of new files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, new_parser
from twofold.data import DataConfig, Source
from twofold.data.base import NothingReadable
from twofold.data.sources.given import names_of, open_given, short_name
from twofold.devices import choose_device
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.predictor import (
    Predictor,
    extractor_of,
    kind_of_file,
    load_predictor,
    model_file,
    read_recordings,
    reading_of,
)
from twofold.evaluation.protocols.base import BatchOptions
from twofold.evaluation.protocols.recogniser import Reader
from twofold.evaluation.rows import check_table, write_rows
from twofold.options import OptionsParser, add_options, merge, refuse_unused
from twofold.results import in_json
from twofold.text import counted

_SHOWN = 20
"""Rows that are shown where no file is named."""


@dataclass(frozen=True)
class PredictConfig(BatchOptions):
    """What is asked of the classifier."""

    top: int = 3
    """Classes that are named of each file, the likeliest first; of fewer classes all."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data: DataConfig = field(default_factory=lambda: DataConfig(max_skipped=1.0))
    """Data: read as those that the classifier was made of, unless told otherwise; what cannot be read is a row with the
    reason, unless data.max_skipped asks for an error"""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"--top {self.top}: give 1 or more")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: give 1 or more")


@dataclass(frozen=True)
class Prediction:
    """What is said of one file.

    Attributes:
        name: its path below the data, as `twofold embed` writes it.
        label: the likeliest class; of a file that can be of several all that are likelier than not, joined by ``|``.
            None of a recording that is read, and of what cannot be read.
        probability: of `label`, in [0, 1]; of several the lowest.
        top: the likeliest classes with their probabilities, the likeliest first.
        unlike: how unlike anything seen, in [0, 1): the share of held-out examples that lie nearer to the training
            examples (see `evaluation.novelty`). Examples like those of the training exceed 0.95 in one case of twenty.
        distance: 1 - cosine to the k-th nearest training example, in [0, 2].
        text: what a recogniser reads.
        confidence: geometric mean over the frames of the likeliest symbol's probability, in (0, 1].
        given: the class that the data themselves give it.
        learned: whether the classifier was fitted on this very file; None where that is not known.
        problem: why it could not be read.
    """

    name: str
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    unlike: float | None = None
    distance: float | None = None
    text: str | None = None
    confidence: float | None = None
    given: str | None = None
    learned: bool | None = None
    problem: str | None = None

    def row(self) -> dict[str, Any]:
        """By column; what it lacks is left out."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "top"}
        for place, (label, probability) in enumerate(self.top[1:], 2):
            values |= {f"label_{place}": label, f"probability_{place}": probability}
        return {name: value for name, value in values.items() if value is not None}

    def line(self) -> str:
        """For people."""
        if self.problem is not None:
            return f"{self.name}: {self.problem}"
        if self.text is not None:
            return f"{self.name}: {self.text}  ({self.confidence:.0%})"
        others = ", ".join(f"{label} {probability:.1%}" for label, probability in self.top[1:])
        unlike = "" if self.unlike is None else f"  unlike {self.unlike:.2f}"
        return (
            f"{self.name}: {self.label or 'none'} {self.probability:.1%}" + (f" ({others})" if others else "") + unlike
        )


@dataclass(frozen=True)
class PredictResult:
    """What a classifier or recogniser says.

    Attributes:
        file: the table; None where none was asked for.
        model: the file of the classifier.
        rows: one a file, in the order of the data; what could not be read follows.
        words: how examples were read, and what the columns mean.
    """

    file: Path | None
    model: Path
    rows: tuple[Prediction, ...]
    words: str

    @property
    def metrics(self) -> dict[str, float]:
        """`top1`, the share of files with a class of their own that get it, and `top1_new`, that of those among them
        that the classifier was not fitted on, where that is known; nothing where there are none."""
        known = [row for row in self.rows if row.given is not None and row.label is not None]
        shares = {"top1": known, "top1_new": [row for row in known if row.learned is False]}
        return {name: sum(row.given == row.label for row in rows) / len(rows) for name, rows in shares.items() if rows}

    def text(self) -> str:
        """For people: the first rows, or where all of them are."""
        bad = [row for row in self.rows if row.problem is not None]
        good = len(self.rows) - len(bad)
        lines = [f"{good:,} predicted by {self.model}{self._agreement()}", *(row.line() for row in self._shown())]
        left = len(self.rows) - len(self._shown())
        if self.file is None and left:
            lines.append(f"and {left:,} more: --out predictions.csv writes all")
        if bad and self.file is not None:
            lines.append(f"{len(bad):,} could not be read; the column problem says why")
        return "\n".join([*lines, self.words, *([f"written to {self.file}"] if self.file else [])])

    def _agreement(self) -> str:
        """How often predictions are the classes that the data give, and of how many files that tells something."""
        known = [row for row in self.rows if row.given is not None and row.label is not None]
        new, learned = (sum(row.learned is each for row in known) for each in (False, True))
        if not known:
            return ""
        if learned == len(known):
            which, share = "the one" if learned == 1 else f"all {learned:,}", self.metrics["top1"]
            told = f"that {share:.2%} are as it says tells nothing of new ones"
            return f", fitted on {which} of these with a class of their own: {told}"
        if new + learned < len(known):
            fitted = ", it may have been fitted on some of them"
            return f", {self.metrics['top1']:.2%} of the {len(known):,} with a class of their own as it says{fitted}"
        apart = (
            f"fitted on {learned:,} of these files; of the {counted(new, 'other')}" if learned else f"of the {new:,}"
        )
        return f", {apart} with a class of their own {self.metrics['top1_new']:.2%} are as it says"

    def _shown(self) -> Sequence[Prediction]:
        return self.rows[: 3 if self.file is not None else _SHOWN]

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = in_json(self)
        return document


def predict(
    run: str | Path, files: Any, /, out: str | Path | None = None, *, encoder: nn.Module | None = None, **options: Any
) -> PredictResult:
    """Say what new files are, by the classifier of a run, or what is said in them, by its recogniser.

    Args:
        run: a fine-tuned or distilled run's folder; a run's folder whose evaluation kept a classifier (`twofold
            evaluate --keep_classifier`; of several the last one); or the file of one.
        files: whatever `twofold.pretrain` takes, the path of one file, or a list of paths. One file is enough.
        out: a new .csv, .jsonl or .parquet file for the table.
        encoder: your own module, if the run was trained with one.
        options: fields of `PredictConfig`, nested or dotted.

    Returns:
        A row for each file, also for those that cannot be read, with the reason.

    Raises:
        UserError: no classifier, nothing at the path, `out` exists, ...
    """
    path = None if out is None else Path(out)
    if path is not None:
        check_table(path)
    model = model_file(run)
    config = OptionsParser(PredictConfig).build(merge({"data": {"max_skipped": 1.0}}, reading_of(model), options))
    kind = kind_of_file(model)
    refuse_unused(config, kind=kind)
    predictor = load_predictor(model, encoder, choose_device(config.device, "--device"))
    rows, words = _asked(predictor, model, files, config)
    if path is not None:
        columns = dict.fromkeys(name for row in rows for name in row.row())
        order = [name for name in _columns(rows) if name in columns]
        write_rows(path, order, [row.row() for row in rows])
    return PredictResult(path, model, tuple(rows), words)


def _columns(rows: Sequence[Prediction]) -> list[str]:
    """All that there can be, in the order in which people read them."""
    most = max((len(row.top) for row in rows), default=1)
    more = [f"{what}_{place}" for place in range(2, most + 1) for what in ("label", "probability")]
    return [
        "name", "label", "probability", *more, "text", "confidence", "unlike", "distance", "given", "learned",
        "problem",
    ]  # fmt: skip


def _asked(
    predictor: Predictor | Reader, model: Path, files: Any, config: PredictConfig
) -> tuple[list[Prediction], str]:
    """A row for each file, and how they came about in words."""
    taken: Encoder = predictor.encoder if isinstance(predictor, Reader) else predictor.reads
    reading = dataclasses.replace(config.data, channels=config.data.channels or taken.input.channels)
    try:
        source = open_given(files, reading, taken.input.kind)
        if isinstance(predictor, Reader):
            rows, words = _read(predictor, source, files, config)
        else:
            rows, words = _classified(predictor, model, source, files, config)
        skipped = list(source.skipped)
    except NothingReadable as nothing:
        if len(nothing.skipped) == 0:
            raise
        rows, words, skipped = [], "nothing could be read", list(nothing.skipped)
    rows += [Prediction(short_name(path, files), problem=reason) for path, reason in skipped]
    return rows, words


def _classified(
    predictor: Predictor, model: Path, source: Source, files: Any, config: PredictConfig
) -> tuple[list[Prediction], str]:
    device = choose_device(config.device, "--device")
    extractor = extractor_of(model, batch=config.batch, device=device, workers=config.data.workers)
    found = predictor(source, extractor)
    order = np.argsort(-found.probabilities, axis=1, kind="stable")[:, : config.top]
    names, given, rows = names_of(source, found.index, files), _given(source, found.index), []
    learned = predictor.known(source, found.index)
    for place, best in enumerate(order.tolist()):
        chances = found.probabilities[place]
        top = tuple((predictor.classes[column], round(float(chances[column]), 6)) for column in best)
        label, probability = top[0]
        if predictor.many:
            likely = np.flatnonzero(chances > 0.5)
            label = "|".join(predictor.classes[column] for column in likely.tolist())
            probability = round(float(chances[likely].min()), 6) if len(likely) else probability
        unlike = None if found.unlike is None else round(float(found.unlike[place]), 6)
        distance = None if found.distance is None else round(float(found.distance[place]), 6)
        rows.append(
            Prediction(
                str(names[place]), label, probability, top, unlike, distance, given=given[place],
                learned=None if learned is None else bool(learned[place]),
            )
        )  # fmt: skip
    novelty = "" if predictor.novelty is None else f"; {predictor.novelty.words()}"
    return rows, f"{found.text}{novelty}"


def _read(reader: Reader, source: Source, files: Any, config: PredictConfig) -> tuple[list[Prediction], str]:
    found = read_recordings(reader, source, config.batch)
    names = names_of(source, np.array(list(found), dtype=np.int64), files)
    rows = [
        Prediction(str(name), text=each.text, confidence=round(each.confidence, 6))
        for name, each in zip(names, found.values(), strict=True)
    ]
    return (
        rows,
        f"read in {counted(len(reader.characters), 'character')}, whole recordings, of overlong ones the beginning",
    )


def _given(source: Source, index: Any) -> list[str | None]:
    """The class that the data give each example, where they name one."""
    labels, classes = source.labels, source.classes
    if labels is None or labels.ndim != 1 or len(labels) == 0:
        return [None] * len(index)
    chosen = labels[index].tolist()
    return [None if each < 0 else classes[each] if classes else str(each) for each in chosen]


def parser() -> ArgumentParser:
    """Of `twofold predict`."""
    parser = new_parser("Say what new files are, by the classifier that finetune or evaluate --keep-classifier left.")
    parser.add_argument("run", help="a run's folder, or the file of a classifier")
    add_data(parser, f"{EITHER}; or one file, or several", nargs="+")
    parser.add_argument("--out", type=str, help="a new .csv, .jsonl or .parquet file; without it rows are shown")
    add_options(parser, PredictConfig)
    return parser


def run(options: dict[str, Any]) -> PredictResult:
    """`twofold predict`."""
    return predict(options.pop("run"), options.pop(PATH), options.pop("out", None), **options)
