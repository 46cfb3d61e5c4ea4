"""Two views of each utterance: every random number of a step is drawn first, then applied to the batch at once.

Operators and ranges: WavAugment (facebookresearch) and its use in CPC_audio, as arXiv 2010.13991 names them; noise is
added at a true signal-to-noise ratio, which WavAugment's is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from twofold.errors import UserError
from twofold.randomness import Key, uniforms
from twofold.views.audio import operators
from twofold.views.audio.masks import numbers_needed
from twofold.views.rows import to_device
from twofold.waves import Waves

_OPERATORS = ("speed", "pitch", "reverb", "noise", "band_reject", "gain", "clip", "time_dropout", "polarity")
_NUMBERS = 2 + 3 * len(_OPERATORS)
NOISE_SAMPLES = 2**18
"""Samples of each colour of generated noise; a row starts anywhere in them."""


@dataclass(frozen=True)
class WavesConfig:
    """How the two views of a recording are made: operators in this order, each with its own probability."""

    clean_view: bool = False
    """Leave the first view as it is, as in the released code."""
    chain: float = 1.0
    """Probability that a view is changed at all."""
    speed: float = 0.5
    """Probability of another speed, which changes the pitch and the length, too."""
    speeds: tuple[float, ...] = (0.9, 1.1)
    """Speeds to choose from."""
    pitch: float = 0.3
    """Probability of another pitch at the same length."""
    pitches: tuple[float, ...] = (0.8333, 0.8889, 0.9444, 1.0588, 1.125, 1.2)
    """Factors of the pitch to choose from: the default is 3, 2 and 1 semitones down and up."""
    reverb: float = 0.5
    """Probability of reverberation."""
    reverb_seconds: tuple[float, float] = (0.1, 0.5)
    """Range of the time in which generated reverberation falls by 60 dB."""
    reverb_wet: tuple[float, float] = (-12.0, 0.0)
    """Range of the energy of generated reverberation relative to the direct sound, in dB."""
    responses: str | None = None
    """Folder of impulse responses to use instead of generated ones."""
    noise: float = 0.5
    """Probability of additive noise."""
    noise_snr: tuple[float, float] = (5.0, 20.0)
    """Range of the signal-to-noise ratio in dB, over the samples in which somebody speaks."""
    noises: str | None = None
    """Folder of recordings of noise to use instead of generated noise (white, pink, brown, voice-shaped); of each the
    first 262,144 samples are used, 33 s at 8 kHz."""
    band_reject: float = 0.5
    """Probability of removing a band of frequencies."""
    band_width: float = 0.105
    """Widest band, as a share of the mel scale up to half the sample rate (narrowest: 150 Hz)."""
    gain: float = 0.5
    """Probability of another loudness."""
    gain_db: tuple[float, float] = (-6.0, 6.0)
    """Range of the gain in dB."""
    clip: float = 0.1
    """Probability of clipping."""
    clip_share: float = 0.5
    """Lowest share of the peak at which is clipped; higher ones are likelier (triangular up to 1)."""
    time_dropout: float = 0.5
    """Probability of silencing a moment."""
    time_dropout_ms: float = 50.0
    """Longest such moment in milliseconds."""
    polarity: float = 0.5
    """Probability of turning the wave upside down."""

    def __post_init__(self) -> None:
        def check(good: bool, name: str, wanted: str) -> None:
            if not good:
                raise UserError(f"waves.{name} = {getattr(self, name)} will not do: give {wanted}")

        for name in ("chain", *_OPERATORS):
            check(0 <= getattr(self, name) <= 1, name, "a probability between 0 and 1")
        for name in ("speeds", "pitches"):
            values = getattr(self, name)
            check(bool(values) and all(0.5 <= v <= 2 for v in values), name, "factors between 0.5 and 2")
        for name in ("reverb_seconds", "reverb_wet", "noise_snr", "gain_db"):
            check(getattr(self, name)[0] <= getattr(self, name)[1], name, "two numbers, least and most")
        check(self.reverb_seconds[0] > 0, "reverb_seconds", "times above 0")
        check(0 < self.band_width <= 0.5, "band_width", "a share above 0, at most 0.5")
        check(0 < self.clip_share <= 1, "clip_share", "a share above 0, at most 1")
        check(self.time_dropout_ms >= 0, "time_dropout_ms", "a time of 0 or more")


@dataclass(frozen=True)
class WaveDraw:
    """The random numbers of one view of n recordings, on the CPU. Operators that do not apply are neutral."""

    speed: Tensor  # int64 [n] which of the speeds, -1 none
    pitch: Tensor  # int64 [n] which of the pitches, -1 none
    reverb: Tensor  # bool [n]
    room: Tensor  # float32 [n, 3] seconds to fall by 60 dB, energy relative to the direct sound in dB, place in [0, 1)
    noise: Tensor  # bool [n]
    mixture: Tensor  # float32 [n, 2] signal-to-noise ratio in dB, place in [0, 1)
    band: Tensor  # float32 [n, 2] Hz; both 0 for none
    gain: Tensor  # float32 [n] factor, polarity included
    clip: Tensor  # float32 [n] share of the peak; 1 for none
    drop: Tensor  # float32 [n, 2] milliseconds, place in [0, 1)
    later: Tensor  # float32 [n, K] uniform numbers for masks after the front end

    def __len__(self) -> int:
        return len(self.speed)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> WaveDraw:
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


class WaveViews:
    """Draws and applies the views of recordings.

    Args:
        config: what is done to them.
        sample_rate: of the recordings in Hz.
        noises: recordings of noise, if there are any, at that rate; else noise is generated.
        responses: impulse responses, if there are any; else they are generated.
        span: of the frames hidden later, which decides how many numbers that takes.
    """

    def __init__(
        self,
        config: WavesConfig,
        sample_rate: int,
        noises: Sequence[Tensor] = (),
        responses: Sequence[Tensor] = (),
        span: int = 1,
    ) -> None:
        self.config, self.sample_rate, self.span = config, sample_rate, span
        self._speeds = [as_fraction(value) for value in config.speeds]
        self._pitches = [as_fraction(value) for value in config.pitches]
        # A recording is repeated up to the length of the table: any row may start anywhere in it.
        self.noises = (
            torch.stack([_repeat(wave, NOISE_SAMPLES) for wave in noises]) if noises else generated_noise(sample_rate)
        )
        self._tail = torch.from_numpy(_white())
        self.responses = Waves.of([_direct_first(wave) for wave in responses]) if responses else None

    def draw(self, key: Key, rows: ArrayLike, lengths: ArrayLike) -> tuple[WaveDraw, WaveDraw]:
        """The random numbers of both views: a pure function of the key and of each row's number.

        Args:
            key: seed and step.
            rows: [n] positions in the global batch.
            lengths: [n] samples; they decide only how many numbers `later` holds.
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        slowest = float(min([*self._speeds, Fraction(1)]))
        frames = int(np.max(lengths, initial=1) / slowest / (0.01 * self.sample_rate)) + 2
        first, second = (self._draw(key, view, rows, numbers_needed(frames, self.span)) for view in ("a", "b"))
        return first, second

    def _draw(self, key: Key, view: str, rows: NDArray[np.int64], later: int) -> WaveDraw:
        c = self.config
        u = uniforms(key, f"{view}/waves", rows, _NUMBERS)
        changed = u[:, 0] < (0.0 if c.clean_view and view == "a" else c.chain)
        place = {name: 2 + 3 * i for i, name in enumerate(_OPERATORS)}

        def applied(name: str) -> NDArray[np.bool_]:
            share: float = getattr(c, name)
            return changed & (u[:, place[name]] < share)

        def number(name: str, which: int = 1) -> NDArray[np.float64]:
            return u[:, place[name] + which]

        def between(name: str, limits: tuple[float, float], which: int = 1) -> NDArray[np.float64]:
            return limits[0] + (limits[1] - limits[0]) * number(name, which)

        def pick(name: str, count: int) -> NDArray[np.int64]:
            return np.where(applied(name), (number(name) * count).astype(np.int64), -1)

        clip = 1 - (1 - c.clip_share) * (1 - np.sqrt(number("clip")))  # triangular, its peak at 1
        band = self._band(number("band_reject"), number("band_reject", 2))
        gain = np.where(applied("gain"), 10 ** (between("gain", c.gain_db) / 20), 1.0)
        tensors = {
            "speed": pick("speed", len(self._speeds)),
            "pitch": pick("pitch", len(self._pitches)),
            "reverb": applied("reverb"),
            "room": np.stack([
                between("reverb", c.reverb_seconds), between("reverb", c.reverb_wet, 2), u[:, 1],
            ], axis=1),
            "noise": applied("noise"),
            "mixture": np.stack([between("noise", c.noise_snr), number("noise", 2)], axis=1),
            "band": np.where(applied("band_reject")[:, None], band, 0.0),
            "gain": gain * np.where(applied("polarity"), -1.0, 1.0),
            "clip": np.where(applied("clip"), clip, 1.0),
            "drop": np.stack([
                np.where(applied("time_dropout"), c.time_dropout_ms * number("time_dropout"), 0.0),
                number("time_dropout", 2),
            ], axis=1),
            "later": uniforms(key, f"{view}/masks", rows, later),
        }  # fmt: skip
        return WaveDraw(**{name: _tensor(values) for name, values in tensors.items()})

    def _band(self, u_width: NDArray[np.float64], u_low: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, 2] edges in Hz, even in mel; at least 150 Hz apart, which a filter of 64 ms can remove."""
        top = 2595 * np.log10(1 + self.sample_rate / 2 / 700)
        width = u_width * self.config.band_width * top
        low = 700 * (10 ** (u_low * (top - width) / 2595) - 1)
        high = 700 * (10 ** ((u_low * (top - width) + width) / 2595) - 1)
        return np.stack([low, np.maximum(high, low + 150)], axis=1)

    @torch.no_grad()
    def apply(self, waves: Waves, draws: tuple[WaveDraw, WaveDraw]) -> tuple[Waves, Waves]:
        """Both views of a batch, on its device; lengths change with the speed."""
        first, second = (self._apply(waves, draw) for draw in draws)
        return first, second

    @torch.no_grad()
    def one(self, waves: Waves, draw: WaveDraw) -> Waves:
        """The view of a batch that was drawn, on the batch's device."""
        return self._apply(waves, draw)

    def _apply(self, waves: Waves, draw: WaveDraw) -> Waves:
        device = waves.samples.device
        waves = self._by_factor(waves, draw.speed, self._speeds, operators.change_speed)
        waves = self._by_factor(
            waves, draw.pitch, self._pitches, lambda part, ratio: operators.change_pitch(part, ratio, self.sample_rate)
        )
        waves = _update(
            waves, draw.reverb, lambda part, room: operators.reverberate(part, self._rooms(room)), draw.room
        )
        waves = _update(waves, draw.noise, self._mix, draw.mixture)
        waves = _update(
            waves, draw.band[:, 1] > 0,
            lambda part, band: operators.reject_band(part, band[:, 0], band[:, 1], self.sample_rate), draw.band,
        )  # fmt: skip
        waves = Waves(waves.samples * to_device(draw.gain, device)[:, None], waves.lengths)
        waves = _update(waves, draw.clip < 1, operators.clip, draw.clip)
        length = (to_device(draw.drop[:, 0], device) * (self.sample_rate / 1000)).long().minimum(waves.lengths)
        start = (to_device(draw.drop[:, 1], device) * (waves.lengths - length)).long()
        waves = operators.drop_time(waves, start, length)
        return Waves(waves.samples, waves.lengths, to_device(draw.later, device))

    def _by_factor(
        self, waves: Waves, which: Tensor, factors: list[Fraction], operate: Callable[[Waves, Fraction], Waves]
    ) -> Waves:
        """Apply an operator with a few possible factors to the rows of each factor; the batch is padded anew."""
        if not len(waves) or not bool((which >= 0).any()):
            return waves
        parts, order = [], []
        for value in which.unique().tolist():
            rows = (which == value).nonzero().flatten()
            part = waves[to_device(rows, waves.samples.device)]
            parts.append(part if value < 0 else operate(part, factors[value]))
            order.append(rows)
        joined = Waves.cat(parts)[to_device(torch.cat(order).argsort(), waves.samples.device)]
        return Waves(joined.samples[:, : int(joined.lengths.max())], joined.lengths)

    def _mix(self, part: Waves, mixture: Tensor) -> Waves:
        self.noises = table = self.noises.to(part.samples.device)  # 4 MB: moved once, not at every step
        kind, start = _places(mixture[:, 1], len(table), table.shape[1])
        t = (start[:, None] + torch.arange(part.samples.shape[1], device=start.device)) % table.shape[1]
        return operators.add_noise(part, table[kind[:, None], t], mixture[:, 0])

    def _rooms(self, room: Tensor) -> Tensor:
        """Impulse responses [n, K]: recorded ones, or the direct sound and noise that decays."""
        if self.responses is not None:
            return self.responses.samples.to(room.device)[(room[:, 2] * len(self.responses)).long()]
        size = int(self.config.reverb_seconds[1] * self.sample_rate)
        self._tail = white = self._tail.to(room.device)
        _, start = _places(room[:, 2], 1, len(white))
        t = torch.arange(1, size, device=room.device)
        tail = white[(start[:, None] + t) % len(white)] * torch.exp(-6.9078 * t / (room[:, :1] * self.sample_rate))
        tail = tail * (10 ** (room[:, 1:2] / 10) / tail.square().sum(1, keepdim=True)).sqrt()
        return torch.cat([torch.ones_like(tail[:, :1]), tail], dim=1)


