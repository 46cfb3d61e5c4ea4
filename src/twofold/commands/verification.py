"""`twofold evaluate --protocol verification`: one speaker or two, beside what the filterbank alone would say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twofold.evaluation.protocols.verification import Verification


@dataclass(frozen=True)
class VerificationReport:
    """A verification, and the file that it was written to; None if the encoder belongs to no run."""

    result: Verification
    file: Path | None

    @property
    def top1(self) -> float:
        """Share of pairs told right where both errors are equally frequent, in [0, 1]."""
        return 1 - self.result.eer

    def text(self) -> str:
        """For people."""
        results = self.result
        lines = [
            f"EER {results.eer:.2%}, minDCF {results.min_dcf:.3f}  (verification, {results.speakers:,} speakers, "
            f"{results.pairs:,} pairs)",
            f"filterbank alone: EER {results.baseline_eer:.2%}, minDCF {results.baseline_min_dcf:.3f}",
            f"protocol: {results.text}",
        ]
        return "\n".join([*lines, f"written to {self.file}"] if self.file else lines)
