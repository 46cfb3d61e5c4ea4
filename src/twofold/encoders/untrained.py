"""An encoder as it was before training, all of it taking part: what a number of a trained one is compared with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from twofold.encoders.adapters import CustomEncoder
from twofold.encoders.audio.encoder import UtteranceEncoder
from twofold.encoders.base import MISFIT, Encoder, build_encoder_from_spec
from twofold.encoders.composed import EncoderWithHead
from twofold.errors import UserError
from twofold.heads import ProjectionHead

_SCALES = ("gamma", "gamma_1", "gamma_2", "layer_scale", "lambda1")
"""Names of the factors of residual branches (LayerScale, arXiv 2103.17239) in timm's and torchvision's models."""
_FAINT = 0.1
"""Up to this a factor that is the same for all channels switches its branch off."""


def untrained(encoder: Encoder, seed: int = 0) -> Encoder:
    """The same architecture with fresh weights, in evaluation mode, on the encoder's device.

    Branches that start switched off, by a norm's scale of 0 or a LayerScale near 0, start at 1: an encoder most of
    whose layers give nothing would be a straw man. The statistics that a speech encoder's front end took from the
    training data are kept: they are no weights.

    Args:
        encoder: stays as it is.
        seed: of the weights; that of a run gives a ResNet the weights that the run began with, unless its branches
            began at 0.

    Raises:
        UserError: a module of the user's own has parameters that nothing says how to start.
    """
    place = next((p for p in encoder.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        result = _anew(encoder)
    _let_all_take_part(result)
    if isinstance(encoder, UtteranceEncoder) and isinstance(result, UtteranceEncoder):
        result.frontend.load_state_dict(encoder.frontend.state_dict())
    return result.to(place.device, place.dtype).eval()


def _anew(encoder: Encoder) -> Encoder:
    if isinstance(encoder, EncoderWithHead):
        head = encoder.head
        if not isinstance(head, ProjectionHead):
            raise UserError(f"a {type(head).__name__} on an encoder cannot be built anew")
        below = untrained(encoder.encoder, torch.initial_seed())
        return EncoderWithHead(below, ProjectionHead(head.in_dim, head.config), encoder.feature_dim)
    if isinstance(encoder, CustomEncoder) or not hasattr(encoder, "kind"):
        try:
            result = copy.deepcopy(encoder).cpu()
            _start(result)
        except MISFIT as error:
            raise UserError(f"{type(encoder).__name__} cannot be started anew: {error}") from error
        return result
    return build_encoder_from_spec(encoder.spec())


def _start(module: nn.Module) -> None:
    """Give every layer its fresh weights; UserError where one does not say how."""
    for name, part in module.named_modules():
        if not any(True for _ in part.parameters(recurse=False)):
            continue
        start = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if not callable(start):
            own = ", ".join(parameter for parameter, _ in part.named_parameters(recurse=False))
            raise UserError(f"{type(part).__name__} ({name}) has parameters ({own}) and no reset_parameters()")
        start()


@torch.no_grad()
def _let_all_take_part(module: nn.Module) -> None:
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            is_scale = name in _SCALES or (name == "weight" and "Norm" in type(part).__name__)
            if is_scale and _faint(value):
                value.fill_(1.0)


def _faint(value: Tensor) -> bool:
    """Whether a factor is about 0 for all channels alike."""
    return value.numel() > 0 and bool((value == value.flatten()[0]).all()) and abs(float(value.flatten()[0])) <= _FAINT