def as_fraction(factor: float) -> Fraction:
    """A factor of speed or pitch as a fraction, which resampling needs, true to one part in 10,000.

    With the smallest denominator up to 20 that will do (0.8333 is 5/6), else up to 200 (0.99 is 99/100), whose
    resampling costs more.
    """
    fractions = (Fraction(factor).limit_denominator(most) for most in (20, 200))
    return next(fraction for fraction in fractions if abs(fraction - factor) < 1e-4)


def generated_noise(sample_rate: int) -> Tensor:
    """White, pink, brown and voice-shaped noise of unit power, [4, 2^18], always the same."""
    spectrum = np.fft.rfft(_white())
    f = np.maximum(np.fft.rfftfreq(NOISE_SAMPLES, 1 / sample_rate), 20.0)
    voice = 1 / (1 + (f / 500) ** 2)  # the long-term spectrum of speech falls by 12 dB an octave above some 500 Hz
    shaped = [np.fft.irfft(spectrum * shape, NOISE_SAMPLES) for shape in (np.ones_like(f), f**-0.5, f**-1.0, voice)]
    return torch.tensor(np.stack([noise / noise.std() for noise in shaped]), dtype=torch.float32)


def _white() -> NDArray[np.float32]:
    return np.random.Generator(np.random.Philox(key=20101399)).standard_normal(NOISE_SAMPLES, dtype=np.float32)


