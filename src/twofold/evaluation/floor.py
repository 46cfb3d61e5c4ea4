"""An evaluation of sounds: beside the encoder's scores stand those of the filterbank that it starts from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from twofold.evaluation.protocols import Evaluation
from twofold.evaluation.scores import Scores


@dataclass(frozen=True)
class SoundEvaluation(Evaluation):
    """What `Evaluation` says, of sounds.

    Attributes:
        floor: scores of the filterbank alone (mean and deviation over time), by the same protocol.
    """

    floor: Scores | None = None

    @classmethod
    def from_json(cls, text: str) -> SoundEvaluation:
        """Read what `to_json` wrote; UserError for anything else."""
        found = cast(SoundEvaluation, super().from_json(text))
        floor = cast(Any, found.floor)
        return dataclasses.replace(found, floor=Scores(**floor) if isinstance(floor, dict) else floor)


def beside_floor(found: Evaluation, floor: Evaluation) -> SoundEvaluation:
    """An encoder's evaluation and the filterbank's as one, in words that fit sounds."""
    scores = floor.scores
    told = f"top-1 {scores.top1:.2%}, mean per class {scores.mean_per_class:.2%}"
    told += f", macro F1 {scores.macro_f1:.2%}" if scores.macro_f1 is not None else ""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    values["text"] = f"the filterbank alone (mean and deviation) reaches {told}; {_of_sounds(found.text)}"
    values["result"] = dataclasses.replace(found.result, text=_of_sounds(found.result.text))
    return SoundEvaluation(**values, floor=scores)


def _of_sounds(text: str) -> str:
    """What the protocols say of images, said of sounds."""
    return text.replace("images", "sounds").replace("image", "sound")
