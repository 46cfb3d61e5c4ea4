"""`twofold evaluate --protocol ctc`: what was read, beside what the filterbank alone would read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twofold.evaluation.protocols.ctc import Recognition


@dataclass(frozen=True)
class RecognitionReport:
    """A recognition, and the file that it was written to; None if the encoder belongs to no run."""

    result: Recognition
    file: Path | None

    @property
    def top1(self) -> float:
        """Share of the characters told right, 1 - CER; below 0 where there are more errors than characters."""
        return 1 - self.result.cer

    def text(self) -> str:
        """For people."""
        results = self.result
        lines = [
            f"WER {results.wer:.2%}, CER {results.cer:.2%}  (ctc, {results.train:,} training and {results.test:,} test "
            "utterances)",
            f"filterbank alone: WER {results.baseline_wer:.2%}, CER {results.baseline_cer:.2%}",
            *(f"  said: {said}\n  read: {read}" for said, read in results.examples[:2]),
            f"protocol: {results.text}",
            *(f"left out: {count:,} {reason}" for reason, count in results.left_out.items()),
        ]
        return "\n".join([*lines, f"written to {self.file}"] if self.file else lines)
