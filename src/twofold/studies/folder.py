"""A study's folder: what was asked, a place for each cell's run, and the results; resumable as a run is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twofold.data import DataConfig, Source
from twofold.errors import UserError
from twofold.evaluation.parts import evaluation_parts
from twofold.evaluation.splits import check_test_labels
from twofold.files import write_atomically
from twofold.options import flatten, merge
from twofold.recipes import read_layers
from twofold.report import Report, write_report
from twofold.versions import environment


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


def _shared(config: str | None, data: DataConfig, taken: Mapping[str, str]) -> dict[str, Any]:
    """Options of all runs: those of `--config` and of the data; UserError for one of `--config` that the study sets."""
    result = read_layers(None, config, {})
    for name, remedy in taken.items():
        if result.get(name) is not None and result[name] is not False:
            raise UserError(f"--config {config} sets {name}, which the study sets itself: leave it out, {remedy}")
    return merge({name: value for name, value in result.items() if value is not None}, {"data": data})


def _one_label_each(train: Source, test: Source) -> None:
    """Raise a UserError for labels that the study cannot count, before anything is trained."""
    check_test_labels(train, test)
    if train.labels is not None and train.labels.ndim != 1:
        raise UserError(
            f"{train.name} has several labels an image, and this study counts one right class: give single labels"
        )


def _parts(data: str, test: str | None, config: DataConfig, channels: int | None) -> tuple[Source, Source]:
    """Labelled images to train on and to score on."""
    train, scored = evaluation_parts(data, test, dataclasses.replace(config, channels=config.channels or channels))
    if scored is None:
        raise UserError(f"{train.name} has no test part: give --test with labelled images of the same classes")
    return train, scored
