"""The imagenet protocol: the reference's preprocessing, the order of classes, the accuracies, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from golden_data import golden
from twofold.commands.evaluate import evaluate
from twofold.data import DataConfig
from twofold.encoders import Encoder, InputSpec, ResNet, save_encoder
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.evaluation.protocols.imagenet import ImageNet, ImageNetResult, load_classified, open_validation
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.views.resample import center_crop


class Seen(Encoder):
    """Keeps what it is given; its features are the mean of each channel."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__(InputSpec(channels), channels)
        self.images: list[torch.Tensor] = []
        self.scale = torch.nn.Parameter(torch.ones(()))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.images.append(x)
        return x.mean((2, 3)) * self.scale


def evaluate_imagenet(model: EncoderWithClassifier, folder: Path, **settings: Any) -> ImageNetResult:
    source = open_validation(folder, model.feature_dim, DataConfig(max_skipped=0.0))
    found = ImageNet().evaluate(model, source, extractor=Extractor(**{"resample": "tf2", **settings}))
    assert isinstance(found, ImageNetResult)
    return found


def imagenet(file: Path, folder: Path, **options: Any) -> ImageNetResult:
    found = evaluate(file, folder, protocol="imagenet", **options)
    assert isinstance(found, ImageNetResult)
    return found


def linear(weight: list[list[float]], bias: list[float] | None = None) -> Classifier:
    classifier = Classifier(len(weight[0]), len(weight))
    classifier.weight.data = torch.tensor(weight)
    classifier.bias.data = torch.tensor(bias or [0.0] * len(weight))
    return classifier


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def plain(value: int, side: tuple[int, int] = (9, 12)) -> np.ndarray:
    return np.full((*side, 3), value, np.uint8)


