"""Recordings read by parts: the order of sounds in the features, and the filterbank by thirds beside every score."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import twofold
from sound_files import RATE, write
from twofold.encoders import Encoder, ResNet, SpeechEncoder, Waves, save_encoder
from twofold.encoders.audio.encoder import FilterbankEncoder
from twofold.encoders.composed import EncoderWithHead, InParts, all_layers, in_parts
from twofold.errors import UserError
from twofold.evaluation.protocols.classifier import Evaluation

SMALL = {"width": 16, "layers": 1, "heads": 2, "hidden": 16, "dropout": 0.0, "cmvn": "none"}


def encoder(**options) -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(RATE, 20, 60.0, **(SMALL | options)).eval()


def noises(*samples: int) -> Waves:
    made = np.random.default_rng(0)
    return Waves.of([torch.from_numpy(made.normal(0, 0.1, n).astype(np.float32)) for n in samples])


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("parts", [2, 3])
@torch.no_grad()
def test_each_part_is_pooled_as_the_encoder_pools(stack, pooling, parts):
    net, waves = encoder(stack=stack, pooling=pooling), noises(8000, 3000, 5100)
    found = in_parts(net, parts)(waves)
    assert found.shape == (3, parts * net.feature_dim)
    states, frames = net.hidden_states(waves)
    for row, count in enumerate(frames.tolist()):
        edges = [count * k // parts for k in range(parts + 1)]
        expected = []
        for begin, end in itertools.pairwise(edges):
            part = states[-1][row, begin:end]
            expected.append(part.mean(0))
            if pooling == "mean_std":
                expected.append((part.var(0, unbiased=False) + 1e-8).sqrt())
        torch.testing.assert_close(found[row], torch.cat(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_fewer_frames_than_parts_share_frames():
    net, waves = encoder(), noises(200, 4000)  # one frame, and 48
    found = in_parts(net, 3)(waves)
    torch.testing.assert_close(found[0], net(waves)[0].repeat(3))
    assert torch.isfinite(found).all()


@torch.no_grad()
def test_neighbours_in_the_batch_and_padding_change_nothing():
    net, waves = in_parts(encoder(), 3), noises(8000, 3000)
    alone = net(Waves(waves.samples[1:, :3000], waves.lengths[1:]))
    torch.testing.assert_close(net(waves)[1:], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_layers_side_by_side_are_read_by_parts_too():
    net, waves = encoder(), noises(8000, 3000)
    found = all_layers(in_parts(net, 3))(waves)
    states, frames = net.hidden_states(waves)
    torch.testing.assert_close(found, torch.cat([InParts(net, 3).pool(state, frames) for state in states], dim=1))


def test_one_part_is_the_encoder_itself_and_others_need_frames():
    net = encoder()
    assert in_parts(net, 1) is net
    with pytest.raises(UserError, match="--features h"):
        in_parts(EncoderWithHead(net, torch.nn.Identity(), 16), 3)
    images: Encoder = ResNet(10, 0.125, stem="cifar")
    with pytest.raises(UserError, match="--parts 3"):
        in_parts(images, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """up/: a low sound, then a high one; down/: the other way round. Only their order tells them apart."""
    root = tmp_path_factory.mktemp("order")
    for i in range(120):
        rng = np.random.default_rng(i)
        low, high = (np.sin(2 * np.pi * f * np.arange(2400) / RATE) for f in rng.uniform([300, 1500], [500, 2500]))
        wave = np.concatenate([low, high] if i % 2 else [high, low]) * 0.3 + rng.normal(0, 0.01, 4800)
        write(root / ("up" if i % 2 else "down") / f"{i}.wav", wave.astype(np.float32))
    return root


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(path, encoder())
    return path


@pytest.mark.parametrize("protocol", ["linear", "knn", "weighted"])
def test_order_is_told_by_parts_alone(folder, saved, protocol):
    whole = twofold.evaluate(saved, folder, protocol=protocol, device="cpu")
    parts = twofold.evaluate(saved, folder, protocol=protocol, parts=2, device="cpu")
    assert whole.top1 < 0.8 <= parts.top1
    assert parts.feature_dim == 2 * whole.feature_dim
    assert parts.digest == whole.digest  # it is the same encoder
    assert "2 parts of equal length" in parts.words
    alone = [each.baselines["filterbank"].top1 for each in (whole, parts)]
    assert alone[0] < 0.8 <= alone[1]  # the filterbank is read alike
    assert "filterbank_thirds" not in parts.baselines
    assert whole.baselines["filterbank_thirds"].top1 >= 0.8
    told = whole.text()
    assert f"filterbank alone by thirds: {whole.baselines['filterbank_thirds'].words()}" in told
    assert "by thirds" not in parts.text()
    again = Evaluation.from_json(whole.to_json())
    assert again.baselines["filterbank_thirds"] == whole.baselines["filterbank_thirds"]
    old = json.loads(whole.to_json())
    rows = old.pop("baselines")
    old |= {
        "baseline": rows["filterbank"],
        "baseline_thirds": rows["filterbank_thirds"],
    }  # as earlier versions wrote it
    names = ("filterbank", "filterbank_thirds")
    assert Evaluation.from_json(json.dumps(old)).baselines == {name: whole.baselines[name] for name in names}


def test_over_folds_and_in_verification_too(folder, saved):
    folds = twofold.evaluate(saved, folder, folds=4, device="cpu")
    thirds, alone = (folds.baselines[name] for name in ("filterbank_thirds", "filterbank"))
    assert np.mean([each.top1 for each in thirds]) > np.mean([each.top1 for each in alone])
    assert "by thirds" in folds.text()
    rates = twofold.evaluate(saved, folder, protocol="verification", device="cpu")
    assert rates.thirds_eer < rates.baseline_eer
    assert "by thirds" in rates.text()
    parts = twofold.evaluate(saved, folder, protocol="verification", parts=3, device="cpu")
    assert parts.baseline_eer == rates.thirds_eer
    assert parts.thirds_eer is None


def test_features_that_are_kept_are_those_of_the_parts(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save_encoder(run / "encoder.safetensors", encoder())
    (run / "config.yaml").write_text("")
    first = [twofold.evaluate(run, folder, parts=p, device="cpu").top1 for p in (1, 2, 3)]
    again = [twofold.evaluate(run, folder, parts=p, device="cpu") for p in (1, 2, 3)]
    assert [each.top1 for each in again] == first
    assert all(each.kept for each in again)


def test_embed_writes_the_parts(folder, saved, tmp_path):
    for parts in (1, 3):
        found = twofold.embed(saved, folder, tmp_path / f"{parts}.npz", parts=parts, device="cpu")
        assert found.shape == (120, 16 * parts)
    assert "of 3 parts of each recording" in found.note
    with np.load(tmp_path / "1.npz") as whole, np.load(tmp_path / "3.npz") as thirds:
        mean = thirds["features"].reshape(120, 3, 16).mean(1)  # 58 frames: thirds are 19, 19 and 20
        np.testing.assert_allclose(mean, whole["features"], atol=0.05)
        assert np.abs(thirds["features"][:, :16] - thirds["features"][:, 32:]).max() > 0.1


@pytest.mark.parametrize("parts", [0, -1, 101])
def test_numbers_without_a_meaning_are_refused(folder, saved, tmp_path, parts):
    with pytest.raises(UserError, match=f"--parts {parts}"):
        twofold.evaluate(saved, folder, parts=parts)
    with pytest.raises(UserError, match=f"--parts {parts}"):
        twofold.embed(saved, folder, tmp_path / "f.npz", parts=parts)


def test_images_have_no_parts(tmp_path):
    save_encoder(tmp_path / "encoder.safetensors", ResNet(10, 0.125, stem="cifar"))
    pixels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
    with pytest.raises(UserError, match="leave it at 1"):
        twofold.evaluate(tmp_path / "encoder.safetensors", pixels, parts=3, size=8)


def test_the_filterbank_by_thirds_is_an_encoder_like_any_other():
    assert in_parts(FilterbankEncoder(RATE, 20), 3).feature_dim == 120
