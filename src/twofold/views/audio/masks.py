"""Masks on spectrograms: SpecAugment's blocks of time and frequency, and the frames that reconstruction has to fill."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MaskRule = Literal["own", "released"]


def blocks(
    u: Tensor, frames: Tensor, total: int, bins: int, time: int, frequency: float, rule: MaskRule = "own"
) -> tuple[Tensor, Tensor]:
    """One block of frames and one of bins for each example.

    Args:
        u: [n, 4] uniform numbers in [0, 1): length and start in time, length and start in frequency.
        frames: [n] frames of each example.
        total: T, with padding.
        bins: F.
        time: most frames of a block; 0 for none.
        frequency: largest share of the bins of a block; 0 for none.
        rule: own: 1 .. min(time, 0.3 of its frames), the start inside its own frames. released
            (athena/models/simclr.py, branch simclr): 1 .. time - 1, one start number for the whole batch (the first
            row's) times what the padded length leaves, rounded down; nothing where a block's most exceeds T.

    Returns:
        bool [n, T] and [n, F], true inside the blocks.
    """
    released = rule == "released"
    width = round(frequency * bins)
    if released:
        most = torch.full_like(frames, time - 1 if time <= total else 0)
        reach, start = torch.full_like(frames, total), u[:1, [1, 3]].expand(len(u), 2)
    else:
        most, reach, start = torch.minimum((0.3 * frames).long(), torch.full_like(frames, time)), frames, u[:, [1, 3]]
    widest = torch.full_like(frames, max(0, width - 1 if released else width))
    last = 0 if released else 1
    in_time = _block(u[:, 0], start[:, 0], most, reach + last, total)
    return in_time, _block(u[:, 2], start[:, 1], widest, torch.full_like(frames, bins + last), bins)


def _block(u_length: Tensor, u_start: Tensor, most: Tensor, reach: Tensor, size: int) -> Tensor:
    """bool [n, size]: 1 .. most places, none where most is 0, from the start u * (reach - length), rounded down."""
    length = torch.where(most > 0, 1 + (u_length * most).long(), 0)
    start = (u_start * (reach - length)).long()
    place = torch.arange(size, device=most.device)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def fill_blocks(x: Tensor, frames: Tensor, time: Tensor, frequency: Tensor, rule: MaskRule = "own") -> Tensor:
    """Replace what lies in a block by the example's mean over its own frames.

    Released: over its padding, too; and the block of time is filled first, so that it changes the mean that fills the
    block of frequency.

    Args:
        x: [n, T, F], 0 beyond each example's frames.
        frames: [n].
        time, frequency: what `blocks` gave.
    """
    if rule == "released":
        filled = torch.where(time[:, :, None], x.mean((1, 2), keepdim=True), x)
        filled = torch.where(frequency[:, None, :], filled.mean((1, 2), keepdim=True), filled)
    else:
        mean = (x.sum((1, 2)) / (frames.clamp(min=1) * x.shape[2]))[:, None, None]
        filled = torch.where(time[:, :, None] | frequency[:, None, :], mean, x)
    valid = torch.arange(x.shape[1], device=x.device) < frames[:, None]
    return torch.where(valid[:, :, None], filled, 0.0)


def hidden_frames(u: Tensor, frames: Tensor, total: int, share: float, span: int) -> Tensor:
    """Which frames an encoder does not see: bool [n, T], false beyond each example's frames.

    Time is cut into spans of `span` frames, the first of a random length, and each is hidden with probability `share`;
    an example of which no span was drawn loses the span whose number was the lowest.

    Args:
        u: [n, K] uniform numbers, K >= 1 + ceil(T / span) + 1.
        frames: [n].
        total: T.
        share, span: see above.
    """
    offset = (u[:, :1] * span).long()  # [n, 1]
    place = (torch.arange(total, device=u.device) + offset).div(span, rounding_mode="floor")  # [n, T] span's number
    values = u[:, 1:].gather(1, place)
    valid = torch.arange(total, device=u.device) < frames[:, None]
    lowest = torch.where(valid, values, 2.0).amin(1, keepdim=True)
    return valid & ((values < share) | ((values == lowest) & (lowest < 1) & (share > 0)))


def numbers_needed(total: int, span: int) -> int:
    """How many uniform numbers a row needs for `blocks` and `hidden_frames` at T = `total`."""
    return 4 + 2 + -(-total // span)
