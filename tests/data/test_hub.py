"""Hugging Face data sets: saved ones, objects, streams that are packed; nothing here asks the network."""

from __future__ import annotations

import importlib.util
import io
from contextlib import nullcontext

import datasets
import numpy as np
import pytest
from PIL import Image

from twofold.commands.shard import shard
from twofold.data import DataConfig, HubSource, open_source, splits_of
from twofold.errors import UserError

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (12, 9, 7, 3), dtype=np.uint8)


def table(n=12, broken=(), column="image"):
    cells = []
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(PIXELS[i]).save(buffer, "PNG")
        cells.append({"bytes": b"broken" if i in broken else buffer.getvalue(), "path": None})
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=["bird", "cat"])})
    return datasets.Dataset.from_dict({column: cells, "label": [i % 2 for i in range(n)]}, features=features)


def test_a_saved_data_set(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    for what in (tmp_path / "saved", f"hf:{tmp_path / 'saved'}", table()):
        source = open_source(what)
        assert isinstance(source, HubSource)
        assert (len(source), source.channels, source.classes) == (12, 3, ["bird", "cat"])
        assert source.labels.tolist() == [0, 1] * 6
        np.testing.assert_array_equal(source.read(5), PIXELS[5])
        assert source.fingerprint() == open_source(table()).fingerprint()
    assert source.fingerprint() != open_source(table(11)).fingerprint()
    assert open_source(table(), DataConfig(channels=1)).read(0).shape == (9, 7, 1)


def test_splits_of_a_saved_dictionary(tmp_path):
    datasets.DatasetDict({"train": table(12), "test": table(6)}).save_to_disk(tmp_path / "saved")
    assert splits_of(tmp_path / "saved").evaluation == ("train", "test")
    assert len(open_source(tmp_path / "saved")) == 12
    assert len(open_source(tmp_path / "saved", split="test")) == 6
    assert len(open_source(datasets.DatasetDict({"train": table(12)}))) == 12
    with pytest.raises(UserError, match=r"--data.split val: .* has train, test"):
        open_source(tmp_path / "saved", split="val")


def test_broken_cells_are_skipped_with_their_labels():
    source = open_source(table(broken=(3,)))
    assert len(source) == 11
    assert source.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    assert dict(source.skipped) == {"Dataset[3]": "not an image of a format that Pillow reads"}
    np.testing.assert_array_equal(source.read(3), PIXELS[4])


def test_columns_that_are_not_there_or_too_many():
    assert len(open_source(table(column="photo"))) == 12
    with pytest.raises(UserError, match="no column of the type Image; it has text"):
        open_source(datasets.Dataset.from_dict({"text": ["a", "b"]}))
    right = table(column="right").remove_columns("label")
    two = datasets.concatenate_datasets([table(column="left"), right], axis=1)
    with pytest.raises(UserError, match=r"several columns of images \(left, right\)"):
        open_source(two)


def test_streams_are_packed_first(tmp_path, monkeypatch):
    streaming = table(broken=(3,)).to_iterable_dataset(num_shards=3)
    with pytest.raises(UserError, match=r"streams: .* `twofold shard hf:NAME --out FOLDER --stream true`"):
        open_source(streaming)
    # The hub's part is played by a local stream of the same class.
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, streaming=False, **__: streaming and _stream)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train"])
    _stream = streaming
    told = shard("hf:some/name", tmp_path / "out", stream=True)
    assert "1 image(s) skipped:\n  example 3" in told.text()
    source = open_source(tmp_path / "out")
    assert source.classes == ["bird", "cat"]
    assert source.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    np.testing.assert_array_equal(source.read(3), PIXELS[4])
    with pytest.raises(UserError, match="--stream true is for hf:NAME"):
        shard(tmp_path / "out", tmp_path / "other", stream=True)


def test_without_the_extra(tmp_path, monkeypatch):
    table().save_to_disk(tmp_path / "saved")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "datasets" else real(name, *a))
    for what in (tmp_path / "saved", "hf:some/name"):
        with pytest.raises(UserError, match=r"need an extra: pip install \"twofold\[shards\]\""):
            open_source(what)


def test_a_name_that_the_hub_does_not_know(monkeypatch):
    def refuse(*_):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist")

    monkeypatch.setattr("twofold.data.sources.hub.hub_or_cache", lambda: nullcontext(True))  # it answers
    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    with pytest.raises(UserError, match=r"hf:no/such: neither a folder .*\(DatasetNotFoundError"):
        open_source("hf:no/such")


@pytest.mark.parametrize(
    ("kind", "given", "labels", "classes"),
    [
        (datasets.ClassLabel(names=["bird", "cat"]), [0, None, 1, 1], [0, -1, 1, 1], ["bird", "cat"]),
        (datasets.ClassLabel(names=["bird", "cat"]), [0, -1, 1, 1], [0, -1, 1, 1], ["bird", "cat"]),
        (datasets.Value("int64"), [0, None, 1, 1], [0, -1, 1, 1], None),
        (datasets.Value("string"), ["owl", None, "", "cat"], [1, -1, -1, 0], ["cat", "owl"]),
    ],
)
def test_some_cells_have_no_label(tmp_path, monkeypatch, kind, given, labels, classes):
    """They stay, to be pretrained on, also packed and from a stream."""
    images = table(len(given)).remove_columns("label")
    whole = images.add_column("label", given, feature=kind)
    source = open_source(whole)
    assert (source.labels.tolist(), source.classes, len(source)) == (labels, classes, 4)
    shard(whole, tmp_path / "packed")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: whole.to_iterable_dataset())
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train"])
    shard("hf:some/name", tmp_path / "streamed", stream=True)
    for name in ("packed", "streamed"):
        packed = open_source(tmp_path / name)
        assert (packed.labels.tolist(), packed.classes, len(packed.skipped)) == (labels, classes, 0)
    withheld = images.add_column("label", [None if kind.dtype == "string" else -1] * 4, feature=kind)
    assert open_source(withheld).labels is None
