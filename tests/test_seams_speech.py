"""Speech encoders are built of the arguments that they were given, and so is what stands beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from twofold.encoders import EncoderConfig, SpeechEncoder, Waves
from twofold.encoders.audio.encoder import FilterbankEncoder, SpeechEncoderConfig, baseline_of, speech_encoder
from twofold.encoders.audio.filterbank import Filterbank, mel_filters, povey_window

# No value is a default, and no two that could change places are alike.
ARGUMENTS: dict[str, Any] = {
    "sample_rate": 8000, "mels": 13, "low_hz": 60.0, "floor": 1e-5, "cmvn": "utterance", "eps": 1e-3, "width": 12,
    "layers": 2, "heads": 4, "hidden": 20, "dropout": 0.3, "pooling": "mean_std", "stack": 3,
}  # fmt: skip


def test_every_argument_of_a_speech_encoder_reaches_it() -> None:
    encoder = SpeechEncoder(**ARGUMENTS)
    assert encoder.arguments() == ARGUMENTS
    assert (encoder.input.sample_rate, encoder.input.channels, encoder.input.kind) == (8000, 1, "audio")
    assert (encoder.feature_dim, encoder.pooling, encoder.stack) == (24, "mean_std", 3)
    front = encoder.frontend
    found = {name: getattr(front, name) for name in ("sample_rate", "mels", "low_hz", "floor", "cmvn", "eps")}
    assert found == {name: ARGUMENTS[name] for name in found}
    transformer = encoder.transformer
    assert (transformer.features, transformer.feature_dim, transformer.stack) == (13, 12, 3)
    assert transformer.dense.weight.shape == (12, 39)
    assert len(transformer.layers) == 2
    for layer in transformer.layers:
        assert isinstance(layer, nn.Module)
        assert layer.heads == 4
        assert layer.mlp[0].weight.shape == (20, 12)  # type: ignore[index, union-attr]
        assert {module.p for module in layer.modules() if isinstance(module, nn.Dropout)} == {0.3}
    blocks = encoder.blocks()
    assert blocks.stem == (front, transformer.dense)
    assert blocks.blocks == tuple(transformer.layers)
    for name in ("mean", "padded"):
        other = SpeechEncoder(**ARGUMENTS | {"pooling": name})
        assert (other.feature_dim, other.pooling, other.arguments()["pooling"]) == (12, name, name)


def test_every_argument_of_a_filterbank_reaches_it() -> None:
    front = Filterbank(8000, 13, 60.0, 1e-5, "utterance", 1e-3)
    assert (front.size, front.shift, front.fft) == (200, 80, 256)
    assert torch.equal(front.window, povey_window(200))
    assert torch.equal(front.filters, mel_filters(8000, 256, 13, 60.0))
    assert front.mean.shape == front.std.shape == (13,)
    given = {"sample_rate": 8000, "mels": 13, "low_hz": 60.0, "cmvn": "utterance"}
    alone = FilterbankEncoder(**given)  # type: ignore[arg-type]
    assert alone.arguments() == given
    assert {name: getattr(alone.frontend, name) for name in given} == given
    assert (alone.feature_dim, alone.input.sample_rate, alone.pooling) == (26, 8000, "mean_std")
    beside = baseline_of(SpeechEncoder(**ARGUMENTS))
    assert beside.arguments() == given | {"cmvn": "none"}


def test_lengths_count_and_departures_from_a_preset_too() -> None:
    encoder = SpeechEncoder(**ARGUMENTS).eval()
    waves = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        short = encoder(waves, torch.tensor([2400, 4000]))
        torch.testing.assert_close(short[0], encoder([waves[0, :2400]])[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(short[0], encoder(waves)[0])
        padded = SpeechEncoder(**ARGUMENTS | {"pooling": "padded"}).eval()
        padded.load_state_dict(encoder.state_dict())
        x, frames = padded.hidden_states(Waves(waves, torch.tensor([2400, 4000])))
        torch.testing.assert_close(padded.pool(x[-1], frames)[0], x[-1][0].sum(0) / x[-1].shape[1])
    speech = SpeechEncoderConfig(width=16, heads=2, hidden=24, layers=1, sample_rate=12000)
    for built in (
        speech_encoder("small", speech),
        EncoderConfig.of(name="speech:small", speech=speech).build(),
    ):
        assert built.arguments()["width"] == 16
        assert built.input.sample_rate == 12000
    chosen, reasons = SpeechEncoder.Config(speech=speech).chosen(100, 1, 8000, None, False)
    assert chosen.name == "speech:small"
    assert any("are brought to 12,000 Hz" in reason for reason in reasons)


@pytest.mark.parametrize("cmvn", ["global", "utterance_mean"])
def test_a_front_end_takes_its_statistics_from_what_it_is_given(cmvn: str) -> None:
    encoder = SpeechEncoder(**ARGUMENTS | {"cmvn": cmvn})
    waves = Waves(torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)), torch.tensor([4000, 2400]))
    assert encoder.fit_frontend([waves]) == int(encoder.frontend.frames(waves.lengths).sum())
    assert not torch.equal(encoder.frontend.std, torch.ones(13))
