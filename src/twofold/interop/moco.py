"""MoCo's `.pth.tar` checkpoints, version 1 and 2, in and out.

Source: facebookresearch/moco, main_moco.py (what is saved), moco/builder.py (the head), main_lincls.py (what reads it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from twofold.encoders import Encoder
from twofold.encoders.adapters import TorchvisionEncoder
from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.heads import HeadConfig, ProjectionHead
from twofold.interop.detect import Weights, require_same, shorten
from twofold.interop.state_dicts import check_values, load_pickle

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What main_moco.py subtracts from and divides into images in [0, 1]."""
_NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
_TREES = {"base": "encoder_q.", "ema": "encoder_k."}
_DDP = "module."


@dataclass(frozen=True)
class MoCoNetwork:
    """What a checkpoint holds.

    Attributes:
        encoder: a torchvision ResNet that normalises inside, in inference mode.
        head: one linear layer (v1) or two (v2), without batch normalisation.
        epoch: epochs done, where the file says.
        tensors: number of tensors in both.
        ignored: names of what was left out, by the rule that says so.
    """

    encoder: TorchvisionEncoder
    head: ProjectionHead
    epoch: int | None
    tensors: int
    ignored: dict[str, list[str]]


@dataclass(frozen=True)
class KeySide:
    """What a run of MoCo holds beside its query encoder.

    Attributes:
        encoder: of the key encoder, under torchvision's names.
        head: of its head, under ours.
        keys: [d, K] the queue.
        pointer: column that is replaced next, a scalar.
    """

    encoder: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    keys: Tensor
    pointer: Tensor


