"""What recognition, verification and ImageNet's protocol were told reaches what they train, read and count."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asked import Asked
from sound_files import RATE, tone, write
from twofold.data import ArraySource, AudioSource, BadImage, DataConfig, open_source
from twofold.encoders import EncoderConfig, SpeechEncoder, adapt, build_encoder, load_encoder, load_head, save_encoder
from twofold.encoders.composed import EncoderWithClassifier
from twofold.evaluation.features import Extractor, Pixels
from twofold.evaluation.parts import Parts
from twofold.evaluation.protocols import ctc, verification
from twofold.evaluation.protocols.ctc import Ctc, CtcConfig
from twofold.evaluation.protocols.imagenet import AS_PUBLISHED, ImageNet
from twofold.evaluation.protocols.recogniser import Reader, Reading, readable
from twofold.evaluation.protocols.verification import SpeakerVerification, all_pairs
from twofold.evaluation.scores import score
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.randomness import permutation

WORDS = ("ba", "ab b", "a", "bb")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 recordings of four texts by three speakers, in three sessions; and one without a text."""
    root = tmp_path_factory.mktemp("said")
    lines = ["path,text,speaker,session"]
    for i in range(24):
        write(root / f"{i:02}.wav", tone(i % 4, i % 3, 0.3 + 0.02 * (i % 5), seed=i))
        lines.append(f"{i:02}.wav,{WORDS[i % 4]},s{i % 3},t{i % 4}")
    write(root / "silent.wav", tone(seconds=0.4))
    (root / "list.csv").write_text("\n".join([*lines, "silent.wav,,s0,t0"]) + "\n")
    return root / "list.csv"


def source_of(said: Path, **options: Any) -> AudioSource:
    source = open_source(said, DataConfig(**options))
    assert isinstance(source, AudioSource)
    return source.at_rate(RATE)


def small() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(RATE, 13, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="utterance_mean", dropout=0.0)


