"""What stands beside an encoder's number: the majority class, raw pixels, and the encoder before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import twofold
from sound_files import speech_folder
from twofold.commands.demos import digits
from twofold.data import ArraySource, AudioSource, FileSource
from twofold.encoders import ResNet, SpeechEncoder, TorchvisionEncoder, adapt, build_encoder, save_encoder
from twofold.encoders.composed import EncoderWithHead
from twofold.encoders.untrained import untrained
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.label_subsets import labelled_part
from twofold.evaluation.protocols.beside import majority
from twofold.evaluation.protocols.linear import Linear, evaluate_linear
from twofold.heads import HeadConfig, ProjectionHead


def bright(n: int = 90, side: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise of three levels, which are the classes; half of all are of the first."""
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1, 0, 2, 0, 1] * n)[:n]
    return (rng.integers(0, 90, (n, side, side, 3)) + 70 * labels[:, None, None, None]).astype(np.uint8), labels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(5)
    folder, net = tmp_path_factory.mktemp("runs") / "one", ResNet(10, 0.125, "cifar")
    folder.mkdir()
    head = ProjectionHead(net.feature_dim, HeadConfig(out_dim=8))
    save_encoder(folder / "encoder.safetensors", net, head, extra={"options": {"seed": 3}})
    (folder / "config.yaml").write_text("options: {}\n")
    return folder


def test_the_rows_are_the_protocol_on_other_features(run: Any) -> None:
    images, labels = bright()
    x_test, y_test = bright(30, seed=1)
    found = twofold.evaluate(run, (images, labels), test=(x_test, y_test), labels="8/class")
    assert list(found.baselines) == ["majority", "pixels", "untrained"]
    train = ArraySource(images, labels)
    some, _ = labelled_part(train, "8/class", 0, 0)
    assert found.baselines["majority"].top1 == pytest.approx((y_test == 0).mean())
    flat = [Extractor().extract(_Flat(), each).h for each in (some, ArraySource(x_test, y_test))]
    again = evaluate_linear(flat[0], np.asarray(some.labels), flat[1], y_test)
    assert found.baselines["pixels"] == again.scores
    fresh = untrained(twofold.load(run), 3)
    own = [Extractor().extract(fresh, each).h for each in (some, ArraySource(x_test, y_test))]
    assert found.baselines["untrained"] == evaluate_linear(own[0], np.asarray(some.labels), own[1], y_test).scores
    told = found.text()
    for words in ("majority class: top-1 50.00%", "raw pixels: top-1", "untrained encoder: top-1", "seed 3"):
        assert words in told
    document = json.loads(found.file.read_text())
    assert document["baselines"]["pixels"]["top1"] == found.baselines["pixels"].top1
    assert document["seconds"]["baselines"] > 0
    assert "--baselines false" in told
    assert type(found).from_json(found.file.read_text()) == found


class _Flat(ResNet):
    """Pixels by hand."""

    def __init__(self) -> None:
        super().__init__(10, 0.125, "cifar")

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_they_can_be_left_out_and_come_with_folds_weights_and_z(run: Any) -> None:
    data = bright()
    alone = twofold.evaluate(run, data, protocol="knn", baselines=False)
    assert (alone.baselines, "baselines" in alone.seconds) == ({}, False)
    assert "raw pixels" not in alone.text()
    folds = twofold.evaluate(run, data, protocol="knn", folds=3)
    assert list(folds.baselines) == ["majority", "pixels", "untrained"]
    assert {len(scores) for scores in folds.baselines.values()} == {3}
    assert "majority class: accuracy 50.00 ± 0.00 %" in folds.text()
    weighted = twofold.evaluate(run, data, class_weights="balanced", features="z")
    assert weighted.feature_dim == 8
    assert weighted.baselines["pixels"].top1 > 0.9
    kept = twofold.evaluate(run, data, keep_classifier=True)  # the encoder's own, not one of these
    assert load_file(kept.kept_in)["classifier.weight"].shape[1] == kept.feature_dim
    with pytest.raises(UserError, match="--baselines false has no effect with --protocol imagenet"):
        twofold.evaluate(run, data, protocol="imagenet", baselines=False)


