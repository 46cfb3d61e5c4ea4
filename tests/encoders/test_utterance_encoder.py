"""Speech encoders with their front end: padding, pooling, presets, files."""

from __future__ import annotations

import pytest
import torch
from test_filterbank import noisy_tones

from twofold.encoders import (
    EncoderConfig,
    FilterbankEncoder,
    SpeechEncoder,
    Waves,
    build_encoder,
    build_encoder_from_spec,
    load_encoder,
    save_encoder,
)
from twofold.encoders.audio.encoder import SpeechEncoderConfig, baseline_of
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.interop.program import encoder_program, least_samples

TINY = {"mels": 20, "width": 32, "layers": 2, "heads": 4, "hidden": 64}


def tiny(**options):
    return SpeechEncoder(**TINY | options).eval()


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@torch.no_grad()
def test_one_alone_equals_one_in_a_padded_batch(pooling):
    encoder, waves = tiny(pooling=pooling), noisy_tones()
    together = encoder(Waves.of([*waves, torch.randn(20000)]))
    assert together.shape == (5, encoder.feature_dim)
    for i, wave in enumerate(waves):
        torch.testing.assert_close(encoder([wave])[0], together[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoder(wave[None])[0], together[i], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_released_pooling_counts_the_padding():
    encoder, (wave, *_) = tiny(pooling="padded"), noisy_tones()
    alone = encoder([wave])[0]
    frames, more = encoder.frontend.frames(torch.tensor([len(wave), 20000])).tolist()
    together = encoder([wave, torch.randn(20000)])[0]
    torch.testing.assert_close(together, alone * frames / more, rtol=1e-4, atol=1e-5)


def test_the_presets_have_the_published_sizes():
    with torch.device("meta"):
        released = build_encoder(EncoderConfig.of(name="speech:released"))
        head = ProjectionHead(768, HeadConfig(out_dim=768, norm=False))
        reconstruction = torch.nn.Linear(768, 40)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (released, head, reconstruction)]
    assert sizes == [21_263_616 + 31_488, 1_181_184, 30_760]
    assert sum(sizes) == 22_507_048
    small = build_encoder(EncoderConfig.of(name="speech:small"))
    assert 1.3e6 < sum(p.numel() for p in small.parameters()) < 1.5e6
    assert small.input.sample_rate == 8000


def test_a_file_keeps_the_front_end(tmp_path):
    config = SpeechEncoderConfig(mels=20, width=32, heads=4, hidden=64, layers=1)
    encoder = build_encoder(EncoderConfig.of(name="speech:corrected", speech=config)).eval()
    waves = Waves.of(noisy_tones())
    assert encoder.fit_frontend([waves]) > 0
    save_encoder(tmp_path / "e.safetensors", encoder)
    again = load_encoder(tmp_path / "e.safetensors")
    assert again.spec() == encoder.spec()
    assert not torch.equal(again.frontend.mean, torch.zeros(20))
    with torch.no_grad():
        assert torch.equal(again(waves), encoder(waves))


@torch.no_grad()
def test_the_floor_is_mean_and_deviation_of_the_filterbank():
    floor, wave = baseline_of(tiny()), noisy_tones()[0]
    assert isinstance(floor, FilterbankEncoder)
    x, _ = floor.frontend.log_mel(Waves.of([wave]))
    expected = torch.cat([x[0].mean(0), x[0].std(0, correction=0)])
    torch.testing.assert_close(floor([wave, torch.randn(9000)])[0], expected, rtol=1e-3, atol=1e-3)


def test_what_is_too_short_is_named():
    with pytest.raises(UserError, match="25 ms"):
        tiny()([torch.zeros(399)])
    with pytest.raises(UserError, match=r"\[n, samples\]"):
        tiny()(torch.zeros(2, 3, 4))
    with pytest.raises(UserError, match="speech:small"):
        build_encoder(EncoderConfig.of(name="speech:tiny"))
    with pytest.raises(UserError, match=r"encoder\.stem"):
        build_encoder(EncoderConfig.of(name="speech:small", stem="cifar"))
    with pytest.raises(UserError, match=r"encoder\.speech"):
        build_encoder(EncoderConfig.of(name="resnet10", speech=SpeechEncoderConfig(mels=40)))


@pytest.mark.parametrize("options", [{}, {"stack": 3}, {"pooling": "mean_std", "cmvn": "utterance_mean", "stack": 2}])
@torch.no_grad()
def test_a_program_of_the_whole_encoder(options):
    """torch.export of front end, transformer and pooling together, number and length of the recordings left open."""
    encoder = tiny(**options)
    module = encoder_program(encoder).exported.module()
    least = least_samples(encoder)
    for sizes in ([400, least], [30000], [16000, 5000, 777, 9000, 401, 2000]):
        waves = Waves.of([*(torch.randn(size) for size in sizes)])
        torch.testing.assert_close(module(waves.samples, waves.lengths), encoder(waves), rtol=1e-5, atol=1e-5)


def test_the_encoder_compiles_in_one_piece():
    """What training compiles has no break of the graph, whose parts would run uncompiled."""
    encoder = tiny(stack=3, dropout=0.0)
    x, frames = encoder.features_of(Waves.of(noisy_tones()))
    body = torch.compile(encoder.body(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(body(x, frames), encoder.body()(x, frames), rtol=1e-5, atol=1e-5)


def test_a_specification_of_an_earlier_version_builds_the_encoder():
    """The word that encoder.safetensors has held since there are speech encoders."""
    spec = {"kind": "speech", "sample_rate": 8000, "mels": 20, "width": 16, "heads": 2, "layers": 1, "hidden": 32}
    encoder = build_encoder_from_spec(spec)
    assert (type(encoder), encoder.input.kind, encoder.spec()["kind"]) == (SpeechEncoder, "audio", "speech")
