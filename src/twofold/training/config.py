"""The configuration of a run: one frozen dataclass a room, gathered here, merged from layers and checked as a whole."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from twofold.data import DataConfig
from twofold.encoders import EncoderConfig
from twofold.errors import UserError, suggest
from twofold.heads import HeadConfig
from twofold.methods import MethodConfig
from twofold.optim import OptimConfig
from twofold.training.presets import preset_options
from twofold.views import ViewsConfig
from twofold.views.waveforms import WavesConfig

Options = TypeVar("Options")
set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True)
class TrainingConfig:
    """How the loop runs: nothing here changes what is learned, but for the arithmetic's precision."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder and head; the loss is always fp32. auto takes bf16 where the processor has it."""
    channels_last: bool = True
    """Keep images and kernels in channels-last order, which convolutions run faster on."""
    compile: bool = False
    """Compile the encoder (torch.compile): pays off in runs of hours, not of minutes."""
    threads: int | None = None
    """CPU threads for arithmetic; all cores when not given."""
    keep_memory: bool = True
    """On a CPU: keep memory that a step frees for the next one, instead of giving it back to the system each time,
    which is faster and holds more memory (Linux with glibc only)."""
    log_every: int | None = None
    """Steps between two rows of metrics.jsonl; chosen from the run's length when not given."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; one epoch when not given."""
    keep: int = 2
    """How many of the last checkpoints are kept, at least 1."""
    track: Literal["none", "tensorboard"] = "none"
    """Send the metrics to a tracker too; needs the extra `track`."""

    def __post_init__(self) -> None:
        for name in ("threads", "log_every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--training.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched beside the loss. Labels, where there are any, are used here and nowhere else."""

    every: int | None = None
    """Epochs between two looks; chosen from the run's length when not given, 0 switches them off."""
    probe: bool = True
    """Train a linear classifier on the representation beside it; no gradient reaches the encoder."""
    knn: bool = True
    """Classify held-out images by their nearest neighbours."""
    knn_features: Literal["h", "z"] = "h"
    """What neighbours are compared by: h, the encoder's output; z, the head's, as in MoCo's CIFAR-10 demo."""
    knn_k: int = 200
    """Neighbours that vote; a smaller bank votes whole."""
    knn_temperature: float | None = 0.1
    """A neighbour's vote weighs exp(cosine / temperature); null gives each one vote."""
    samples: int = 5000
    """Most images that a look takes from each of the two sides, bank and queries."""

    def __post_init__(self) -> None:
        if self.knn_k < 1:
            raise UserError(f"--monitor.knn_k must be at least 1, got {self.knn_k}")
        if self.knn_temperature is not None and not self.knn_temperature > 0:
            raise UserError(f"--monitor.knn_temperature must be above 0, got {self.knn_temperature}; null: plain votes")


@dataclass(frozen=True)
class RunConfig:
    """A pretraining run."""

    epochs: float | None = None
    """Passes over the data. Chosen from the number of images when not given."""
    batch: int | None = None
    """Images per step over all devices (N; the loss compares 2N views). Chosen from the data when not given."""
    micro_batch: int | None = None
    """Images per device that the encoder takes at once: a smaller memory for a third more time. The batch, its
    negatives and gradients stay, but batch norm in the encoder takes statistics of so many images."""
    seed: int = 0
    """Seed of every random number of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Views"""
    waves: WavesConfig = field(default_factory=WavesConfig)
    """Views of sounds"""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Encoder"""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Projection head"""
    method: MethodConfig = field(default_factory=MethodConfig)
    """Method"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser"""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training"""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Monitor"""

    def __post_init__(self) -> None:
        if self.epochs is not None and not self.epochs > 0:
            raise UserError(f"--epochs must be above 0, got {self.epochs}")
        if self.batch is not None and self.batch < 2:
            raise UserError(
                f"--batch must be at least 2, got {self.batch}: the loss needs another image to contrast with"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"--micro-batch must be at least 1, got {self.micro_batch}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must lie in [0, 2**63), got {self.seed}")


# Options that may differ when a run is resumed: they change neither what is learned nor in which order.
OPERATIONAL = re.compile(
    r"training\.(device|threads|keep|keep_memory|track|log_every|checkpoint_every)|data\.(workers|cache|root|download)"
)


def add_options(parser: ArgumentParser) -> None:
    """Add every field of `RunConfig` to a parser as `--room.field`."""
    parser.add_class_arguments(RunConfig)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings, later ones over earlier ones; dotted keys are paths, dataclasses mappings."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            head, _, rest = key.partition(".")
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            if rest:
                value = {rest: value}
            if isinstance(value, Mapping):
                before = merged.get(head)
                value = merge(before if isinstance(before, Mapping) else {}, value)
            merged[head] = value
    return merged


class OptionsParser(Generic[Options]):
    """Builds a frozen dataclass of options from nested values; a mistake is a UserError that names the option."""

    def __init__(self, cls: type[Options]) -> None:
        self.cls = cls

    def build(self, options: Mapping[str, Any], origin: str = "options") -> Options:
        """Check names and types, and fill in defaults.

        Args:
            options: nested or dotted names; lists may stand for tuples.
            origin: where they come from, for messages.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(self.cls)
        nested = merge(options)
        check_names(nested, origin, self.cls)
        try:
            parsed = parser.instantiate(parser.parse_object(nested))
        except UserError:
            raise
        except Exception as error:  # jsonargparse raises several kinds; each says which key and why
            raise UserError(f"{origin}: {explain(str(error))}") from error
        return self.cls(**vars(parsed))


def build(options: Mapping[str, Any], origin: str = "options") -> RunConfig:
    """Build a `RunConfig` from nested options, over those that the named encoder brings along."""
    nested = merge(options)
    return OptionsParser(RunConfig).build(merge(preset_options(nested), nested), origin)


def check_names(nested: Mapping[str, Any], origin: str, cls: Any, prefix: str = "") -> None:
    """Refuse option names that do not exist, with the nearest that do."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name, value in nested.items():
        if name not in known:
            raise UserError(f"{origin}: there is no option '{prefix}{name}'{suggest(name, known)}")
        room = known[name].default_factory
        if isinstance(room, type) and dataclasses.is_dataclass(room):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{origin}: '{prefix}{name}' is a group of options, got {value!r}; set '{name}.<option>'"
                )
            check_names(value, origin, room, f"{prefix}{name}.")


def explain(message: str) -> str:
    """Shorten jsonargparse's message to the option, what was expected and what was given."""
    key = re.search(r'key "([^"]+)"', message)
    expected = re.findall(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[([^\]]+)\])", message)
    given = re.findall(r"(?:Given value: |Got value: )(.*)", message)
    if not (key and expected):
        return " ".join(message.split())
    kinds = " or ".join(dict.fromkeys(plain or f"one of {literal}" for plain, literal in expected))
    got = given[-1] if given else "another kind of value"
    return f"--{key.group(1)} expects {kinds.replace('NoneType', 'null')}, got {got}"


def given(namespace: Namespace) -> dict[str, Any]:
    """The options that a parse without defaults was given, nested."""
    return {
        key: given(value) if isinstance(value, Namespace) else value
        for key, value in vars(namespace).items()
        if not (isinstance(value, Namespace) and not vars(value))
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def plain(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values that YAML and JSON hold (tuples become lists)."""
    return {
        key: plain(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in (dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config).items()  # type: ignore[arg-type]
    }


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