def _tensor(values: NDArray[np.generic]) -> Tensor:
    # Converted by numpy: this runs beside a step, whose cores a second set of torch's threads would take.
    narrow = values.astype(np.float32) if values.dtype == np.float64 else values
    return torch.from_numpy(np.ascontiguousarray(narrow))


def _places(u: Tensor, kinds: int, size: int) -> tuple[Tensor, Tensor]:
    """One uniform number as a choice among `kinds` and a start in 0 .. size - 1."""
    scaled = u.double() * kinds
    kind = scaled.long().clamp(max=kinds - 1)
    return kind, ((scaled - kind) * size).long().clamp(max=size - 1)


def _update(waves: Waves, rows: Tensor, operate: Callable[..., Waves], *factors: Tensor) -> Waves:
    """Replace some rows by what `operate` makes of them and of their factors; lengths stay."""
    selection = rows.nonzero().flatten()
    if not len(selection):
        return waves
    device = waves.samples.device
    present = to_device(selection, device)
    part = operate(waves[present], *(to_device(factor[selection], device) for factor in factors))
    return Waves(waves.samples.index_copy(0, present, part.samples), waves.lengths)


def _repeat(wave: Tensor, size: int) -> Tensor:
    if not bool(wave[:size].any()):
        raise UserError(
            f"a recording of noise is empty, or silent in the {size:,} samples that are used: leave it out of "
            "--waves.noises"
        )
    return wave.repeat(-(-size // len(wave)))[:size]


def _direct_first(response: Tensor) -> Tensor:
    """An impulse response from its strongest sample on, which is the direct sound."""
    if not len(response) or not bool(response.any()):
        raise UserError("an impulse response is empty or silent: leave it out of --waves.responses")
    peak = int(response.abs().argmax())
    return response[peak:] / response[peak]
