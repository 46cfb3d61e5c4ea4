"""`twofold.Embedder`: a transformer as scikit-learn has them, of images in any form."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.validation import check_is_fitted

import twofold
from sound_files import speech_folder
from twofold.embedder import Embedder
from twofold.errors import UserError

TINY = {
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"}, "head.out_dim": 8,
    "training": {"precision": "fp32", "log_every": 50}, "monitor.every": 0,
}  # fmt: skip


def tiny(**parameters: Any) -> Embedder:
    return Embedder(**{"epochs": 1, "batch": 16, "options": TINY, "device": "cpu"} | parameters)


def digits(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return (found.images[:n] / 16).astype(np.float32), found.target[:n]


@pytest.fixture(scope="module")
def fitted() -> Embedder:
    return tiny().fit(digits()[0])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """Colour images of several sizes, and a folder with them in files."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8) for i in range(20)]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:02}.png")
    return folder, arrays


def test_features_are_those_of_the_encoder_in_the_order_of_the_images(fitted: Embedder) -> None:
    images, _ = digits()
    h = fitted.transform(images)
    assert h.dtype == np.float32
    assert h.shape == (64, 64)
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_allclose(fitted.transform(images[order]), h[order], rtol=1e-4, atol=1e-5)
    x = torch.from_numpy((images * 255).round() / 255)[:, None].float()
    with torch.inference_mode():
        np.testing.assert_allclose(h, fitted.encoder_(x).numpy(), rtol=1e-4, atol=1e-5)
    assert list(fitted.get_feature_names_out()) == [f"embedder{i}" for i in range(64)]


def test_it_is_what_pretrain_makes_of_the_same_images(fitted: Embedder, tmp_path: Path) -> None:
    images = (digits()[0] * 255).round().astype(np.uint8)
    run = twofold.pretrain(
        torch.from_numpy(images)[:, None], tmp_path / "run", report=False, epochs=1, batch=16, seed=0,
        **TINY | {"training": {"precision": "fp32", "log_every": 50, "device": "cpu"}, "data.workers": 0},
    )  # fmt: skip
    whole, own = twofold.load(run.path).state_dict(), fitted.encoder_.state_dict()
    assert all(torch.equal(whole[name], own[name]) for name in whole)


def test_clones_parameters_and_pickles(fitted: Embedder) -> None:
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        check_is_fitted(again)
    with pytest.raises(NotFittedError, match="call fit"):
        again.transform(digits()[0])
    assert again.set_params(epochs=2, random_state=7).epochs == 2
    assert set(fitted.get_params()) == set(inspect.signature(Embedder).parameters)
    copy = pickle.loads(pickle.dumps(fitted))
    assert len(pickle.dumps(fitted)) < len(fitted.weights_) + 10_000
    assert np.array_equal(copy.transform(digits()[0]), fitted.transform(digits()[0]))


def test_pipelines_and_grid_searches() -> None:
    images, labels = digits(96)
    model = make_pipeline(tiny(), LogisticRegression(max_iter=200))
    search = GridSearchCV(
        model, {"embedder__size": [8, None], "embedder__random_state": [0]}, cv=2, error_score="raise"
    )
    search.fit(images, labels)
    assert search.best_score_ > 0.25  # of ten classes
    assert search.predict(images[:5]).shape == (5,)
    names = search.best_estimator_[:-1].get_feature_names_out()
    assert names[0] == "embedder0"


def test_every_form_of_the_same_images_gives_the_same_features(pictures: Any) -> None:
    folder, arrays = pictures
    embedder = tiny().fit(arrays)
    want = embedder.transform(arrays)
    paths = sorted(folder.iterdir())
    forms = {
        "paths": paths, "names": [str(path) for path in paths], "an array of names": np.array([str(p) for p in paths]),
        "pictures": [Image.fromarray(array) for array in arrays],
        "tensors": [torch.from_numpy(array).permute(2, 0, 1) for array in arrays],
        "floats": [array / 255 for array in arrays], "a tuple": tuple(arrays), "the folder": folder,
        "mixed": [paths[0], Image.fromarray(arrays[1]), *arrays[2:]],
    }  # fmt: skip
    for name, form in forms.items():
        np.testing.assert_allclose(embedder.transform(form), want, rtol=1e-4, atol=1e-5, err_msg=name)
    alike = np.stack([array[:20] for array in arrays])
    want = embedder.transform(list(alike))
    for form in (alike, torch.from_numpy(alike).permute(0, 3, 1, 2), alike / np.float32(255)):
        np.testing.assert_allclose(embedder.transform(form), want, rtol=1e-4, atol=1e-5)
    assert len(embedder.transform(alike[:1])) == 1
    whole = embedder.set_params(preprocessing="letterbox").transform(arrays)
    assert not np.allclose(whole, embedder.set_params(preprocessing="crop").transform(arrays))


