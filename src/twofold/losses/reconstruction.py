"""Masked reconstruction: the part of Speech SimCLR that asks what was behind the mask (arXiv 2010.13991)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from twofold.losses.checks import check_choice


def masked_reconstruction(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    lengths: Tensor,
    scale: Literal["masked_mean", "released"] = "masked_mean",
) -> Tensor:
    """Absolute error of what was hidden from the encoder, within each example's length.

    Args:
        prediction, target: [n, T, F] features. No gradient reaches the target.
        mask: bool, [n, T] frames or [n, T, F] elements that were hidden. The released code finds it as `inputs == 0`,
            which counts true zeros of the input too.
        lengths: [n] frames of each example, at most T; what lies beyond counts for nothing.
        scale: masked_mean: the mean over hidden elements, 0 where nothing is hidden. released: the sum over F, then the
            mean over all n * T frames, hidden or not, padded or not (MPCLoss in athena/loss.py, branch simclr): its
            value depends on the share of hidden frames and on the padding.

    Returns:
        Scalar in float32 or better.

    Raises:
        UserError: there is no such scale.
        ValueError: the shapes do not fit.
    """
    check_choice("scale", scale, ("masked_mean", "released"))
    if prediction.ndim != 3 or prediction.shape != target.shape or prediction.numel() == 0:
        shapes = tuple(prediction.shape), tuple(target.shape)
        raise ValueError(f"prediction and target must be [n, T, F] of one shape, got {shapes[0]} and {shapes[1]}")
    n, frames, width = prediction.shape
    if mask.shape not in ((n, frames), (n, frames, width)) or mask.dtype != torch.bool or lengths.shape != (n,):
        raise ValueError(
            f"mask must be bool [{n}, {frames}] or [{n}, {frames}, {width}] and lengths [{n}], got {mask.dtype} "
            f"{tuple(mask.shape)} and {tuple(lengths.shape)}"
        )
    with torch.autocast(prediction.device.type, enabled=False):
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        error = (target.detach().to(dtype) - prediction.to(dtype)).abs()  # [n, T, F]
        hidden = mask if mask.ndim == 3 else mask[:, :, None].expand(error.shape)
        valid = torch.arange(frames, device=lengths.device) < lengths[:, None]  # [n, T]
        hidden = hidden & valid[:, :, None]  # [n, T, F]
        # where, not a product: what lies beyond the length may be infinite
        total = torch.where(hidden, error, 0.0).sum()
        return total / (n * frames if scale == "released" else hidden.sum().clamp(min=1))
