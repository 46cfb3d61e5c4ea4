"""Weights under torchvision's names, timm's and detectron2's: what other libraries load our encoders from.

Source: torchvision.models.resnet (names); facebookresearch/moco, detection/convert-pretrain-to-detectron2.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twofold.encoders import Encoder, ResNet
from twofold.encoders.adapters import TimmEncoder, TorchvisionEncoder
from twofold.errors import UserError

_RESNETS = {50: "resnet50", 101: "resnet101", 152: "resnet152"}
_IN_TIMM = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2",
    "wide_resnet101_2",
)  # fmt: skip
_ANY = "; --format onnx and torch_export hold any encoder"
_POOLING = (
    "features differ a little: {library}'s max-pooling pads all four sides, SimCLR's ResNet right and below alone at "
    "even sides; for equal features set net.maxpool = twofold.encoders.resnet.SamePool()"
)


@dataclass(frozen=True)
class LibraryWeights:
    """An encoder for torchvision or timm.

    Attributes:
        name: of the model, as in `torchvision.models.get_model` or `timm.create_model`.
        state: all its tensors but the classifier's.
        mean, std: per channel, to be subtracted from and divided into images in [0, 1] before the model.
        notice: how its features differ from the encoder's; empty where they do not.
        classifier_name: of the model's own classifier.
        side: of the images, where the model is built for one.
    """

    name: str
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notice: str = ""
    classifier_name: str = "fc"
    side: int | None = None


def torchvision_weights(encoder: Encoder) -> LibraryWeights:
    """The encoder's tensors under torchvision's names.

    Raises:
        UserError: torchvision has no such net: only its own models as it builds them, and our ResNet-50, 101 and 152 of
            width 1 with stem imagenet, 3 channels and no selective kernels, can be exported.
    """
    arguments = encoder.spec()
    if isinstance(encoder, TorchvisionEncoder):
        if encoder.stem != "imagenet" or encoder.input.channels != 3:
            raise UserError(
                f"torchvision's {encoder.name} has a 7x7 stem for 3 channels; this encoder is {arguments}{_ANY}"
            )
        mean, std = arguments["mean"] or (0.0,) * 3, arguments["std"] or (1.0,) * 3
        state = _plain(encoder.module.state_dict())
        name = encoder.classifier_name
        return LibraryWeights(encoder.name, state, tuple(mean), tuple(std), classifier_name=name)
    if not isinstance(encoder, ResNet):
        raise UserError(
            f"torchvision's names are for its own models and for our ResNets; this encoder is {arguments}{_ANY}"
        )
    wanted = {"width": 1.0, "stem": "imagenet", "channels": 3, "sk_ratio": 0.0}
    depth, wrong = arguments["depth"], [name for name, value in wanted.items() if arguments[name] != value]
    if depth not in _RESNETS:
        reason = "its shortcut of the first stage is no projection" if depth in (18, 34) else "it has no such depth"
        raise UserError(
            f"torchvision cannot hold our ResNet-{depth}: {reason}; train encoder torchvision:resnet18 ...{_ANY}"
        )
    if wrong:
        message = ", ".join(f"{name} {arguments[name]} (not {wanted[name]})" for name in wrong)
        raise UserError(f"torchvision's {_RESNETS[depth]} cannot hold this encoder: it has {message}{_ANY}")
    state = _plain(encoder.state_dict())
    counts = {f"{n.removesuffix('running_var')}num_batches_tracked" for n in state if n.endswith("running_var")}
    state |= {name: torch.zeros((), dtype=torch.long) for name in counts - state.keys()}
    return LibraryWeights(_RESNETS[depth], state, (0.0,) * 3, (1.0,) * 3, _POOLING.format(library="torchvision"))


def timm_weights(encoder: Encoder) -> LibraryWeights:
    """The encoder's tensors under timm's names: of its own models, and of ResNets of torchvision, which it names alike.

    Raises:
        UserError: timm has no such net.
    """
    if isinstance(encoder, TimmEncoder):
        channels = encoder.input.channels
        mean, std = (encoder.spec()[name] or default * channels for name, default in (("mean", [0.0]), ("std", [1.0])))
        pooling = encoder.pooling
        notice = (
            "" if pooling == "auto" else f"features are the {pooling} of the tokens, not what timm's model(x) gives"
        )
        return LibraryWeights(
            encoder.name, _plain(encoder.module.state_dict()), tuple(mean), tuple(std), notice,
            encoder.classifier_name, encoder.input.size,
        )  # fmt: skip
    weights = torchvision_weights(encoder)
    if weights.name not in _IN_TIMM:
        raise UserError(f"timm names the tensors of torchvision's {weights.name} otherwise: use --format torchvision")
    return replace(weights, notice=weights.notice and _POOLING.format(library="timm"))


def detectron2_model(weights: LibraryWeights) -> dict[str, Any]:
    """What detectron2's checkpointer reads from a pickle, as MoCo's script makes it.

    MoCo's script also carries the head along as `stem.fc.*`, which detectron2 has no place for: it is left out here.

    Raises:
        UserError: the net is no ResNet.
    """
    if not weights.name.startswith(("resnet", "wide_resnet", "resnext")):
        raise UserError(f"detectron2's layout holds ResNets; this encoder is torchvision's {weights.name}")
    model: dict[str, NDArray[Any]] = {}
    for name, tensor in weights.state.items():
        model[detectron2_name(name)] = np.asarray(tensor)
    return {"model": model, "__author__": "MOCO", "matching_heuristics": True}


def detectron2_name(name: str) -> str:
    """detectron2's name of one of torchvision's: layer1.0.bn2.weight is res2.0.conv2.norm.weight."""
    layer = re.match(r"layer(\d)\.", name)
    name = f"res{int(layer.group(1)) + 1}.{name[layer.end() :]}" if layer else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
