"""A flipped bit in what Twofold keeps on disk changes nothing, or is told with the file's name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_doubles import Means
from PIL import Image

from twofold.commands.shard import shard
from twofold.data import DataConfig, open_source
from twofold.encoders import build_encoder, load_encoder, save_encoder
from twofold.encoders.build import EncoderConfig
from twofold.errors import UserError
from twofold.evaluation.embeddings import Part, _keep, _kept
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.features import Extractor
from twofold.training.checkpoint import load_checkpoint, save_checkpoint

FLIPS = 80


def photos(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(8):
        path = root / "photos" / ("bird", "cat")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    return root / "photos"


def each_flip(path: Path, look: Callable[[], Any], *words: str) -> int:
    """How many of 80 flipped bits were noticed; with the others all was as before. A failure names the bit.

    `look` gives what is read, or what the reader said of damage, as a string in which the `words` are.
    """
    whole, before, noticed = path.read_bytes(), look(), 0
    bits = random.Random(path.name).sample(range(8 * len(whole)), FLIPS)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        after = look()
        noticed += isinstance(after, str)
        if isinstance(after, str):
            assert all(word in after for word in words), after
        else:
            assert after == before, f"bit {bit} of {path.name} gave other data without a word"
    path.write_bytes(whole)
    assert look() == before
    return noticed


@pytest.mark.parametrize("name", ["000000.tar", "index.npy", "index.json"])
@pytest.mark.parametrize("by", ["folder", "pattern"])
def test_packed_images(tmp_path: Path, name: str, by: str) -> None:
    shard(photos(tmp_path), tmp_path / "packed")
    what = tmp_path / "packed" if by == "folder" else f"shards:{tmp_path}/packed/*.tar"

    def look() -> Any:
        try:
            source = open_source(what, DataConfig(max_skipped=0.5))
        except UserError as error:
            return str(error)
        if source.skipped:
            return source.skipped.summary()
        assert source.labels is not None
        return [source.read(i).tobytes() for i in range(len(source))], source.labels.tolist(), source.classes

    words = ["000000.tar:"] if name == "000000.tar" else [str(tmp_path / "packed"), "make it again: twofold shard"]
    noticed = each_flip(tmp_path / "packed" / name, look, *words)
    assert noticed >= (20 if name == "000000.tar" else FLIPS - 12)  # (an archive is half padding and headers)


def test_features(tmp_path: Path) -> None:
    source, encoder, told = open_source(photos(tmp_path), DataConfig(channels=1)), Means(), list[str]()
    extractor = Extractor(cache=FeatureCache(tmp_path / "features", told.append))
    truth = extractor.extract(encoder, source).h.tobytes()
    (path,) = (tmp_path / "features").iterdir()
    kept = path.read_bytes()

    def look() -> Any:
        told.clear()
        found = extractor.extract(encoder, source)
        assert found.h.tobytes() == truth, "features are those of the images, whatever the file holds"
        assert found.kept is not bool(told)
        if path.read_bytes() != kept:  # made anew: the next flip is of the file as it was
            path.write_bytes(kept)
        return "".join(told) or (found.index.tolist(), found.skipped, found.text)

    noticed = each_flip(path, look, str(path), "computed anew")
    assert noticed > FLIPS // 2


def encrypted(path: Path) -> None:
    """Set the bit of every member, in its own header and in the directory, that says that it is encrypted."""
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(mark, place + 4)
    path.write_bytes(content)


def test_members_that_say_they_are_encrypted(tmp_path: Path) -> None:
    source, told = open_source(photos(tmp_path), DataConfig(channels=1)), list[str]()
    extractor = Extractor(cache=FeatureCache(tmp_path / "features", told.append))
    truth = extractor.extract(Means(), source)
    (path,) = (tmp_path / "features").iterdir()
    encrypted(path)
    assert np.array_equal(extractor.extract(Means(), source).h, truth.h)
    assert "computed anew" in told[-1]
    images = tmp_path / "images.npz"
    np.savez(images, images=np.zeros((4, 8, 8, 3), np.uint8))
    encrypted(images)
    with pytest.raises(UserError, match=r"images\.npz"):
        open_source(images)
    one = Part(truth.h, truth.index, np.ones(len(truth.h), np.int64), (), "")
    kept = tmp_path / "part.npz"
    _keep(kept, one)
    assert _kept(kept, 8) is not None
    encrypted(kept)
    assert _kept(kept, 8) is None


def test_checkpoints(tmp_path: Path) -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    path = save_checkpoint(tmp_path, 7, {"step": 7, "weights": {"w": values}}, keep=1)

    def look() -> Any:
        try:
            state = load_checkpoint(path)
        except UserError as error:
            return str(error)
        return state["step"], state["weights"]["w"].numpy().tobytes()

    noticed = each_flip(path, look, str(path))
    assert noticed > FLIPS // 2


def test_encoders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar")), extra={"steps": 3})

    def look() -> Any:
        try:
            state = load_encoder(path).state_dict()
        except UserError as error:
            return str(error)
        return {name: value.numpy().tobytes() for name, value in state.items()}

    noticed = each_flip(path, look, str(path))
    assert noticed >= FLIPS - 4
