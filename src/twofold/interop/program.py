"""Encoders as programs of torch.export: images or waveforms in, features out, without Twofold."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from twofold.encoders import Encoder, UtteranceEncoder
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError

_SHAPES: Any = importlib.import_module("torch.fx.experimental._config")  # gets `patch` when it is imported
_SIDES = (96, 128)
"""Height and width of the images that a program is traced with: different ones, of which no map has a side of 1."""
_USUAL = 224
"""Side of images where nobody tells it."""
TOLERANCE = 1e-4
"""Largest difference from the encoder's outputs, as a share of the largest of them, with which a file is written."""
_CANNOT = (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError)


@dataclass(frozen=True)
class Program:
    """An encoder as a program.

    Attributes:
        exported: takes what `inputs` names, and gives what `outputs` names.
        inputs: "images"; or "waves" and "lengths".
        outputs: "features"; and "logits" where there is a classifier.
        side: of the images, where the program takes one alone; None where it takes any height and width.
        reason: why it takes one alone, though the encoder takes any; empty otherwise.
        guarded: it gives the encoder's outputs for a batch of any number and size, but refuses some of them unless its
            checks are switched off.
    """

    exported: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    side: int | None = None
    reason: str = ""
    guarded: bool = False


class FeaturesAndLogits(nn.Module):
    """An encoder's features [n, d], and its classifier's logits [n, classes]."""

    def __init__(self, net: EncoderWithClassifier) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images, or waveforms with lengths -> (features, logits)."""
        features = self.net.encoder(x) if lengths is None else self.net.encoder(x, lengths)
        return features, self.net.logits(features)


def checked_program(net: Encoder, side: int | None = None) -> Program:
    """As `encoder_program`, run on batches of several numbers and sizes and compared with the encoder itself.

    Raises:
        UserError: it gives other outputs; and as `encoder_program`.
    """
    program = encoder_program(net, side)
    guarded, module = False, program.exported.module()
    for inputs in examples(net, program.side):
        expected = outputs_of(net, inputs)
        with torch.inference_mode():
            try:
                given = module(*inputs)
            except AssertionError:  # sizes that the trace did not have: a rule of layout, or one that matters
                guarded = True
                given = program.exported.module(check_guards=False)(*inputs)
        difference = apart(given if isinstance(given, tuple) else (given,), expected)
        if not difference <= TOLERANCE:
            raise UserError(
                f"torch.export makes a program of this encoder whose outputs differ by {difference:.1e} of the largest "
                f"on inputs of {tuple(inputs[0].shape)}, more than {TOLERANCE:g}: nothing is written; use onnx"
            )
    return replace(program, guarded=guarded)


def outputs_of(net: Encoder, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the net itself gives: features, and logits where there is a classifier."""
    module = FeaturesAndLogits(net) if isinstance(net, EncoderWithClassifier) else net
    with torch.inference_mode():
        given = module.eval()(*inputs)
    return given if isinstance(given, tuple) else (given,)


def apart(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest difference, as a share of the largest value of each output; infinite where shapes differ."""
    worst = 0.0
    for one, wanted in zip(got, expected, strict=True):
        if one.shape != wanted.shape or not torch.isfinite(one).all():
            return math.inf
        worst = max(worst, float((one - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)))
    return worst


def examples(net: Encoder, side: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Inputs to compare with: one, two and five images of noise of several sides, or recordings of several lengths."""
    encoder = net.encoder if isinstance(net, EncoderWithClassifier) else net
    draw = torch.Generator().manual_seed(0)
    if isinstance(encoder, UtteranceEncoder):
        least = least_samples(encoder)
        for count, extra in ((1, 0), (2, 4001), (5, 9000)):
            lengths = torch.linspace(encoder.frontend.size, least + extra, count).long()
            waves = 0.1 * torch.randn(count, least + extra, generator=draw)
            yield waves * (torch.arange(least + extra) < lengths[:, None]), lengths
        return
    sides = [(side, side)] * 3 if side is not None else [(64, 64), (47, 96), (128, 33)]
    for count, (height, width) in zip((1, 2, 5), sides, strict=True):
        yield (torch.rand(count, encoder.input.channels, height, width, generator=draw),)


def encoder_program(net: Encoder, side: int | None = None, refused: str = "") -> Program:
    """An encoder, or an encoder with its classifier, as a program of any number of images or recordings.

    Of images it takes float32 [n, channels, H, W] in [0, 1], of any height and width where the encoder does. Of
    recordings it takes float32 [n, samples] in [-1, 1] at the encoder's sample rate, padded with zeros to
    `least_samples` or more, and int64 lengths [n]; front end and pooling are inside. What the encoder checks in values,
    the program does not: every length must be one frame of 25 ms or more.

    Args:
        net: any encoder; an `EncoderWithClassifier` gives features and logits.
        side: of the images, for nets that can be followed for one alone.
        refused: why a program of any height and width is of no use; then it takes one side alone.

    Raises:
        UserError: torch.export cannot follow the net.
    """
    encoder = net.encoder if isinstance(net, EncoderWithClassifier) else net
    module = FeaturesAndLogits(net) if isinstance(net, EncoderWithClassifier) else net
    module = module.eval().requires_grad_(False)
    outputs = ("features", "logits") if isinstance(net, EncoderWithClassifier) else ("features",)
    if isinstance(encoder, UtteranceEncoder):
        # long enough for no size of the program to be 1, which would be taken as fixed
        long = least_samples(encoder) + 8000
        example = torch.zeros(2, long), torch.tensor([long, long - 1000])
        both = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
        return Program(_exported(module, example, both), ("waves", "lengths"), outputs)
    only, reason = encoder.input.size, ""
    if only is None and refused:
        only, reason = side or _USUAL, refused
    elif only is None:
        try:
            free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
            return Program(_exported(module, (_images(encoder, *_SIDES),), (free,)), ("images",), outputs)
        except UserError as error:
            only, reason = side or _USUAL, str(error)
    program = _exported(module, (_images(encoder, only, only),), ({0: Dim.DYNAMIC},))
    return Program(program, ("images",), outputs, only, reason)


def _images(encoder: Encoder, height: int, width: int) -> Tensor:
    return torch.zeros(2, encoder.input.channels, height, width)


def _exported(module: nn.Module, example: tuple[Tensor, ...], free: tuple[Mapping[int, Any], ...]) -> ExportedProgram:
    """The program, whose maps may have sides of 1, and batches one example, though those of the example have not."""
    try:
        # To choose a kernel, attention asks in torch 2.9 whether the batch is one, and fixes the answer; the
        # program holds attention whole, and chooses its kernel when it runs.
        with _SHAPES.patch(backed_size_oblivious=True), sdpa_kernel(SDPBackend.MATH):
            return torch.export.export(module, example, dynamic_shapes=free)
    except _CANNOT as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"torch.export cannot follow this encoder: {said}") from error


def least_samples(encoder: UtteranceEncoder) -> int:
    """Samples that the waveforms must be padded to at least: those of two steps."""
    return encoder.frontend.size + encoder.stack * encoder.frontend.shift
