"""Transfer to other data sets: settings chosen on validation images, fitted anew, the test set scored once.

Source: arXiv 2002.05709, appendix B.8. Where it leaves something open, the choice is ours and said in each result's
text: a fifth of each class is held out where a data set has no validation split, and images with many labels get one
logistic regression a class.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twofold.data import DataConfig, Source, open_source
from twofold.data.groups import group_numbers
from twofold.data.sources.subset import subset
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.evaluation.feature_cache import Features
from twofold.evaluation.features import Extractor
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.logistic import PAPER_GRID, Array, LinearModel, fit_path
from twofold.evaluation.scores import score, score_many
from twofold.evaluation.splits import check_test_labels, stratified_split
from twofold.files import write_atomically
from twofold.reading import read_json
from twofold.studies.transfer.permutation import hits_of, packed
from twofold.studies.transfer.sets import SETS, Metric, Protocol, Start
from twofold.text import counted

HELD_OUT = 0.2


@dataclass(frozen=True)
class DataSplits:
    """A data set divided as the study does: to fit on, to choose settings on, both together, and to score on.

    `whole` holds the images of `fit` and `validation`, in whatever order.
    """

    fit: Source
    validation: Source
    whole: Source
    test: Source
    words: str


@dataclass(frozen=True)
class TransferResult:
    """One data set under one protocol.

    Attributes:
        name, protocol, metric: what was measured.
        value: on the test images, in [0, 1].
        validation: the same on the validation images, with the chosen settings.
        settings: what was chosen.
        images: of training and validation together, and of the test.
        text: the protocol in words.
        asked: what the result depends on: another one may not be mistaken for it.
        seconds: it took.
        start: whose encoder was measured.
        hits: what was told right of each test image (see `permutation.packed`); empty in files of before it was kept.
    """

    name: str
    protocol: Protocol
    metric: Metric
    value: float
    validation: float
    settings: dict[str, float]
    images: tuple[int, int]
    text: str
    asked: dict[str, Any]
    seconds: float
    start: Start = "run"
    hits: str = ""

    def write(self, path: Path) -> Path:
        """Write it as JSON, whole or not at all."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
        return path


def read_cell(path: Path, asked: dict[str, Any]) -> TransferResult | None:
    """The result of an earlier call; None if there is none.

    Raises:
        UserError: it is damaged, or of another encoder, other data or other settings.
    """
    if (cell := _stored(path)) is None:
        return None
    if differing := _differing(cell, asked, asked.keys() | cell.asked.keys()):
        raise UserError(
            f"{path} was measured with another {', '.join(differing)}; choose another --out, or remove the file to "
            "have it measured again"
        )
    return cell


def cell_like(path: Path, asked: dict[str, Any]) -> TransferResult | None:
    """The result at `path` if there is a whole one, and all that `asked` names is so in it; else None."""
    try:
        cell = _stored(path)
    except UserError:  # its own call tells of it
        return None
    return None if cell is None or _differing(cell, asked, asked.keys()) else cell


