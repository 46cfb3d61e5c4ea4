"""Masks on spectrograms: inside the true length, of the right size, and as released where that is asked for."""

from __future__ import annotations

import numpy as np
import torch

from twofold.randomness import Key, uniforms
from twofold.views.audio.masks import blocks, fill_blocks, hidden_frames, numbers_needed

FRAMES = torch.tensor([30, 200, 120, 7] * 50)
TOTAL, BINS = 220, 40
U = torch.tensor(uniforms(Key(0, 0), "u", np.arange(200), numbers_needed(TOTAL, 1)))


def runs(mask):
    """(start, length) of the one run of true values, which must be one."""
    places = mask.nonzero().flatten()
    assert not len(places) or int(places[-1] - places[0]) == len(places) - 1
    return (int(places[0]), len(places)) if len(places) else (0, 0)


def test_blocks_lie_inside_the_true_length():
    time, frequency = blocks(U[:, :4], FRAMES, TOTAL, BINS, 100, 0.3375)
    starts = set()
    for row, frames in enumerate(FRAMES.tolist()):
        start, length = runs(time[row])
        assert (frames < 4 and length == 0) or 1 <= length <= min(100, int(0.3 * frames))
        assert start + length <= frames
        assert 1 <= runs(frequency[row])[1] <= 14
        starts.add(start)
    assert len(starts) > 50


def test_the_released_rule():
    time, frequency = blocks(U[:, :4], FRAMES, TOTAL, BINS, 100, 27 / 40, "released")
    lengths = [runs(row)[1] for row in time]
    assert min(lengths) >= 1
    assert max(lengths) > 90
    for row in time:
        start, length = runs(row)
        assert start == int(U[0, 1] * (TOTAL - length))  # one start number for all, over the padded length
    assert 20 < max(runs(row)[1] for row in frequency) <= 26
    assert not blocks(U[:, :4], FRAMES.clamp(max=99), 99, BINS, 100, 27 / 40, "released")[0].any()


def test_blocks_are_filled_with_the_mean():
    x = torch.randn(200, TOTAL, BINS)
    valid = torch.arange(TOTAL) < FRAMES[:, None]
    x = torch.where(valid[:, :, None], x, 0.0)
    time, frequency = blocks(U[:, :4], FRAMES, TOTAL, BINS, 100, 0.3375)
    for rule in ("own", "released"):
        filled = fill_blocks(x, FRAMES, time, frequency, rule)
        for row in range(4):
            length, inside = int(FRAMES[row]), valid[row][:, None] & (time[row][:, None] | frequency[row])
            expected = x[row].clone()
            if rule == "own":
                expected[inside] = x[row, :length].mean()
            else:  # one after the other, each with the mean of what there is then, padding included
                expected[time[row]] = x[row].mean()
                expected[:, frequency[row]] = expected.mean()
                expected[~valid[row]] = 0
            torch.testing.assert_close(filled[row], expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(filled[row][~inside], x[row][~inside])


def test_hidden_frames():
    for span, share in ((1, 0.2), (7, 0.2), (7, 0.0)):
        hidden = hidden_frames(U[:, 4:], FRAMES, TOTAL, share, span)
        valid = torch.arange(TOTAL) < FRAMES[:, None]
        assert not hidden[~valid].any()
        found = float(hidden[FRAMES >= 120].sum() / FRAMES[FRAMES >= 120].sum())
        assert abs(found - share) < 0.03
        assert bool(hidden.any(1).all()) == (share > 0)
    spans = hidden_frames(U[:, 4:], FRAMES, TOTAL, 0.2, 7)[1]
    edges = torch.nn.functional.pad(spans[:200].long(), (1, 1)).diff()
    inner = [(b - a) for a, b in zip((edges == 1).nonzero(), (edges == -1).nonzero(), strict=True)]
    assert all(int(n) % 7 == 0 for n in inner[1:-1])
    short = hidden_frames(U[:, 4:], FRAMES.clamp(max=50), 60, 0.2, 7)
    assert torch.equal(short[:, :30], hidden_frames(U[:, 4:], FRAMES.clamp(max=50), 90, 0.2, 7)[:, :30])
