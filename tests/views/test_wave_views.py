"""Views of recordings: what each operator does to a signal that shows it, and that draws are addressed."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch

from twofold.encoders import Waves
from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views.audio import operators
from twofold.views.audio.views import WavesConfig, WaveViews, as_fraction, generated_noise

RATE = 16000
OFF = {field.name: 0.0 for field in dataclasses.fields(WavesConfig) if field.name in (
    "speed", "pitch", "reverb", "noise", "band_reject", "gain", "clip", "time_dropout", "polarity")}  # fmt: skip


def sine(f, seconds=1.0, rate=RATE):
    return 0.5 * torch.sin(2 * torch.pi * f * torch.arange(int(rate * seconds)) / rate)


def speechlike(n=4, seed=0):
    """Noise in bursts of different lengths, silence between."""
    g = torch.Generator().manual_seed(seed)
    waves = []
    for i in range(n):
        wave = torch.randn(6000 + 2500 * i, generator=g) * 0.1
        wave[2000:3500] = 0
        waves.append(wave)
    return Waves.of(waves)


def loudest(wave, rate=RATE):
    """Frequency of a sine in Hz, by the peak of a finely padded spectrum."""
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle)), 2**20).abs()
    return float(spectrum.argmax()) * rate / 2**20


@pytest.mark.parametrize("least", [1, 2, 7, 11, 5511, 8999, 9001, 131073])
def test_lengths_of_transforms_are_the_least_good_ones(least):
    good = [2**a * 3**b * 5**c for a in range(19) for b in range(13) for c in range(9)]
    assert operators._fast_length(least) == min(n for n in good if n >= least)


@pytest.mark.parametrize("speed", [Fraction(9, 10), Fraction(11, 10), Fraction(5, 4)])
def test_speed(speed):
    out = operators.change_speed(Waves.of([sine(440), sine(440, 0.5)]), speed)
    assert out.lengths.tolist() == [round(16000 / speed), round(8000 / speed)]
    assert loudest(out.samples[0]) == pytest.approx(440 * float(speed), rel=0.002)
    assert out.samples[0, 2000:-2000].abs().max() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("ratio", [Fraction(5, 6), Fraction(17, 18), Fraction(6, 5)])
@pytest.mark.parametrize("f", [220, 1500])
def test_pitch(ratio, f):
    out = operators.change_pitch(Waves.of([sine(f), sine(f, 0.5)]), ratio, RATE)
    assert out.lengths.tolist() == [16000, 8000]
    assert loudest(out.samples[0]) == pytest.approx(f * float(ratio), rel=0.01)
    assert out.samples[0, 4000:-4000].square().mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("snr", [0.0, 7.5, 20.0])
def test_noise_has_the_ratio_asked_for(snr):
    waves = speechlike()
    noise = generated_noise(RATE)[:, : waves.samples.shape[1]] * 7
    out = operators.add_noise(waves, noise, torch.full((4,), snr))
    _, active = operators.active_power(waves)
    assert not active[0, 2100:3400].any()
    for row in range(4):
        added = (out.samples - waves.samples)[row, active[row]]
        speech = waves.samples[row, active[row]]
        assert 10 * torch.log10(speech.square().mean() / added.square().mean()).item() == pytest.approx(snr, abs=0.1)
        assert (out.samples[row, waves.lengths[row] :] == 0).all()


def test_noise_that_pauses_under_the_speech_stays_bounded():
    waves = speechlike()
    _, active = operators.active_power(waves)
    noise = torch.where(active, 0.0, generated_noise(RATE)[:, : waves.samples.shape[1]])
    for floor in (0.0, 1e-6):
        out = operators.add_noise(waves, noise + floor * active, torch.full((4,), 5.0))
        added = (out.samples - waves.samples).square().sum(1) / waves.lengths
        signal, _ = operators.active_power(waves)
        # 10 dB more than a ratio over the whole row would make it, and no more.
        assert (10 * torch.log10(signal / added)).tolist() == pytest.approx([-5.0] * 4, abs=0.1)


def test_band_reject():
    t = sine(1000)
    for low, high, kept in ((900.0, 1100.0, 2000), (925.0, 1075.0, 1400), (0.0, 1500.0, 3000)):
        band = torch.tensor([low]), torch.tensor([high])
        gone = operators.reject_band(Waves.of([t]), *band, RATE).samples[0, 2000:-2000]
        assert 20 * torch.log10(gone.norm() / t[2000:-2000].norm()) < -40
        through = operators.reject_band(Waves.of([sine(kept)]), *band, RATE).samples[0, 2000:-2000]
        torch.testing.assert_close(through, sine(kept)[2000:-2000], rtol=0.01, atol=0.01)


def test_reverb_rings_on_and_keeps_the_power():
    wave = torch.zeros(8000)
    wave[:160] = torch.randn(160, generator=torch.Generator().manual_seed(1))
    views = WaveViews(WavesConfig(**OFF | {"reverb": 1.0}), RATE)
    out = views.apply(Waves.of([wave, wave]), views.draw(Key(0, 0), [0, 1], [8000] * 2))[0]
    before, where = operators.active_power(Waves.of([wave, wave]))
    assert out.samples[:, 400:1200].abs().max() > 1e-3
    torch.testing.assert_close(operators.active_power(out, where)[0], before, rtol=1e-4, atol=0)
    given = WaveViews(WavesConfig(**OFF | {"reverb": 1.0}), RATE, responses=[torch.tensor([0.0, 0.0, 2.0, 0.0, 1.0])])
    out = given.apply(Waves.of([wave]), given.draw(Key(0, 0), [0], [8000]))[0]
    expected = wave.clone()
    expected[2:] += 0.5 * wave[:-2]
    ratio = out.samples[0, :160] / expected[:160]
    torch.testing.assert_close(ratio, ratio.mean().expand(160), rtol=1e-3, atol=1e-4)


def test_gain_clip_dropout_polarity():
    waves = speechlike()
    rows = np.arange(4)

    def only(**options):
        views = WaveViews(WavesConfig(**OFF | options), RATE)
        draws = views.draw(Key(0, 0), rows, waves.lengths.numpy())
        return views.apply(waves, draws)[0], draws[0]

    louder, draw = only(gain=1.0, gain_db=(6.0, 6.0))
    torch.testing.assert_close(louder.samples, waves.samples * 10**0.3)
    turned, _ = only(polarity=1.0)
    assert torch.equal(turned.samples, -waves.samples)
    clipped, draw = only(clip=1.0)
    torch.testing.assert_close(clipped.samples.amax(1), waves.samples.amax(1) * draw.clip)
    assert (draw.clip >= 0.5).all()
    quiet, draw = only(time_dropout=1.0)
    for row in range(4):
        changed = (quiet.samples[row] != waves.samples[row]).nonzero().flatten()
        most = float(draw.drop[row, 0]) * RATE / 1000
        assert len(changed) <= most <= 800
        assert not len(changed) or int(changed.max() - changed.min()) <= most
        assert (quiet.samples[row, changed] == 0).all()
    same, _ = only()
    assert torch.equal(same.samples, waves.samples)


def test_draws_are_addressed():
    views, waves = WaveViews(WavesConfig(chain=0.9), RATE), speechlike(8)
    lengths = waves.lengths.numpy()
    a, b = views.draw(Key(3, 7), np.arange(8), lengths)
    for field in dataclasses.fields(a):
        whole, part = getattr(a, field.name), getattr(views.draw(Key(3, 7), [5, 2], lengths)[0], field.name)
        assert torch.equal(whole[[5, 2]], part), field.name
    assert not torch.equal(a.gain, b.gain)
    assert not torch.equal(a.gain, views.draw(Key(3, 8), np.arange(8), lengths)[0].gain)
    again = views.apply(waves, views.draw(Key(3, 7), np.arange(8), lengths))
    assert torch.equal(again[0].samples, views.apply(waves, (a, b))[0].samples)
    shares = views.draw(Key(0, 0), np.arange(4000), [RATE])[0]
    assert abs(float(shares.reverb.float().mean()) - 0.9 * 0.5) < 0.03
    assert abs(float((shares.pitch >= 0).float().mean()) - 0.9 * 0.3) < 0.03


def test_company_changes_nothing():
    """Every operator at once: one recording alone equals the same in a longer batch."""
    everything = dict.fromkeys(OFF, 1.0)
    views, waves = WaveViews(WavesConfig(**everything), RATE), speechlike(5)
    for row in range(4):
        draws = views.draw(Key(1, 2), np.arange(5), waves.lengths.numpy())
        own = tuple(draw[row : row + 1] for draw in draws)
        alone = views.apply(Waves.of([waves.samples[row, : waves.lengths[row]]]), own)
        for one, many in zip(alone, views.apply(waves, draws), strict=True):
            assert one.lengths[0] == many.lengths[row]
            length = int(one.lengths[0])
            torch.testing.assert_close(one.samples[0], many.samples[row, :length], rtol=1e-3, atol=1e-4)
            assert (many.samples[row, length:] == 0).all()


def test_short_and_silent_sounds_stay_finite():
    views = WaveViews(WavesConfig(**dict.fromkeys(OFF, 1.0)), RATE)
    waves = Waves.of([torch.randn(400), torch.zeros(400), torch.zeros(9000), torch.full((5000,), 0.3)])
    for view in views.apply(waves, views.draw(Key(0, 0), np.arange(4), waves.lengths.numpy())):
        assert torch.isfinite(view.samples).all()
        assert (view.samples[1:3] == 0).all()


def test_one_view_can_stay_clean():
    views, waves = WaveViews(WavesConfig(clean_view=True, gain=1.0), RATE), speechlike()
    a, b = views.apply(waves, views.draw(Key(0, 0), np.arange(4), waves.lengths.numpy()))
    assert torch.equal(a.samples, waves.samples)
    assert not torch.equal(b.samples[:, :100], waves.samples[:, :100])


def test_recorded_noise_is_used():
    hum = sine(50, 0.4)
    views = WaveViews(WavesConfig(**OFF | {"noise": 1.0}), RATE, noises=[hum])
    waves = Waves.of([sine(3000)])
    out = views.apply(waves, views.draw(Key(0, 0), [0], [RATE]))[0]
    assert loudest((out.samples - waves.samples)[0]) == pytest.approx(50, abs=1)
    late = torch.zeros(300_000)
    late[280_000:] = 1.0  # beyond what is used
    for silent in (torch.zeros(10), torch.zeros(0), late):
        with pytest.raises(UserError, match=r"silent in the 262,144 .*--waves\.noises"):
            WaveViews(WavesConfig(), RATE, noises=[silent])


@pytest.mark.parametrize(("name", "value"), [("noise", 1.5), ("speeds", (3.0,)), ("noise_snr", (9.0, 1.0))])
def test_wrong_options_are_named(name, value):
    with pytest.raises(UserError, match=rf"waves\.{name}"):
        WavesConfig(**{name: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", [*OFF, "all but pitch"])
def test_gpu_equals_cpu(name):
    """A phase vocoder amplifies what differs before it: pitch is compared by itself."""
    used = [name] if name in OFF else [operator for operator in OFF if operator != "pitch"]
    views, waves = WaveViews(WavesConfig(**OFF | dict.fromkeys(used, 1.0)), RATE), speechlike()
    draws = views.draw(Key(0, 0), np.arange(4), waves.lengths.numpy())
    for here, there in zip(views.apply(waves, draws), views.apply(waves.to("cuda"), draws), strict=True):
        assert torch.equal(there.lengths.cpu(), here.lengths)
        torch.testing.assert_close(there.samples.cpu(), here.samples, rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [0.99, 1.01, 0.87, 1.234, 0.5, 2.0])
def test_factors_are_as_asked(factor):
    assert abs(as_fraction(factor) - factor) < 1e-4
    views = WaveViews(WavesConfig(speed=1.0, speeds=(factor,)), RATE)
    out = operators.change_speed(Waves.of([sine(440)]), views._speeds[0])
    assert abs(out.lengths.item() - 16000 / factor) <= 2
    assert loudest(out.samples[0]) == pytest.approx(440 * factor, rel=0.001)


def test_the_defaults_are_the_fractions_that_they_stand_for():
    assert [as_fraction(p) for p in WavesConfig().pitches] == [
        Fraction(*pair) for pair in ((5, 6), (8, 9), (17, 18), (18, 17), (9, 8), (6, 5))
    ]
