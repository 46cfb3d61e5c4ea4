"""Recognition: decoding against every path there is, error rates, what is left out, and learning two tones' names."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from sound_files import tone, write
from twofold.commands.evaluate import evaluate
from twofold.data import AudioSource, DataConfig, open_source
from twofold.data.sources.audio import Recording
from twofold.encoders import SpeechEncoder, save_encoder
from twofold.encoders.audio.encoder import baseline_of
from twofold.errors import UserError
from twofold.evaluation.frozen import tensor_digests
from twofold.evaluation.protocols.ctc import (
    Ctc,
    CtcConfig,
    clean_text,
    enough_steps,
    error_rates,
    fitting,
    split_by_text,
)
from twofold.evaluation.protocols.decoding import beam_search, best_path, collapse

WORDS = ("ba", "abb", "b a")


def by_every_path(log_probs):
    """The likeliest text, adding up all V ** T paths."""
    totals = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        chance = np.exp(sum(log_probs[t, k] for t, k in enumerate(path)))
        text = collapse(list(path))
        totals[text] = totals.get(text, 0) + chance
    return max(totals, key=totals.get)


def recognise(model, train, test=None, ctc=None, **options):
    return Ctc(Ctc.Config(ctc=ctc or CtcConfig(), **options)).evaluate(model, train, test)


def test_a_path_becomes_a_text():
    assert collapse([0, 1, 1, 0, 1, 2, 2, 0]) == (1, 1, 2)
    assert collapse([0, 0]) == ()


def test_a_wide_beam_finds_what_all_paths_together_say():
    rng = np.random.default_rng(0)
    differ = 0
    for _ in range(60):
        log_probs = np.log(rng.dirichlet(np.ones(3), size=5))
        expected = by_every_path(log_probs)
        assert beam_search(log_probs, 1000) == expected
        differ += best_path(log_probs) != expected
    assert differ > 5  # the best path is not always the best text: the search does something


def test_one_beam_is_no_search_but_a_text():
    log_probs = np.log(np.array([[0.6, 0.4, 0.0001], [0.6, 0.4, 0.0001]]) / 1.0001)
    assert best_path(log_probs) == ()  # 0.36 for two blanks; 0.64 in all for the symbol 1
    assert beam_search(log_probs, 10) == (1,)


def test_error_rates_are_of_the_whole_set():
    wer, cer = error_rates(["a b c d", "e"], ["a x c d", ""])
    assert wer == pytest.approx(2 / 5)
    assert cer == pytest.approx(2 / 8)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three texts of two tones each, in different voices; a text with a digit, none, and a long one."""
    root = tmp_path_factory.mktemp("said")
    lines = ["path,text"]
    for i in range(36):
        word = WORDS[i % 3]
        parts = [
            tone({"a": 0, "b": 3}[c], i % 4, 0.25, seed=i) if c != " " else np.zeros(1600, np.float32) for c in word
        ]
        write(root / f"{i}.wav", np.concatenate(parts))
        lines.append(f"{i}.wav,{word.upper()}")
    for name, text, seconds in (("digit", "press 1", 0.5), ("silent", "", 0.5), ("long", "ab", 3.0)):
        write(root / f"{name}.wav", tone(seconds=seconds))
        lines.append(f"{name}.wav,{text}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


def small():
    torch.manual_seed(0)
    return SpeechEncoder(8000, 20, 60.0, width=32, layers=1, heads=2, hidden=32, cmvn="utterance_mean", dropout=0.0)


def test_texts_that_cannot_be_learned_are_counted(manifest):
    config = DataConfig()
    source = open_source(manifest, config)
    object.__setattr__(source.config.audio, "max_seconds", 2.0)
    reasons = {}
    assert len(fitting(source, "training", reasons)) == 36
    assert list(reasons.values()) == [1, 1, 1]
    assert clean_text("  E\u0301t\u2019S  ") == "ét's"


def test_a_text_needs_a_step_a_character_and_a_blank_between_equal_ones(tmp_path):
    encoder = SpeechEncoder(8000, 20, 60.0, width=16, layers=1, heads=2, hidden=16, stack=3)
    # 0.1 s are 8 frames of 25 ms, which are 3 steps of 3.
    clips = [Recording(str(write(tmp_path / f"{i}.wav", tone(seconds=0.1))), text=t) for i, t in enumerate(
        ("abc", "abcd", "aa", "aab"))]  # fmt: skip
    assert enough_steps(AudioSource(clips, DataConfig(), "short"), encoder).tolist() == [True, False, True, False]
    assert enough_steps(AudioSource(clips, DataConfig(), "short"), baseline_of(encoder)).all()


def test_texts_that_no_path_can_say_are_left_out_of_training_and_count_as_wrong(manifest, tmp_path):
    source = open_source(manifest, DataConfig())
    long = Recording(str(write(tmp_path / "hurried.wav", tone(seconds=0.15))), text="a b " * 10)
    parts = [AudioSource([*source.recordings[a:b], long], DataConfig(), "x") for a, b in ((0, 12), (24, 36))]
    found = recognise(small(), *parts, CtcConfig(epochs=1))
    assert found.train == 12
    assert found.left_out == {"training with more characters in the text than the encoder has steps": 1}
    assert found.test == 13
    assert "1 test text has more characters than the encoder has steps, and counts as wrong" in found.words


def test_few_texts(manifest, tmp_path):
    source = open_source(manifest, DataConfig())
    train, test = source.subset(np.arange(24)), source.subset(np.arange(24, 36))
    whole = recognise(small(), train, test, CtcConfig(epochs=1))
    assert "all 24 training texts" in whole.words
    assert "  " not in whole.words
    found = {}
    for wanted, count in (("25%", 6), ("5", 5)):
        found[wanted] = recognise(small(), train, test, CtcConfig(epochs=1), labels=wanted, draw=1)
        assert found[wanted].train == count
        assert f"{count} of 24 training texts ({wanted}; seed 0, draw 1)" in found[wanted].words
    assert found["25%"].cer != whole.cer
    (tmp_path / "list.txt").write_text("3.wav\n4.wav\n5.wav\n")
    assert recognise(small(), train, test, CtcConfig(epochs=1), labels=str(tmp_path / "list.txt")).train == 3
    with pytest.raises(UserError, match="texts have no classes"):
        recognise(small(), train, test, labels="4/class")


def test_no_text_is_in_both_parts(manifest):
    source = open_source(manifest, DataConfig())
    first, second = split_by_text(source, 0.4, 0)
    assert len(first) + len(second) == len(source)
    assert not {t for t in first.texts if t} & set(second.texts)
    with pytest.raises(UserError, match="texts are needed"):
        split_by_text(AudioSource([Recording(source.recordings[0].path)], DataConfig(), "x"), 0.4, 0)


@pytest.mark.parametrize("tune", [False, True])
def test_a_recogniser_learns_names_of_tones(manifest, tune):
    source = open_source(manifest, DataConfig())
    part = source.subset(np.arange(36))
    train, test = part.subset(np.arange(24)), part.subset(np.arange(24, 36))
    encoder = small()
    before = tensor_digests(encoder)
    config = CtcConfig(epochs=60, lr=0.05, tune=tune, tune_lr=1e-3, beam=4 if tune else 1, batch=8)
    found = recognise(encoder, train, test, config)
    assert tensor_digests(encoder) == before  # a copy is tuned
    assert found.characters == " ab"
    assert found.cer < 0.35
    assert found.baseline_cer < 0.7
    again = recognise(encoder, train, test, config)
    assert again == found
    assert found != recognise(encoder, train, test, CtcConfig(epochs=1, batch=8))


def test_the_command_writes_what_it_found(manifest, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save_encoder(run / "encoder.safetensors", small())
    (run / "config.yaml").write_text("options: {}\n")
    assert evaluate(run, manifest, protocol="ctc", ctc={"epochs": 1}, held_out=0.3, labels="5").train == 5
    told = evaluate(run, manifest, protocol="ctc", ctc={"epochs": 1}, held_out=0.3, device="cpu")
    found = json.loads(told.file.read_text())
    assert found["wer"] == told.wer
    assert "filterbank alone: WER" in told.text()
    assert found["left_out"]


def test_images_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 1), np.uint8), labels=np.arange(4))
    with pytest.raises(UserError, match="holds images, and the encoder takes recordings"):
        recognise(small(), open_source(tmp_path / "x.npz", DataConfig()))
    with pytest.raises(UserError, match=r"--ctc\.beam"):
        CtcConfig(beam=0)
