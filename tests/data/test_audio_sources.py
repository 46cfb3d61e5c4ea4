"""Recordings as data: formats, faults, layouts, and batches that are a pure function of the step."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sound_files import RATE, speech_folder, tone, write
from twofold.data import AudioLoader, AudioSource, DataConfig, LengthOrder, open_source, splits_of
from twofold.data.config import AudioConfig
from twofold.data.decoding.opening import BadImage
from twofold.data.decoding.recordings import BadRecording
from twofold.data.sources import audio
from twofold.data.sources.audio import Recording, read_folder
from twofold.data.sources.audio_layouts import layout_of
from twofold.errors import UserError
from twofold.views.audio.views import WavesConfig, WaveViews


def labels(source):
    return [source.classes[i] if i >= 0 else None for i in source.labels]


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, kind):
    for i in range(2):
        write(tmp_path / f"{i}.{kind}", tone(seconds=1.0), RATE)
    source = open_source(tmp_path)
    assert isinstance(source, AudioSource)
    assert source.labels is None
    wave = source.at_rate(RATE).read(1)
    assert wave.dtype == np.float32
    assert abs(len(wave) - RATE) < 0.05 * RATE
    expected = tone(seconds=1.0)[: len(wave)]
    assert np.corrcoef(np.abs(np.fft.rfft(wave[: len(expected)])), np.abs(np.fft.rfft(expected)))[0, 1] > 0.9


def test_channels_and_rates_become_one(tmp_path):
    left, right = tone(0), tone(1)
    write(tmp_path / "stereo.wav", np.stack([left, right], axis=1))
    for rate in (11025, 44100):
        write(tmp_path / f"{rate}.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32), rate)
    source = open_source(tmp_path).at_rate(RATE)
    names = [r.path.rsplit("/", 1)[1] for r in source.recordings]
    np.testing.assert_allclose(source.read(names.index("stereo.wav")), (left + right) / 2, atol=1e-4)
    for rate in (11025, 44100):
        wave = source.read(names.index(f"{rate}.wav"))
        assert len(wave) == RATE
        assert np.abs(np.fft.rfft(wave)).argmax() == 440
        assert np.abs(wave[1000:-1000]).max() == pytest.approx(0.5, rel=0.01)


def test_faults_are_counted(tmp_path):
    speech_folder(tmp_path, 2, 10)
    (tmp_path / "word0" / "empty.wav").write_bytes(b"")
    (tmp_path / "word0" / "noise.wav").write_bytes(b"RIFF no recording at all")
    write(tmp_path / "word0" / "short.wav", tone(seconds=0.05))
    write(tmp_path / "word1" / "silent.wav", np.zeros(RATE, np.float32))
    source = open_source(tmp_path, DataConfig(max_skipped=0.3)).at_rate(RATE)
    assert len(source) == 21
    told = " ".join(f"{path} {reason}" for path, reason in source.skipped)
    for name, reason in (("empty", "empty file"), ("noise", "libsndfile"), ("short", "0.050 s")):
        assert name in told
        assert reason in told
    silent = next(i for i, r in enumerate(source.recordings) if "silent" in r.path)
    with pytest.raises(BadImage, match="silent"):
        source.read(silent)
    with AudioLoader(source, WaveViews(WavesConfig(), RATE), LengthOrder(source.lengths(), 21, 0), 0) as loader:
        batch = next(loader.iterate(0, 1))
    assert silent not in batch.index.tolist()
    assert any("silent" in path for path, _ in source.skipped)
    with pytest.raises(UserError, match="max_skipped"):
        open_source(tmp_path, DataConfig(max_skipped=0.01))


def test_what_is_long_is_cropped_not_dropped(tmp_path):
    t = np.arange(4 * RATE) / RATE
    for i in range(2):
        write(tmp_path / f"{i}.wav", (0.1 + 0.2 * t / 4).astype(np.float32))
    source = open_source(tmp_path, DataConfig(audio=AudioConfig(max_seconds=1.0))).at_rate(RATE)
    assert source.lengths().tolist() == [RATE, RATE]
    first, last = source.read(0), source.read(0, 0.999)
    assert len(first) == len(last) == RATE
    assert first[0] == pytest.approx(0.1, abs=1e-3)
    assert last[-1] == pytest.approx(0.3, abs=1e-3)


def test_manifests(tmp_path):
    speech_folder(tmp_path / "a", 2, 3)
    rows = [
        {"path": f"a/word{w}/{i}.wav", "label": f"w{w}", "letter": "x" if i else "", "text": f"say {w}", "fold": i}
        for w in range(2) for i in range(3)
    ]  # fmt: skip
    (tmp_path / "m.csv").write_text("\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)]))
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "m.tsv").write_text((tmp_path / "m.csv").read_text().replace(",", "\t"))
    (tmp_path / "excel.csv").write_text((tmp_path / "m.csv").read_text(), encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for name in ("m.csv", "m.jsonl", "m.tsv", "excel.csv", "m.parquet"):
        source = open_source(tmp_path / name)
        assert labels(source) == ["w0"] * 3 + ["w1"] * 3
        assert source.texts[4] == "say 1"
        assert source.recordings[5].fold == "2"
    other = open_source(tmp_path / "m.csv", DataConfig(audio=AudioConfig(label="letter")))
    assert labels(other) == [None, "x", "x"] * 2
    with pytest.raises(UserError, match="no such column"):
        open_source(tmp_path / "m.csv", DataConfig(audio=AudioConfig(label="colour")))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="no readable manifest"):
        open_source(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="column of paths"):
        open_source(tmp_path / "bad.csv")


def test_a_manifest_with_splits_gives_its_training_part(tmp_path):
    speech_folder(tmp_path, 2, 4)
    rows = [f"word{w}/{i}.wav,w{w},{'train' if i < 2 else ('val', 'test')[i - 2]}" for w in range(2) for i in range(4)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *rows]))
    assert [len(open_source(tmp_path / "m.csv", split=s)) for s in (None, "train", "val", "test")] == [4, 4, 2, 2]
    assert all(r.path.endswith(("0.wav", "1.wav")) for r in open_source(tmp_path / "m.csv").recordings)
    assert splits_of(tmp_path / "m.csv").validation == ("train", "val")


def test_librispeech(tmp_path):
    for subset in ("train-clean-100", "test-clean"):
        for speaker in ("19", "26"):
            folder = tmp_path / subset / speaker / "198"
            names = [f"{speaker}-198-000{i}" for i in range(2)]
            for name in names:
                write(folder / f"{name}.flac", tone(), 16000)
            (folder / f"{speaker}-198.trans.txt").write_text("".join(f"{name} HELLO IT'S ME\n" for name in names))
    assert layout_of(tmp_path) == "librispeech"
    assert splits_of(tmp_path).names == ("test-clean", "train-clean-100")
    source = open_source(tmp_path, split="test-clean")
    assert labels(source) == ["19", "19", "26", "26"]
    assert source.texts == ["HELLO IT'S ME"] * 4
    training = open_source(tmp_path)
    assert all("train-clean-100" in r.path for r in training.recordings)  # no test part in training
    assert len(training) == 4
    assert len(open_source(tmp_path / "test-clean")) == 4  # the part itself, where it is named


def test_speech_commands(tmp_path):
    for word in ("yes", "no", "_background_noise_"):
        for i in range(3):
            write(tmp_path / word / f"abc{i}_nohash_0.wav", tone(), 16000)
    (tmp_path / "validation_list.txt").write_text("yes/abc1_nohash_0.wav\nno/abc1_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/abc2_nohash_0.wav\nno/abc2_nohash_0.wav\n")
    found = {split: open_source(tmp_path, split=split) for split in ("train", "val", "test")}
    for number, split in enumerate(found):
        assert labels(found[split]) == ["no", "yes"]
        assert all(f"abc{number}" in r.path for r in found[split].recordings)
        assert found[split].recordings[0].speaker == f"abc{number}"
    assert splits_of(tmp_path).evaluation == ("train", "test")


def test_voxceleb(tmp_path):
    for speaker in ("id10001", "id10002"):
        for video in ("aBc", "dEf"):
            write(tmp_path / "wav" / speaker / video / "00001.wav", tone(), 16000)
    assert labels(open_source(tmp_path)) == ["id10001"] * 2 + ["id10002"] * 2


def test_voxceleb_is_trained_on_dev(tmp_path):
    for part, speaker in (("dev", "id10001"), ("dev", "id10002"), ("test", "id10270")):
        for video in ("aBc", "dEf"):
            write(tmp_path / part / "wav" / speaker / video / "00001.wav", tone(), 16000)
    assert labels(open_source(tmp_path)) == ["id10001"] * 2 + ["id10002"] * 2
    assert labels(open_source(tmp_path, split="test")) == ["id10270"] * 2


def test_iemocap(tmp_path):
    for session, lines in (("1", "neu exc fru"), ("2", "ang sad hap")):
        dialogue = f"Ses0{session}F_impro01"
        table = tmp_path / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        table.parent.mkdir(parents=True)
        rows = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"]
        for i, emotion in enumerate(lines.split()):
            name = f"{dialogue}_{'FM'[i % 2]}00{i}"
            rows.append(f"[6.29 - 8.23]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]")
            write(tmp_path / f"Session{session}" / "sentences" / "wav" / dialogue / f"{name}.wav", tone(), 16000)
        table.write_text("\n".join(rows))
    source = open_source(tmp_path)
    assert labels(source) == ["neutral", "happy", "angry", "sad", "happy"]
    assert [r.fold for r in source.recordings] == ["Session1"] * 2 + ["Session2"] * 3
    assert source.recordings[1].speaker == "Ses01M"
    by_speaker = open_source(tmp_path, DataConfig(audio=AudioConfig(fold="speaker", label="speaker")))
    assert by_speaker.folds == ["Ses01F", "Ses01M", "Ses02F", "Ses02M", "Ses02F"]
    assert labels(by_speaker) == by_speaker.folds
    for option in ("fold", "label"):
        with pytest.raises(UserError, match=rf"audio\.{option} colour .* can be speaker"):
            open_source(tmp_path, DataConfig(audio=AudioConfig(**{option: "colour"})))


def test_batches_hold_like_lengths_and_every_recording_once():
    lengths = np.random.default_rng(0).integers(100, 10000, 1000)
    order = LengthOrder(lengths, 10, 3)
    epoch = np.concatenate([order.indices(step) for step in range(100)])
    assert sorted(epoch.tolist()) == list(range(1000))
    spread = np.mean([np.ptp(lengths[order.indices(step)]) for step in range(100)])
    assert spread < 0.2 * np.ptp(lengths)
    assert np.array_equal(order.indices(150), LengthOrder(lengths, 10, 3).indices(150))
    assert not np.array_equal(order.indices(0), order.indices(100))


def test_batches_of_one_speaker():
    rng = np.random.default_rng(0)
    speakers = np.repeat([0, 1, 2, 3, -1], [300, 200, 45, 5, 50])
    lengths = rng.integers(100, 10000, 600)
    order = LengthOrder(lengths, 10, 3, speakers=speakers)
    epoch = np.stack([order.indices(step) for step in range(60)])
    assert sorted(epoch.flatten().tolist()) == list(range(600))
    lone = [len(set(speakers[rows].tolist())) == 1 for rows in epoch]
    assert sum(lone) >= 60 - 4  # where one speaker ends and the next begins
    assert len({tuple(speakers[rows[:1]]) for rows in epoch[:10]}) > 1  # speakers take turns
    mixed = LengthOrder(lengths, 10, 3)
    assert sum(len(set(speakers[mixed.indices(step)].tolist())) == 1 for step in range(60)) < 20
    assert not np.array_equal(order.indices(0), order.indices(60))
    assert np.array_equal(order.indices(75), LengthOrder(lengths, 10, 3, speakers=speakers).indices(75))


def test_a_pause_in_a_longer_recording_is_not_silence(tmp_path):
    wave = np.concatenate([np.zeros(2 * RATE, np.float32), tone(0, seconds=0.5), np.zeros(2 * RATE, np.float32)])
    clip = Recording(str(write(tmp_path / "long.wav", wave)))
    source = AudioSource([clip], DataConfig(audio=AudioConfig(max_seconds=0.4)), "one").at_rate(RATE)
    for place in (0.0, 0.5, 0.99):
        part = source.read(0, place)
        assert len(part) == int(0.4 * RATE)
        assert np.abs(part).max() > 0.05
    silent = Recording(str(write(tmp_path / "silent.wav", np.zeros(RATE, np.float32))))
    with pytest.raises(BadRecording, match="silent"):
        AudioSource([silent], DataConfig(audio=AudioConfig(max_seconds=0.4)), "none").read(0)


def test_no_batch_holds_two_of_a_group():
    rng = np.random.default_rng(0)
    groups = rng.integers(-1, 60, 500)
    order = LengthOrder(rng.integers(100, 10000, 500), 32, 0, groups)
    seen = set()
    for step in range(15):
        rows = order.indices(step)
        known = groups[rows][groups[rows] >= 0]
        assert len(set(rows.tolist())) == 32
        assert len(set(known.tolist())) == len(known)
        seen |= set(rows.tolist())
    assert len(seen) > 400
    with pytest.raises(UserError, match="distinct"):
        LengthOrder(np.ones(100, np.int64), 32, 0, np.arange(100) % 20)


def test_a_step_does_not_depend_on_ranks_or_on_where_it_started(tmp_path):
    source = open_source(speech_folder(tmp_path)).at_rate(RATE)
    views, order = WaveViews(WavesConfig(), RATE), LengthOrder(source.lengths(), 8, 5)
    whole = list(AudioLoader(source, views, order, 5).iterate(0, 4))[3]
    assert torch.equal(whole.labels, torch.from_numpy(source.labels)[whole.index])
    for rank in range(2):
        part = next(AudioLoader(source, views, order, 5, rank, 2).iterate(3, 4))
        rows = slice(4 * rank, 4 * rank + 4)
        assert torch.equal(part.index, whole.index[rows])
        width = part.examples.samples.shape[1]
        assert torch.equal(part.examples.samples, whole.examples.samples[rows, :width])
        for a, b in zip(part.draws, whole.draws, strict=True):
            assert torch.equal(a.gain, b.gain[rows])


def test_facts_say_that_it_is_audio(tmp_path):
    source = open_source(speech_folder(tmp_path))
    facts = source.facts()
    assert (facts.kind, facts.count, facts.classes, facts.sample_rate) == ("audio", 24, 3, RATE)
    assert len(read_folder(tmp_path / "word0", 16000)) == 8
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no recordings"):
        read_folder(tmp_path / "none", 16000)


@pytest.mark.parametrize(("name", "reason"), [("silent", "silent"), ("cut", "decoded"), ("text", "libsndfile")])
def test_a_bad_file_of_noise_is_named(tmp_path, name, reason):
    write(tmp_path / "good.wav", tone())
    path = write(tmp_path / f"{name}.flac", np.zeros(RATE, np.float32) if name == "silent" else tone(seconds=4))
    if name == "cut":
        path.write_bytes(path.read_bytes()[:9000])
    if name == "text":
        path.write_text("no recording at all")
    with pytest.raises(UserError, match=rf"--waves\.noises.*{name}\.flac.*{reason}"):
        read_folder(tmp_path, RATE)
    with pytest.raises(UserError, match=r"^--waves\.responses:"):
        read_folder(tmp_path, RATE, "--waves.responses")


@pytest.mark.parametrize("option", [{"background": "red"}, {"jpeg_draft": True}, {"orient": False}, {"max_pixels": 9}])
def test_options_of_images_are_refused(tmp_path, option):
    speech_folder(tmp_path, 2, 2)
    with pytest.raises(UserError, match=rf"--data\.{next(iter(option))} .* the data are recordings"):
        open_source(tmp_path, DataConfig(**option))
    with pytest.raises(UserError, match=r"--data\.channels or the encoder asks for 3"):
        open_source(tmp_path, DataConfig(channels=3))


def test_options_of_audio_are_refused_for_images():
    with pytest.raises(UserError, match=r"--data\.audio\.fold speaker is for recordings, and the data are images"):
        open_source(np.zeros((4, 8, 8, 3), np.uint8), DataConfig(audio=AudioConfig(fold="speaker")))


def test_how_many_decoded_recordings_are_kept(tmp_path, monkeypatch):
    speech_folder(tmp_path, 2, 4)
    some = 2e-5  # GiB: five clips or so
    kept = {}
    for cache, room in (("off", 2.0), ("auto", 2.0), ("auto", some), ("ram", some)):
        source = open_source(tmp_path, DataConfig(cache=cache, cache_gb=room)).at_rate(RATE)
        for index in range(8):
            source.read(index)
        kept[cache, room] = len(source._cache)
    assert kept["off", 2.0] == 0
    assert kept["auto", 2.0] == kept["ram", some] == 8
    assert 0 < kept["auto", some] < 8
    monkeypatch.setattr("twofold.data.sources.audio.available_memory", lambda: 40_000)
    with pytest.raises(UserError, match=r"--data\.cache ram: .* use --data\.cache auto"):
        open_source(tmp_path, DataConfig(cache="ram"))
    assert len(open_source(tmp_path, DataConfig())) == 8


def test_a_source_is_data_like_any_other(tmp_path):
    source = open_source(speech_folder(tmp_path, 2, 2))
    assert open_source(source) is source
    assert splits_of(source).names == ()
    assert source.path(0).endswith("word0/0.wav")


@pytest.mark.parametrize("rate", [RATE, RATE // 2])
def test_long_recordings_are_decoded_once_and_cut_to_the_same_parts(tmp_path, monkeypatch, rate):
    """Also where the part is silent, and the one around the loudest sample is read."""
    wave = tone(seconds=3.0)
    wave[: len(wave) // 2] = 0
    clip = Recording(str(write(tmp_path / "a.wav", wave)))
    sources = {
        cache: AudioSource([clip], DataConfig(cache=cache, audio=AudioConfig(max_seconds=0.4)), "one").at_rate(rate)
        for cache in ("off", "auto")
    }
    decoded = []
    monkeypatch.setattr(audio, "_decode", lambda *a, f=audio._decode: decoded.append(a) or f(*a))
    places = (0.0, 0.1, 0.5, 0.77, 0.999)
    read = [sources["off"].read(0, place) for place in places]
    decoded.clear()
    for place, part in zip(places, read, strict=True):
        assert np.array_equal(sources["auto"].read(0, place), part)
        assert len(part) == 0.4 * rate
    assert len(decoded) == 1