COLOURS = [0, 40, 80, 120, 160, 200, 240]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Seven classes of grey, three images each, of different sizes; the last class's images look like the first's."""
    for k, value in enumerate(COLOURS):
        for i in range(3):
            save(tmp_path / "val" / f"n{k:08d}" / f"{i}.png", plain(0 if k == 6 else value, (8 + i, 9 + k)))
    return tmp_path / "val"


def nearest_grey() -> Classifier:
    """Logits -(v - c_k)^2 + v^2 = 2 c_k v - c_k^2 with v the mean of a grey image."""
    colours = [c / 255 for c in COLOURS]
    return linear([[2 * c / 3] * 3 for c in colours], [-c * c for c in colours])


def test_accuracies(tree: Path) -> None:
    """Six classes are right; the seventh's images are taken for the first's, whose five nearest leave it out."""
    result = evaluate_imagenet(EncoderWithClassifier(Seen(), nearest_grey()), tree, size=40)
    assert result.images == 21
    assert result.classes == 7
    assert result.scores.top1 == pytest.approx(18 / 21)
    assert result.scores.top5 == pytest.approx(18 / 21)
    assert result.scores.mean_per_class == pytest.approx(6 / 7)
    assert "0.875 of the shorter side resized to 40 x 40 (tf2)" in result.words
    assert "the encoder's features" in result.words


@pytest.mark.parametrize(("key", "resample"), [("preprocess_for_eval", "tf2"), ("out_tf1", "tf1")])
def test_preprocessing_is_the_reference_s(tmp_path: Path, key: str, resample: Any) -> None:
    """From a file's pixels to the net's input, against the official code: 1e-5, float32 sums of 16 taps in [0, 1]."""
    set_ = golden("crop_resize.npz")
    cases = [c for c in set_.meta["center_crop"] if c["height"] == c["width"] > 32 and c["crop_proportion"] == 0.875]
    cases = [c for c in cases if f"{c['id']}/{key}" in set_]
    for case in cases:
        folder = tmp_path / case["id"]
        for name in ("n00000001", "n00000002"):
            save(folder / name / "image.png", set_[f"{case['id']}/image_u8"])
        encoder = Seen()
        evaluate_imagenet(
            EncoderWithClassifier(encoder, Classifier(3, 2)), folder, size=case["height"], resample=resample, workers=1
        )
        right = np.clip(set_[f"{case['id']}/{key}"], 0, 1)
        found = encoder.images[0][1].permute(1, 2, 0).numpy()
        assert np.abs(found - right).max() < 1e-5, case["id"]
    assert cases


def test_small_images_are_taken_as_they_are(tmp_path: Path) -> None:
    """The reference neither crops nor resizes for nets of up to 32 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name in ("a", "b"):
        save(tmp_path / name / "image.png", pixels)
    encoder = Seen()
    evaluate_imagenet(EncoderWithClassifier(encoder, Classifier(3, 2)), tmp_path, size=32)
    assert torch.equal(encoder.images[0][0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_photographs_are_not_turned_and_grey_ones_become_colour(tmp_path: Path) -> None:
    """TensorFlow decodes to three channels and does not look at the EXIF orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        save(tmp_path / name / "image.png", pixels, exif=exif)
    encoder = Seen()
    evaluate_imagenet(EncoderWithClassifier(encoder, Classifier(3, 2)), tmp_path, size=40)
    expected = center_crop(torch.from_numpy(pixels).expand(3, 50, 60), 40)
    assert torch.allclose(encoder.images[0][0], expected, atol=1e-6)


def test_a_thousand_classes_in_the_order_of_wordnet_ids(tmp_path: Path) -> None:
    """Class k is the k-th name in sorted order, not in the order of making; one image says its number in its colour."""
    names = [f"n{number:08d}" for number in np.random.default_rng(0).choice(10**8, 1000, replace=False)]
    for position, name in enumerate(sorted(names)):
        colour = np.array([position % 10, position // 10 % 10, position // 100]) * 25
        save(tmp_path / name / "only.png", np.broadcast_to(colour.astype(np.uint8), (2, 2, 3)).copy())
    digits = torch.tensor([[k % 10, k // 10 % 10, k // 100] for k in range(1000)]).float() * 25 / 255
    classifier = linear((2 * digits).tolist(), (-(digits**2).sum(1)).tolist())
    result = evaluate_imagenet(EncoderWithClassifier(Seen(), classifier), tmp_path, size=33)
    assert result.scores.top1 == 1.0
    assert result.scores.top5 == 1.0


def test_the_folder_above_will_do(tree: Path) -> None:
    """ImageNet's usual layout: train and val side by side; val is scored."""
    for k in range(7):
        save(tree.parent / "train" / f"n{k:08d}" / "x.png", plain(255))
    model = EncoderWithClassifier(Seen(), nearest_grey())
    assert evaluate_imagenet(model, tree.parent, size=40).images == 21


class TestRefusals:
    """What could give a wrong number is an error."""

    def refuse(self, folder: Path, match: str, classes: int = 7) -> None:
        with pytest.raises(UserError, match=match):
            evaluate_imagenet(EncoderWithClassifier(Seen(), Classifier(3, classes)), folder, size=40)

    @pytest.mark.parametrize("classes", [6, 8, 1000])
    def test_another_number_of_classes(self, tree: Path, classes: int) -> None:
        self.refuse(tree, f"has 7 class folders, but the classifier knows {classes:,} classes", classes)

    def test_a_class_that_is_empty(self, tree: Path) -> None:
        for image in (tree / "n00000003").iterdir():
            image.unlink()
        self.refuse(tree, "has 6 class folders")

    def test_names_that_are_no_wordnet_ids(self, tmp_path: Path) -> None:
        """1, 10, 2 ... is not the order of ImageNet's classes; nor are words."""
        for k in range(1000):
            save(tmp_path / str(k) / "only.png", plain(k % 256, (2, 2)))
        self.refuse(tmp_path, r"order of WordNet IDs .* other names: 0, 1, 10, 100, 101 \.\.\.", 1000)

    def test_no_class_folders(self, tmp_path: Path) -> None:
        """As the official archive unpacks."""
        for i in range(3):
            save(tmp_path / f"ILSVRC2012_val_0000000{i}.png", plain(i))
        self.refuse(tmp_path, "holds images but no class folders; sort them into one folder a class")

    @pytest.mark.parametrize("keep", [0, 20, 45])
    def test_an_unreadable_image(self, tree: Path, keep: int) -> None:
        """A published number is over all images. Cut in the header, or in the pixels."""
        broken = tree / "n00000002" / "1.png"
        broken.write_bytes(broken.read_bytes()[:keep])
        self.refuse(tree, r"1 of 21 images cannot be read(.|\n)*1\.png")

    def test_no_folder(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "nothing", "nothing is no folder")

    @pytest.mark.parametrize(
        ("layer", "match"), [(3, "cannot read output 3 of a head of 2 layers"), (2, "16 values"), (-1, "-1")]
    )
    def test_layers_that_the_classifier_cannot_read(self, layer: int, match: str) -> None:
        head = ProjectionHead(3, HeadConfig(out_dim=16))
        with pytest.raises(UserError, match=match):
            EncoderWithClassifier(Seen(), Classifier(3, 7), head, layer)

    def test_a_layer_without_a_head(self) -> None:
        with pytest.raises(UserError, match="cannot read output 1 of a head of 0 layers"):
            EncoderWithClassifier(Seen(), Classifier(3, 7), None, 1)


class TestTheCommand:
    """From an encoder file."""

    @staticmethod
    def write(path: Path, layer: int | None = 0, classifier: bool = True, size: int = 40) -> Path:
        torch.manual_seed(0)
        encoder = ResNet(10, 0.125, "cifar")
        head = ProjectionHead(encoder.feature_dim)
        extra = {"options": {"views": {"size": size, "resample": "tf1"}}}
        parts = {"classifier": Classifier(encoder.feature_dim, 7), "classifier_layer": layer} if classifier else {}
        path.parent.mkdir(parents=True)
        save_encoder(path, encoder, head, extra, **parts)  # type: ignore[arg-type]
        return path

    def test_it_runs_and_writes_what_it_found(self, tmp_path: Path, tree: Path) -> None:
        file = self.write(tmp_path / "net" / "encoder.safetensors", layer=1)
        report = imagenet(file, tree)
        assert 0 <= report.top1 <= 1
        assert "21 images of 7 classes" in report.text()
        assert "resized to 40 x 40 (tf1); linear classifier on output 1 of the projection head" in report.text()
        assert report.file.parent == tmp_path / "net" / "evaluations"
        told = json.loads(report.file.read_text())
        assert told["protocol"] == "imagenet"
        assert told["scores"]["top1"] == report.top1
        assert told["data"][0] == str(tree)
        second = imagenet(file, tree, size=36, resample="antialias", classifier_layer=0)
        assert "resized to 36 x 36 (antialias); linear classifier on the encoder's features" in second.text()
        assert second.file != report.file

    def test_logits_are_those_of_the_parts(self, tmp_path: Path) -> None:
        file = self.write(tmp_path / "net" / "encoder.safetensors", layer=1)
        model = load_classified(file)
        x = torch.rand(2, 3, 16, 16)
        assert not model.training
        with torch.no_grad():
            h = model.encoder(x)
            torch.manual_seed(0)
            expected = model.classifier(torch.relu(model.below[0][1](model.below[0][0](h))))
            assert torch.equal(model(x), expected)

    def test_a_file_without_a_classifier(self, tmp_path: Path, tree: Path) -> None:
        file = self.write(tmp_path / "net" / "encoder.safetensors", classifier=False)
        with pytest.raises(UserError, match=r"holds no classifier, .* use --protocol linear"):
            imagenet(file, tree)

    def test_a_file_that_does_not_know_what_the_classifier_reads(self, tmp_path: Path, tree: Path) -> None:
        file = self.write(tmp_path / "net" / "encoder.safetensors", layer=None)
        with pytest.raises(UserError, match="give --classifier_layer 0"):
            imagenet(file, tree)
        assert imagenet(file, tree, classifier_layer=0).images == 21