def test_groups_stay_whole_and_tiles_are_examples_in_every_row(run: Any, tmp_path: Path) -> None:
    images, labels = bright()
    groups = np.arange(90) // 6
    found = twofold.evaluate(run, (images, labels, groups))
    assert "groups" in found.words
    assert {scores.count for scores in found.baselines.values()} == {found.scores.count}
    for i, (image, label) in enumerate(zip(images[:24], labels, strict=False)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(np.concatenate([image, image], axis=1)).save(tmp_path / str(label) / f"{i}.png")
    tiled = twofold.evaluate(run, tmp_path, protocol="knn", k=3, **{"data.tile": 12})
    assert tiled.train.images + tiled.test.images == 48
    assert {scores.count for scores in tiled.baselines.values()} == {tiled.test.images}
    many = np.stack([labels == 0, labels != 1], axis=1).astype(np.int64)
    with pytest.raises(UserError, match="several labels"):
        twofold.evaluate(run, (images, many), test=(images, many))


def test_large_images_are_averaged_and_that_is_said() -> None:
    images, labels = bright(24, side=80)
    net = ResNet(10, 0.125, "cifar")
    found = Linear(Linear.Config(size=48)).evaluate(net, ArraySource(images, labels), extractor=Extractor(size=48))
    assert "raw pixels averaged to 32 x 32" in found.words
    assert found.baselines["pixels"].top1 == 1.0


@pytest.mark.parametrize("zero", [True, False])
def test_the_untrained_encoder_is_the_run_s_beginning_with_all_branches(zero: bool) -> None:
    torch.manual_seed(7)
    whole = ResNet(18, 0.125, "cifar", zero_init_residual=False)
    trained = ResNet(18, 0.125, "cifar", zero_init_residual=zero)
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    fresh = untrained(trained, 7)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), whole.state_dict().values(), strict=True))
    assert not fresh.training


def test_the_demo_s_row_is_of_the_same_start() -> None:
    config = twofold.pretrain.__globals__["build"]({"encoder": {"name": "resnet10", "width": 0.125, "channels": 1}})
    torch.manual_seed(1)
    begun = build_encoder(config.encoder, 28)
    again = digits.untrained(begun, 1)
    assert all(torch.equal(a, b) for a, b in zip(begun.state_dict().values(), again.state_dict().values(), strict=True))


def test_switched_off_branches_of_other_libraries_take_part() -> None:
    net = TorchvisionEncoder("convnext_tiny", size=None)
    scales = [p for name, p in untrained(net).named_parameters() if name.endswith("layer_scale")]
    assert len(scales) == 18
    assert all(bool((scale == 1).all()) for scale in scales)
    head = ProjectionHead(64, HeadConfig(out_dim=8))
    both = untrained(EncoderWithHead(ResNet(10, 0.125, "cifar"), head, 8))
    assert isinstance(both, EncoderWithHead)
    assert not torch.equal(both.head.layers[0][0].weight, head.layers[0][0].weight)  # type: ignore[union-attr, index]


def test_a_module_of_one_s_own_starts_layer_by_layer_or_says_why_not() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    module[1].running_mean += 1
    encoder = adapt(module)
    fresh = untrained(encoder, 2)
    assert not torch.equal(fresh.module[0].weight, module[0].weight)
    assert float(fresh.module[1].running_mean.abs().sum()) == 0
    assert float(module[1].running_mean.sum()) == 4

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) * self.scale

    own = adapt(Own())
    found = Linear().evaluate(own, ArraySource(*bright()))
    assert list(found.baselines) == ["majority", "pixels"]
    assert "without the untrained encoder: Own (module) has parameters (scale)" in found.words


def test_files_are_read_once_for_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = speech_folder(tmp_path / "speech", 2, 6)
    torch.manual_seed(0)
    net = SpeechEncoder(4000, 20, 60.0, width=16, layers=1, heads=2, hidden=32, dropout=0.0)
    save_encoder(tmp_path / "encoder.safetensors", net)
    read: list[int] = []
    whole = AudioSource.read
    monkeypatch.setattr(AudioSource, "read", lambda source, index: read.append(index) or whole(source, index))
    found = twofold.evaluate(tmp_path / "encoder.safetensors", folder, protocol="knn", k=3)
    assert list(found.baselines) == ["majority", "filterbank", "filterbank_thirds", "untrained"]
    assert sorted(read) == list(range(12))
    pictures, labels = bright(20)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / str(label) / f"{i}.png")
    seen: list[int] = []
    own = FileSource.read
    monkeypatch.setattr(FileSource, "read", lambda source, index: seen.append(index) or own(source, index))
    save_encoder(tmp_path / "images.safetensors", ResNet(10, 0.125, "cifar"))
    twofold.evaluate(tmp_path / "images.safetensors", tmp_path / "pictures", protocol="knn", k=3)
    assert sorted(seen) == list(range(20))


def test_the_majority_answers_by_frequency() -> None:
    scores = majority(np.array([4, 4, 7, 9, 9, 9]), np.array([9, 4, 7, 9]))
    assert (scores.top1, scores.mean_per_class) == (0.5, pytest.approx(1 / 3))
