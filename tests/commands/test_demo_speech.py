"""The speech demo on a few generated clips in the packages' places; on the real ones where they are installed."""

from __future__ import annotations

import csv
import gzip
import json
from importlib.resources import files

import numpy as np
import pytest

from sound_files import tone, write
from twofold import cli
from twofold.commands.demos import keywords
from twofold.commands.demos.speech import (
    DRAWS,
    SOUNDS,
    held_out_voices,
    recordings,
    spoken_parts,
    synthetic,
    unseen_voices,
    with_babble,
)
from twofold.data import AudioSource, DataConfig
from twofold.data.sources.audio import Recording
from twofold.encoders.audio.encoder import FilterbankEncoder
from twofold.errors import UserError

LANGUAGES = ("en", "es", "fr")
needs_espeak = pytest.mark.skipif(not keywords.available(), reason="espeak-ng is not installed")


def listed():
    text = gzip.decompress(files("twofold.commands.demos").joinpath("asterisk.csv.gz").read_bytes()).decode()
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four letters in three voices, and two prompts of each voice that belong to no task."""
    root = tmp_path_factory.mktemp("sounds")
    rows = [row for row in listed() if row["language"] in LANGUAGES]
    for voice, language in enumerate(LANGUAGES):
        own = [row for row in rows if row["language"] == language]
        letters = [row for row in own if row["letter"] in "abcd" and row["letter"]]
        others = [row for row in own if not (row["letter"] or row["number"] or row["spelled_letter"])][:2]
        for i, row in enumerate(letters + others):
            write(root / row["path"], tone("abcd".find(row["letter"]) % 5, 3 * voice, 0.5, seed=i))
    return root


@pytest.fixture
def few_words(monkeypatch):
    """Three words and another one, by eight voices."""
    monkeypatch.setattr(keywords, "WORDS", ("yes", "no", "seven"))
    monkeypatch.setattr(keywords, "OTHERS", ("house",))
    monkeypatch.setattr(keywords, "VARIANTS", ("adam", "f1", "f2", "m1", "m2", "linda", "klatt2", "max"))


@pytest.mark.parametrize("spoken", [False, pytest.param(True, marks=needs_espeak)])
@pytest.mark.usefixtures("few_words")
def test_the_demo_compares_five_ways(spoken, monkeypatch, clips, tmp_path, capsys):
    if not spoken:
        monkeypatch.setattr(keywords, "PROGRAM", "no-such-program")
    out = tmp_path / "demo"
    words = ["demo-speech", str(clips), "--out", str(out), "--seeds", "2", "--epochs", "1"]
    words += ["--ablation", "true"] * (not spoken)
    assert cli.main(words) == 0, capsys.readouterr().err
    found = json.loads((out / "demo-speech.json").read_text())
    ways = [
        "filterbank, mean and deviation",
        "filterbank",
        "untrained",
        "contrastive only",
        "reconstruction only",
        "both",
    ]
    ways += [f"{way}, clean waves" for way in ways[3:]] * (not spoken)
    assert list(found["accuracy"]) == ways
    for way in ways:
        tasks = ["letters", "keywords"][: 1 + spoken]
        assert list(found["accuracy"][way]) == [f"{t}{what}" for t in tasks for what in ("", ", 1 label", ", noise")]
        for name, values in found["accuracy"][way].items():
            rounds = DRAWS if name.startswith("keywords") else len(LANGUAGES)
            assert np.shape(values) == (1 if way.startswith("filterbank") else 2, rounds)
            assert np.min(values) >= 0
            assert np.max(values) <= 1
    assert found["clips"] == 18 + spoken * 4 * 4
    told = capsys.readouterr().out
    assert "contrastive only" in told
    assert ("is not installed: keywords" in told) != spoken
    assert cli.main(words) == 2
    assert "already holds a demo; continue it with --resume" in capsys.readouterr().err


@needs_espeak
@pytest.mark.usefixtures("few_words")
def test_words_are_spoken_once_and_half_of_the_voices_are_kept_apart(tmp_path):
    heard, task = synthetic(tmp_path / "words")
    assert {clip.label for clip in heard} == {"yes", "no", "seven", "house"}
    assert task.source.classes == ["no", "seven", "yes"]
    unseen = set(task.voices[task.unseen])
    assert len(unseen) == 4
    assert unseen.isdisjoint({clip.speaker for clip in heard})
    waves = [task.source.read(i) for i in range(len(task.source))]
    assert all(0.2 < len(wave) / 8000 < 2 and np.abs(wave).max() > 0.05 for wave in waves)
    assert len({wave.tobytes() for wave in waves}) == 24  # every voice is another one
    made = sorted((tmp_path / "words").iterdir())
    assert len(made) == 32
    before = [path.stat().st_mtime_ns for path in made]
    made[0].unlink()
    synthetic(tmp_path / "words")
    assert made[0].exists()
    assert [path.stat().st_mtime_ns for path in made[1:]] == before[1:]


def test_without_the_program_the_words_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(keywords, "PROGRAM", "no-such-program")
    with pytest.raises(UserError, match="apt-get install"):
        keywords.speak(tmp_path, 8000)


def test_unseen_voices_are_tested_whoever_taught():
    labels, voices = np.tile(np.arange(4), 6), np.repeat(list("abcxyz"), 4)
    unseen = np.isin(voices, list("xyz"))
    telling = np.eye(4, dtype=np.float32)[labels]
    assert unseen_voices(telling, telling, labels, voices, unseen, 1) == [1] * DRAWS
    wrong = np.where(unseen[:, None], np.roll(telling, 1, axis=1), telling)
    assert unseen_voices(wrong, wrong, labels, voices, unseen, 2) == [0] * DRAWS
    private = np.concatenate([telling[:4], np.roll(telling[:4], 1, 0), np.roll(telling[:4], 2, 0), telling[12:]])
    found = unseen_voices(private, private, labels, voices, unseen, 1)
    assert set(found) == {0.0, 1.0}  # only who was taught by a can be understood


def test_the_tasks_hold_what_every_voice_says(clips):
    corpus, (task,) = recordings(clips)
    assert len(corpus) == 18
    assert task.source.classes == ["a", "b", "c", "d"]
    assert sorted(set(task.voices)) == list(LANGUAGES)
    assert len(task.source) == 12


def test_a_voice_is_tested_on_what_others_taught():
    rng = np.random.default_rng(0)
    labels, voices = np.tile(np.arange(4), 3), np.repeat(["x", "y", "z"], 4)
    telling = np.eye(4, dtype=np.float32)[labels] + rng.normal(0, 0.01, (12, 4)).astype(np.float32)
    assert held_out_voices(telling, telling, labels, voices) == [1, 1, 1]
    assert held_out_voices(telling, telling, labels, voices, single=True) == [1, 1, 1]
    assert held_out_voices(telling, telling[::-1], labels, voices) == [0, 0, 0]
    own = np.concatenate([telling[:4], np.roll(telling[4:8], 1, axis=0), np.roll(telling[8:], 2, axis=0)])
    assert held_out_voices(own, own, labels, voices) == [0, 0, 0]  # each voice has a code of its own


def test_babble_has_the_ratio_asked_for(clips):
    corpus, _ = recordings(clips)
    wave = corpus.read(0)
    added = with_babble(wave, corpus, 0, 5.0) - wave
    assert 10 * np.log10(np.mean(wave**2) / np.mean(added**2)) == pytest.approx(5.0, abs=0.1)
    assert np.array_equal(with_babble(wave, corpus, 0, 5.0) - wave, added)


def test_what_is_spoken_is_read_in_order_and_silence_is_not(tmp_path):
    first, second = tone(0, seconds=0.3), tone(3, seconds=0.3)
    quiet = np.zeros(4000, np.float32)
    quiet[0::2] = 1e-4  # not digital silence, far below the words
    sounds = {"ab": [first, second], "ba": [second, first], "ab late": [quiet, first, second, quiet]}
    clips = [Recording(str(write(tmp_path / f"{name}.wav", np.concatenate(parts)))) for name, parts in sounds.items()]
    source, bank = AudioSource(clips, DataConfig(), "sounds"), FilterbankEncoder(8000, 40, 60.0)
    for parts in (0, 2):
        ab, ba, late = spoken_parts(bank, source, parts=parts)
        assert len(ab) == 80
        assert np.abs(ab - late).mean() < 0.15 * np.abs(ab - ab.mean()).mean()
        assert (np.abs(ab - ba).mean() < 0.1) == (parts == 0)  # mean and deviation know no order


def test_missing_recordings_are_named(tmp_path):
    with pytest.raises(UserError, match="apt-get install"):
        recordings(tmp_path)


@pytest.mark.skipif(not (SOUNDS / "en_US_f_Allison").is_dir(), reason="asterisk-core-sounds-*-wav are not installed")
def test_the_real_recordings_are_all_there():
    corpus, tasks = recordings(SOUNDS)
    assert len(corpus) > 500
    assert {task.name for task in tasks} >= {"letters", "numbers"} or len({r.label for r in corpus.recordings}) < 5
