"""The run directory: complete, so that a run can be resumed, evaluated and understood from it alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from twofold.errors import UserError
from twofold.files import check_out, write_atomically
from twofold.options import OptionsParser, flatten, plain, upgraded
from twofold.options.documents import read_yaml
from twofold.reading import regular, usable
from twofold.training.checkpoint import latest_checkpoint, step_of
from twofold.training.metrics import MetricsFile
from twofold.versions import environment

Config = TypeVar("Config")


# Options that may differ when a run is resumed: they change neither what is learned nor in which order.
OPERATIONAL = re.compile(
    r"training\.(device|threads|changed_data|keep|keep_memory|patience|join_patience|track|log_every|checkpoint_every"
    r"|checkpoint_minutes)|data\.(workers|patience|cache|root|download|outside)"
)


class RunDirectory:
    """`config.yaml`, `metrics.jsonl`, `checkpoints/`, `encoder.safetensors`, `report.html` of one run."""

    def __init__(self, path: str | Path) -> None:
        if (problem := usable(str(path))) is not None:
            raise UserError(f"the path of a run '{str(path)[:100]}' {problem}; give that of a folder")
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def states_file(self) -> Path:
        return self.path / "files.npy"

    @property
    def encoder_file(self) -> Path:
        return self.path / "encoder.safetensors"

    @property
    def best_file(self) -> Path:
        return self.path / "best.safetensors"

    def create(self, config: Any, facts: dict[str, Any]) -> None:
        """Start a run here.

        Args:
            config: the resolved configuration, a dataclass.
            facts: what else the run depends on: the data's path, count and fingerprint.

        Raises:
            UserError: if the folder holds another run or other files.
        """
        try:
            begun = self.config_file.exists()
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be looked into: {error}; choose another folder") from error
        check_out(self.path, begun, "run", resume=False)
        self._write({"run": facts | environment(), "options": plain(config)})

    def record_extension(self, config: Any, facts: dict[str, Any]) -> None:
        """Replace the configuration by that of the extended run.

        Args:
            config: with the extension in it.
            facts: of the extension: the step that it begins at, its epochs and the versions it is made with.
        """
        told = self.facts()
        self._write({"run": told | {"extended": [*told.get("extended", []), facts]}, "options": plain(config)})

    def _write(self, document: dict[str, Any]) -> None:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        write_atomically(self.config_file, lambda file: file.write(text.encode()))

    def write_states(self, states: NDArray[Any]) -> None:
        """Keep the states of the data's files, see `data.content`."""
        write_atomically(self.states_file, lambda file: np.save(file, states))

    def states(self) -> NDArray[Any] | None:
        """The states of the data's files when the run began; None for a run that has none."""
        try:
            regular(self.states_file)
            states: NDArray[Any] | None = np.load(self.states_file, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{self.states_file} is damaged: {error}; remove it to resume by the files' names and lengths alone"
            ) from error
        return states

    def read(self, kind: type[Config]) -> tuple[Config, dict[str, Any]]:
        """The configuration, of the dataclass `kind`, and facts that the run was started with."""
        document = self._document()
        return OptionsParser(kind).build(document["options"], str(self.config_file)), dict(document["run"])

    def facts(self) -> dict[str, Any]:
        """What else the run was started with: the data's path, count and fingerprint, versions."""
        return dict(self._document()["run"])

    def options(self) -> dict[str, Any]:
        """All of its options, nested, in plain values, whatever command it is of."""
        return dict(self._document()["options"])

    def _document(self) -> dict[str, Any]:
        try:
            there = self.config_file.exists()
        except OSError as error:
            raise UserError(f"{self.path} cannot be looked into: {error}") from error
        if not there:
            raise UserError(
                f"{self.path} holds no run: there is no config.yaml; give a folder that `twofold pretrain --out` made"
            )
        document = read_yaml(self.config_file, f"{self.config_file} is damaged: it", ("options", "run"))
        return document | {"options": upgraded(document["options"])}

    def check_resumable(self, kind: type[Config], options: dict[str, Any], to: str = "resume") -> Config:
        """The stored configuration, of the dataclass `kind`, with operational options renewed.

        Raises:
            UserError: an option that would change the run.
        """
        stored, _ = self.read(kind)
        before = flatten(plain(stored))
        for name, value in flatten(plain(options)).items():
            if name in before and not OPERATIONAL.fullmatch(name) and before[name] != value:
                longer = name in ("epochs", "extensions") and "extensions" in before
                more = "; --extend adds epochs to a finished run" if longer else ""
                raise UserError(
                    f"--{name} is {value!r}, but the run in {self.path} was started with {before[name]!r}; "
                    f"{to} without the option, or start another run in another folder{more}"
                )
        renewed = {  # what the run's classes do not have is refused where it says anything
            name: value
            for name, value in flatten(plain(options)).items()
            if name not in before or OPERATIONAL.fullmatch(name)
        }
        return OptionsParser(kind).build(before | renewed, str(self.config_file))

    def latest(self) -> Path | None:
        """The newest checkpoint."""
        return latest_checkpoint(self.path)

    def latest_step(self) -> int | None:
        """Steps that the newest checkpoint holds."""
        newest = self.latest()
        return None if newest is None else step_of(newest)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that can be read."""
        return MetricsFile(self.metrics_file).rows()

    def write_json(self, name: str, value: dict[str, Any]) -> Path:
        """Write a JSON document into the run, whole or not at all."""
        path = self.path / name
        write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))
        return path
