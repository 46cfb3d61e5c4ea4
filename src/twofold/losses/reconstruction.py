"""Masked reconstruction: the part of Speech SimCLR that asks what was behind the mask (arXiv 2010.13991)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from twofold.distributed import all_reduce_sum, world_size
from twofold.losses.checks import check_choice

Scale = Literal["masked_mean", "released"]


class Reconstruction(NamedTuple):
    """How well hidden frames were told; scalars whose mean over ranks is the value of all ranks' frames together."""

    loss: Tensor
    """In the scale asked for; the only one with a gradient."""
    error: Tensor
    """Mean absolute error of a hidden element."""
    mean_error: Tensor
    """The same of the answer 0 (the mean) everywhere: nothing is learned above it."""
    mean_loss: Tensor
    """The loss of that answer."""


def masked_reconstruction(
    prediction: Tensor, target: Tensor, mask: Tensor, lengths: Tensor, scale: Scale = "masked_mean"
) -> Reconstruction:
    """Absolute error of what was hidden from the encoder, within each example's length.

    Over several ranks the sum is divided by the hidden elements of all of them: batches are sorted by length, so a mean
    of each rank's own mean would weigh the frames of short utterances more, always on the same ranks.

    Args:
        prediction, target: [n, T, F] features. No gradient reaches the target.
        mask: bool, [n, T] frames or [n, T, F] elements that were hidden. The released code finds it as `inputs == 0`,
            which counts true zeros of the input too.
        lengths: [n] frames of each example, at most T; what lies beyond counts for nothing.
        scale: masked_mean: the mean over hidden elements, 0 where nothing is hidden. released: the sum over F, then the
            mean over all n * T frames, hidden or not, padded or not (MPCLoss in athena/loss.py, branch simclr): its
            value depends on the share of hidden frames and on the padding, which each rank has its own of.

    Raises:
        UserError: there is no such scale.
        ValueError: the shapes do not fit.
    """
    check_choice("scale", scale, ("masked_mean", "released"))
    _check_shapes(prediction, target, mask, lengths)
    n, frames, _ = prediction.shape
    with torch.autocast(prediction.device.type, enabled=False):
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        target = target.detach().to(dtype)
        hidden = mask if mask.ndim == 3 else mask[:, :, None].expand(prediction.shape)
        valid = torch.arange(frames, device=lengths.device) < lengths[:, None]  # [n, T]
        hidden = hidden & valid[:, :, None]  # [n, T, F]
        # where, not a product: what lies beyond the length may be infinite
        total = torch.where(hidden, (target - prediction.to(dtype)).abs(), 0.0).sum()
        silent = torch.where(hidden, target.abs(), 0.0).sum()
        # Gradients become the mean over ranks; divided by a rank's share of all counts, the mean is the whole's value.
        counts = torch.stack([hidden.sum(), torch.full((), n * frames, device=hidden.device)])
        elements, places = all_reduce_sum(counts).to(dtype) / world_size()
        elements = elements.clamp(min=1 / world_size())
        scaled = places if scale == "released" else elements
        return Reconstruction(total / scaled, total.detach() / elements, silent / elements, silent / scaled)


def interpolated(x: Tensor, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Features with each hidden frame on the line between the nearest frames before and after it that are not hidden.

    What needs no learning: reconstruction has learned something of speech where its error is below that of this line.
    At an example's ends the nearest frame that is seen stands for both; where all are hidden, 0, the mean.

    Args:
        x: [n, T, F] features.
        hidden: bool [n, T].
        lengths: [n] frames of each, at most T; those beyond are not looked at.

    Returns:
        [n, T, F]; frames that are not hidden as they are.
    """
    frames = torch.arange(x.shape[1], device=x.device)
    seen = ~hidden & (frames < lengths[:, None])  # [n, T]
    before = torch.where(seen, frames, -1).cummax(1).values
    after = torch.where(seen, frames, x.shape[1]).flip(1).cummin(1).values.flip(1)
    left, right = torch.where(before < 0, after, before), torch.where(after == x.shape[1], before, after)
    share = ((frames - left) / (right - left).clamp(min=1))[:, :, None]
    rows = torch.arange(len(x), device=x.device)[:, None]
    last = x.shape[1] - 1
    line = torch.lerp(x[rows, left.clamp(0, last)], x[rows, right.clamp(0, last)], share.to(x.dtype))
    filled = torch.where(seen.any(1)[:, None, None], line, 0.0)
    return torch.where(hidden[:, :, None], filled, x)


def _check_shapes(prediction: Tensor, target: Tensor, mask: Tensor, lengths: Tensor) -> None:
    if prediction.ndim != 3 or prediction.shape != target.shape or prediction.numel() == 0:
        shapes = tuple(prediction.shape), tuple(target.shape)
        raise ValueError(f"prediction and target must be [n, T, F] of one shape, got {shapes[0]} and {shapes[1]}")
    n, frames, width = prediction.shape
    if mask.shape not in ((n, frames), (n, frames, width)) or mask.dtype != torch.bool or lengths.shape != (n,):
        raise ValueError(
            f"mask must be bool [{n}, {frames}] or [{n}, {frames}, {width}] and lengths [{n}], got {mask.dtype} "
            f"{tuple(mask.shape)} and {tuple(lengths.shape)}"
        )
