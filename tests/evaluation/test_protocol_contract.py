"""A protocol is one file: a toy one gets options, guards, folds, few labels, features z, cache, words and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from evaluation_doubles import Means

from sound_files import tone, write
from twofold.cli import main
from twofold.commands.evaluate import evaluate
from twofold.data import ArraySource, open_source
from twofold.encoders import Encoder, ResNet, SpeechEncoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.frozen import NotFrozenError, digest
from twofold.evaluation.protocols.base import PROTOCOLS, EvaluationConfig
from twofold.evaluation.protocols.classifier import ClassifierConfig, ClassifierProtocol, Evaluation, FitInputs, Outcome
from twofold.evaluation.scores import score
from twofold.heads import HeadConfig, ProjectionHead


@pytest.fixture(autouse=True)
def toy():
    """Nearest class mean, registered as long as a test runs."""

    class NearestMean(ClassifierProtocol):
        @dataclass(frozen=True)
        class Config(ClassifierConfig, variant="mean"):
            """the class whose mean is nearest."""

            cosine: bool = False
            """Compare directions, not places."""

        def fit(self, inputs: FitInputs) -> Outcome:
            classes = np.unique(inputs.y)
            means = np.stack([inputs.x[inputs.y == label].mean(0) for label in classes])
            x = inputs.x_test
            if self.config.cosine:
                means, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (means, x))
            distances = ((x[:, None] - means) ** 2).sum(2)
            words = f"nearest of {len(classes)} means of {len(inputs.y)} {inputs.example}s"
            return Outcome(score(-distances, classes, inputs.y_test), {"cosine": self.config.cosine}, words)

    yield NearestMean
    del PROTOCOLS["mean"], EvaluationConfig.variants["mean"]


def stripes(n=40, seed=0):
    """Noise with a bright half that tells the class."""
    images, labels = np.random.default_rng(seed).integers(0, 120, (n, 8, 8, 3)), np.arange(n) % 2
    for image, label in zip(images, labels, strict=True):
        image[label * 4 : label * 4 + 4] += 100
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as far as evaluation looks at it."""
    torch.manual_seed(0)
    folder, net = tmp_path_factory.mktemp("runs") / "images", ResNet(10, 0.125, "cifar")
    folder.mkdir()
    save_encoder(folder / "encoder.safetensors", net, ProjectionHead(net.feature_dim, HeadConfig(out_dim=8)))
    (folder / "config.yaml").write_text("options: {}\n")
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    np.savez(path, images=stripes()[0], labels=stripes()[1])
    return path


