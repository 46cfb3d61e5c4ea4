"""Formats that libsndfile does not read: their lengths, their parts, and what is said where the extra is missing."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sound_files import tone, write
from twofold.data import AudioSource, DataConfig, open_source
from twofold.data.config import AudioConfig
from twofold.data.decoding import recordings
from twofold.errors import UserError

av = pytest.importorskip("av", reason="the files are written by PyAV (the extra av)")

RATE, COUNT = 48000, 60000
FORMATS = {
    "alac.m4a": ("alac", 0), "aac.m4a": ("aac", 0), "aac.mp4": ("aac", 0), "opus.webm": ("libopus", 0),
    "aac.aac": ("aac", 1024), "a.ac3": ("ac3", 256), "a.wv": ("wavpack", 0), "a.wma": ("wmav2", 0),
}  # fmt: skip
"""Codec, and how many samples of the encoder's delay the file does not tell of."""


def voice(seed: int = 0) -> NDArray[np.float32]:
    """Noise below 4 kHz that swells and fades: it fits itself at one lag alone."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.normal(size=COUNT))
    spectrum[int(4000 * COUNT / RATE) :] = 0
    wave = np.fft.irfft(spectrum, COUNT) * np.sin(np.pi * np.arange(COUNT) / COUNT)
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def encode(path: Path, wave: NDArray[np.float32], rate: int = RATE) -> Path:
    """Write [n] or [n, 2] samples; the container and the codec go by the file's name."""
    channels = wave.reshape(len(wave), -1)
    layout = ("mono", "stereo")[channels.shape[1] - 1]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        codec = FORMATS.get(path.name, ("aac", 0))[0]
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 192_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        fifo, done = av.AudioFifo(), 0
        for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (part := fifo.read(size) or fifo.read(size, partial=True)) is not None:
            part.pts, part.time_base = done, Fraction(1, rate)
            done += part.samples
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def lag(wave: NDArray[np.float32], truth: NDArray[np.float32]) -> int:
    """Samples by which one comes after the other."""
    size = 1 << 17
    product = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(truth, size).conj(), size)
    best = int(product.argmax())
    return best if best < size // 2 else best - size


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "a.wma"])  # (its decoder drops the first frame)
def test_lengths_and_samples(tmp_path: Path, name: str) -> None:
    truth, delay = voice(), FORMATS[name][1]
    encode(tmp_path / name, truth)
    encode(tmp_path / "other" / name, voice(1))
    source = open_source(tmp_path)
    assert isinstance(source, AudioSource)
    index = [each.path for each in source.recordings].index(str(tmp_path / name))
    wave = source.read(index)
    assert len(wave) == source.lengths()[index]
    assert lag(wave, truth) == delay
    # m4a states its end in milliseconds; where nothing states it, the last frame stays whole (AC-3's has 1,536)
    room = {".m4a": 48, ".mp4": 48, ".webm": 0, ".wv": 0}.get(Path(name).suffix, 1536)
    assert abs(len(wave) - delay - COUNT) <= (0 if name == "alac.m4a" else room)
    part = wave[delay : delay + COUNT]
    assert np.corrcoef(part, truth[: len(part)])[0, 1] > 0.98
    if name in ("alac.m4a", "a.wv"):  # without loss, from 16 and from 8 bits
        assert np.abs(part - truth).max() < (1e-3 if name == "alac.m4a" else 1 / 250)


@pytest.mark.parametrize("name", FORMATS)
def test_segments_are_parts_of_the_whole(tmp_path: Path, name: str) -> None:
    encode(tmp_path / name, voice())
    rows = "".join(f"{name},{start},{end}\n" for start, end in ((0.0, 0.4), (0.3, 0.9), (0.75, 1.1)))
    (tmp_path / "m.csv").write_text(f"path,start,end\n{rows}{name},,\n")
    source = open_source(tmp_path / "m.csv")
    whole = source.read(3)
    for i, (start, end) in enumerate(((0.0, 0.4), (0.3, 0.9), (0.75, 1.1))):
        np.testing.assert_array_equal(source.read(i), whole[round(start * RATE) : round(end * RATE)])
    for cache in ("off", "auto"):  # what is cropped at random is the same with and without a memory
        short = open_source(tmp_path / "m.csv", DataConfig(cache=cache, audio=AudioConfig(max_seconds=0.5)))
        start = int(0.5 * (len(whole) - RATE // 2 + 1))
        np.testing.assert_array_equal(short.read(3, 0.5), whole[start : start + RATE // 2])


def test_channels_become_their_mean(tmp_path: Path) -> None:
    left, right = voice(0), voice(1)
    encode(tmp_path / "alac.m4a", np.stack([left, right], axis=1))
    encode(tmp_path / "b.m4a", left)
    wave = open_source(tmp_path).read(0)
    np.testing.assert_allclose(wave, (left + right) / 2, atol=1e-3)


def test_what_is_broken_is_counted_with_its_reason(tmp_path: Path) -> None:
    for i in range(6):
        encode(tmp_path / f"{i}.m4a", voice(i))
    (tmp_path / "empty.m4a").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(b"no container at all")
    source = open_source(tmp_path, DataConfig(max_skipped=0.5))
    reasons = {Path(path).name: reason for path, reason in source.skipped}
    assert len(source) == 6
    assert reasons["empty.m4a"] == "empty file"
    assert "not a recording that FFmpeg reads" in reasons["noise.mp4"]


def test_a_video_without_sound_is_told(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    encode(tmp_path / "a.m4a", voice())
    encode(tmp_path / "b.m4a", voice(1))
    source = open_source(tmp_path, DataConfig(max_skipped=0.5))
    assert len(source) == 2
    assert source.skipped[0][1] == "not a recording that FFmpeg reads: it holds no sound"


def test_without_the_extra_they_are_counted_by_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.wav", tone(i))
        (tmp_path / f"{i}.m4a").write_bytes(b"not looked at")
    (tmp_path / "x.WMA").write_bytes(b"not looked at")
    find = importlib.util.find_spec
    monkeypatch.setattr(recordings.importlib.util, "find_spec", lambda name: None if name == "av" else find(name))
    source = open_source(tmp_path)
    assert len(source) == 3
    words = f"{tmp_path}: 3 recordings, no classes; 3 .m4a, 1 .wma files passed over: pip install 'twofold[av]'"
    assert source.facts().layout == words
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.m4a").write_bytes(b"not looked at")
    with pytest.raises(UserError, match=r"no recordings; 1 .m4a file passed over: pip install 'twofold\[av\]'"):
        open_source(only)
    (tmp_path / "m.csv").write_text("path\n0.m4a\n0.wav\n1.wav\n")
    source = open_source(tmp_path / "m.csv", DataConfig(max_skipped=0.5))
    assert source.skipped[0][1] == ".m4a files need an extra: pip install 'twofold[av]'"


def test_pictures_beside_sound_stay_pictures(tmp_path: Path) -> None:
    encode(tmp_path / "a" / "clip.mov", voice())
    for i in range(2):
        (tmp_path / "b").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "b" / f"{i}.png")
    assert not isinstance(open_source(tmp_path), AudioSource)
