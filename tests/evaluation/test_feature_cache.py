"""Features on disk: read again where nothing has changed, computed anew and said where anything has."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_doubles import LazySource, Means
from PIL import Image

from twofold.data import ArraySource, DataConfig, open_source
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.evaluation.feature_cache import FeatureCache, decode_options
from twofold.evaluation.features import Extractor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight grey pictures of one size in two classes, as uncompressed files: other pixels, the same length."""
    for i in range(8):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 20 * i).save(path)
    return tmp_path / "images"


class Told(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", Told())


def told(cache: FeatureCache) -> list[str]:
    return list(cache.tell)  # type: ignore[call-overload]


def fresh(source: Any, encoder: Means, cache: FeatureCache, progress: Any = None, **options: Any) -> bool:
    """Whether the encoder had to run; the features are right in any case."""
    encoder.seen.clear()
    found = Extractor(cache=cache, **options).extract(encoder, source, progress)
    ran = bool(encoder.seen)
    expected = Extractor(**options).extract(encoder, source)
    np.testing.assert_array_equal(found.h, expected.h)
    assert found.kept is not ran
    assert (found.skipped, found.text, found.index.tolist()) == (
        expected.skipped, expected.text, expected.index.tolist(),
    )  # fmt: skip
    assert (found.labels is None and expected.labels is None) or (found.labels == expected.labels).all()  # type: ignore[union-attr]
    return ran


def test_the_same_images_are_encoded_once(folder: Path, cache: FeatureCache) -> None:
    source, encoder = open_source(folder), Means()
    steps: list[tuple[int, int]] = []
    assert fresh(source, encoder, cache)
    assert not fresh(open_source(folder), encoder, cache, progress=lambda *a: steps.append(a))
    assert steps[0] == (8, 8)
    assert not fresh(source, encoder, cache, batch=3)  # a batch's size changes no feature
    assert told(cache) == []
    assert len(list(cache.folder.iterdir())) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        {"size": 12}, {"preprocessing": "resize", "size": 8}, {"size": 8, "resample": "tf2"},
    ],
)  # fmt: skip
def test_another_preprocessing_has_features_of_its_own(folder: Path, cache: FeatureCache, change: Any) -> None:
    source, encoder = open_source(folder), Means()
    assert fresh(source, encoder, cache)
    assert fresh(source, encoder, cache, **change)
    assert not fresh(source, encoder, cache)
    assert not fresh(source, encoder, cache, **change)
    assert told(cache) == []


def test_other_data_are_other_features(folder: Path, cache: FeatureCache) -> None:
    encoder, source = Means(), open_source(folder)
    assert fresh(source, encoder, cache)
    assert fresh(subset(source, [0, 1, 2, 5]), encoder, cache)
    assert not fresh(subset(source, [0, 1, 2, 5]), encoder, cache)
    assert fresh(subset(source, [0, 1, 2, 6]), encoder, cache)
    (folder / "b" / "7.bmp").unlink()
    assert fresh(open_source(folder), encoder, cache)
    # Read another way: a colour file as grey, behind another background.
    Image.new("RGBA", (16, 16), (9, 200, 9, 40)).save(folder / "a" / "0.png")
    white, black = (open_source(folder, DataConfig(channels=1, background=name)) for name in ("white", "black"))
    assert fresh(white, encoder, cache)
    assert fresh(black, encoder, cache)
    assert told(cache) == []


def test_other_bands_and_ranges_are_other_features(folder: Path) -> None:
    """A file of features is found by what decided on the pixels."""

    def reading(**options: Any) -> dict[str, Any]:
        return decode_options(open_source(folder, DataConfig(**options))) or {}

    plain, chosen = reading(), reading(bands=(1,))
    assert chosen == plain | {"bands": [1]}
    assert reading(band_ranges=((0.0, 9.0),)) == plain | {"band_ranges": [(0.0, 9.0)]}


def test_labels_are_those_of_the_data_not_of_the_file(cache: FeatureCache) -> None:
    images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
    source, encoder = ArraySource(images, np.arange(6) % 2), Means()
    assert fresh(source, encoder, cache)
    source.labels = np.arange(6) % 3
    assert Extractor(cache=cache).extract(encoder, source).labels.tolist() == [0, 1, 2, 0, 1, 2]  # type: ignore[union-attr]