def test_its_options_are_on_the_command_line_and_those_of_others_refused(run, arrays, capsys):
    assert main(["evaluate", str(run), str(arrays), "--protocol", "mean", "--cosine"]) == 0
    told = capsys.readouterr().out
    assert "test images)" in told
    assert "protocol: nearest of 2 means of 32 images" in told
    assert "encoder unchanged" in told
    document = json.loads(sorted((run / "evaluations").glob("mean-*.json"))[-1].read_text())
    assert document["settings"] == {"cosine": True}
    assert document["protocol"] == "mean"
    assert main(["evaluate", "--help-all"]) == 0
    assert "the class whose mean is nearest" in " ".join(capsys.readouterr().out.split())
    for options, message in (
        ({"k": 5}, "--k 5 has no effect with --protocol mean: leave it out, or choose knn"),
        ({"validation": str(arrays)}, "--validation .* has no effect with --protocol mean"),
        ({"draw": 1}, "--draw 1 has no effect with --labels all"),
        ({"batch": 0}, "--batch 0: give 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(run, arrays, protocol="mean", **options)
    with pytest.raises(UserError, match=r"--cosine true has no effect with --protocol linear: .* choose mean"):
        evaluate(run, arrays, cosine=True)


def test_parts_labels_and_features_come_with_the_contract(run, arrays):
    whole = evaluate(run, arrays, protocol="mean", keep_features=False)
    assert (whole.train.images, whole.test.images, whole.file.parent) == (32, 8, run / "evaluations")
    few = evaluate(run, arrays, protocol="mean", labels="4/class", draw=1, held_out=0.5)
    assert (few.train.images, few.test.images) == (8, 20)
    assert "8 of 20 labels (4/class; seed 0, draw 1)" in few.words
    tested = evaluate(run, arrays, protocol="mean", test=stripes(10, seed=1))
    assert tested.scores.count == 10
    head = evaluate(run, arrays, protocol="mean", features="z")
    assert (head.feature_dim, whole.feature_dim) == (8, 64)
    assert "features are z" in head.words
    again = evaluate(run, arrays, protocol="mean")
    assert again.kept
    assert (again.scores, again.digest) == (whole.scores, whole.digest)
    assert Evaluation.from_json(again.file.read_text()) == again
    x, y = open_source(arrays).images, open_source(arrays).labels
    with pytest.raises(UserError, match="classes without a training image: 2"):
        evaluate(run, (x, y), test=(x, y + 1), protocol="mean")
    with pytest.raises(UserError, match="no labels"):
        evaluate(run, np.asarray(x), protocol="mean")


def test_recordings_get_folds_the_filterbank_beside_it_and_words_of_their_own(tmp_path):
    lines = ["path,label,fold"]
    for i in range(12):
        write(tmp_path / f"{i}.wav", tone(3 * (i % 2), i // 6, 0.3, seed=i))
        lines.append(f"{i}.wav,word{i % 2},{'ab'[i // 6]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    net = SpeechEncoder(8000, 20, 60.0, width=16, layers=1, heads=2, hidden=32, dropout=0.0, cmvn="none")
    save_encoder(tmp_path / "encoder.safetensors", net)
    found = evaluate(tmp_path / "encoder.safetensors", tmp_path / "list.csv", protocol="mean", folds=True)
    assert found.folds == ("a", "b")
    assert len(found.baselines["filterbank"]) == 2
    assert found.metrics.keys() == {"top1", "mean_per_class", "macro_f1"}
    assert "image" not in found.text()
    assert found.file is None
    whole = evaluate(tmp_path / "encoder.safetensors", tmp_path / "list.csv", protocol="mean")
    assert whole.baselines.keys() == {"majority", "filterbank", "filterbank_thirds", "untrained"}
    assert "12 recordings" not in whole.words
    assert "recordings" in whole.words
    with pytest.raises(UserError, match="--labels 4 has no effect with --folds true"):
        evaluate(tmp_path / "encoder.safetensors", tmp_path / "list.csv", protocol="mean", folds=True, labels="4")


def test_a_protocol_that_changes_the_encoder_is_caught(toy):
    class Trains(toy):
        def fit(self, inputs: FitInputs) -> Outcome:
            inputs.encoder.norm.running_mean += 1e-3
            return super().fit(inputs)

    encoder: Encoder = Means(3)
    before = digest(encoder)
    assert toy().evaluate(encoder, ArraySource(*stripes())).digest == before == digest(encoder)
    with pytest.raises(NotFrozenError, match=r"changed: norm\.running_mean$"):
        Trains().evaluate(encoder, ArraySource(*stripes()))


def test_it_runs_on_sources_with_an_extractor_of_its_own(toy):
    told = []
    found = toy(toy.Config(seed=3)).evaluate(
        Means(3), ArraySource(*stripes()), ArraySource(*stripes(20, seed=1)), extractor=Extractor(batch=7),
        progress=lambda *words: told.append(words),
    )  # fmt: skip
    assert found.top1 > 0.9
    assert found.seed == 3
    assert [words for words in told if words[1] == words[2]] == [
        (f"{who}{what} features", count, count)
        for who in ("", "raw pixels: ", "untrained encoder: ") for what, count in (("training", 40), ("test", 20))
    ]  # fmt: skip
