"""Error rates of verification against counting by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sound_files import tone, write
from twofold.commands.evaluate import evaluate
from twofold.data import DataConfig, open_source
from twofold.data.config import AudioConfig
from twofold.encoders import SpeechEncoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.protocols.verification import (
    SpeakerVerification,
    all_pairs,
    detection_cost,
    equal_error_rate,
    read_trials,
)


def by_hand(scores, same):
    """The mean of misses and false alarms at the threshold where they differ least."""
    found = []
    for threshold in [*scores, np.inf]:
        miss = np.mean(scores[same] < threshold)
        alarm = np.mean(scores[~same] >= threshold)
        found.append((abs(miss - alarm), (miss + alarm) / 2))
    return min(found)[1]


def test_equal_error_rate():
    same = np.array([True] * 4 + [False] * 4)
    assert equal_error_rate(np.array([9, 8, 7, 6, 4, 3, 2, 1.0]), same) == 0
    assert equal_error_rate(np.array([1, 2, 3, 4, 6, 7, 8, 9.0]), same) == 1
    assert equal_error_rate(np.array([9, 8, 7, 1, 6, 3, 2, 0.0]), same) == pytest.approx(0.25)
    assert equal_error_rate(np.ones(8), same) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    same = rng.random(2000) < 0.3
    scores = rng.normal(0, 1, 2000) + same
    assert equal_error_rate(scores, same) == pytest.approx(by_hand(scores, same), abs=0.003)


def test_detection_cost():
    same = np.array([True] * 4 + [False] * 4)
    assert detection_cost(np.array([9, 8, 7, 6, 4, 3, 2, 1.0]), same) == 0
    assert detection_cost(np.ones(8), same) == pytest.approx(1)
    # One impostor on top: accepting half of the right ones costs a quarter of all impostors, too dear at 1 %.
    assert detection_cost(np.array([8, 7, 3, 2, 9, 1, 1, 0.0]), same) == pytest.approx(1)
    assert detection_cost(np.array([8, 7, 3, 2, 5, 1, 1, 0.0]), same) == pytest.approx(0.5)


def test_pairs():
    h = np.array([[1, 0], [0.9, 0.1], [-1, 0], [-0.9, -0.1]], np.float32)
    scores, same = all_pairs(h, np.array([0, 0, 1, 1]))
    assert len(scores) == 6
    assert same.tolist() == [True, False, False, False, False, True]
    assert scores[same].min() > 0.9
    assert scores[~same].max() < -0.9


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """VoxCeleb's layout: three voices with four clips each, of which each says another word."""
    root = tmp_path_factory.mktemp("voxceleb")
    for voice in range(3):
        for i in range(4):
            clip = tone(i, 4 * voice, 0.4, seed=10 * voice + i)
            write(root / "wav" / f"id1000{voice}" / f"video{i // 2}" / f"0000{i % 2}.wav", clip)
    return root


def encoder():
    torch.manual_seed(0)
    return SpeechEncoder(8000, 20, 60.0, width=16, layers=1, heads=2, hidden=32, dropout=0.0, cmvn="none")


def verify(model, source, trials=None):
    config = SpeakerVerification.Config(trials=None if trials is None else str(trials))
    return SpeakerVerification(config).evaluate(model, source)


def trials(folder, *lines):
    path = folder / "trials.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


SAME = "1 id10000/video0/00000.wav id10000/video1/00001.wav"
OTHER = "0 id10000/video0/00000.wav id10002/video0/00001.wav"


def test_a_list_of_trials(voices, tmp_path):
    source = open_source(voices, DataConfig())
    path = trials(tmp_path, SAME, OTHER)
    known, pairs = read_trials(path, source)
    assert [source.path(i).split("/wav/")[1] for i in known] == [
        "id10000/video0/00000.wav", "id10000/video1/00001.wav", "id10002/video0/00001.wav",
    ]  # fmt: skip
    assert pairs.tolist() == [[1, 0, 1], [0, 0, 2]]
    found = verify(encoder(), source, trials=str(path))
    assert (found.pairs, found.utterances, found.speakers) == (2, 3, 2)
    assert found.baseline_eer in (0, 1)
    assert "2 of 2 trials of trials.txt" in found.words
    swapped = verify(encoder(), source, trials=trials(tmp_path, "0" + SAME[1:], "1" + OTHER[1:]))
    assert (swapped.eer, swapped.baseline_eer) == (1 - found.eer, 1 - found.baseline_eer)