def test_a_stale_file_is_told_of_and_made_anew(folder: Path, cache: FeatureCache) -> None:
    source, encoder = open_source(folder), Means()
    assert fresh(source, encoder, cache)
    encoder.norm.running_mean += 0.1  # the run went on
    assert fresh(source, encoder, cache)
    assert "are stale (the encoder changed since): computed anew" in told(cache)[0]
    assert not fresh(source, encoder, cache)
    Image.new("L", (16, 16), 250).save(folder / "a" / "0.bmp")  # the same name, the same length
    os.utime(folder / "a" / "0.bmp", ns=(1, 2**62))
    assert fresh(open_source(folder), encoder, cache)
    assert "(the files changed since)" in told(cache)[1]
    assert len(told(cache)) == 2
    assert len(list(cache.folder.iterdir())) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "other"])
def test_a_damaged_file_is_told_of_and_made_anew(folder: Path, cache: FeatureCache, damage: str) -> None:
    source, encoder = open_source(folder), Means()
    assert fresh(source, encoder, cache)
    (path,) = cache.folder.iterdir()  # type: ignore[union-attr]
    contents = bytearray(path.read_bytes())
    if damage == "flipped":
        place = contents.index(Extractor().extract(encoder, source).h.tobytes()[:16])
        contents[place + 5] ^= 1  # within the features: only a checksum can tell
    cut = {"cut": contents[: len(contents) // 2], "flipped": contents, "emptied": b"", "other": b"not a zip file"}
    path.write_bytes(cut[damage])
    assert fresh(source, encoder, cache)
    assert "are damaged" in told(cache)[0]
    assert not fresh(source, encoder, cache)
    assert len(told(cache)) == 1


def test_a_file_of_other_arrays_is_damaged(folder: Path, cache: FeatureCache) -> None:
    source, encoder = open_source(folder), Means()
    assert fresh(source, encoder, cache)
    (path,) = cache.folder.iterdir()  # type: ignore[union-attr]
    with np.load(path) as file:
        arrays = dict(file)
    for spoiled in (
        {"h": arrays["h"][:, :3]}, {"h": arrays["h"] * np.nan}, {"index": arrays["index"] + 1},
        {"facts": np.frombuffer(b"[]", np.uint8)},
    ):  # fmt: skip
        np.savez(path, **(arrays | spoiled))
        assert fresh(source, encoder, cache)
    assert len(told(cache)) == 4


def test_images_that_could_not_be_read_are_told_of_and_counted_again(folder: Path, cache: FeatureCache) -> None:
    grey = DataConfig(channels=1, max_skipped=0.3)
    first, again = open_source(folder, grey), open_source(folder, grey)
    strict = open_source(folder, dataclasses.replace(grey, max_skipped=0.0))
    (folder / "a" / "2.bmp").write_bytes((folder / "a" / "2.bmp").read_bytes()[:200])  # the header stays whole
    found = Extractor(cache=cache).extract(Means(), first)
    assert (len(found.h), len(found.skipped)) == (7, 1)
    kept = Extractor(cache=cache).extract(Means(), again)
    assert (kept.kept, kept.skipped, again.skipped[0]) == (True, found.skipped, found.skipped[0])
    with pytest.raises(UserError, match="max_skipped"):
        Extractor(cache=cache).extract(Means(), strict)


def test_a_disk_that_refuses_costs_a_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "features", Told())
    assert fresh(open_source(folder), Means(), cache)
    assert "are not kept" in told(cache)[0]


def test_nothing_is_kept_of_what_nobody_can_know_again(cache: FeatureCache, folder: Path) -> None:
    images = [np.full((8, 8, 1), i, np.uint8) for i in range(4)]
    own = LazySource(list(images), [0, 1, 0, 1])
    assert decode_options(own) is None
    dataset = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)
    for source in (own, open_source(dataset)):
        assert fresh(source, Means(), cache, size=8)
        assert fresh(source, Means(), cache, size=8)
    assert not cache.folder.exists()  # type: ignore[union-attr]
    assert fresh(open_source(folder), Means(), FeatureCache(None))
    assert FeatureCache.beside(folder / "encoder.safetensors").folder is None
