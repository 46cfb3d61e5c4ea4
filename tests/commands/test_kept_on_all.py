"""What an evaluation keeps has learned from every labelled example, also those held out for the score."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from tiny import OPTIONS, images

import twofold
from sound_files import RATE, speech_folder
from twofold.encoders import SpeechEncoder, load_classifier, load_part, save_encoder
from twofold.encoders.composed import all_layers, in_parts
from twofold.evaluation.features import AS_IT_COMES
from twofold.evaluation.logistic import fit_linear
from twofold.evaluation.protocols.weighted import Mixture


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **OPTIONS).path


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_what_is_kept_learned_from_what_was_held_out_too(run, weights):
    x, y = images(30, seed=3)
    plain = twofold.evaluate(run, (x, y), held_out=0.3, class_weights=weights)
    kept = twofold.evaluate(run, (x, y), held_out=0.3, class_weights=weights, keep_classifier=True)
    assert kept.scores == plain.scores  # of one that has not seen what it is scored on
    assert kept.settings == plain.settings
    features = twofold.Embedder(str(run)).transform(x)
    expected = fit_linear(features, y, kept.settings["l2"], weights).affine()
    classifier, _ = load_classifier(kept.kept_in)
    np.testing.assert_allclose(classifier.weight.detach(), expected[0], atol=2e-3 * np.abs(expected[0]).max())
    np.testing.assert_allclose(classifier.bias.detach(), expected[1], atol=2e-3 * np.abs(expected[1]).max())
    told = "kept for prediction is one fitted anew with the same penalty on all 30 labelled images, the "
    assert told in kept.words
    assert told in load_part(kept.kept_in, "prediction").facts["words"]
    assert "anew" not in plain.words


def test_a_test_part_of_its_own_is_not_learned_from(run):
    x, y = images(30, seed=3)
    kept = twofold.evaluate(run, (x[:20], y[:20]), test=(x[20:], y[20:]), keep_classifier=True)
    features = twofold.Embedder(str(run)).transform(x[:20])
    expected = fit_linear(features, y[:20], kept.settings["l2"]).affine()[0]
    np.testing.assert_allclose(
        load_classifier(kept.kept_in)[0].weight.detach(), expected, atol=2e-3 * np.abs(expected).max()
    )
    assert "anew" not in kept.words


def test_so_many_labels_as_were_asked_for_are_learned_from(run):
    x, y = images(40, seed=3)
    kept = twofold.evaluate(run, (x, y), labels="20", keep_classifier=True)
    assert kept.train.images == 20
    assert "anew" not in kept.words  # who asks for 20 labels gets a classifier of 20


def test_of_recordings_the_mixture_of_layers_too(tmp_path):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0).eval()
    save_encoder(tmp_path / "encoder.safetensors", net)
    folder = speech_folder(tmp_path / "clips", 2, 6)
    kept = twofold.evaluate(tmp_path / "encoder.safetensors", folder, protocol="weighted", keep_classifier=True)
    found = AS_IT_COMES.extract(
        all_layers(in_parts(net, 1)), twofold.data.open_source(folder, twofold.data.DataConfig())
    )
    expected = Mixture(found.h, np.asarray(found.labels), 2, kept.settings["l2"]).affine()[0]
    got = load_classifier(kept.kept_in)[0].weight.detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-2 * np.abs(expected).max())
    assert "on all 12 labelled recordings, the 2 held out for the score among them" in kept.words


def test_it_goes_out_with_the_names_of_its_classes_and_how_it_was_made(run, tmp_path):
    x, y = images(30, seed=3)
    kept = twofold.evaluate(run, (x, y), keep_classifier=True)
    twofold.export(kept.kept_in, tmp_path / "net.onnx", format="onnx")
    facts = onnx.load(tmp_path / "net.onnx").metadata_props
    assert json.loads({each.key: each.value for each in facts}["twofold.classes"]) == ["0", "1"]
    twofold.export(kept.kept_in, tmp_path / "hub", format="huggingface")
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == ["0", "1"]
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "- classifier: multinomial logistic regression" in card
    assert "fitted anew with the same penalty on all 30 labelled images" in card
    assert f"top1 {kept.top1:.4g}" in card
    assert card.count("top1 ") == 1  # its own score alone, not those of the run's other evaluations
    assert twofold.predict(tmp_path / "hub", (x, None)).rows[0].label in ("0", "1")
