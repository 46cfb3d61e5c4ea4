"""What is published for a run's recipe, beside the run's own result, with all in which the two are not alike.

A published value belongs to its net, data, settings and way of measuring. A run may have a recipe's name and other
options, other data or another net: each of these is told behind the value, so that nobody compares what cannot be.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from twofold.distributed import rank
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.protocols.base import EvaluationConfig
from twofold.options import OptionsParser, as_written, flatten, plain
from twofold.published import MEASURED, Item, Row, converted, published
from twofold.recipe import load
from twofold.results import measured
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig
from twofold.runs.defaults import narrowed
from twofold.runs.starting import recipe_of
from twofold.training.rundir import RunDirectory

MOST = 4
"""Differences that a line names; of more it tells the number."""
DATA: dict[str, tuple[int | None, int | None]] = {
    "imagenet": (1_281_167, 50_000), "cifar10": (50_000, 10_000), "LibriSpeech": (None, 2_620),
}  # fmt: skip
"""Examples to train on and to test on in the data sets of the published values; None where filters change them."""
_CONFIGS: dict[str, type[Any]] = {
    "pretrain": RunConfig, "finetune": FinetuneConfig, "distill": DistillConfig, "evaluate": EvaluationConfig,
}  # fmt: skip
_APART = re.compile(
    r"seed|draw|device|micro_batch|baselines|held_out|keep_.*|test|training\..*|monitor\..*"
    r"|data\.(?!(tile|last_batch|split|audio\.(text|max_seconds|trim))$).*"
)
"""Options that do not make another setting: of the machine, of what is watched, of where the data lie."""
_UNSET = re.compile(
    r"start_from|method\.(memory|mining|margin)|after_block|frozen_mode|class_weights|layer_decay|alpha|labels"
    r"|teacher_labels|bn_momentum|optim\.(?!weight_decay$).*|head\.hidden_dim|data\.(tile|split|audio\.text)"
)
"""Options that are not chosen from the data where they are not set: a value of theirs is another setting."""


@dataclass(frozen=True)
class Made:
    """One step on the way to a result: a pretraining, a fine-tuning, an evaluation.

    Attributes:
        options: that it was done by, nested or dotted, in plain values; None where they are not known.
        spec: of the encoder, as its file tells; None where that is not known.
        images: examples that it was trained on; None where that is not known, or does not matter.
    """

    options: Mapping[str, Any] | None = None
    spec: Mapping[str, Any] | None = None
    images: int | None = None


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        ways: of measuring, keys of `MEASURED`; values that are measured otherwise are not shown.
        metrics: names of what was measured; a published row without any of them is not shown.
        tested: examples that were scored on; None where that is not known.
        made: what was done with the recipe.
        start: the run that it was done from, where there was one.
        evaluation: how a pretrained encoder was then measured.
        command: what `evaluation` was made by.
        words: in what else it is not as published.
    """

    ways: Collection[str]
    metrics: Collection[str]
    tested: int | None
    made: Made
    start: Made | None = None
    evaluation: Mapping[str, Any] | None = None
    command: str = "evaluate"
    words: Sequence[str] = ()


def made(file: Path) -> Made:
    """How an encoder came about, as its file and its run's folder tell.

    A damaged configuration beside it is as none: what is asked here is not worth a measurement that is done.
    """
    header, run = read_header(file), RunDirectory(file.parent)
    try:
        facts, options = (run.facts(), run.options()) if run.config_file.exists() else ({}, {})
    except (UserError, OSError):
        facts, options = {}, {}
    kept = header["extra"].get("options", {})  # of a file alone: a fresh encoder's tell its size and nothing else
    options = options or (kept if "epochs" in kept else {})
    images = facts.get("images")
    return Made(options or None, header["spec"], images if isinstance(images, int) else None)


