"""The log-mel filterbank against kaldi-native-fbank, and its normalisation. Tolerance: 1e-3 of a natural log."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twofold.encoders import Waves
from twofold.encoders.audio.filterbank import Filterbank
from twofold.errors import UserError


def noisy_tones(n=4, rate=16000, seed=0):
    """Sums of tones in noise of 0.3 to 1 s, of very different loudness."""
    rng = np.random.default_rng(seed)
    waves = []
    for i in range(n):
        t = np.arange(int(rate * rng.uniform(0.3, 1.0))) / rate
        tones = sum(rng.uniform(0.1, 1) * np.sin(2 * np.pi * f * t) for f in rng.uniform(50, rate / 2.2, 5))
        wave = (tones / 5 + rng.normal(0, 0.05, len(t))) * 10.0 ** (-i)
        waves.append(torch.tensor(wave, dtype=torch.float32))
    return waves


def kaldi(wave, rate, mels, low):
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = mels, low, 0
    options.energy_floor = 0
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(rate, (wave.numpy() * 32768).tolist())
    bank.input_finished()
    return np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])


@pytest.mark.parametrize(("rate", "mels", "low"), [(16000, 80, 20.0), (16000, 40, 60.0), (8000, 40, 60.0)])
def test_equals_kaldi(rate, mels, low):
    waves = [*noisy_tones(rate=rate), torch.zeros(rate // 4)]
    features, frames = Filterbank(rate, mels, low).log_mel(Waves.of(waves))
    for row, count, wave in zip(features, frames.tolist(), waves, strict=True):
        expected = kaldi(wave, rate, mels, low)
        assert len(expected) == count
        np.testing.assert_allclose(row[:count].numpy(), expected, rtol=0, atol=1e-3)


def test_counts_whole_frames():
    samples = torch.tensor([16000, 8000, 400, 399, 128000])
    assert Filterbank(16000).frames(samples).tolist() == [98, 48, 1, 0, 798]


def test_padding_changes_nothing():
    for cmvn in ("none", "global", "utterance", "utterance_mean"):
        bank = Filterbank(16000, 40, cmvn=cmvn)
        waves = noisy_tones()
        bank.fit([Waves.of(waves)])
        together, frames = bank(Waves.of([*waves, torch.randn(20000)]))
        for i, wave in enumerate(waves):
            alone, _ = bank(Waves.of([wave]))
            torch.testing.assert_close(together[i, : frames[i]], alone[0], rtol=1e-5, atol=1e-5)
            assert (together[i, frames[i] :] == 0).all()


def test_global_statistics_are_those_of_all_frames():
    waves = noisy_tones(6)
    bank = Filterbank(16000, 40, cmvn="global", eps=0.0)
    raw, frames = bank.log_mel(Waves.of(waves))
    every = torch.cat([row[:count] for row, count in zip(raw, frames.tolist(), strict=True)]).double()
    assert bank.fit([Waves.of(waves[:2]), Waves.of(waves[2:])]) == len(every)
    torch.testing.assert_close(bank.mean, every.mean(0).float())
    torch.testing.assert_close(bank.std, every.std(0, correction=0).float())
    x, _ = bank(Waves.of(waves))
    normal = torch.cat([row[:count] for row, count in zip(x, frames.tolist(), strict=True)])
    assert normal.mean(0).abs().max() < 1e-3
    assert (normal.std(0) - 1).abs().max() < 1e-2


def test_utterance_normalisation():
    bank = Filterbank(16000, 40, cmvn="utterance_mean")
    bank.fit([Waves.of(noisy_tones(6))])
    loud, _ = bank(Waves.of(noisy_tones(1)))
    quiet, _ = bank(Waves.of([noisy_tones(1)[0] * 0.1]))
    torch.testing.assert_close(loud, quiet, rtol=1e-3, atol=1e-3)
    assert loud.mean(1).abs().max() < 1e-4


def test_silence_stays_finite():
    for cmvn in ("none", "global", "utterance", "utterance_mean"):
        bank = Filterbank(16000, 40, cmvn=cmvn)
        bank.fit([Waves.of([torch.zeros(4000)])])
        assert torch.isfinite(bank(Waves.of([torch.zeros(4000)]))[0]).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [({"mels": 500}, "too many"), ({"cmvn": "local"}, "cmvn"), ({"low_hz": 9000.0}, "low edge")],
)
def test_wrong_options_are_named(options, told):
    with pytest.raises(UserError, match=told):
        Filterbank(16000, **options)
    with pytest.raises(UserError, match="one frame"):
        Filterbank(16000).fit([Waves.of([torch.zeros(100)])])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu():
    waves = Waves.of(noisy_tones())
    bank = Filterbank(16000, 80)
    here, _ = bank.log_mel(waves)
    there, _ = bank.cuda().log_mel(waves.to("cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-3)
