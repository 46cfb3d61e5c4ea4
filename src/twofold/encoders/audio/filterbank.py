"""Kaldi's log-mel filterbank in torch: batches with lengths, any device, equal to the original within 1e-3.

Source: feature-fbank, feature-window and mel-computations of Kaldi; athena's front end calls the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import UserError
from twofold.waves import Waves

Cmvn = Literal["none", "global", "utterance", "utterance_mean"]
_FRAME, _SHIFT = 0.025, 0.010  # seconds
_INT16 = 32768.0


class Filterbank(nn.Module):
    """Waveforms to normalised log-mel features: frames of 25 ms every 10 ms, whole frames only.

    Each frame: scaled to the range of int16, its mean removed, pre-emphasis 0.97, Povey's window (Hann to the power
    0.85), power spectrum of the next power of two, triangular filters even on 1127 ln(1 + f / 700), natural log.

    Args:
        sample_rate: of the waveforms in Hz.
        mels: F, number of filters.
        low_hz: lower edge of the first; the last ends at half the sample rate.
        floor: least energy before the log: Kaldi's is float32's epsilon, athena's 1e-12.
        cmvn: what is made mean 0 and variance 1: none; global, by the statistics that `fit` takes from training data
            and a checkpoint keeps; utterance, each by its own; utterance_mean, own mean and global variance.
        eps: added to the variance: 1e-8, or 0 as released.

    Raises:
        UserError: an option out of range.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        mels: int = 80,
        low_hz: float = 20.0,
        floor: float = torch.finfo(torch.float32).eps,
        cmvn: Cmvn = "global",
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        if cmvn not in get_args(Cmvn):
            raise UserError(f"cmvn must be one of {', '.join(get_args(Cmvn))}, got {cmvn!r}")
        if sample_rate < 1000 or mels < 1 or not 0 <= low_hz < sample_rate / 2 or floor <= 0 or eps < 0:
            raise UserError(
                "a filterbank needs a sample rate of 1000 or more, filters, a low edge below half the rate and a floor "
                f"above 0, got {sample_rate}, {mels}, {low_hz} and {floor}"
            )
        self.sample_rate, self.mels, self.low_hz, self.floor, self.cmvn, self.eps = (
            sample_rate, mels, low_hz, floor, cmvn, eps,
        )  # fmt: skip
        self.size, self.shift = int(sample_rate * _FRAME), int(sample_rate * _SHIFT)
        self.fft = 1 << (self.size - 1).bit_length()
        # Made anew from the arguments, so that they need no place in a checkpoint.
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", povey_window(self.size), persistent=False)
        self.register_buffer("filters", mel_filters(sample_rate, self.fft, mels, low_hz), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("std", torch.ones(mels))

    def frames(self, samples: Tensor) -> Tensor:
        """Whole frames in so many samples [n]: 1 + floor((s - size) / shift), 0 below one frame."""
        whole = torch.div(samples - self.size, self.shift, rounding_mode="floor") + 1
        return torch.where(samples >= self.size, whole, 0)

    def forward(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """Normalised features [n, T, F], 0 beyond each one's frames, and the numbers of frames [n]."""
        x, lengths = self.log_mel(waves)
        valid = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, :, None]
        if self.cmvn != "none":
            mean, std = self.mean, self.std
            if self.cmvn != "global":
                count = lengths.clamp(min=1)[:, None, None]
                mean = torch.where(valid, x, 0.0).sum(1, keepdim=True) / count
                if self.cmvn == "utterance":
                    std = (torch.where(valid, x - mean, 0.0).square().sum(1, keepdim=True) / count + self.eps).sqrt()
            x = (x - mean) / std
        return torch.where(valid, x, 0.0), lengths

    def log_mel(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """Log-mel energies before normalisation, [n, T, F] float32, and the numbers of frames [n]."""
        waves.check()
        samples = waves.samples.float() * _INT16
        lengths = self.frames(waves.lengths)
        missing = self.size - samples.shape[1]
        x = (F.pad(samples, (0, missing)) if missing > 0 else samples).unfold(1, self.size, self.shift)  # [n, T, size]
        x = x - x.mean(2, keepdim=True)
        x = x - 0.97 * torch.cat([x[..., :1], x[..., :-1]], dim=2)  # the first sample stands for the one before it
        spectrum = torch.fft.rfft(x * self.window, self.fft)
        power = spectrum.real.square() + spectrum.imag.square()
        with torch.autocast(power.device.type, enabled=False):  # energies span more than bfloat16 tells apart
            energy = power @ self.filters
        return energy.clamp(min=self.floor).log(), lengths

    @torch.no_grad()
    def fit(self, batches: Iterable[Waves]) -> int:
        """Take the global statistics of these waveforms; returns the number of frames that they have.

        For utterance_mean the variance is that about each utterance's own mean. Other kinds need none: nothing is read.

        Raises:
            UserError: there is no whole frame.
        """
        if self.cmvn not in ("global", "utterance_mean"):
            return 0
        count, first, second = 0, torch.zeros(self.mels).double(), torch.zeros(self.mels).double()
        for waves in batches:
            x, lengths = self.log_mel(waves.to(self.window.device))
            for row, length in zip(x.double().cpu(), lengths.tolist(), strict=True):
                part = row[:length]
                if self.cmvn == "utterance_mean" and length:
                    part = part - part.mean(0)
                count, first, second = count + length, first + part.sum(0), second + part.square().sum(0)
        if not count:
            raise UserError("no recording is as long as one frame of 25 ms: nothing to take the mean and variance of")
        mean = first / count
        self.mean.copy_(mean)
        self.std.copy_((second / count - mean.square() + self.eps).clamp(min=self.eps).sqrt())
        return count


def povey_window(size: int) -> Tensor:
    """Hann's window to the power 0.85, [size] float32."""
    phase = 2 * math.pi * torch.arange(size, dtype=torch.float64) / (size - 1)
    return (0.5 - 0.5 * phase.cos()).clamp(min=0).pow(0.85).float()


def mel_filters(sample_rate: int, fft: int, mels: int, low_hz: float) -> Tensor:
    """Triangles even in mel, [fft / 2 + 1, mels] float32; each rises from its neighbour's centre to 1 at its own.

    Raises:
        UserError: so many filters that one holds no frequency of the transform.
    """
    low, high = (1127 * math.log(1 + f / 700) for f in (low_hz, sample_rate / 2))
    edges = low + (high - low) / (mels + 1) * torch.arange(mels + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(fft // 2, dtype=torch.float64) * sample_rate / fft
    mel = 1127 * torch.log(1 + bins / 700)[:, None]  # [fft / 2, 1]
    weight = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    if not weight.is_meta and (weight.sum(0) == 0).any():
        most = int((weight.sum(0) > 0).sum())
        raise UserError(
            f"{mels} mel filters are too many for {sample_rate} Hz: only {most} of them hold a frequency of the "
            f"transform; lower encoder.speech.mels"
        )
    return F.pad(weight, (0, 0, 0, 1)).float()  # Kaldi leaves out the bin at half the sample rate
