"""A study's folder: what was asked, a place for each cell's run, and the results; resumable as a run is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twofold.errors import UserError
from twofold.report import Report, write_report
from twofold.training.checkpoint import write_atomically
from twofold.training.config import flatten
from twofold.training.rundir import environment


class StudyFolder:
    """`study.json` (question, options, versions, results), `report.html`, and the cells' own folders.

    Args:
        path: of the folder.
        name: of the study.
        asked: data and options, in JSON's types: what makes it another study if it differs.
        resume: go on with the study in the folder; starts it if there is none.
    """

    def __init__(self, path: str | Path, name: str, asked: Mapping[str, Any], resume: bool = False) -> None:
        self.path, self.name, self.resume = Path(path), name, resume
        self.asked: dict[str, Any] = json.loads(json.dumps(asked))

    @property
    def file(self) -> Path:
        return self.path / "study.json"

    def start(self) -> None:
        """Begin the study here, or go on with it.

        Raises:
            UserError: the folder holds other files, a study already (without `resume`), or another study.
        """
        if not self.file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UserError(
                    f"--out {self.path} exists and is no empty folder; choose another one, so that nothing is "
                    "overwritten"
                )
            self._write({"study": self.name, "asked": self.asked, **environment(), "results": None})
            return
        if not self.resume:
            raise UserError(f"--out {self.path} already holds a study; go on with --resume, or choose another folder")
        before = self.read()
        if before.get("study") != self.name:
            raise UserError(f"--out {self.path} holds the study '{before.get('study')}', not '{self.name}'")
        then, now = flatten(before["asked"]), flatten(self.asked)
        for option in sorted(then.keys() | now.keys()):
            if then.get(option) != now.get(option):
                raise UserError(
                    f"{option} is {now.get(option)!r}, but the study in {self.path} was started with "
                    f"{then.get(option)!r}; resume with the same, or start another study in another folder"
                )

    def read(self) -> dict[str, Any]:
        """What `study.json` holds; UserError if there is none or it is damaged."""
        try:
            document = json.loads(self.file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file} cannot be read: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("asked"), dict):
            raise UserError(f"{self.file} is no study's: it does not say what was asked")
        return document

    def finish(self, results: Any, report: Report) -> Path:
        """Write the results, in JSON's types, and the report; returns the report's path."""
        self._write(self.read() | {"results": results})
        return write_report(self.path / "report.html", report)

    def _write(self, document: dict[str, Any]) -> None:
        text = json.dumps(document, indent=2) + "\n"
        write_atomically(self.file, lambda file: file.write(text.encode()))
