"""Official SimCLR checkpoints: which file holds the variables, and what they are called.

Three layouts, all of them tensor bundles: TF1 checkpoints (names are the variables'), TF2 SavedModels and TF2
checkpoints (names are places in the graph of Python objects, which the file holds too, beside the variables' names).
All are brought to TF1's names, which `encoders.reference_names` knows.

Source: google-research/simclr, run.py and tf2/run.py; tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.errors import UserError
from twofold.interop.bundle import Bundle
from twofold.interop.graphs import classifier_layer
from twofold.interop.protobuf import Malformed, messages, text
from twofold.reading import read_bytes

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_LEAVES = "kernel|bias|gamma|beta|moving_mean|moving_variance"
_SLOT = re.compile(rf"/({_LEAVES})/(Momentum|LARSOptimizer|Adam|Adam_1|RMSProp|RMSProp_1|Adagrad)$")
_BOOKKEEPING = re.compile(r"(global_step|save_counter|beta1_power|beta2_power|learning_rate|optimizer)(/.*)?$")
_LAYER = re.compile(r"(?:sync_)?(batch_normalization|conv2d|dense)(?:_(\d+))?$")
_SCOPES = {"resnet": "base_model", "projection_head": "head_contrastive", "head_supervised": "head_supervised"}

SLOTS = "optimizer slots"
BOOKKEEPING = "step counters and optimizer settings"


@dataclass(frozen=True)
class Variables:
    """The variables of a checkpoint under TF1's names.

    Attributes:
        path: the index file.
        layout: "TF1 checkpoint", "TF1 SavedModel", "TF2 checkpoint" or "TF2 SavedModel".
        keys: name in the file, by TF1 name.
        ignored: names in the file that are no weights, by the rule that says so.
        step: the training step, where the file holds it.
        classifier_layer: which output of the head the classifier reads (0: the features), where there is a graph.
    """

    path: Path
    layout: str
    keys: Mapping[str, str]
    ignored: Mapping[str, list[str]]
    step: int | None
    classifier_layer: int | None
    _bundle: Bundle = field(repr=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape in TensorFlow's layout, by TF1 name."""
        return {name: self._bundle.entries[key].shape for name, key in self.keys.items()}

    def read(self, name: str) -> NDArray[np.float32]:
        """The values of one variable; raises UserError where its bytes are damaged or hold no finite numbers."""
        values: NDArray[Any] = self._bundle.read(self.keys[name])
        if not np.isfinite(values).all():
            raise UserError(f"{name} in {self.path} holds values that are not finite: the training had diverged")
        return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Location:
    """Where a checkpoint's files are: their common prefix, and the file that holds the graph, if any."""

    prefix: Path
    graph: Path | None

    @property
    def is_saved_model(self) -> bool:
        return self.graph is not None and self.graph.name == "saved_model.pb"


def locate(source: str | Path) -> Location:
    """Find the checkpoint that `source` means.

    Args:
        source: a prefix such as `model.ckpt-1234`; one of its files; a folder with one checkpoint, or with several and
            TensorFlow's `checkpoint` file, which names the latest; a SavedModel, or a folder that holds a single one.

    Raises:
        UserError: there is none, or there are several.
    """
    path = Path(source)
    if path.is_dir():
        return _locate_in(path)
    prefix = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path)))
    if path.name == "saved_model.pb":
        return _saved_model(path.parent)
    if Path(f"{prefix}.index").is_file():
        return _checkpoint(prefix)
    if path.is_file():
        raise UserError(f"{path} is no TensorFlow checkpoint: there is no {prefix.name}.index beside it")
    raise UserError(f"there is nothing at {path}; give a checkpoint's folder or its path without .index")


def read_variables(source: str | Path) -> Variables:
    """Open a checkpoint and give its variables TF1's names; values are read later.

    Args:
        source: see `locate`.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    location = locate(source)
    bundle = Bundle(location.prefix)
    modern = _OBJECT_GRAPH in bundle.entries
    keys, ignored = _modern_names(bundle) if modern else _plain_names(bundle)
    layout = f"TF{2 if modern else 1} {'SavedModel' if location.is_saved_model else 'checkpoint'}"
    layer = None if location.graph is None else classifier_layer(location.graph)
    return Variables(bundle.index_path, layout, keys, ignored, _step(bundle), layer, bundle)


def _locate_in(folder: Path) -> Location:
    if (folder / "saved_model.pb").is_file():
        return _saved_model(folder)
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    latest = _latest(folder)
    if latest is not None:
        if latest not in prefixes:
            raise UserError(f"{folder / 'checkpoint'} names {latest.name}, but there is no {latest.name}.index")
        return _checkpoint(latest)
    if len(prefixes) == 1:
        return _checkpoint(prefixes[0])
    if prefixes:
        raise UserError(f"{folder} holds several checkpoints: {', '.join(p.name for p in prefixes)}; name one")
    models = sorted(path.parent for path in folder.rglob("saved_model.pb"))
    if len(models) == 1:
        return _saved_model(models[0])
    if models:
        raise UserError(f"{folder} holds several SavedModels: {', '.join(map(str, models))}; name one")
    what = "is empty" if not any(folder.iterdir()) else "holds neither a .index file nor a saved_model.pb"
    raise UserError(f"{folder} {what}: it is no TensorFlow checkpoint")


def _latest(folder: Path) -> Path | None:
    """The prefix that TensorFlow's `checkpoint` file names, by its last part: files may have moved since."""
    state = folder / "checkpoint"
    if not state.is_file():
        return None
    match = re.search(
        r'^model_checkpoint_path:\s*"(.+)"', read_bytes(state, 2**20).decode(errors="replace"), re.MULTILINE
    )
    if match is None:
        raise UserError(f"{state} names no checkpoint; give the path of one without .index")
    return folder / re.split(r"[/\\]", match.group(1))[-1]


