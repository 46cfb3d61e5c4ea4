"""Backbones that others trained: tensors under torchvision's, timm's or our own names, as an encoder.

Every tensor of the encoder has to be in the file, in its shape, and every tensor of the file that lies among the
encoder's parts has to belong to it. Heads, predictors and queues beside them are left out and listed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofold.encoders import Encoder, EncoderConfig
from twofold.encoders.adapters import Adapted, TimmEncoder, TorchvisionEncoder, spread, torchvision_names
from twofold.encoders.budget import TooMuch, WithinFile
from twofold.errors import UserError
from twofold.heads import Classifier
from twofold.interop.detect import require_same, shorten
from twofold.interop.moco import MEAN, STD, plan_of
from twofold.interop.state_dicts import Prefixes, StateDict, beginnings, check_values, find_prefix, read_state_dict
from twofold.options import OptionsParser
from twofold.text import counted

_RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Backbone:
    """An encoder with the weights of a file, in inference mode.

    Attributes:
        encoder: with its weights.
        options: those of `EncoderConfig` that build it.
        prefix: what the names of its tensors begin with in the file, as --prefix says it.
        classifier: the last linear layer, where it was asked for.
        ignored: names of what was left out, by the rule that says so.
        remarks: what was assumed, for people.
        hint: what to do to keep a classifier that was left out; empty where there is none.
        facts: plain values in the file.
    """

    encoder: Encoder
    options: dict[str, Any]
    prefix: str
    classifier: Classifier | None = None
    ignored: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    hint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """A file's tensors for an encoder: all of them by the encoder's names, the others by the file's."""

    tensors: dict[str, Tensor]
    rules: Prefixes
    ignored: dict[str, list[str]]


def read_backbone(
    path: str | Path,
    prefix: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    classifier: bool = False,
) -> Backbone:
    """Read the backbone that a file holds; nothing in it is executed.

    Args:
        path: `.pth`, `.pt`, `.ckpt`, `.pth.tar`, `.bin` or `.safetensors`.
        prefix: what the names of its tensors begin with, see `Prefixes.parse`; found if not given.
        options: of `EncoderConfig`. Without a name, the file has to name a model of torchvision or to hold one of its
            ResNets. Without channels and stem, they are those of the first convolution; without mean and std, images
            are normalised as the library's weights expect.
        classifier: take the last linear layer along, which has to be there.

    Raises:
        UserError: a file that cannot be read or holds no such encoder; what is missing, left over or of another shape.
    """
    state = read_state_dict(path)
    rules = None if prefix is None else Prefixes.parse(prefix)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if given.get("pretrained"):
        raise UserError(f"--encoder.pretrained asks for other weights than those of {path}: leave it out")
    named = given.get("name") is not None
    if not named:
        given["name"] = _recognised(state, rules)
    try:
        # (what a file calls itself is not to choose how much memory is taken)
        with contextlib.nullcontext() if named else WithinFile(state.tensors):
            given, remarks = _completed(state, rules, given)
        with contextlib.nullcontext() if named else WithinFile(state.tensors):
            encoder = _build(given)
    except TooMuch as error:
        raise UserError(f"{path} calls itself {given['name']}: {error}") from error
    found = fit(state, rules, encoder)
    encoder.load_state_dict(found.tensors)
    top, ignored, hint = _top(state, found, encoder, classifier)
    remarks = [f"{given['name']} from {found.rules.in_words()}", *remarks]
    return Backbone(encoder.eval(), given, str(found.rules), top, ignored, remarks, hint, state.facts)


def _build(options: Mapping[str, Any]) -> Encoder:
    config: EncoderConfig = OptionsParser(EncoderConfig).build(options, "encoder")
    return config.build()


def fit(state: StateDict, rules: Prefixes | None, encoder: Encoder) -> Fit:
    """The tensors that an encoder takes from a file.

    Args:
        state: the file.
        rules: of its names; found if not given.
        encoder: only its names and shapes count.

    Raises:
        UserError: what is missing, left over among the encoder's parts, of another shape, or not finite.
    """
    core = encoder.module if isinstance(encoder, Adapted) else encoder
    wanted = core.state_dict()
    learned = [name for name in wanted if not name.endswith(_COUNTER)]
    if rules is None:
        rules = Prefixes(((find_prefix(state, learned), ""),))
    tensors = rules.apply(state)
    parts = {name.partition(".")[0] for name in wanted}
    top = f"{encoder.classifier_name}." if isinstance(encoder, Adapted) and encoder.classifier_name else None
    ours = {
        name: tensor
        for name, tensor in tensors.items()
        if name.partition(".")[0] in parts
        and not (top and name.startswith(top))
        and (name in wanted or not name.endswith(_COUNTER))
    }
    counters = {name: wanted[name] for name in wanted if name.endswith(_COUNTER) and name not in ours}
    try:
        require_same(_shapes(wanted), _shapes(ours | counters), f"{state.path} does not fit {_title(encoder)}")
    except UserError as error:
        raise UserError(
            f"{error}. The tensors were taken from {rules.in_words()}; those of the file begin with "
            f"{', '.join(beginnings(state.tensors))}: give another prefix, or name the encoder that they are of"
        ) from error
    check_values(state.path, ours)
    begin = "module." if isinstance(encoder, Adapted) else ""
    taken = {begin + name: tensor for name, tensor in (ours | counters).items()}
    beside = sorted(name for name in tensors if name not in ours)
    ignored = {"beside the encoder": beside, "elsewhere in the file": _elsewhere(state, rules)}
    return Fit(taken, rules, {rule: names for rule, names in ignored.items() if names})