def _stored(path: Path) -> TransferResult | None:
    if not path.exists():
        return None
    try:
        values = read_json(path)
        return TransferResult(**{**values, "images": tuple(values["images"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}; remove it to have it measured again") from error


def _differing(cell: TransferResult, asked: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Those of `keys` that were asked otherwise of `cell`."""
    wanted = json.loads(json.dumps(asked))
    return sorted(key for key in keys if wanted.get(key) != cell.asked.get(key))


def open_parts(name: str, config: DataConfig, seed: int = 0) -> DataSplits:
    """Open a data set of the study.

    Raises:
        UserError: no such set, its files are missing, or a class has no image in a part.
    """
    if name not in SETS:
        raise UserError(f"--data {name}: the transfer study has {', '.join(SETS)}")
    entry = SETS[name]
    whole, test = (open_source(name, config, split=split) for split in (entry.whole, "test"))
    if entry.validation is not None:
        fit, validation = (open_source(name, config, split=split) for split in (entry.fit, entry.validation))
        words = f"settings chosen on its {counted(len(validation), 'validation image')}"
    else:
        _check_cover(whole, least=2)
        y = np.asarray(whole.labels)
        first, second = stratified_split(y, HELD_OUT, seed, "transfer validation", groups=group_numbers(whole))
        fit, validation = subset(whole, first), subset(whole, second)
        words = f"settings chosen on {counted(len(second), 'training image')}, {HELD_OUT:.0%} of each class, held out "
        words += f"(seed {seed})"
    if entry.note:
        words += f"; {entry.note}"
    parts = DataSplits(fit, validation, whole, test, words)
    for source in (fit, validation, whole, test):
        _check_cover(source)
    return parts


class Measured(NamedTuple):
    """What a protocol found: results on test and validation images, settings, the protocol in words, and the hits."""

    value: float
    validation: float
    settings: dict[str, float]
    text: str
    hits: str


def linear(
    encoder: Encoder,
    name: str,
    parts: DataSplits,
    extractor: Extractor,
    grid: Sequence[float] = PAPER_GRID,
) -> Measured:
    """L-BFGS on frozen features, the l2 penalty chosen along a path; the paper takes whole central squares.

    Raises:
        UserError: see `Extractor.extract` and `check_test_labels`.
        NotFrozenError: the encoder changed.
    """
    metric, before = SETS[name].metric, tensor_digests(encoder)

    def features(source: Source, labels: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64], Features]:
        result = extractor.extract(encoder, source)
        _check_cover(source, read=result.index)
        return result.h, labels[result.index], result

    # All features come before the first fit: what is wrong with the data shows before hours go into it.
    x, y, result = features(parts.fit, np.asarray(parts.fit.labels))
    x_val, y_val, validated = features(parts.validation, np.asarray(parts.validation.labels))
    x_test, y_test, tested = features(parts.test, check_test_labels(parts.whole, parts.test))
    path = sorted(grid, reverse=True)  # strongest first: short fits, each a good start for the next
    values = [measure(model, x_val, y_val, metric) for model in fit_many_path(x, y, path)]
    best = int(np.argmax(values))  # of equals the strongest penalty
    x, y = np.concatenate([x, x_val]), np.concatenate([y, y_val])  # both together are `parts.whole`
    model = fit_many_path(x, y, [path[best]])[0]
    value = measure(model, x_test, y_test, metric)
    assert_frozen(before, tensor_digests(encoder))
    kind = "one logistic regression a class" if y.ndim == 2 else "multinomial logistic regression"
    bad = [len(part.skipped) for part in (result, validated, tested)]
    left_out = f"; {sum(bad[:2])} of these and {counted(bad[2], 'test image')} could not be read" if any(bad) else ""
    hits = packed(hits_of(model.logits(x_test), model.classes, y_test), tested.index, len(parts.test))
    return Measured(value, values[best], {"l2": path[best]}, (
        f"{kind} by L-BFGS on frozen features, {result.text}; l2 {path[best]:.3g} among {len(path)} from "
        f"{path[-1]:.3g} to {path[0]:.3g}, {parts.words}; fitted anew on {counted(len(x), 'image')}, "
        f"{counted(len(x_test), 'test image')} scored once{left_out}"
    ), hits)  # fmt: skip


def fit_many_path(x: Array, y: NDArray[np.int64], grid: Sequence[float]) -> list[LinearModel]:
    """`fit_path` for labels [N]; for labels [N, K] of 0 and 1 a logistic regression of each class against the rest."""
    if y.ndim == 1:
        return fit_path(x, y, grid)
    classes = [fit_path(x, y[:, k], grid) for k in range(y.shape[1])]
    joined = []
    for models in zip(*classes, strict=True):
        # Of two classes the model holds minus half and half of the difference: what counts is the difference.
        weight = np.stack([m.weight[1] - m.weight[0] for m in models])
        bias = np.array([m.bias[1] - m.bias[0] for m in models])
        joined.append(LinearModel(models[0].mean, models[0].scale, weight, bias, np.arange(len(models))))
    return joined


def measure(model: LinearModel, x: Array, y: NDArray[np.int64], metric: Metric) -> float:
    """The metric of a classifier on features [N, d] and labels [N] or [N, K]."""
    logits = model.logits(x)
    if metric == "map11":
        return score_many(logits, y).map11
    return float(getattr(score(logits, model.classes, y), metric))


def measured(
    path: Path, asked: dict[str, Any], name: str, protocol: Protocol, parts: DataSplits, run: Callable[[], Measured],
    start: Start = "run",
) -> TransferResult:  # fmt: skip
    """The cell at `path` if it is done, else what `run` finds, written there."""
    if (done := read_cell(path, asked)) is not None:
        return done
    begun = time.monotonic()
    found = run()
    counts = len(parts.whole), len(parts.test)
    cell = TransferResult(
        name, protocol, SETS[name].metric, found.value, found.validation, found.settings, counts, found.text, asked,
        round(time.monotonic() - begun, 3), start, found.hits,
    )  # fmt: skip
    cell.write(path)
    return cell


def question(encoder: Encoder, parts: DataSplits, settings: dict[str, Any]) -> dict[str, Any]:
    """What a cell depends on: the encoder's and the data's hashes, and how it is measured."""
    data = [source.fingerprint() for source in (parts.fit, parts.validation, parts.test)]
    return {"encoder": digest(encoder), "data": data, **settings}


def _check_cover(source: Source, least: int = 1, read: NDArray[np.int64] | None = None) -> None:
    """Raise a UserError if a class has fewer than `least` images in this part, or among those at `read` of it."""
    if source.labels is None:
        raise UserError(f"{source.name} has no labels, which a transfer needs")
    labels = np.asarray(source.labels)
    count = len(source.classes) if source.classes else int(labels.max()) + 1
    labels = labels if read is None else labels[read]
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels[labels >= 0], minlength=count)
    short = [source.classes[int(k)] if source.classes else str(k) for k in np.flatnonzero(counts < least)]
    if short:
        have = "without an image" if least == 1 else f"with fewer than {counted(least, 'image')}"
        have += "" if read is None else " that can be read"
        raise UserError(
            f"{source.name}: {len(short)} of {counted(len(counts), 'class')} {have}: {', '.join(short[:10])}"
            f"{' ...' if len(short) > 10 else ''}; the data set is not whole: fetch it again"
        )