def _checkpoint(prefix: Path) -> Location:
    meta = Path(f"{prefix}.meta")
    return Location(prefix, meta if meta.is_file() else None)


def _saved_model(folder: Path) -> Location:
    prefix = folder / "variables" / "variables"
    if not Path(f"{prefix}.index").is_file():
        raise UserError(f"{prefix}.index is missing: the SavedModel in {folder} comes without its variables")
    return Location(prefix, folder / "saved_model.pb")


def _plain_names(bundle: Bundle) -> tuple[dict[str, str], dict[str, list[str]]]:
    keys: dict[str, str] = {}
    ignored: dict[str, list[str]] = {}
    for key in bundle.entries:
        rule = SLOTS if _SLOT.search(key) else BOOKKEEPING if _BOOKKEEPING.match(key) else None
        if rule is None:
            keys[key] = key
        else:
            ignored.setdefault(rule, []).append(key)
    return keys, ignored


def _modern_names(bundle: Bundle) -> tuple[dict[str, str], dict[str, list[str]]]:
    """TF1 names of a TF2 file's keys. A variable's place says what it is for, its own name which layer's it is."""
    named = _variable_names(bundle)
    ignored: dict[str, list[str]] = {"the graph of objects": [_OBJECT_GRAPH]}
    weights: dict[str, str] = {}
    for key in bundle.entries:
        if key == _OBJECT_GRAPH:
            continue
        if "/.OPTIMIZER_SLOT/" in key:
            ignored.setdefault(SLOTS, []).append(key)
        elif _BOOKKEEPING.match(key):
            ignored.setdefault(BOOKKEEPING, []).append(key)
        elif named.get(key):
            weights[key] = named[key]
        else:
            raise UserError(f"{bundle.index_path} does not say the name of the variable at {key}; save it anew")
    lost = sorted(f"{key} ({name})" for key, name in named.items() if key not in bundle.entries)
    if lost:
        raise UserError(f"{bundle.index_path} lacks variables that its own graph of objects names: {', '.join(lost)}")
    keys: dict[str, str] = {}
    for key, name in zip(weights, tf1_names(list(weights.values())), strict=True):
        if name in keys:
            raise UserError(f"{bundle.index_path}: {keys[name]} and {key} both are {name}")
        keys[name] = key
    return keys, ignored


def _variable_names(bundle: Bundle) -> dict[str, str]:
    """The full name of each variable in the file's graph of objects, by its key in the file."""
    try:
        return {
            text(attribute, 3): text(attribute, 2)
            for node in messages(bundle.read_text(_OBJECT_GRAPH), 1)
            for attribute in messages(node, 2)
        }
    except Malformed as error:
        raise UserError(f"the graph of objects in {bundle.index_path} is damaged: {error}") from error


def tf1_names(names: list[str]) -> list[str]:
    """The TF1 names of TF2 variables, in the same order; names of other kinds come back as they are.

    TF2 numbers layers in order of creation, as TF1 does, but counts on from one model to the next in a process.
    """
    split = [_split(name) for name in names]
    lowest: dict[str, int] = {}
    for scope, _, layer, number, _ in filter(None, split):
        if scope == "base_model":
            lowest[layer] = min(number, lowest.get(layer, number))
    result = []
    for name, parts in zip(names, split, strict=True):
        if parts is None:
            result.append(name)
            continue
        scope, within, layer, number, leaf = parts
        number = number - lowest[layer] if scope == "base_model" else 0
        result.append("/".join([scope, *within, f"{layer}_{number}" if number else layer, leaf]))
    return result


def _split(name: str) -> tuple[str, list[str], str, int, str] | None:
    """(scope, scopes within that TF1 has too, kind of layer, its number, leaf) of a TF2 variable."""
    parts = name.split(":")[0].split("/")
    start = next((i for i, part in enumerate(parts) if part in _SCOPES), None)
    layer = _LAYER.match(parts[-2]) if len(parts) > 1 else None
    if start is None or layer is None:
        return None
    scope = _SCOPES[parts[start]]
    within = [] if scope == "base_model" else parts[start + 1 : start + 2]  # nl_j or linear_layer
    return scope, within, layer.group(1), int(layer.group(2) or 0), parts[-1]


def _step(bundle: Bundle) -> int | None:
    for key in ("global_step", "global_step/.ATTRIBUTES/VARIABLE_VALUE"):
        if key in bundle.entries and not bundle.entries[key].shape:
            return int(bundle.read(key))
    return None
