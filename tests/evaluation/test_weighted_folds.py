"""A learned mixture of layers, leaving folds out, and macro F1 against scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from evaluation_doubles import Means
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from sound_files import tone, write
from twofold.commands.evaluate import evaluate
from twofold.data import ArraySource, DataConfig, open_source
from twofold.encoders import SpeechEncoder, Waves, save_encoder
from twofold.encoders.composed import AllLayers, EncoderWithHead, all_layers
from twofold.errors import UserError
from twofold.evaluation.protocols.base import PROTOCOLS
from twofold.evaluation.protocols.weighted import Mixture, evaluate_weighted
from twofold.evaluation.scores import score


@pytest.fixture(autouse=True)
def _one_thread():
    """Hundreds of fits of a few numbers: threads that wait for each other would cost more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def leave_one_out(model, source, protocol="linear", **options):
    made = PROTOCOLS[protocol]
    return made(made.Config(folds=True, **options)).evaluate(model, source)


def encoder():
    torch.manual_seed(0)
    return SpeechEncoder(8000, 20, 60.0, width=16, layers=2, heads=2, hidden=32, dropout=0.0, cmvn="none")


def layers(n=120, d=6, seed=0):
    """Three layers of noise [n, 3 * d], of which the second tells the class in its first three numbers."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(0, 1, (n, 3, d)).astype(np.float32)
    x[:, 1, :3] += 2.5 * np.eye(3, dtype=np.float32)[y]
    x[:, 2] *= 50  # a loud layer is not a telling one
    return x.reshape(n, -1), y


def test_the_mixture_finds_the_layer_that_tells():
    x, y = layers()
    model = Mixture(x, y, 3, 0.01)
    assert model.weights()[1] > 0.8
    assert sum(model.weights()) == pytest.approx(1)
    found = evaluate_weighted(x, y, *layers(seed=1), 3)
    assert found.scores.top1 > 0.85
    assert "weights 0." in found.words


def test_one_layer_is_logistic_regression():
    x, y = layers()
    x = x[:, :6] + layers()[0][:, 6:12]
    l2 = 0.05
    model = Mixture(x, y, 1, l2)
    scaled = x - x.mean(0)
    scaled = scaled / np.sqrt((scaled**2).mean())
    known = LogisticRegression(C=1 / (l2 * len(x)), max_iter=1000, tol=1e-8).fit(scaled, y)
    expected = known.predict_log_proba(scaled)
    got = torch.from_numpy(model.logits(x)).log_softmax(1).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_all_layers_stand_side_by_side_and_the_last_is_the_encoders_feature():
    model = encoder().eval()
    waves = Waves.of([torch.from_numpy(tone(1, seconds=s)) for s in (0.3, 0.5)])
    found = AllLayers(model)(waves)
    assert found.shape == (2, 3 * 16)
    torch.testing.assert_close(found[:, 32:], model(waves))
    torch.testing.assert_close(AllLayers(model)(waves[:1]), found[:1], rtol=1e-4, atol=1e-5)


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((50, 4)), rng.integers(0, 3, 50)
    expected = f1_score(labels, scores.argmax(1), average="macro", labels=np.unique(labels))
    assert score(scores, np.arange(4), labels).macro_f1 == pytest.approx(expected)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Two words in three voices, which are the folds, and a clip without a fold."""
    root = tmp_path_factory.mktemp("folds")
    lines = ["path,label,fold,speaker"]
    for i in range(36):
        word, voice = i % 2, i // 12
        write(root / f"{i}.wav", tone(2 * word, 2 * voice, 0.3 + 0.02 * (i % 3), seed=i))
        lines.append(f"{i}.wav,word{word},{'abc'[voice]},{'xy'[voice // 2]}")
    lines.append("0.wav,word0,,")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


def test_each_fold_is_scored_by_the_others(manifest):
    source = open_source(manifest, DataConfig())
    for protocol in ("linear", "knn", "weighted"):
        found = leave_one_out(encoder(), source, protocol, **({"k": 5} if protocol == "knn" else {}))
        assert found.folds == ("a", "b", "c")
        assert [scores.count for scores in found.scores] == [12, 12, 12]  # the clip of no fold takes no part
        assert len(found.baselines["filterbank"]) == 3
        assert np.mean([scores.top1 for scores in found.baselines["filterbank"]]) > 0.8
    projected = leave_one_out(EncoderWithHead(encoder(), torch.nn.Linear(16, 4), 4), source)
    alone = leave_one_out(encoder(), source).baselines["filterbank"]
    assert projected.baselines["filterbank"] == alone  # z stands beside the filterbank, too
    lone = source.with_labels(["only a" if r.fold == "a" else r.label for r in source.recordings])
    with pytest.raises(UserError, match="only a of the fold a is in no other"):
        leave_one_out(encoder(), lone)


