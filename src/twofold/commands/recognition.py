"""`twofold evaluate --protocol ctc`: what was read, beside what the filterbank alone would read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twofold.evaluation.ctc import Recognition


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
        found = self.result
        lines = [
            f"WER {found.wer:.2%}, CER {found.cer:.2%}  (ctc, {found.train:,} training and {found.test:,} test "
            "utterances)",
            f"filterbank alone: WER {found.floor_wer:.2%}, CER {found.floor_cer:.2%}",
            *(f"  said: {said}\n  read: {read}" for said, read in found.examples[:2]),
            f"protocol: {found.text}",
            *(f"left out: {count:,} {reason}" for reason, count in found.left_out.items()),
        ]
        return "\n".join([*lines, f"written to {self.file}"] if self.file else lines)
