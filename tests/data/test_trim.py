"""Silence at the ends of recordings: cut by one rule wherever they are read, and what it costs is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import twofold
from sound_files import RATE, tone, write
from twofold.data import DataConfig, open_source
from twofold.data.config import AudioConfig
from twofold.data.decoding import recordings
from twofold.data.sources.audio import AudioSource, Recording
from twofold.encoders import SpeechEncoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.features import Extractor, Pixels

WORD = 0.3 * np.sin(2 * np.pi * 200 * np.arange(4000) / RATE).astype(np.float32)


def quiet(samples: int, level: float = 1e-3, offset: float = 0.0) -> np.ndarray:
    """Noise `level` of full scale, on an offset."""
    return (offset + np.random.default_rng(samples).normal(0, level, samples)).astype(np.float32)


def opened(folder, config: DataConfig | None = None) -> AudioSource:
    """The recordings of a folder, and one more, which comes last: a source needs two."""
    write(folder / "z.wav", WORD)
    source = open_source(folder, config)
    assert isinstance(source, AudioSource)
    return source


def trimmed(trim: float | None = 35.0, **options: object) -> DataConfig:
    return DataConfig(audio=AudioConfig(trim=trim, **options), max_skipped=0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_both_ends_are_cut_to_a_frame_and_pauses_stay(tmp_path, rate, offset):
    before, word, pause, after = int(0.5 * rate), int(0.3 * rate), int(0.4 * rate), int(0.7 * rate)
    loud = 0.3 * np.sin(2 * np.pi * 200 * np.arange(word) / rate).astype(np.float32)
    wave = np.concatenate([quiet(before), loud, quiet(pause), loud, quiet(after)]) + np.float32(offset)
    source = opened(write(tmp_path / "clips" / "a.wav", wave, rate).parent, trimmed())
    heard, frame = 2 * word + pause, round(0.025 * rate)
    assert heard <= source.samples[0] <= heard + 2 * frame
    assert before - frame <= source.starts[0] <= before
    expected, _ = recordings.soundfile().read(source.path(0), dtype="float32")
    begin = int(source.starts[0])
    np.testing.assert_array_equal(source.read(0), expected[begin : begin + int(source.samples[0])])
    assert source.at_rate(rate).lengths()[0] == pytest.approx(source.samples[0], abs=1)


def test_the_threshold_is_in_decibels_below_the_loudest_frame(tmp_path):
    """A tone 40 dB weaker before the word stays at 41 dB and falls away at 39."""
    write(tmp_path / "a.wav", np.concatenate([WORD * 0.01, WORD]))
    kept = {trim: int(opened(tmp_path, trimmed(trim)).samples[0]) for trim in (39.0, 41.0)}
    assert kept[41.0] == 8000
    assert 4000 <= kept[39.0] <= 4200


def test_blocks_change_nothing(tmp_path, monkeypatch):
    wave = np.concatenate([quiet(3001), WORD, quiet(5003)])
    write(tmp_path / "a.wav", wave)
    whole = opened(tmp_path, trimmed())
    monkeypatch.setattr(recordings, "_BLOCK", 333)
    parts = opened(tmp_path, trimmed())
    assert (whole.starts[0], whole.samples[0]) == (parts.starts[0], parts.samples[0])


def test_without_it_nothing_changes(tmp_path):
    write(tmp_path / "a.wav", np.concatenate([quiet(4000), WORD]))
    source = opened(tmp_path)
    assert (source.starts[0], source.samples[0]) == (0, 8000)


def test_what_is_silent_broken_or_too_short_is_left_out_and_told(tmp_path):
    write(tmp_path / "word.wav", WORD)
    write(tmp_path / "silent.wav", np.zeros(RATE, np.float32))
    click = np.zeros(RATE, np.float32)
    click[4000:4004] = (0.5, -0.5, 0.5, -0.5)
    write(tmp_path / "click.wav", click)
    write(tmp_path / "constant.wav", np.full(RATE, 0.25, np.float32))
    recordings.soundfile().write(tmp_path / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    source = open_source(tmp_path, trimmed())
    assert [path.rsplit("/")[-1] for path in map(source.path, range(len(source)))] == ["constant.wav", "word.wav"]
    told = {path.rsplit("/")[-1]: reason for path, reason in source.skipped}
    assert told["silent.wav"] == "silent"
    assert "not finite" in told["nan.wav"]
    assert "once data.audio.trim 35 has cut silence off its ends, less than data.audio.min_seconds" in told["click.wav"]
    with pytest.raises(UserError, match="max_skipped"):
        open_source(tmp_path, dataclasses.replace(trimmed(), max_skipped=0.1))


def test_of_a_part_of_a_file_the_part_is_trimmed(tmp_path):
    path = write(tmp_path / "a.wav", np.concatenate([WORD, quiet(4000), WORD, quiet(4000)]))
    part = Recording(str(path), start=0.5, duration=1.5)  # begins with the quiet
    source = AudioSource([part], trimmed(), "part")
    assert 7800 <= source.starts[0] <= 8000
    assert 4000 <= source.samples[0] <= 4400


def test_long_recordings_are_cropped_from_what_is_left(tmp_path):
    write(tmp_path / "a.wav", np.concatenate([quiet(16000), np.tile(WORD, 4), quiet(16000)]))
    source = opened(tmp_path, trimmed(max_seconds=0.5)).at_rate(RATE)
    for place in (0.0, 0.99):
        wave = source.read(0, place)
        assert len(wave) == 4000
        assert np.sqrt(np.mean(wave[200:-200] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("value", [0.0, -3.0, 121.0, float("nan")])
def test_values_without_a_meaning_are_refused(value):
    with pytest.raises(UserError, match=r"--data\.audio\.trim"):
        AudioConfig(trim=value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("words")
    for i in range(24):
        wave = tone(i % 2, i % 4, 0.4, seed=i)
        write(root / f"word{i % 2}" / f"{i}.wav", np.concatenate([quiet(2000 + 100 * i), wave, quiet(3000)]))
    return root


TINY = {
    "epochs": 1, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}, "monitor": {"every": 0},
    "encoder": {
        "name": "speech:small",
        "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "sample_rate": RATE},
    },
}  # fmt: skip


def test_it_is_kept_with_the_encoder_and_holds_in_evaluation_and_embed(folder, tmp_path):
    run = tmp_path / "run"
    twofold.pretrain(folder, run, report=False, **TINY, **{"data.audio.trim": 35.0})
    assert Pixels.of(twofold.encoders.read_header(run / "encoder.safetensors")).trim == 35.0

    def features(name, **options):
        twofold.embed(run, folder, tmp_path / name, **options)
        with np.load(tmp_path / name) as file:
            return file["features"]

    inherited = features("inherited.npz")
    np.testing.assert_array_equal(inherited, features("same.npz", **{"data.audio.trim": 35.0}))
    assert np.abs(inherited - features("off.npz", **{"data.audio.trim": None})).max() > 1e-3
    found = twofold.evaluate(run, folder, protocol="knn")
    assert "recordings" in found.words
    assert "untrimmed" not in found.words
    other = twofold.evaluate(run, folder, protocol="knn", **{"data.audio.trim": None})
    assert "the recordings untrimmed where the encoder was trained with them trimmed at 35 dB" in other.words


def test_of_an_encoder_that_does_not_say_nothing_is_told(folder, tmp_path):
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none")
    save_encoder(tmp_path / "encoder.safetensors", net)
    pixels = Pixels.of(twofold.encoders.read_header(tmp_path / "encoder.safetensors"))
    source = open_source(folder, trimmed())
    assert "trained with" not in Extractor(pixels=pixels).extract(net.eval(), source).text