def test_a_recogniser_is_trained_and_read_as_it_was_told(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(ctc, "permutation")
    asked.of(ctc, "derive_seed")
    asked.of(ctc, "_with_texts", "labels", "seed", "draw")
    asked.of(ctc, "label_positions", "wanted", "seed", "draw")
    asked.of(ctc, "groups_in_words")
    asked.of(Reader, "read", "batch")
    rates = list[Any]()
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda groups: rates.append([g["lr"] for g in groups]) or adam(groups))
    config = CtcConfig(epochs=2, lr=0.03, tune=True, tune_lr=0.002, beam=3, batch=5)
    held: Any = Ctc.Config(
        ctc=config, seed=5, held_out=0.3, labels="80%", draw=2, baselines=False, keep_classifier=True,
        data=DataConfig(group="nothing"),
    )  # fmt: skip
    protocol, encoder = Ctc(held), small()
    found: Any = protocol.evaluate(encoder, source_of(said))
    assert asked["_with_texts"] == asked["label_positions"] == [("80%", 5, 2)]
    assert [given[0] for given in asked["groups_in_words"]] == ["nothing"]
    assert found.train == int(0.8 * 18)
    assert found.test == 6
    batches = -(-found.train // 5)
    assert asked["permutation"] == [
        (5, "held-out texts", 0, 4), (5, "ctc scale", 0, found.train), (5, "ctc order", 0, batches),
        (5, "ctc order", 1, batches),
    ]  # fmt: skip
    assert asked["derive_seed"] == [(5, "ctc", 0, 0)]
    assert rates == [[0.03, 0.002]]
    assert asked["read"] == [5]
    for words in ("encoder tuned, too", "2 epochs, Adam 0.03; prefix beam search of 3", "30% of the different texts",
                  "(seed 5)", "14 of 18 training texts (80%; seed 5, draw 2)"):  # fmt: skip
        assert words in found.words
    assert found.left_out == {"training without a text": 1}
    fitted: Any = protocol.fitted
    assert fitted.encoder is not encoder
    assert fitted.encoder is not None
    assert fitted.parts[ctc.RECOGNISER].facts == {"characters": found.characters, "beam": 3}
    assert len(found.examples) == 5


def test_word_and_character_errors_are_not_mixed_up(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(ctc, "error_rates")
    monkeypatch.setattr(Reader, "read", lambda _, source, __: dict.fromkeys(range(len(source)), Reading("a b", 1.0)))
    train, test = source_of(said).subset(np.arange(16)), source_of(said).subset(np.arange(16, 24))
    found: Any = Ctc(Ctc.Config(ctc=CtcConfig(epochs=1), baselines=False)).evaluate(small(), train, test)
    ((references, hypotheses),) = asked["error_rates"]
    assert references == [WORDS[i % 4] for i in range(16, 24)]
    assert hypotheses == ["a b"] * 8
    assert (found.wer, found.cer) == ctc.error_rates(references, hypotheses)
    assert found.wer != found.cer
    assert (found.train, found.test) == (16, 8)
    assert "all 16 training texts" in found.words
    assert "test set as given" in found.words
    assert found.examples[1] == ("ab b", "a b")
    assert "encoder frozen" in found.words
    assert "best path" in found.words


def test_frozen_features_are_kept_from_epoch_to_epoch(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = list[int](), SpeechEncoder.hidden_states
    monkeypatch.setattr(SpeechEncoder, "hidden_states", lambda self, x: calls.append(len(x)) or real(self, x))
    source = source_of(said).subset(np.arange(12))
    work = ctc._Work(small(), source, CtcConfig(epochs=3, batch=4), False, 5, "cpu")
    before = len(calls)
    work.train()
    assert calls[before:] == [4, 4, 4]  # once each, not once an epoch


def test_what_cannot_be_read_is_told_by_path_and_reason(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: AudioSource, index: int) -> Any:
        raise BadImage(f"{index}.wav", "cut short")

    source = source_of(said)
    monkeypatch.setattr(AudioSource, "read", broken)
    assert readable(source, [3]) == ([], [])
    assert list(source.skipped) == [("3.wav", "cut short")]
    monkeypatch.undo()
    real = AudioSource.read
    monkeypatch.setattr(AudioSource, "read", lambda self, i: broken(self, i) if i == 5 else real(self, i))
    other = source_of(said, max_skipped=0.5)
    found = Extractor().extract(small(), other)
    assert found.skipped == (("5.wav", "cut short"),)
    assert list(other.skipped) == [("5.wav", "cut short")]
    assert 5 not in found.index


@pytest.mark.parametrize(("told", "found"), [(None, 30.0), (20.0, 20.0)])
def test_recordings_are_trimmed_as_in_training_where_nothing_is_said(told: float | None, found: float) -> None:
    plain = DataConfig()
    config = dataclasses.replace(plain, audio=dataclasses.replace(plain.audio, trim=told))
    assert Pixels(trim=30.0).fill(config).audio.trim == found


def test_texts_and_groups_are_held_out_together(said: Path) -> None:
    source = source_of(said, group="session")
    train, test = ctc.split_by_text(source.subset(np.arange(24)), 0.3, 5)
    texts = [ctc.clean_text(text or "") for text in source.subset(np.arange(24)).texts]
    assert not set(train.texts) & set(test.texts)
    _, text = np.unique(texts, return_inverse=True)
    parts = np.unique(text)  # of one text a session each
    order = parts[permutation(5, "held-out texts", 0, 4)]
    held = {sorted(set(texts))[order[0]]}
    assert {ctc.clean_text(text or "") for text in test.texts} == held


def test_verification_takes_its_utterances_as_it_was_told(
    said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, encoder = source_of(said), small().eval()
    monkeypatch.setattr(verification, "_MOST", 10)
    told = list[tuple[str, int, int]]()
    protocol = SpeakerVerification(SpeakerVerification.Config(seed=5, baselines=False))
    found: Any = protocol.evaluate(encoder, source, progress=lambda *given: told.append(given))
    chosen = np.sort(permutation(5, "verification", 0, 25)[:10])
    part = source.subset(chosen)
    speakers = np.array([int((speaker or "s")[1:]) for speaker in part.speakers])
    h = Extractor().extract(encoder, part).h
    scores, same = all_pairs(h, speakers)
    assert found.eer == pytest.approx(verification.equal_error_rate(scores, same))
    assert found.min_dcf == pytest.approx(verification.detection_cost(scores, same))
    assert (found.utterances, found.speakers, found.pairs) == (10, len(set(speakers.tolist())), 45)
    assert "speakers as the data name them" in found.words
    assert told[-1] == ("features", 10, 10)
    lines = found.lines()
    assert lines[0].startswith(f"EER {found.eer:.2%}, minDCF {found.min_dcf:.3f}  (verification")
    more = dataclasses.replace(found, baseline_eer=0.25, baseline_min_dcf=0.75).lines()
    assert "EER 25.00%, minDCF 0.750" in more[1]
    trials = tmp_path / "trials.txt"
    trials.write_text("1 00.wav 03.wav\n0 00.wav 01.wav\n0 07.wav 03.wav\n")
    listed: Any = SpeakerVerification(
        SpeakerVerification.Config(trials=str(trials), baselines=False)
    ).evaluate(encoder, source)  # fmt: skip
    assert (listed.utterances, listed.speakers, listed.pairs) == (4, 2, 3)
    assert "3 of 3 trials of trials.txt, 4 utterances" in listed.words


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar"), 16)
    head = ProjectionHead(64, HeadConfig(layers=3, hidden_dim=64, out_dim=12))
    path = tmp_path_factory.mktemp("net") / "encoder.safetensors"
    save_encoder(path, encoder, head, {"options": {"views": {"size": 24, "resample": "tf2"}}}, Classifier(64, 3), 1)
    return path


def test_imagenet_s_protocol_reads_and_scores_as_it_was_told(classified: Path, tmp_path: Path) -> None:
    found = ImageNet(ImageNet.Config(batch=5, data=DataConfig(workers=3))).extractor(classified)
    assert (found.size, found.resample, found.batch, found.workers) == (24, "tf2", 5, 3)
    told = ImageNet(ImageNet.Config(size=20, resample="tf1")).extractor(classified)
    assert (told.size, told.resample, told.batch) == (20, "tf1", 256)
    bare = tmp_path / "bare.safetensors"
    encoder, head = load_encoder(classified), load_head(classified)
    save_encoder(bare, encoder, head, None, Classifier(64, 3, "normal"), None)
    plain = ImageNet().extractor(bare)
    assert (plain.size, plain.resample) == (AS_PUBLISHED.size, AS_PUBLISHED.resample)
    net = ImageNet(ImageNet.Config(classifier_layer=2)).load(bare, None, "cpu")
    assert net.layer == 2
    assert isinstance(ImageNet().load(classified, None, "cpu"), EncoderWithClassifier)
    assert ImageNet().load(classified, None, "cpu").layer == 1
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    save_encoder(tmp_path / "own.safetensors", adapt(own), None, None, Classifier(4, 3), 0)
    assert ImageNet().load(tmp_path / "own.safetensors", own, "cpu").feature_dim == 3
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 0, 0, -1])
    source = ArraySource(rng.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8), labels)
    shown = list[tuple[str, int, int]]()
    result: Any = ImageNet(ImageNet.Config(size=20)).measure(
        net, Parts(source), told, lambda *given: shown.append(given)
    )
    h = dataclasses.replace(told, preprocessing="none").extract(net, source).h
    assert result.scores == score(h[:5], np.arange(3), labels[:5])
    assert (result.images, result.classes) == (5, 3)
    assert shown[-1] == ("images", 6, 6)
