"""Starting from weights: of a run, a converted checkpoint, or a backbone that others trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from twofold.encoders import Encoder, read_header
from twofold.encoders.adapters import CustomEncoder
from twofold.encoders.load import encoder_path, kind_of
from twofold.encoders.options_of import options_of
from twofold.encoders.weights import encoder_tensors
from twofold.errors import UserError
from twofold.evaluation.features import Pixels
from twofold.interop.backbones import fit, read_backbone
from twofold.interop.detect import require_same
from twofold.interop.state_dicts import SUFFIXES, Prefixes, read_state_dict
from twofold.kinds import EXAMPLE, Kind
from twofold.options import as_written, flatten, merge
from twofold.reading import usable
from twofold.training.rundir import RunDirectory


@dataclass(frozen=True)
class StartingPoint:
    """The weights that a run begins with.

    Attributes:
        name: of the file or folder, as it was given.
        options: what comes with it, as the lowest layer of the run's options: the encoder, the side and the channels
            that it takes, and how its images were read.
        kind: of the examples that it takes.
        told: what was found, for people.
        weights: gives the tensors for an encoder, by the names of its state.
        spec: of the encoder, where the file says it.
    """

    name: str
    options: dict[str, Any]
    kind: Kind
    told: str
    weights: Callable[[Encoder], Mapping[str, Tensor]]
    spec: Mapping[str, Any] | None = None

    def fill(self, encoder: Encoder) -> None:
        """Give an encoder the weights, all of them.

        Raises:
            UserError: it is not the encoder that they are of; what is missing, left over or of another shape.
        """
        made = encoder.spec()
        differing = [name for name, value in (self.spec or {}).items() if name in made and made[name] != value]
        if differing and not isinstance(encoder, CustomEncoder):
            theirs = {name: (self.spec or {})[name] for name in differing}
            raise UserError(
                f"--start_from {self.name} holds an encoder with {_words(theirs)}, and the options make one with "
                f"{_words({name: made[name] for name in differing})}: leave these options out"
            )
        tensors, state = self.weights(encoder), encoder.state_dict()
        require_same(
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            f"--start_from {self.name} does not fit the encoder",
        )
        encoder.load_state_dict(dict(tensors))

    def check_kind(self, kind: Kind) -> None:
        """Raise a UserError where the examples are not what the encoder takes."""
        if kind != self.kind:
            raise UserError(
                f"--start_from {self.name} holds an encoder of {EXAMPLE[self.kind]}s, and the data are "
                f"{EXAMPLE[kind]}s: give an encoder of {EXAMPLE[kind]}s, or leave --start_from out"
            )


def from_start(options: Mapping[str, Any]) -> tuple[StartingPoint | None, dict[str, Any]]:
    """The starting point that options name, if they do, and the options with what it brings along below them.

    Raises:
        UserError: no such weights, ones that cannot be read, or options that say something else of the encoder.
    """
    nested = merge(options)
    start, prefix = nested.get("start_from"), nested.get("start_prefix")
    if start is None:
        return None, nested
    encoder = nested.get("encoder") or {}
    if not isinstance(encoder, Mapping):
        return None, nested  # refused, by name, where the options are checked
    point = read_start(str(start), prefix, encoder)
    _refuse_contradictions(point, nested)
    return point, merge(point.options, nested)


def read_start(start: str, prefix: str | None, encoder: Mapping[str, Any]) -> StartingPoint:
    """The starting point at a path.

    Args:
        start: a run's folder or its `encoder.safetensors`, a folder that `twofold convert` wrote, or a file with the
            tensors of a backbone.
        prefix: of the backbone's tensors; see `Prefixes.parse`.
        encoder: options of the encoder, nested; a backbone's file does not say all.

    Raises:
        UserError: nothing there, or no encoder.
    """
    if encoder.get("pretrained"):
        raise UserError("--encoder.pretrained true is about other weights than those of --start_from: leave it out")
    if (problem := usable(start)) is not None:
        raise UserError(f"--start_from '{start[:100]}' {problem}")
    path = Path(start)
    if path.is_file() and path.suffix in SUFFIXES and not _is_ours(path):
        return _of_backbone(start, prefix, encoder)
    if path.is_dir() and not (path / "encoder.safetensors").exists() and not RunDirectory(path).config_file.exists():
        raise UserError(
            f"--start_from {start} holds no encoder.safetensors: give a run's folder, one that `twofold convert` "
            f"wrote, or a file with a backbone's tensors ({', '.join(SUFFIXES)}); twofold convert {start} --out "
            "FOLDER makes an encoder of a TensorFlow checkpoint"
        )
    if prefix is not None:
        raise UserError(
            f"--start_prefix {prefix}: {start} is an encoder of Twofold's own, which needs none: leave it out"
        )
    return _of_ours(start, encoder_path(path))


def _is_ours(path: Path) -> bool:
    """Whether a file holds an encoder of ours; a damaged file is none."""
    try:
        read_header(path)
    except UserError:
        return False
    return True


def _of_ours(start: str, file: Path) -> StartingPoint:
    header = read_header(file)
    spec, kind = header["spec"], kind_of(header["spec"])
    layer: dict[str, Any] = {"encoder": options_of(spec)}
    if kind == "image":
        size, channels = spec.get("size"), spec.get("channels")
        layer = merge(layer, Pixels.of(header).options(), {"data": {"channels": channels}})
        layer |= {"views": {"size": size}} if size else {}
    read = ", ".join(f"data.{name} {as_written(value)}" for name, value in layer.get("data", {}).items())
    told = f"starting from {start}: {_words(spec)}" + (f"; images are read with {read}" if read else "")
    return StartingPoint(start, layer, kind, told, lambda _encoder: encoder_tensors(file), spec)


def _of_backbone(start: str, prefix: str | None, encoder: Mapping[str, Any]) -> StartingPoint:
    if encoder.get("name") == "custom":  # the module says what it needs
        state, rules = read_state_dict(start), None if prefix is None else Prefixes.parse(prefix)
        return StartingPoint(
            start, {}, "image", f"starting from {start}: weights for a module of your own",
            lambda own: fit(state, rules, own).tensors,
        )  # fmt: skip
    found = read_backbone(start, prefix, encoder)
    size, kind = found.encoder.input.size, found.encoder.input.kind
    layer: dict[str, Any] = {"encoder": found.options}
    if kind == "image":
        layer |= {"data": {"channels": found.encoder.input.channels}} | ({"views": {"size": size}} if size else {})
    told = f"starting from {start}: {'; '.join(found.remarks)}"
    return StartingPoint(start, layer, kind, told, lambda _encoder: found.encoder.state_dict())


def _refuse_contradictions(point: StartingPoint, nested: Mapping[str, Any]) -> None:
    """What the weights decide may be repeated, and not contradicted."""
    decided = flatten({name: value for name, value in point.options.items() if name in ("encoder", "views")})
    given = flatten({name: nested.get(name) or {} for name in ("encoder", "views")})
    for name, own in decided.items():
        value = given.get(name)
        if value is None or (name == "encoder.stem" and value == "auto"):
            continue
        if _plain(value) != _plain(own):
            raise UserError(
                f"--{name} {as_written(value)} contradicts --start_from {point.name}, whose encoder has "
                f"{as_written(own)}: leave the option out"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {as_written(value)}" for name, value in values.items() if value is not None)