def test_a_trained_run_needs_no_fit(fitted: Embedder, tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(fitted.weights_)
    images = digits()[0]
    want = fitted.transform(images)
    assert np.array_equal(Embedder(file, device="cpu").transform(images), want)
    assert np.array_equal(Embedder(str(file), device="cpu").fit(images).transform(images), want)
    own = Embedder.from_run(file, device="cpu")
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny(random_state=1).fit(images).weights_)
    changed = Embedder(file, device="cpu")
    changed.transform(images[:2])
    assert not np.allclose(changed.set_params(run=other).transform(images), want)
    file.unlink()
    assert np.array_equal(own.transform(images), want)  # it holds the encoder itself
    with pytest.raises(UserError, match="no run or encoder at"):
        Embedder(file).fit()
    with pytest.raises(UserError, match=r"epochs is for pretraining, and run .* is trained already"):
        Embedder(file, epochs=3).fit()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 64)), r"images of shape \(4, 64\): give arrays \[n, H, W\]"),
        (np.full((4, 8, 8), 16.0), r"values from 16 to 16; floats have to lie in \[0, 1\]: divide those of 0 to 255"),
        (np.full((4, 8, 8), np.nan), "values from nan to nan"),
        (np.zeros((4, 8, 8), np.int64), "pixels of int64: give uint8"),
        (np.array(["a", "b"], dtype=object)[:0], "the list is empty"),
        (np.zeros((4, 8, 8), dtype=object), "an array of object holds no pixels"),
        ([], "the list is empty"),
        ([np.zeros((8, 8)), "nowhere.png", {}], "image 2 given as dict"),
        (["nowhere.png"], "nowhere.png"),
        ({"a": 1}, "given as dict"),
        (None, "given as NoneType"),
    ],
)
def test_what_is_no_image_is_refused_in_words(fitted: Embedder, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted.transform(images)


def test_a_file_that_cannot_be_read_is_no_missing_row(fitted: Embedder, pictures: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="broken"):
        fitted.transform([sorted(pictures[0].iterdir())[0], tmp_path / "broken.png"])
    with pytest.raises(UserError, match="nothing to pretrain on"):
        tiny().fit()


def test_recordings_are_read_by_a_run_of_recordings(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "speech", 2, 6)
    options = {"encoder": {"name": "speech:small", "speech": {"width": 16, "layers": 1, "heads": 2, "hidden": 32}},
               "head.out_dim": 8, "training.precision": "fp32", "monitor.every": 0}  # fmt: skip
    embedder = tiny(options=options, batch=4).fit(str(folder))
    files = sorted(folder.rglob("*.wav"))
    h = embedder.transform(files)
    assert h.shape == (12, 16)
    assert np.allclose(embedder.transform(files[::-1]), h[::-1], atol=1e-5)
    with pytest.raises(UserError, match="takes recordings: give the paths"):
        embedder.transform(digits()[0])


WITHOUT_DATA = (
    "check_estimator_cloneable", "check_estimator_repr", "check_estimator_tags_renamed", "check_get_params_invariance",
    "check_mixin_order", "check_no_attributes_set_in_init", "check_parameters_default_constructible",
    "check_set_params", "check_valid_tag_types",
)  # fmt: skip
"""Checks of scikit-learn's that fit nothing. All others fit tables [n, features] of normal numbers, no images: they are
left out for estimators that say so, and `test_the_other_checks_by_hand_on_images` has what they ask."""


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_scikit_learn_s_checks_that_need_no_table(name: str) -> None:
    getattr(estimator_checks, name)("Embedder", tiny())


def test_scikit_learn_knows_that_no_table_is_taken() -> None:
    with pytest.warns(estimator_checks.SkipTestWarning, match="Can't test estimator Embedder which requires input"):
        found = estimator_checks.check_estimator(tiny())
    assert {each["status"] for each in found} == {"passed"}
    tags = get_tags(tiny())
    assert (tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.requires_fit) == (False, True, True)
    assert not get_tags(Embedder("runs/first")).requires_fit


@pytest.mark.parametrize("order", [0, 1])
def test_the_other_checks_by_hand_on_images(order: int) -> None:
    """What scikit-learn asks of the estimators whose data are tables."""
    images, labels = digits(32)
    images.flags.writeable = order == 0
    before, embedder = images.copy(), tiny()
    parameters = dict(embedder.get_params())
    assert embedder.fit(images, labels) is embedder
    assert embedder.get_params() == parameters
    attributes = set(vars(embedder))
    once = embedder.transform(images)
    assert set(vars(embedder)) == attributes
    assert np.array_equal(embedder.transform(images), once)
    assert np.array_equal(tiny().fit_transform(images), once)
    assert np.array_equal(images, before)