def holds_moco(path: str | Path) -> bool:
    """Whether a file has tensors that are named as main_moco.py names them; UserError if it cannot be read."""
    path = Path(path)
    content = None if path.suffix == ".safetensors" else load_pickle(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    names = [str(name).removeprefix(_DDP) for name in state] if isinstance(state, Mapping) else []
    return any(name.startswith(tuple(_TREES.values())) for name in names)


def read_moco(path: str | Path, weights: Weights = "auto") -> MoCoNetwork:
    """Read a checkpoint of MoCo v1 or v2; nothing in it is executed.

    Args:
        path: the file.
        weights: "base" or "auto": the query encoder, which MoCo evaluates; "ema": the momentum (key) encoder.

    Raises:
        UserError: no such checkpoint, a damaged one, or tensors that are missing, left over or of another shape.
    """
    checkpoint = _load(Path(path))
    state = {name.removeprefix(_DDP): tensor for name, tensor in checkpoint["state_dict"].items()}
    tree = _TREES["ema" if weights == "ema" else "base"]
    ours = {name.removeprefix(tree): tensor for name, tensor in state.items() if name.startswith(tree)}
    if not ours:
        raise UserError(f"{path} is no checkpoint of MoCo: it has no tensors {tree}*; it has {shorten(sorted(state))}")
    encoder = _build(path, checkpoint.get("arch"), ours)
    head = _build_head(path, ours, encoder.feature_dim)
    names = {f"fc.{name}": _head_key(name) for name in _head_names(head)}
    body = {name: tensor for name, tensor in ours.items() if name not in names}
    encoder.module.load_state_dict(body)
    head.load_state_dict({key: ours[name] for name, key in names.items()})
    epoch = checkpoint.get("epoch")
    return MoCoNetwork(
        encoder=encoder.eval(),
        head=head.eval(),
        epoch=epoch if isinstance(epoch, int) else None,
        tensors=len(ours),
        ignored=_ignored(path, checkpoint, state, tree),
    )


def write_moco(
    path: str | Path, encoder: Encoder, head: ProjectionHead, epoch: int = 0, keys: KeySide | None = None
) -> None:
    """Write a checkpoint in the layout of main_moco.py, for main_lincls.py and the converters that read it.

    There is no optimizer in the file: it is for evaluation, not for resuming main_moco.py.

    Args:
        path: a new file, usually named `.pth.tar`.
        encoder: a torchvision ResNet that normalises with ImageNet's statistics.
        head: one linear layer, or two, without batch normalisation.
        epoch: epochs done.
        keys: the key encoder and the queue; left out if not given, as main_lincls.py reads neither.

    Raises:
        UserError: another kind of encoder or head, or a file that exists.
    """
    path = Path(path)
    if not isinstance(encoder, TorchvisionEncoder) or encoder.name not in _NETS:
        raise UserError(f"MoCo's layout holds torchvision's {', '.join(_NETS)}; this is {encoder.spec()}")
    arguments = encoder.arguments()
    if not _close(arguments["mean"], MEAN) or not _close(arguments["std"], STD):
        raise UserError(f"MoCo's readers normalise with mean {MEAN} and std {STD}; this encoder has {arguments}")
    if encoder.stem != "imagenet" or encoder.input.channels != 3:
        raise UserError(f"main_lincls.py builds a net with a 7x7 stem for 3 channels; this encoder is {encoder.spec()}")
    if head.config.norm or head.config.kind == "none" or (head.config.kind == "nonlinear" and head.config.layers != 2):
        raise UserError(
            f"MoCo's head is linear, or nonlinear of 2 layers, without norm; this one is {head.config}: pretrain with "
            "--head.norm false and --head.layers 2 or --head.kind linear, or export the encoder alone as torchvision"
        )
    if path.exists():
        raise UserError(f"{path} exists already; choose another name")
    names, state = _head_names(head), {}
    if keys is not None:
        state = {f"{_DDP}queue": keys.keys.cpu(), f"{_DDP}queue_ptr": keys.pointer.cpu().reshape(1)}
    sides = [("base", encoder.module.state_dict(), head.state_dict())]
    sides += [("ema", dict(keys.encoder), dict(keys.head))] if keys is not None else []
    for side, body, top in sides:
        tree = _DDP + _TREES[side]
        state |= {tree + name: tensor.cpu().contiguous() for name, tensor in body.items()}
        state |= {f"{tree}fc.{name}": top[_head_key(name)].cpu() for name in names}
    content = {"epoch": epoch, "arch": encoder.name, "state_dict": state}
    write_atomically(path, lambda file: torch.save(content, file))


def _load(path: Path) -> dict[str, Any]:
    checkpoint = load_pickle(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} is no checkpoint of MoCo: it has no 'state_dict' of tensors")
    check_values(path, state)
    return dict(checkpoint)


def _build(path: str | Path, arch: Any, tensors: Mapping[str, Tensor]) -> TorchvisionEncoder:
    """The net that has these tensors beside those of its `fc`."""
    result = {name: tuple(t.shape) for name, t in tensors.items() if not name.startswith("fc.")}
    likely = (
        [arch] if arch in _NETS else [name for name in _NETS if plan_of(name).keys() == result.keys()] or ["resnet50"]
    )
    name = next((name for name in likely if plan_of(name) == result), likely[0])
    require_same(plan_of(name), result, f"{path} is not a whole {name} of torchvision")
    return TorchvisionEncoder(name, mean=MEAN, std=STD)


def plan_of(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ResNet of torchvision without its last layer."""
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.startswith("fc.")}


def _build_head(path: str | Path, tensors: Mapping[str, Tensor], in_dim: int) -> ProjectionHead:
    result = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("fc.")}
    kind = "linear" if "fc.weight" in result else "nonlinear"
    last = result.get("fc.weight" if kind == "linear" else "fc.2.weight", ())
    hidden = result.get("fc.0.weight", (in_dim,))[0] if kind == "nonlinear" else in_dim
    if len(last) != 2:
        raise UserError(f"{path} has no head of MoCo v1 (fc.weight) or v2 (fc.0, fc.2): {shorten(sorted(result))}")
    head = ProjectionHead(
        in_dim,
        HeadConfig(
            kind="linear" if kind == "linear" else "nonlinear",
            layers=2,
            out_dim=last[0],
            hidden_dim=hidden if hidden != in_dim else None,
            norm=False,
        ),
    )
    expected = {f"fc.{name}": tuple(head.state_dict()[_head_key(name)].shape) for name in _head_names(head)}
    require_same(expected, result, f"the head in {path} is not that of MoCo")
    return head


def _head_names(head: ProjectionHead) -> list[str]:
    """The tensors of the head as `fc` names them."""
    layers = [""] if head.config.kind == "linear" else ["0.", "2."]
    return [f"{layer}{leaf}" for layer in layers for leaf in ("weight", "bias")]


def _head_key(name: str) -> str:
    """Our name of `fc`'s tensor: torch's Sequential counts the ReLU between its two layers."""
    *layer, leaf = name.split(".")
    return f"layers.{int(layer[0]) // 2 if layer else 0}.0.{leaf}"


def _ignored(
    path: str | Path, checkpoint: dict[str, Any], state: Mapping[str, Tensor], tree: str
) -> dict[str, list[str]]:
    other = next(prefix for prefix in _TREES.values() if prefix != tree)
    ignored = {
        f"the other encoder ({other}*)": sorted(name for name in state if name.startswith(other)),
        "the queue": sorted(name for name in state if re.fullmatch(r"queue(_ptr)?", name)),
        "the optimizer": [name for name in ("optimizer",) if name in checkpoint],
    }
    known = {name for names in ignored.values() for name in names}
    strays = sorted(name for name in state if name not in known and not name.startswith(tree))
    if strays:
        raise UserError(f"{path} holds tensors that no MoCo has: {shorten(strays)}")
    return {rule: names for rule, names in ignored.items() if names}


def _close(values: Any, wanted: tuple[float, ...]) -> bool:
    return (
        values is not None
        and len(values) == len(wanted)
        and all(abs(value - want) < 1e-6 for value, want in zip(values, wanted, strict=True))
    )
