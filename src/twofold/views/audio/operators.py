"""Operators on batches of waveforms. Each takes its factors a row, has no randomness inside, and keeps lengths right.

None knows of padding: what an operator makes of an utterance is the same alone and beside longer ones.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.waves import Waves

_ZEROS = 24
"""Zero crossings of the resampling kernel on either side."""
_BLOCK = 80
"""Samples of a block whose energy says whether somebody speaks."""
_ACTIVE = 1e-4
"""Share of the loudest block's energy (-40 dB) above which a block counts as active."""


def within(waves: Waves) -> Tensor:
    """bool [n, S]: true within each row's length."""
    return torch.arange(waves.samples.shape[1], device=waves.lengths.device) < waves.lengths[:, None]


def cut(samples: Tensor, lengths: Tensor) -> Waves:
    """Waves with 0 beyond the lengths."""
    waves = Waves(samples, lengths)
    return Waves(torch.where(within(waves), samples, 0.0), lengths)


def change_speed(waves: Waves, speed: Fraction) -> Waves:
    """Play all rows `speed` times as fast: pitch times speed, lengths divided by it (rounded to nearest, 1 at least).

    By a windowed sinc that cuts off below half of the lower rate.
    """
    if speed == 1:
        return waves
    kernel, reach = _resampling_kernel(speed.numerator, speed.denominator, waves.samples.device)
    lengths = (waves.lengths * speed.denominator + speed.numerator // 2).div(speed.numerator, rounding_mode="floor")
    lengths = lengths.clamp(min=1)
    count = int(lengths.max())
    steps = -(-count // speed.denominator)
    missing = max(0, (steps - 1) * speed.numerator + kernel.shape[2] - waves.samples.shape[1] - reach)
    x = F.pad(waves.samples, (reach, missing))
    if x.is_cuda:  # whose convolutions are in TF32, which keeps three digits
        out = x.unfold(1, kernel.shape[2], speed.numerator) @ kernel[:, 0].T  # [n, steps, phases]
    else:
        out = F.conv1d(x[:, None], kernel, stride=speed.numerator).transpose(1, 2)
    return cut(out[:, :steps].flatten(1)[:, :count], lengths)


@functools.lru_cache(maxsize=64)
def _resampling_kernel(numerator: int, denominator: int, device: torch.device) -> tuple[Tensor, int]:
    """[denominator, 1, K]: for output phase p, the weights of the inputs around p * numerator / denominator."""
    cutoff = min(1.0, denominator / numerator) * 0.945
    reach = math.ceil(_ZEROS / cutoff)
    offsets = torch.arange(-reach, reach + numerator + 1, dtype=torch.float64)
    t = offsets - torch.arange(denominator, dtype=torch.float64)[:, None] * numerator / denominator
    window = (math.pi / 2 * (t / reach).clamp(-1, 1)).cos().square()
    kernel = torch.sinc(t * cutoff) * window
    kernel = kernel / kernel.sum(1, keepdim=True)  # a constant stays what it is
    return kernel[:, None].float().to(device), reach


def change_pitch(waves: Waves, ratio: Fraction, sample_rate: int) -> Waves:
    """Multiply all frequencies by `ratio` and keep the lengths: a phase vocoder stretches, resampling undoes it."""
    if ratio == 1:
        return waves
    fft = 1 << round(math.log2(0.04 * sample_rate))
    stretched = _stretch(F.pad(waves.samples, (0, fft)), ratio, fft)  # an end is heard as in a longer batch
    longer = (waves.lengths * ratio.numerator).div(ratio.denominator, rounding_mode="floor").clamp(min=1)
    back = change_speed(Waves(stretched, longer.clamp(max=stretched.shape[1])), ratio).samples
    missing = waves.samples.shape[1] - back.shape[1]
    return cut(F.pad(back, (0, max(0, missing)))[:, : waves.samples.shape[1]], waves.lengths)


def _stretch(x: Tensor, factor: Fraction, fft: int) -> Tensor:
    """`factor` times as long at the same pitch: magnitudes between frames, phases that turn as far as they did there.

    Turns are unit complex numbers and are multiplied up: they need no unwrapping, where rounding would decide.
    """
    hop, window = fft // 4, torch.hann_window(fft, device=x.device)
    spectrum = torch.stft(x, fft, hop, window=window, pad_mode="constant", return_complex=True)  # [n, bins, T]
    count = spectrum.shape[2]
    # In whole numbers: where a place between frames falls on one, rounding would decide which two it lies between.
    where = torch.arange(-(-count * factor.numerator // factor.denominator), device=x.device) * factor.denominator
    before = where.div(factor.numerator, rounding_mode="floor")
    share = (where % factor.numerator).to(x.dtype) / factor.numerator
    spectrum = F.pad(spectrum, (0, 2))
    size = spectrum.abs()
    faint = 1e-6 * size.amax((1, 2), keepdim=True)  # nothing but rounding, which has no phase
    size, phasor = size.clamp(min=1e-30), torch.where(size > faint, spectrum / size.clamp(min=1e-30), 0)
    turn = phasor[..., 1:] * phasor[..., :-1].conj()
    own = torch.tensor([1, 1j, -1, -1j], device=x.device)[torch.arange(fft // 2 + 1, device=x.device) % 4]
    turn = torch.where(turn == 0, own[:, None], turn)  # there the bin's own frequency goes on: a quarter turn a bin
    start = torch.where(phasor[..., :1] == 0, 1, phasor[..., :1])
    phase = torch.cat([start, turn[..., before[:-1]]], dim=2).cumprod(2)
    magnitude = torch.lerp(size[..., before], size[..., before + 1], share)
    return torch.istft(magnitude * phase, fft, hop, window=window, length=round(x.shape[1] * factor))


def convolve(waves: Waves, kernels: Tensor, delay: int = 0) -> Waves:
    """Filter each row by its own kernel [n, K]; the output starts `delay` samples late and is as long as the input."""
    size = waves.samples.shape[1]
    n = _fast_length(size + kernels.shape[1] - 1)
    spectrum = torch.fft.rfft(waves.samples, n) * torch.fft.rfft(kernels, n)
    return cut(torch.fft.irfft(spectrum, n)[:, delay : delay + size], waves.lengths)


@functools.lru_cache(maxsize=256)
def _fast_length(least: int) -> int:
    """The least 2^a 3^b 5^c that is `least` or more: up to half as long as the next power of two, and as fast."""
    best = 1 << (least - 1).bit_length()
    for three_five in (3**b * 5**c for b in range(12) for c in range(8) if 3**b * 5**c < best):
        best = min(best, three_five << (-(-least // three_five) - 1).bit_length())
    return best


def active_power(waves: Waves, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean square of each row's active samples [n], and which those are [n, S]: blocks within 40 dB of the loudest.

    Args:
        waves: what is measured.
        where: bool [n, S] samples to measure on instead.
    """
    if where is None:
        valid, size = within(waves), waves.samples.shape[1]
        padded = F.pad(waves.samples, (0, -size % _BLOCK)).unflatten(1, (-1, _BLOCK))
        energy = padded.square().sum(2)
        loud = energy > _ACTIVE * energy.amax(1, keepdim=True)
        where = loud.repeat_interleave(_BLOCK, dim=1)[:, :size] & valid
    total = torch.where(where, waves.samples, 0.0).square().sum(1)
    return total / where.sum(1).clamp(min=1), where


def reverberate(waves: Waves, responses: Tensor) -> Waves:
    """Convolve each row with its impulse response [n, K]; the mean power of its active samples stays what it was."""
    before, where = active_power(waves)
    out = convolve(waves, responses)
    after, _ = active_power(out, where)
    return Waves(out.samples * (before / after.clamp(min=1e-20)).sqrt()[:, None], waves.lengths)


def add_noise(waves: Waves, noise: Tensor, snr: Tensor) -> Waves:
    """Add noise [n, S] at `snr` [n] dB: the ratio of powers over the samples where somebody speaks. Silence stays.

    Noise that is weaker there than in the whole row by more than 10 dB counts as 10 dB weaker: a recording that pauses
    just then would be made deafening everywhere else.
    """
    signal, where = active_power(waves)
    heard = Waves(noise, waves.lengths)
    power = active_power(heard, where)[0].maximum(active_power(heard, within(waves))[0] / 10)
    gain = (signal / power.clamp(min=1e-20)).sqrt() * 10 ** (-snr / 20)
    return cut(waves.samples + gain[:, None] * noise, waves.lengths)


def reject_band(waves: Waves, low: Tensor, high: Tensor, sample_rate: int) -> Waves:
    """Remove the frequencies between low and high [n] Hz: linear-phase filters of 64 ms, whose delay is taken back."""
    half = round(0.032 * sample_rate)
    t = torch.arange(-half, half + 1, device=waves.samples.device, dtype=torch.float64)
    window = 0.42 + 0.5 * (math.pi * t / half).cos() + 0.08 * (2 * math.pi * t / half).cos()  # Blackman
    edges = torch.stack([low, high]).double().to(t.device)[:, :, None] * 2 / sample_rate  # [2, n, 1]
    low_pass = edges * torch.sinc(edges * t) * window
    low_pass = low_pass / low_pass.sum(2, keepdim=True).clamp(min=1e-9)
    kernels = low_pass[0] - low_pass[1]
    kernels[:, half] += 1
    return convolve(waves, kernels.to(waves.samples.dtype), half)


def clip(waves: Waves, share: Tensor) -> Waves:
    """Cut each row at `share` [n] of its own least and greatest value."""
    low, high = waves.samples.amin(1, keepdim=True).clamp(max=0), waves.samples.amax(1, keepdim=True).clamp(min=0)
    return Waves(
        torch.minimum(torch.maximum(waves.samples, low * share[:, None]), high * share[:, None]), waves.lengths
    )


def drop_time(waves: Waves, start: Tensor, length: Tensor) -> Waves:
    """Zero `length` [n] samples of each row from `start` [n] on."""
    t = torch.arange(waves.samples.shape[1], device=waves.samples.device)
    inside = (t >= start[:, None]) & (t < (start + length)[:, None])
    return Waves(torch.where(inside, 0.0, waves.samples), waves.lengths)