def of_finetuning(start: Path, run: RunDirectory, scores: Any, labels: int) -> tuple[str, ...]:
    """What is published for a fine-tuning's recipe, and where only its classifier was trained, for the encoder's.

    Nothing on ranks beside the first, which need not see the run's folder.

    Args:
        start: the encoder's file that it began with.
        run: its own folder.
        scores: on the test data; None where it has not reached its end.
        labels: examples that it was trained on.
    """
    if scores is None or rank() > 0:
        return ()
    begun, options, facts = made(start), run.options(), run.facts()
    own = Made(options, begun.spec, labels if options["labels"] == "all" else None)
    lines = beside(facts.get("recipe"), Result(("finetune", "supervised"), list(measured(scores)), scores.count, own,
                                               start=begun))  # fmt: skip
    if options["freeze"] == "encoder":  # linear evaluation: what is published is the pretraining's
        whole = Result(("linear",), list(measured(scores)), scores.count, begun, evaluation=options, command="finetune")
        lines += [*beside(recipe_of(start), whole), *of_converted(start, whole)]
    return tuple(lines)


def of_distillation(
    teacher: Path | str | nn.Module, run: RunDirectory, comparison: Any, tested: int | None
) -> tuple[str, ...]:
    """What is published for a distillation's recipe, where its student was scored.

    Nothing on ranks beside the first, which need not see the run's folder.

    Args:
        teacher: its file, or a module.
        run: the student's folder.
        comparison: of both networks; None where the run has not reached its end.
        tested: examples that were scored on; None where that is not known.
    """
    if comparison is None or comparison.student_top1 is None or rank() > 0:
        return ()
    begun = Made() if isinstance(teacher, nn.Module) else made(Path(teacher))
    facts = run.facts()
    own = Made(run.options(), begun.spec, facts.get("images"))
    return tuple(beside(facts.get("recipe"), Result(("distill",), ["top1"], tested, own, start=begun)))


def beside(recipe: str | None, result: Result) -> list[str]:
    """Lines that set the published values of a recipe beside a result; none where nothing is published.

    Args:
        recipe: that the run was made by; None where it was made by none.
        result: of the run.
    """
    lines = []
    for item, row in published(recipe, *result.ways) if recipe and result.ways else []:
        if not set(row.values) & set(result.metrics):
            continue
        apart = [*_apart(str(recipe), item, row, result), *result.words]
        shared = sum(other.recipe == row.recipe for other in item.rows) > 1
        lines.append(_line(f"recipe {recipe}", item, row, apart, shared))
    return lines


def of_converted(file: Path, result: Result) -> list[str]:
    """Lines that set the published values of the file that an encoder was converted from beside a result; none where
    it was converted from no file of the authors', as far as what was found in it tells.

    Args:
        file: the encoder's.
        result: of the classifier in it (`evaluation` is None), or of one that was fitted.
    """
    found = read_header(file)["extra"].get("converted")
    if not isinstance(found, Mapping) or found.get("weights") != "base":
        return []
    lines = []
    for item, row in converted(found):
        assert row.released is not None  # it was told from that
        measured_so = row.released.classifier if result.evaluation is None else item.measured in result.ways
        if not measured_so or not set(row.values) & set(result.metrics):
            continue
        _, tested = DATA["imagenet"]
        apart = (
            [f"{tested:,} test examples there, {result.tested:,} here"] if result.tested not in (None, tested) else []
        )
        if result.evaluation is not None:
            apart += [f"of the evaluation, {each}" for each in _measured(item, result)]
        source = f"a released file, known by its {row.released.saved()} and its net alone"
        lines.append(_line(source, item, row, [*apart, *result.words], shared=True))
    return lines


def _line(source: str, item: Item, row: Row, apart: Sequence[str], shared: bool) -> str:
    whose = f" ({', '.join(f'{name} {value}' for name, value in row.keys.items())})" if shared else ""
    line = f"published: {row.words()} {MEASURED[item.measured]}{whose} ({item.full_name}; {source})"
    if not apart:
        return line
    more = f"; and {len(apart) - MOST} more" if len(apart) > MOST else ""
    return f"{line}, not to be compared: {'; '.join(apart[:MOST])}{more}"