def _elsewhere(state: StateDict, rules: Prefixes) -> list[str]:
    begins = tuple(f"{box}{rule[0]}" for rule in rules.rules for box in ("", *state.containers))
    return sorted(name for name in state.tensors if not name.startswith(begins))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _title(encoder: Encoder) -> str:
    if isinstance(encoder, TimmEncoder | TorchvisionEncoder):
        return f"{encoder.kind}:{encoder.name}"
    return f"{encoder.kind} {encoder.spec()}"


def _recognised(state: StateDict, rules: Prefixes | None) -> str:
    """The name of the encoder that a file's tensors are of: as the file says, or the nearest ResNet of torchvision."""
    said = state.facts.get("arch")
    if said in torchvision_names():
        return f"torchvision:{said}"
    scores = {name: _likeness(state, rules, name) for name in _RESNETS}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] <= 0:
        known = f" (it calls itself {said})" if isinstance(said, str) else ""
        raise UserError(
            f"{state.path} holds no ResNet of torchvision{known}, and nothing else is recognised by its tensors, which "
            f"begin with {', '.join(beginnings(state.tensors))}: name the encoder, e.g. --encoder.name "
            "timm:vit_small_patch16_224, and the prefix of its tensors if it is not found"
        )
    return f"torchvision:{best}"


def _likeness(state: StateDict, rules: Prefixes | None, name: str) -> float:
    """How much of a ResNet a file holds, less what it holds beside it in the same layers; 1 for all of it."""
    plan = {n: shape for n, shape in plan_of(name).items() if not n.endswith(_COUNTER)}
    tensors = (rules or Prefixes(((find_prefix(state, list(plan)), ""),))).apply(state)
    same = sum(n in tensors and tuple(tensors[n].shape) == shape for n, shape in plan.items())
    strays = sum(n.startswith("layer") and n not in plan and not n.endswith(_COUNTER) for n in tensors)
    return (same - strays) / len(plan) if same > len(plan) / 2 else 0.0


def _completed(state: StateDict, rules: Prefixes | None, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options with those that the file or the library tells, and what was assumed."""
    bare = {name: value for name, value in given.items() if name not in ("mean", "std")}
    encoder = _build(bare)
    if not isinstance(encoder, TimmEncoder | TorchvisionEncoder):
        return given, []
    first = next((n for n, m in encoder.module.named_modules() if isinstance(m, nn.Conv2d)), None)
    kernel = None if first is None else _tensor(state, rules, encoder, f"{first}.weight")
    remarks = []
    if kernel is not None and kernel.ndim == 4:
        given = {"channels": kernel.shape[1]} | given
        small = kernel.shape[2:] == (3, 3) and encoder.module.get_parameter(f"{first}.weight").shape[2:] == (7, 7)
        if small and isinstance(encoder, TorchvisionEncoder) and "stem" not in given:
            given["stem"] = "cifar"
            remarks.append("its first convolution is 3x3: stem cifar, without pooling")
    if not {"mean", "std"} & given.keys():
        channels = given.get("channels", 3)
        mean, std = encoder.statistics if isinstance(encoder, TimmEncoder) else (MEAN, STD)
        given |= {"mean": tuple(spread(mean, channels)), "std": tuple(spread(std, channels))}
        remarks.append(
            f"images are normalised with mean {[round(v, 4) for v in given['mean']]} and deviation "
            f"{[round(v, 4) for v in given['std']]}, as {encoder.kind}'s weights expect; --encoder.mean and "
            "--encoder.std say otherwise"
        )
    return given, remarks


def _tensor(state: StateDict, rules: Prefixes | None, encoder: Adapted, name: str) -> Tensor | None:
    learned = [n for n in encoder.module.state_dict() if not n.endswith(_COUNTER)]
    return (rules or Prefixes(((find_prefix(state, learned), ""),))).apply(state).get(name)


def _top(
    state: StateDict, found: Fit, encoder: Encoder, wanted: bool
) -> tuple[Classifier | None, dict[str, list[str]], str]:
    """The last linear layer, if it is wanted; what is left out then; and a word where one is left out."""
    name = encoder.classifier_name if isinstance(encoder, Adapted) else ""
    tensors = found.rules.apply(state)
    weight, bias = (tensors.get(f"{name}.{leaf}") for leaf in ("weight", "bias"))
    fits = bool(name) and weight is not None and weight.ndim == 2 and weight.shape[1] == encoder.feature_dim
    if not fits or weight is None:
        if wanted:
            raise UserError(
                f"--classifier_layer 0: {state.path} has no linear layer on the "
                f"{counted(encoder.feature_dim, 'feature')} of "
                f"{_title(encoder)}{f' ({name}.weight)' if name else ''}; beside the encoder it holds "
                f"{shorten(found.ignored.get('beside the encoder', [])) or 'nothing'}"
            )
        return None, found.ignored, ""
    if not wanted:
        words = f"{name} ({weight.shape[0]} outputs) is left out; if it is a classifier, --classifier_layer 0 keeps it"
        return None, found.ignored, words
    top = Classifier(encoder.feature_dim, weight.shape[0])
    top.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight)) if bias is None else bias})
    rest = [n for n in found.ignored["beside the encoder"] if n not in (f"{name}.weight", f"{name}.bias")]
    ignored = found.ignored | {"beside the encoder": rest}
    return top.eval(), {rule: names for rule, names in ignored.items() if names}, ""
