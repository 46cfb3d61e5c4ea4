"""A run's `report.html`, made from what the run's folder holds and the data it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.console import duration
from twofold.data import AudioSource, Source
from twofold.data.batches.base import Draw, Examples
from twofold.data.groups import groups_of
from twofold.data.sources.subset import subset
from twofold.encoders.base import Encoder, InputSpec
from twofold.encoders.load import load
from twofold.evaluation.feature_cache import Features
from twofold.evaluation.features import Extractor
from twofold.evaluation.for_encoder import source_for
from twofold.kinds import EXAMPLE, Kind
from twofold.randomness import permutation
from twofold.report import Figure, Report, Table, embedding_map, find_neighbours, write_report
from twofold.report.audio import audio_pairs
from twofold.report.images import Pixels
from twofold.report.outcome import evaluation_tables
from twofold.report.retrieval import retrieval_table
from twofold.runs.config import RunConfig
from twofold.runs.inputs import Reading, read_audio, read_images
from twofold.text import counted
from twofold.training.rundir import RunDirectory

_PAIRS = 12
_HEARD = 6
_MOST = 1500  # images on the map: t-SNE of more takes minutes on two cores


def write_run_report(
    run: RunDirectory,
    source: Source | None,
    *,
    module: torch.nn.Module | None = None,
    shown: Source | None = None,
    lead: str = "",
    tables: Sequence[Table] = (),
    figures: Sequence[Figure] = (),
) -> Path:
    """Write `report.html` into the run's folder.

    Args:
        run: a run that has left an encoder.
        source: the data it was trained on, for the pairs of views; None leaves out all that needs data.
        module: the user's own module, if the run trained one.
        shown: images for the neighbours and the map, `source` if not given; at most 1,500 of them, drawn by seed.
        lead, tables, figures: see `Report`.

    Raises:
        UserError: the extra `report` is not installed, or the disk refuses.
    """
    config, facts = run.read(RunConfig)
    encoder = load(run.path, module)
    seen = {} if source is None else _seen(config, encoder, source, shown)
    report = Report(
        title=f"{run.path.name}: {config.method.name} on {facts['data']}",
        facts=_facts(run, config, facts, encoder.input),
        metrics=run.rows(),
        tables=[*tables, *evaluation_tables(run.path), *seen.pop("tables", [])],
        figures=figures,
        lead=lead,
        **seen,
    )
    return write_report(run.path / "report.html", report)


def _seen(config: RunConfig, encoder: Encoder, source: Source, shown: Source | None) -> dict[str, Any]:
    """What the page shows of the data: parts of a `Report` by name."""
    part = _some(shown or source, config.seed)
    features = Extractor(size=config.views.size, resample=config.views.resample).extract(encoder, part)
    pairs, audio = _pairs(config, source_for(source, encoder))
    return {
        "view_pairs": pairs,
        "audio": audio,
        "neighbours": find_neighbours(features.h, part, features.index, features.labels, seed=config.seed),
        "map": embedding_map(features.h, part, features.index, features.labels, part.classes, seed=config.seed),
        "tables": _retrieval(features, part, encoder.input.kind),
    }


def run_pictures(run: RunDirectory, source: Source, module: torch.nn.Module | None = None) -> dict[str, Pixels]:
    """For trackers: pairs of views, a picture a pair, and images each beside its nearest neighbours; [n, H, W, C]."""
    config, _ = run.read(RunConfig)
    encoder = load(run.path, module)
    part = _some(source, config.seed)
    features = Extractor(size=config.views.size, resample=config.views.resample).extract(encoder, part)
    near = find_neighbours(features.h, part, features.index, features.labels, seed=config.seed)
    rows = np.concatenate([near.queries[:, None], near.images], axis=1)  # [q, 1 + k, S, S, C]
    pairs, _ = _pairs(config, source_for(source, encoder))
    return {
        "views": np.concatenate([pairs[:, 0], pairs[:, 1]], axis=2),
        "neighbours": np.concatenate(list(rows.transpose(1, 0, 2, 3, 4)), axis=2),
    }


def _some(source: Source, seed: int) -> Source:
    """At most _MOST images of a source, always the same ones."""
    if len(source) <= _MOST:
        return source
    return subset(source, np.sort(permutation(seed, "report", 0, len(source))[:_MOST]))


def _retrieval(features: Features, part: Source, kind: Kind) -> list[Table]:
    """Neighbours by speaker, or by group, where the data tell them."""
    word, names = "group", groups_of(part)
    if isinstance(part, AudioSource) and any(part.speakers):
        word, names = "speaker", [speaker or "" for speaker in part.speakers]
    if names is None:
        return []
    own = [names[place] for place in features.index.tolist()]
    table = retrieval_table(features.h, own, features.labels, word, EXAMPLE[kind])
    return [] if table is None else [table]


def _pairs(config: RunConfig, source: Source) -> tuple[NDArray[np.uint8], list[tuple[str, str]]]:
    """The views of the first examples of the first step as pictures, [n, 2, H, W, C] uint8, and to be heard."""
    config = replace(config, data=replace(config.data, workers=0))
    if isinstance(source, AudioSource):
        a, b = _first_views(read_audio(config, source, config.method.hidden_span()))
        return audio_pairs(a[:_HEARD], b[:_HEARD], source.rate or 0)
    first, second = _first_views(read_images(config, source))
    both = torch.stack([first[:_PAIRS], second[:_PAIRS]], dim=1)
    return (both * 255).round().byte().permute(0, 1, 3, 4, 2).numpy(), []


def _first_views(reading: Reading[Examples, Draw]) -> tuple[Examples, Examples]:
    """Both views of the batch of the first step."""
    batch = next(iter(reading.loader.iterate(0, 1)))
    reading.loader.close()
    return reading.views.apply(batch.examples, batch.draws)


def _bands_shown(channels: int, bands: Sequence[int] | None) -> str:
    """Which channels pictures show, in words; "" where they show all."""
    if channels in (1, 3):
        return ""
    numbers = range(1, channels + 1) if bands is None else bands
    if channels == 2:
        return f"band {numbers[0]} in grey"
    return f"bands {numbers[0]}, {numbers[1]} and {numbers[2]} as red, green and blue (data.bands orders them)"


def _facts(run: RunDirectory, config: RunConfig, facts: dict[str, object], takes: InputSpec) -> dict[str, object]:
    """What a reader wants to know of the run before looking at the pictures."""
    every = [each for each in (config.epochs, *config.extensions) if each is not None]
    epochs = " + ".join(f"{each:g}" for each in every) + (" epoch" if every == [1] else " epochs")
    kind = takes.kind
    pictures = _bands_shown(takes.channels, config.data.bands) if kind == "image" else ""
    last, seen = run.rows()[-1], f", views of {config.views.size} px" if kind == "image" else ""
    return {
        "data": f"{facts['data']}, {counted(int(str(facts['images'])), EXAMPLE[kind])}",
        **({"pictures": pictures} if pictures else {}),
        "encoder": f"{config.encoder.title()}{seen}",
        "method": config.method.title(),
        "training": f"{epochs} of batches of {config.batch} in {duration(last['seconds'])}",
        "optimiser": f"{config.optim.name}, lr {config.optim.lr:g}",
        **({"loss of chance": f"{last['chance']:.2f}{config.method.about_chance()}"} if "chance" in last else {}),
        **({"weights at the start": config.start_from} if config.start_from else {}),
        "recipe": facts["recipe"] or "none",
        "seed": config.seed,
        "torch": dict(facts["versions"])["torch"],  # type: ignore[call-overload]
    }
