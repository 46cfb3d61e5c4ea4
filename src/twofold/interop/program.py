"""Speech encoders as programs of torch.export: waveforms in, features out, without Twofold."""

from __future__ import annotations

import torch
from torch.export import Dim, ExportedProgram

from twofold.encoders import Encoder, UtteranceEncoder
from twofold.errors import UserError


def speech_program(encoder: Encoder) -> ExportedProgram:
    """The whole encoder, front end and pooling included, as a program of any number and length of recordings.

    It takes float32 [n, samples] in [-1, 1] at the encoder's sample rate, padded with zeros to `least_samples` or more,
    and int64 lengths [n], and gives [n, feature_dim]. What the encoder checks in values, the program does not: every
    length must be one frame of 25 ms or more.

    Raises:
        UserError: the encoder is not for recordings.
    """
    if not isinstance(encoder, UtteranceEncoder):
        raise UserError(
            "--format torch_export is for encoders of recordings, and this one takes images: use --format torchvision"
        )
    encoder = encoder.eval().requires_grad_(False)
    long = (
        least_samples(encoder) + 8000
    )  # long enough for no size of the program to be 1, which would be taken as fixed
    waves, lengths = torch.zeros(2, long), torch.tensor([long, long - 1000])
    free = {"waves": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "lengths": {0: Dim.DYNAMIC}}
    return torch.export.export(encoder, (waves, lengths), dynamic_shapes=free)


def least_samples(encoder: UtteranceEncoder) -> int:
    """Samples that the waveforms must be padded to at least: those of two steps."""
    return encoder.frontend.size + encoder.stack * encoder.frontend.shift
