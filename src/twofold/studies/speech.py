"""What each half of Speech SimCLR's objective adds, and each kind of view (arXiv 2010.13991).

Rows are the contrast alone, the reconstruction alone, and both; columns are changes of the waveform and masks of the
spectrogram, the one, the other, and neither. The paper compares its objective and says that augmentation acts on both;
its own table could not be read, so that the protocol is ours and none of its numbers stands beside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from twofold.data import AudioSource, Source
from twofold.errors import UserError
from twofold.evaluation.protocols.beside import NAMES
from twofold.options import merge
from twofold.report import Table
from twofold.runs.config import RunConfig
from twofold.runs.inputs import audio_order
from twofold.studies.grid import Also, Contrast, GridConfig, GridPart, GridStudy, Place, Score, beside, values

Objective = Literal["contrast", "reconstruction", "both"]
Views = Literal["both", "wave", "spectrogram", "neither"]
OBJECTIVES: dict[Objective, tuple[str, dict[str, Any]]] = {
    "contrast": ("contrast only", {"reconstruction_weight": 0.0}),
    "reconstruction": ("reconstruction only", {"contrastive_weight": 0.0}),
    "both": ("both", {}),
}
_CLEAN: dict[str, Any] = {"waves": {"chain": 0.0}}
_UNMASKED: dict[str, Any] = {"method": {"time_mask": 0, "frequency_mask": 0.0}}
VIEWS: dict[Views, tuple[str, dict[str, Any]]] = {
    "both": ("wave and spectrogram", {}),
    "wave": ("wave", _UNMASKED),
    "spectrogram": ("spectrogram", _CLEAN),
    "neither": ("neither", merge(_CLEAN, _UNMASKED)),
}


_BESIDE = ("filterbank", "filterbank_thirds", "untrained")
"""What learns nothing, by its name in `twofold.evaluation.protocols.beside.NAMES`."""


@dataclass(frozen=True)
class SpeechConfig(GridConfig):
    """Which objectives and views are compared."""

    objectives: tuple[Objective, ...] = ("contrast", "reconstruction", "both")
    """Halves of the objective: the contrast alone, the reconstruction alone, both with their weights."""
    views: tuple[Views, ...] = ("both", "wave", "spectrogram", "neither")
    """What the two views are changed by: the waveform's operators, blocks of the spectrogram, both, or neither. The
    frames that are hidden to be reconstructed are hidden in all of them."""
    parts: int = 1
    """Parts of a recording that are averaged each for itself before a classifier reads them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("objectives", "views"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"--{name} must name at least one, and none twice; got {list(values)}")
        if self.parts < 1:
            raise UserError(f"--parts must be at least 1, got {self.parts}")


class SpeechStudy(GridStudy):
    """Objective by views."""

    name = "speech"
    Config = SpeechConfig
    title = "Objectives and views of speech"
    rows_are, columns_are = "objective", "views"
    source: ClassVar[str] = "the objective and the views of arXiv 2010.13991, whose own table could not be read"

    def check(self, source: Source) -> None:
        """Recordings alone have these views."""
        if not isinstance(source, AudioSource):
            raise UserError(f"{self.data} holds images: give a folder of labelled recordings, or a manifest of them")

    def check_order(self, config: RunConfig, source: Source) -> None:
        """By length, text or speaker, as the options ask."""
        assert isinstance(source, AudioSource)  # it was checked
        audio_order(config, source)

    def scoring(self) -> dict[str, Any]:
        """How many parts of a recording are averaged."""
        return {} if self.config.parts == 1 else {"parts": self.config.parts}

    def also(self, part: GridPart) -> Sequence[Also]:
        """The filterbank alone and the untrained encoder, which are those of all cells of a seed, once for each."""
        first = next(each for each in self.parts if each.seed == part.seed)
        return ("baselines",) if part.name == first.name else ()

    def places(self) -> Sequence[Place]:
        """Row the objective, column the views."""
        found = []
        for objective in self.config.objectives:
            row, weights = OBJECTIVES[objective]
            for views in self.config.views:
                column, changes = VIEWS[views]
                method: dict[str, Any] = {"method": {"name": "speech_simclr"} | weights}
                found.append(Place(row, column, merge(method, changes)))
        return found

    def contrasts(self) -> Sequence[Contrast]:
        """Both halves against each, under all views; for each objective, both kinds of change against each; and each
        objective against what learns nothing."""
        both, every = OBJECTIVES["both"][0], VIEWS["both"][0]
        found = [
            Contrast(f"both less {name}, {column}", (both, column), (name, column))
            for column, _ in VIEWS.values()
            for name, _ in OBJECTIVES.values()
            if name != both
        ]
        return [
            *found,
            *(
                Contrast(f"{every} less {column}, {name}", (name, every), (name, column))
                for name, _ in OBJECTIVES.values()
                for column, _ in VIEWS.values()
                if column != every
            ),
            *(
                Contrast(f"{name} less {NAMES[other]}", (name, every), self._first(), against=other)
                for name in self._rows()
                for other in ("filterbank", "untrained")
            ),
        ]

    def _rows(self) -> list[str]:
        return [OBJECTIVES[each][0] for each in self.config.objectives]

    def _first(self) -> tuple[str, str]:
        """The place whose cells have the baselines."""
        return self._rows()[0], VIEWS[self.config.views[0]][0]

    def table(self, cells: Sequence[Score]) -> Table:
        """Below the objectives what stands beside them, whatever the views."""
        table, rows = super().table(cells), []
        for name in _BESIDE:
            if found := values(cells, self._first(), name):
                rows.append([NAMES[name], beside(found, None), *[""] * (len(table.columns) - 2)])
        note = f"{table.note} The lowest rows learn nothing from recordings and have no views." if rows else table.note
        return dataclasses.replace(table, rows=[*table.rows, *rows], note=note)
