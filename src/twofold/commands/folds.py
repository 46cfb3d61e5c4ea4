"""`twofold evaluate --folds`: mean and deviation over folds, beside those of the filterbank alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twofold.evaluation.protocols.folds import FoldsResult
from twofold.evaluation.scores import Scores


@dataclass(frozen=True)
class FoldsReport:
    """The scores of each fold, and the file that they were written to; None if the encoder belongs to no run."""

    result: FoldsResult
    file: Path | None

    @property
    def top1(self) -> float:
        """Mean accuracy over folds in [0, 1]."""
        return float(np.mean([scores.top1 for scores in self.result.scores]))

    def text(self) -> str:
        """For people."""
        results = self.result
        lines = [f"{_words(results.scores)}  (mean ± deviation over {len(results.folds)} folds)"]
        if results.baseline:
            lines.append(f"filterbank alone: {_words(results.baseline)}")
        each = (f"{name} {s.top1:.2%} of {s.count}" for name, s in zip(results.folds, results.scores, strict=True))
        lines += [f"accuracy of each: {', '.join(each)}", f"protocol: {results.text}"]
        return "\n".join([*lines, f"written to {self.file}"] if self.file else lines)


def _words(folds: Sequence[Scores]) -> str:
    parts = []
    for name, field in (("accuracy", "top1"), ("mean per class (UA)", "mean_per_class"), ("macro F1", "macro_f1")):
        values = [100 * getattr(scores, field) for scores in folds]
        parts.append(f"{name} {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} %")
    return ", ".join(parts)