def test_the_commands(manifest, tmp_path):
    (tmp_path / "run").mkdir()
    save_encoder(tmp_path / "run" / "encoder.safetensors", encoder())
    (tmp_path / "run" / "config.yaml").write_text("options: {}\n")
    told = evaluate(tmp_path / "run", manifest, protocol="weighted", folds=True, **{"data.audio.fold": "speaker"})
    assert told.folds == ("x", "y")
    assert "macro F1" in told.text()
    assert len(json.loads(told.file.read_text())["scores"]) == 2
    again = evaluate(tmp_path / "run", manifest, protocol="weighted", folds=True, **{"data.audio.fold": "speaker"})
    assert "kept from an earlier" not in told.text()
    assert "kept from an earlier" in again.text()
    assert again.scores == told.scores
    whole = evaluate(tmp_path / "run", manifest, protocol="weighted")
    assert "learned mixture of 3 layers" in whole.text()
    assert whole.feature_dim == 48
    assert type(whole).from_json(whole.file.read_text()) == whole
    assert json.loads(whole.file.read_text())["baselines"]["filterbank"]["top1"] == whole.baselines["filterbank"].top1
    assert 0 <= whole.baselines["filterbank"].macro_f1 <= 1
    (tmp_path / "list.txt").write_text("".join(f"{i}.wav\n" for i in range(8, 28)))  # names of files, as of images
    few = evaluate(tmp_path / "run", manifest, labels=str(tmp_path / "list.txt"))
    assert few.train.images == 20
    for words in (whole.text(), few.text(), evaluate(tmp_path / "run", manifest).text()):
        assert "image" not in words
        assert "macro F1" in words.split("filterbank alone")[1]
    for options, message in (
        ({"protocol": "verification"}, "--folds true has no effect with --protocol verification"),
        ({"labels": "4"}, "--labels 4 has no effect with --folds true: leave it out"),
        ({"held_out": 0.5}, "--held_out 0.5 has no effect with --folds true: leave it out"),
        ({"test": manifest}, "--test .* has no effect with --folds true: leave it out"),
        ({"validation": manifest}, "--validation .* has no effect with --folds true: leave it out"),
        ({"data.audio.fold": "none"}, "no such column"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path / "run", manifest, folds=True, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ctc": {"epochs": 2}}, r"--ctc\.epochs 2 has no effect with --protocol linear: leave it out, or choose ctc"),
        ({"k": 5}, "--k 5 has no effect with --protocol linear: leave it out, or choose knn"),
        (
            {"protocol": "weighted", "grid": "paper"},
            "--grid paper has no effect with --protocol weighted: .* choose linear",
        ),
        ({"protocol": "verification", "labels": "10%"}, "--labels 10% has no effect with --protocol verification"),
        (
            {"protocol": "ctc", "features": "z"},
            "--features z has no effect with --protocol ctc: .* choose knn or linear",
        ),
        ({"protocol": "ctc", "batch": 8}, "--batch 8 has no effect with --protocol ctc"),
        ({"size": 32}, "--size 32 is for images, and the data are recordings: leave it out"),
        ({"data.channels": 3}, r"--data\.channels or the encoder asks for 3"),
    ],
)
def test_options_without_use_are_refused(manifest, tmp_path, options, told):
    save_encoder(tmp_path / "encoder.safetensors", encoder())
    with pytest.raises(UserError, match=told):
        evaluate(tmp_path / "encoder.safetensors", manifest, **options)


def test_images_have_no_folds_and_one_layer():
    source = ArraySource(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2)
    with pytest.raises(UserError, match="no two folds"):
        leave_one_out(Means(), source)
    with pytest.raises(UserError, match="--protocol weighted is for recordings and their frames"):
        PROTOCOLS["weighted"]().evaluate(Means(), source)
    with pytest.raises(UserError, match="mixes the layers of a speech encoder"):
        all_layers(Means())
