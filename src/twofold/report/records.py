"""What a run's folder says of it, whatever kind of run it is: options, curves and results by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twofold.errors import UserError
from twofold.options import flatten, leaves, plain
from twofold.reading import read_json
from twofold.runs import distill, finetune
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig
from twofold.training.rundir import RunDirectory

Command = Literal["pretrain", "finetune", "distill"]
_CONFIGS: dict[Command, type[Any]] = {"pretrain": RunConfig, "finetune": FinetuneConfig, "distill": DistillConfig}
RESULTS: dict[Command, str] = {"pretrain": "", "finetune": finetune.RESULT, "distill": distill.RESULT}
"""The file with the scores of each kind of run."""
_PLACE = ("step", "epoch", "seconds", "lr")
"""What a row of metrics.jsonl tells that is no result."""


@dataclass(frozen=True)
class Record:
    """A run as its folder tells of it.

    Attributes:
        path: the folder.
        command: that made it.
        facts: what it was started with, by name: data, images, fingerprint, recipe, versions, ...
        options: all of its configuration by dotted name, in plain values.
        rows: of metrics.jsonl.
        results: by name: of the fine-tuning's or distillation's score; of the newest evaluation by each protocol, as
            ``linear: top1``; and of the last look of the monitors, as ``run: knn_top1``.
        told: the words of each result's protocol, by the part of its name before the colon.
        published: lines that set what is published for the recipe beside a result, by the same part of its name; "" of
            the fine-tuning's or distillation's own.
    """

    path: Path
    command: Command
    facts: Mapping[str, Any]
    options: Mapping[str, Any]
    rows: list[dict[str, Any]]
    results: Mapping[str, float]
    told: Mapping[str, str]
    published: Mapping[str, tuple[str, ...]]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.options["seed"])


def read_record(path: str | Path) -> Record:
    """Read a run's folder.

    Raises:
        UserError: it holds no run, or a damaged one.
    """
    run = RunDirectory(path)
    facts = run.facts()
    command: Command = "distill" if "teacher_digest" in facts else "finetune" if "base" in facts else "pretrain"
    config, _ = run.read(_CONFIGS[command])
    rows = run.rows()
    results, told, published = _of_evaluations(run.path)
    own, lines = _of_the_end(run.path / RESULTS[command])
    results, published = own | results, ({"": lines} if lines else {}) | published
    last: dict[str, float] = {}
    for row in rows:
        last |= {name: value for name, value in row.items() if isinstance(value, float) and name not in _PLACE}
    results |= {
        f"run: {name}": value for name, value in last.items() if re.search("loss|top1|accuracy|agreement|rank", name)
    }
    return Record(run.path, command, facts, flatten(plain(config)), rows, results, told, published)


def defaults_of(command: Command) -> dict[str, Any]:
    """The default of every option of a kind of run, by dotted name; None is chosen from the data."""
    return {leaf.path: leaf.default for leaf in leaves(_CONFIGS[command])}


def documents(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The evaluations that lie in a run's folder, the oldest first: each file's name with what it holds."""
    found = []
    for file in (path / "evaluations").glob("*.json"):
        stamp = re.search(r"(\d{8}-\d{6})(?:-(\d+))?$", file.stem)
        order = (stamp[1], int(stamp[2] or 1)) if stamp else ("", 0)
        found.append((order, file))
    return [(file.name, _json(file)) for _, file in sorted(found)]


def _json(file: Path) -> dict[str, Any]:
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}; take it away, or evaluate anew") from error
    return document if isinstance(document, dict) else {}


def ends_of(path: Path) -> list[Path]:
    """The files in a run's folder that hold a fine-tuning's or a distillation's own scores, where there are any."""
    return [path / name for name in RESULTS.values() if name]


def published_in(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The lines of a result's document that set what is published beside it; none in those of earlier versions."""
    lines = document.get("published")
    return tuple(str(line) for line in lines) if isinstance(lines, list) else ()


def _of_evaluations(path: Path) -> tuple[dict[str, float], dict[str, str], dict[str, tuple[str, ...]]]:
    """The results of the newest evaluation by each protocol, the words of each, and what is published beside it."""
    results: dict[str, float] = {}
    told: dict[str, str] = {}
    published: dict[str, tuple[str, ...]] = {}
    for _, document in documents(path):
        protocol, metrics = document.get("protocol"), document.get("metrics")
        if isinstance(protocol, str) and isinstance(metrics, dict):  # what versions before 0.2 wrote has no metrics
            results = {name: value for name, value in results.items() if not name.startswith(f"{protocol}: ")}
            results |= {f"{protocol}: {name}": value for name, value in metrics.items()}
            told[protocol] = str(document.get("words", ""))
            published[protocol] = published_in(document)
    return results, told, {protocol: lines for protocol, lines in published.items() if lines}


def _of_the_end(file: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """The scores of a fine-tuning or a distillation that is done, and what is published beside them."""
    if not file.is_file():
        return {}, ()
    document = _json(file)
    scores = document.get("scores") or document.get("comparison") or {}
    return {name: value for name, value in scores.items() if isinstance(value, float)}, published_in(document)