def test_all_pairs_are_all_trials(voices, tmp_path):
    source = open_source(voices, DataConfig())
    names = [source.path(i).split("/wav/")[1] for i in range(len(source))]
    lines = [f"{int(a[:7] == b[:7])} {a} {b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    listed, every = verify(encoder(), source, trials=trials(tmp_path, *lines)), verify(encoder(), source)
    assert (listed.eer, listed.min_dcf, listed.baseline_eer) == pytest.approx(
        (every.eer, every.min_dcf, every.baseline_eer)
    )
    assert (listed.pairs, listed.utterances, listed.speakers) == (every.pairs, every.utterances, every.speakers)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["2 a b"], "the line '2 a b'"),
        (["1 a"], "the line '1 a'"),
        ([], "it is empty"),
        ([SAME, "0 id10000/video0/00000.wav id99999/video0/00000.wav"], "there is no id99999"),
        (["1 00000.wav id10000/video0/00001.wav"], "several files end in 00000.wav"),
    ],
)
def test_lists_that_do_not_fit(voices, tmp_path, lines, told):
    with pytest.raises(UserError, match=f"--trials .*{told}"):
        read_trials(trials(tmp_path, *lines), open_source(voices, DataConfig()))
    with pytest.raises(UserError, match="cannot be read"):
        read_trials(tmp_path / "none.txt", open_source(voices, DataConfig()))


def test_a_file_that_breaks_takes_its_trials_along(tmp_path):
    write(tmp_path / "wav" / "id10000" / "v" / "0.wav", tone())
    write(tmp_path / "wav" / "id10000" / "v" / "1.wav", tone(1))
    write(tmp_path / "wav" / "id10001" / "v" / "0.wav", tone(0, 8))
    write(tmp_path / "wav" / "id10001" / "v" / "silent.wav", np.zeros(4000, np.float32))
    path = trials(tmp_path, "1 id10000/v/0.wav id10000/v/1.wav", "0 id10000/v/0.wav id10001/v/0.wav",
                  "1 id10001/v/0.wav id10001/v/silent.wav")  # fmt: skip
    found = verify(encoder(), open_source(tmp_path, DataConfig(max_skipped=0.5)), trials=str(path))
    assert found.pairs == 2
    assert "2 of 3 trials" in found.words


def test_speakers_are_compared_where_the_data_name_them(tmp_path):
    rows = ["path,label,speaker"]
    for i in range(12):
        write(tmp_path / f"{i}.wav", tone(i % 3, 4 * (i // 6), 0.4, seed=i))
        rows.append(f"{i}.wav,word{i % 3},voice{i // 6}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = verify(encoder(), open_source(tmp_path / "m.csv", DataConfig()))
    assert found.speakers == 2
    assert "speakers as the data name them" in found.words
    words = verify(encoder(), open_source(tmp_path / "m.csv", DataConfig(audio=AudioConfig(label="label"))))
    assert words.speakers == 3


def test_the_command_takes_trials(voices, tmp_path):
    save_encoder(tmp_path / "encoder.safetensors", encoder())
    (tmp_path / "config.yaml").write_text("options: {}\n")
    path = trials(tmp_path, SAME, OTHER)
    told = evaluate(tmp_path, voices, protocol="verification", trials=str(path))
    assert json.loads(told.file.read_text())["pairs"] == 2
    with pytest.raises(UserError, match=r"--trials .* has no effect with --protocol linear: .* choose verification"):
        evaluate(tmp_path, voices, trials=str(path))
