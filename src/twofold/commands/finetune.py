"""`twofold finetune`: what a pretrained encoder is worth when a few labels may train it, too."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch import nn

from twofold.console import duration
from twofold.distributed import world_size
from twofold.encoders import read_header
from twofold.encoders.load import encoder_path
from twofold.errors import Stopped
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.evaluation.scores import Scores
from twofold.options import OptionsParser
from twofold.recipes import read_layers
from twofold.runs.config import FinetuneConfig
from twofold.runs.finetune import FinetuneResult
from twofold.runs.finetune import finetune as fit


@dataclass(frozen=True)
class FinetuneReport:
    """A fine-tuning run: its folder and what it reached."""

    path: Path
    result: FinetuneResult

    @property
    def top1(self) -> float:
        """Test accuracy in [0, 1]."""
        if not isinstance(self.result.scores, Scores):
            raise ValueError("top-1 accuracy needs one label an image")
        return self.result.scores.top1

    def text(self) -> str:
        """For people."""
        result, scores = self.result, self.result.scores
        if isinstance(scores, Scores):
            top5 = f", top-5 {scores.top5:.2%}" if scores.top5 is not None else ""
            first = f"top-1 {scores.top1:.2%}{top5}, mean per class {scores.mean_per_class:.2%}"
        else:
            first = f"mean average precision (11 points) {result.metric:.2%}"
        count = scores.count if scores is not None else 0
        return "\n".join([
            f"{first}  ({result.labels:,} labels, {count:,} test images)",
            f"protocol: {result.text}",
            f"{result.steps:,} steps in {duration(result.seconds)}; encoder, head and classifier: "
            f"{self.path / 'encoder.safetensors'}; numbers: {self.path / 'result.json'}",
        ])  # fmt: skip


def finetune(
    run: str | Path,
    data: Any,
    out: str | Path,
    *,
    test: Any = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    encoder: nn.Module | None = None,
    **options: Any,
) -> FinetuneReport:
    """Train a classifier on a pretrained encoder, and the encoder with it, on as many labels as `labels` says.

    Args:
        run: a run's folder, or an `encoder.safetensors`. It stays as it is.
        data: labelled images: whatever `twofold.pretrain` takes.
        out: the new run's folder. The same call again goes on where one was stopped.
        test: data for the score; without it the data's own test split, or else a fifth of each class, held out.
        recipe: name of a recipe for `finetune` (`twofold recipes` lists them).
        config: a YAML file of options.
        encoder: your own module, if the run was trained with one.
        options: fields of `FinetuneConfig`, nested or dotted; they win over `config`, which wins over `recipe`.

    Returns:
        The scores, with the new run's folder: configuration, metrics, checkpoints, `encoder.safetensors` (with head
        and classifier), `result.json`.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data.
        Stopped: if SIGINT or SIGTERM ended it early; the same call continues it.
    """
    path = encoder_path(run)
    given = read_layers(recipe, config, options, command="finetune")
    checked = OptionsParser(FinetuneConfig).build(given)
    channels = read_header(path)["spec"].get("channels")
    reading = dataclasses.replace(checked.data, channels=checked.data.channels or channels)
    train, scored = labelled_parts(*evaluation_parts(data, test, reading), seed=checked.seed, labels=checked.labels)
    result = fit(path, train, scored, out, given, module=encoder, recipe=recipe)
    if world_size() > 1:
        AcceleratorState().destroy_process_group()
    if not result.complete:
        raise Stopped(
            f"stopped at step {result.steps:,}; nothing is lost: the same command goes on",
            result.stopped_by or signal.SIGINT,
        )
    return FinetuneReport(Path(out), result)
