"""Long images: the central square hides their ends, a letterbox and several squares show them, and that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold.cli import main
from twofold.data import ArraySource, DataConfig, open_source
from twofold.encoders import ResNet, read_header, save_encoder
from twofold.errors import UserError
from twofold.evaluation.feature_cache import Features
from twofold.evaluation.features import Extractor
from twofold.evaluation.framing import Framing, cut_in_words, framed_in_words, squares
from twofold.evaluation.protocols.classifier import _prepared
from twofold.views.resample import letterbox


def ends(n: int, wide: int = 96, high: int = 24, seed: int = 0) -> np.ndarray:
    """Noise whose outer sixths are dark on the left and bright on the right, or the other way round in odd ones."""
    images = np.random.default_rng(seed).integers(90, 130, (n, high, wide, 3))
    edge = wide // 6
    for i, image in enumerate(images):
        image[:, :edge] += 90 if i % 2 else -90
        image[:, -edge:] -= 90 if i % 2 else -90
    return images.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide files of two classes, and two tall ones of each."""
    root = tmp_path_factory.mktemp("ends")
    for i, image in enumerate(ends(40)):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        picture = image[:, 30:60] if i >= 36 else image  # the last four are about square
        Image.fromarray(picture).save(root / "ab"[i % 2] / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "one"
    folder.mkdir()
    options = {"views": {"size": 24, "resample": "antialias"}}
    save_encoder(folder / "encoder.safetensors", ResNet(10, 0.125, "cifar", zero_init_residual=False),
                 extra={"options": options})  # fmt: skip
    (folder / "config.yaml").write_text("options: {}\n")
    return folder


def features(run: Path, source: Any, rule: Any) -> Any:
    return Extractor.of(run / "encoder.safetensors", preprocessing=rule, device="cpu").extract(
        twofold.load(run), source
    )


def test_two_pictures_that_differ_at_their_ends_alone_are_told_apart(run: Path) -> None:
    pair = ends(1).repeat(2, axis=0)
    pair[1] = pair[0].copy()
    pair[1, :, :16], pair[1, :, -16:] = pair[0, :, -16:], pair[0, :, :16]
    cosines = {}
    for rule in ("auto", "letterbox", "squares"):
        h = features(run, ArraySource(pair), rule).h
        cosines[rule] = float((h[0] @ h[1]) / np.linalg.norm(h[0]) / np.linalg.norm(h[1]))
    assert cosines["auto"] == pytest.approx(1.0, abs=1e-6)
    assert cosines["letterbox"] < 0.9995
    different = np.abs(np.diff(features(run, ArraySource(pair), "letterbox").h, axis=0)).max()
    assert different > 1e-3


def test_a_letterbox_holds_the_whole_image_between_bars_of_its_mean() -> None:
    image = torch.from_numpy(ends(1)).permute(0, 3, 1, 2)
    boxed = letterbox(image, 48)
    assert boxed.shape == (1, 3, 48, 48)
    inside = boxed[:, :, 18:30]
    assert torch.allclose(boxed[0, :, 0, 0], inside.mean((2, 3))[0], atol=1e-6)
    assert float(inside[..., :6].mean()) < 0.2 < 0.6 < float(inside[..., -6:].mean())
    tall = letterbox(image.transpose(2, 3), 48)
    assert torch.allclose(tall.transpose(2, 3), boxed, atol=1e-5)
    same = torch.rand(2, 3, 16, 16)
    assert torch.allclose(letterbox(same, 16), same, atol=1e-6)


def test_squares_cover_an_image_evenly() -> None:
    assert squares(24, 96) == [(0, 0, 24, 24), (0, 24, 24, 24), (0, 48, 24, 24), (0, 72, 24, 24)]
    assert squares(50, 24) == [(0, 0, 24, 24), (13, 0, 24, 24), (26, 0, 24, 24)]
    assert squares(24, 26) == [(0, 1, 24, 24)]
    assert len(squares(10, 1000)) == 16
    assert squares(10, 1000)[-1] == (0, 990, 10, 10)


def test_features_of_squares_are_their_mean_whatever_the_batch_and_the_source(run: Path, folder: Path) -> None:
    source = open_source(folder, DataConfig())
    found = features(run, source, "squares").h
    encoder, by_hand = twofold.load(run), []
    for index in range(len(source)):
        image = torch.from_numpy(source.read(index)).permute(2, 0, 1)[None]
        parts = [image[:, :, t : t + h, left : left + w] for t, left, h, w in squares(*image.shape[2:])]
        each = torch.cat([Framing("resize", 24)(part) for part in parts])
        with torch.inference_mode():
            by_hand.append(encoder(each if each.is_floating_point() else each / 255).mean(0).numpy())
    assert np.allclose(found, np.stack(by_hand), atol=1e-5)
    small = Extractor.of(run / "encoder.safetensors", preprocessing="squares", batch=3, device="cpu")
    assert np.allclose(small.extract(encoder, source).h, found, atol=1e-5)
    images = ends(8)
    arrays = features(run, ArraySource(images), "squares").h
    rows = [open_source(folder, DataConfig()).path(i) for i in range(40)]
    order = [next(k for k, row in enumerate(rows) if row.endswith(f"/{i}.png")) for i in range(8)]
    assert np.allclose(arrays, found[order], atol=1e-5)


def test_the_output_says_how_many_are_seen_in_part(run: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["evaluate", str(run), str(folder), "--protocol", "knn"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "36 of 40 images are more than twice as long as wide" in told
    assert "--preprocessing letterbox or squares" in told
    assert main(["evaluate", str(run), str(folder), "--protocol", "knn"]) == 0  # from kept features, too
    assert "36 of 40 images are more than twice" in " ".join(capsys.readouterr().out.split())
    assert main(["embed", str(run), str(folder), "--out", str(tmp_path / "f.npz")]) == 0
    assert "36 of 40 images" in " ".join(capsys.readouterr().out.split())
    assert main(["embed", str(run), str(folder), "--out", str(tmp_path / "p.npz"), "--save_every", "9"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("36 of 40 images") == told.count("central square resized") == 1  # of all parts together
    for rule in ("letterbox", "squares"):
        assert (
            main(["embed", str(run), str(folder), "--out", str(tmp_path / f"{rule}.npz"), "--preprocessing", rule]) == 0
        )
        assert "more than twice" not in capsys.readouterr().out
    assert main(["search", str(run), str(folder), "--out", str(tmp_path / "found"), "--outliers", "1"]) == 0
    assert "36 of 40 images are more than twice" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"letterbox\.npz were embedded with letterbox; give --preprocessing letterbox"):
        twofold.search(run, tmp_path / "letterbox.npz", out=tmp_path / "other", query=folder)
    kept = np.load(tmp_path / "letterbox.npz")["features"]
    assert np.allclose(kept, features(run, open_source(folder, DataConfig()), "letterbox").h, atol=1e-5)


def test_images_of_mixed_sizes_are_told_by_what_became_of_how_many(run: Path, tmp_path: Path, capsys: Any) -> None:
    """Of all parts together, from kept features, too, and of pieces of an embedding; with a number and without."""
    options = {"views": {"size": 48, "resample": "antialias"}}
    (tmp_path / "run").mkdir()
    save_encoder(tmp_path / "run" / "encoder.safetensors", twofold.load(run), extra={"options": options})
    (tmp_path / "run" / "config.yaml").write_text("options: {}\n")
    sides = {"train": [(48, 48)] * 4 + [(80, 60)] * 6 + [(30, 60)] * 2, "test": [(48, 48)] * 1 + [(60, 80)] * 3}
    rng = np.random.default_rng(0)
    for part, shapes in sides.items():
        for i, shape in enumerate(shapes):
            place = tmp_path / part / "ab"[i % 2] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(place)
    resized = "resized to 48 x 48 (antialias)"
    wanted = (
        f"of 16 images 9: central square of 0.875 of the shorter side {resized}, "
        f"5: images as they are, 2: central square {resized}"
    )
    words = ["evaluate", str(tmp_path / "run"), str(tmp_path / "train"), "--test", str(tmp_path / "test"),
             "--protocol", "knn"]  # fmt: skip
    for _ in "anew", "kept":
        assert main(words) == 0
        assert f"; {wanted}" in " ".join(capsys.readouterr().out.split())
    words = ["embed", str(tmp_path / "run"), str(tmp_path / "train"), "--save_every", "5", "--out"]
    assert main([*words, str(tmp_path / "f.npz")]) == 0
    assert (
        f"of 12 images 6: central square of 0.875 of the shorter side {resized}, "
        f"4: images as they are, 2: central square {resized}"
    ) in " ".join(capsys.readouterr().out.split())
    assert main([*words, str(tmp_path / "g.npz"), "--preprocessing", "crop"]) == 0
    assert f"(central square of 0.875 of the shorter side {resized})" in " ".join(capsys.readouterr().out.split())


def test_parts_are_counted_together_where_all_were_counted() -> None:
    """Of features that an earlier version kept nothing is known but their words."""

    def part(framed: dict[str, int], cut: tuple[int, int] = (0, 0), text: str = "") -> Features:
        text = (text or framed_in_words(framed)) + ", read with grey" + cut_in_words(*cut)
        return Features(np.empty((0, 8), np.float32), None, np.empty(0, np.int64), (), text, cut=cut, framed=framed)

    first, second = part({"as they are": 3}, (1, 3)), part({"as they are": 1, "cut": 4}, (2, 5))
    told = _prepared([first, second])
    assert told.startswith("of 8 images 4: as they are, 4: cut, read with grey; 3 of 8 images are more than twice")
    assert _prepared([first]) == first.text
    assert _prepared([part({}, text="as they are or cut"), second]).startswith(
        "as they are or cut, read with grey; 2 of 5"
    )


@pytest.mark.parametrize("rule", ["letterbox", "squares"])
def test_a_classifier_keeps_the_rule_and_prediction_follows_it(run: Path, folder: Path, rule: Any) -> None:
    centre = twofold.evaluate(run, folder, protocol="linear", baselines=False)
    found = twofold.evaluate(run, folder, protocol="linear", preprocessing=rule, keep_classifier=True)
    assert found.baselines["pixels"].top1 >= 0.5
    if rule == "letterbox":  # (the mean of squares does not know their order)
        assert found.top1 > 0.8 > centre.top1
    assert read_header(found.kept_in)["extra"]["options"]["preprocessing"] == rule
    source = open_source(folder, DataConfig())
    said = twofold.predict(found.kept_in, folder)
    assert ("letterbox" if rule == "letterbox" else "squares along").split()[
        0
    ] in said.words or "whole images" in said.words
    loaded = twofold.load(found.kept_in)
    assert loaded.input.preprocessing.rule == rule
    path = source.path(0)
    if rule == "squares":
        with pytest.raises(UserError, match=r"several squares .* twofold predict"):
            loaded.preprocess(path)
        return
    square = loaded.preprocess(path)
    assert torch.equal(square, Framing("letterbox", 24)(torch.from_numpy(source.read(0)).permute(2, 0, 1)[None]))
    assert json.loads(json.dumps(loaded.input.preprocessing.to_dict()))["rule"] == "letterbox"


def test_square_images_change_nothing(run: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)
    plain = features(run, ArraySource(images), "auto")
    for rule in ("letterbox", "squares"):
        assert np.allclose(features(run, ArraySource(images), rule).h, plain.h, atol=1e-5)
    assert "twice" not in plain.text
    with pytest.raises(UserError, match="'letterbox' needs the size"):
        Extractor(preprocessing="letterbox").extract(ResNet(10, 0.125, "cifar"), ArraySource(images))