def _apart(recipe: str, item: Item, row: Row, result: Result) -> Iterator[str]:
    """All in which a result is not what was published, what weighs most first."""
    command, (trained, tested) = load(recipe).command, DATA.get(load(recipe).data, (None, None))
    for step, images in (("", result.made.images), ("pretraining ", result.start.images if result.start else None)):
        if None not in (trained, images) and images != trained:
            yield f"{trained:,} {step}examples there, {images:,} here"
    if None not in (tested, result.tested) and result.tested != tested:
        yield f"{tested:,} test examples there, {result.tested:,} here"
    if command == "pretrain":
        yield from _net(recipe, result.made)
    elif row.start:
        whose = "of the teacher, " if command == "distill" else ""
        yield from (f"{whose}{each}" for each in _net(row.start, result.start or result.made))
    if item.apart:
        yield item.apart
    yield from changes(recipe, result.made.options)
    if row.start and load(row.start).command == "pretrain" and not _scratch(result.made):
        started = None if result.start is None else result.start.options
        yield from (f"of the pretraining, {each}" for each in changes(row.start, started))
    if result.evaluation is not None:
        yield from (f"of the evaluation, {each}" for each in _measured(item, result))


def _scratch(made: Made) -> bool:
    return bool((made.options or {}).get("from_scratch"))


def _measured(item: Item, result: Result) -> Iterator[str]:
    if not item.evaluation:
        yield "its settings are not published"
    elif load(item.evaluation).command != result.command:
        yield f"{item.evaluation} there, {result.command} here"
        here = flatten(result.evaluation or {})
        for name, value in (("labels", "all"), ("features", "h")):
            if here.get(name, value) != value:
                yield f"{name} {value} there, {_written(here[name])} here"
    else:
        yield from changes(item.evaluation, result.evaluation)


def changes(recipe: str, options: Mapping[str, Any] | None) -> list[str]:
    """Options that are not as the recipe has them, in words; what both leave to the data is not compared."""
    if options is None:
        return [f"what is known of it is not enough to say that it is {recipe}"]
    source = load(recipe)
    config = OptionsParser(_CONFIGS[source.command]).build(source.options)
    if isinstance(config, RunConfig):  # options of recordings and of images have names of their own
        config = narrowed(config, "audio" if "waves" in source.options else "image")
    there = flatten(plain(config))
    here, found = flatten(options), []
    for name, value in there.items():
        own = here.get(name)
        aside = _APART.fullmatch(name) or (source.command == "evaluate" and name == "batch")
        if aside or (value is None and not _UNSET.fullmatch(name)) or _same(value, own):
            continue
        found.append(f"{name} {_written(value)} there, {_written(own)} here")
    return found


def _same(a: Any, b: Any) -> bool:
    return [*a] == [*b] if isinstance(a, list | tuple) and isinstance(b, list | tuple) else a == b


def _written(value: Any) -> str:
    if value is None:
        return "not set"
    return as_written(tuple(value) if isinstance(value, list) else value)


def _net(recipe: str, made: Made) -> Iterator[str]:
    """The encoder, where it is another than a recipe of pretraining names."""
    source, spec = load(recipe), made.spec
    if source.command != "pretrain":
        made_from = next((row.start for _, row in published(recipe) if row.start), None)
        if made_from is not None:
            yield from _net(made_from, made)
        return
    wanted = source.options.get("encoder", {})
    if spec is None or spec.get("kind") != "resnet" or not str(wanted.get("name", "")).startswith("resnet"):
        return
    there = (wanted["name"], float(wanted.get("width", 1)), float(wanted.get("sk_ratio", 0)))
    here = (f"resnet{spec['depth']}", float(spec.get("width", 1)), float(spec.get("sk_ratio", 0)))
    if there != here:
        yield f"{_called(*there)} there, {_called(*here)} here"


def _called(name: str, width: float, ratio: float) -> str:
    return f"{name} {width:g}x" + (" with selective kernels" if ratio else "")
