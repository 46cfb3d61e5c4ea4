"""Tables of images: paths, labels, splits and groups in columns."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from twofold.data import DataConfig, open_source, splits_of
from twofold.data.config import TableConfig
from twofold.errors import UserError

ROWS = [
    ("a/0.png", "cat", "train", "v1"), ("a/1.png", "dog", "train", "v1"), ("a/2.png", "", "train", "v2"),
    ("a/3.png", "dog", "test", "v3"), ("a/4.png", "cat", "test", "v3"),
]  # fmt: skip
HEADER = ("path", "label", "split", "video")


@pytest.fixture
def folder(tmp_path):
    for i, (name, *_) in enumerate(ROWS):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / name)
    return tmp_path


def write(folder, kind):
    path = folder / f"table.{kind}"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([dict(zip(HEADER, row, strict=True)) for row in ROWS]), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(HEADER, row, strict=True))) + "\n" for row in ROWS))
    else:
        mark = "\t" if kind == "tsv" else ","
        path.write_text("\n".join(mark.join(row) for row in (HEADER, *ROWS)) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_say_what_is_what(folder, kind):
    path = write(folder, kind)
    train = open_source(path)
    assert (train.labels.tolist(), train.classes) == ([0, 1, -1], ["cat", "dog"])
    assert train.read(1)[0, 0, 0] == 20
    test = open_source(path, split="test")
    assert test.labels.tolist() == [1, 0], "numbered as in the other split"
    assert splits_of(path).evaluation == ("train", "test")
    assert "3 images of the split train, 2 classes; other parts: test" in train.layout
    assert open_source(path, DataConfig(group="video")).groups == ["v1", "v1", "v2"]
    assert open_source(path, DataConfig(group=r"(\d)\.png")).groups == ["0", "1", "2"]
    with pytest.raises(UserError, match=r"--data.group vdeo: neither a column \(path, label, split, video\)"):
        open_source(path, DataConfig(group="vdeo"))


def test_numbers_lists_and_absolute_paths(folder):
    path = folder / "n.csv"
    path.write_text(f"image,target\n{folder}/a/0.png,3\na/1.png,\na/2.png,4\na/3.png,1000\n")
    source = open_source(path)
    assert source.labels.tolist() == [0, -1, 1, 2]
    assert source.classes == ["3", "4", "1000"]
    names = folder / "list.txt"
    names.write_text("a/3.png\na/1.png\n")
    listed = open_source(names)
    assert (len(listed), listed.labels, listed.read(0)[0, 0, 0]) == (2, None, 60)


def test_whole_numbers_written_as_floats_beside_missing_ones(folder):
    """As programs write them that have no missing whole number."""
    path = folder / "f.csv"
    path.write_text("image,target\na/0.png,2.0\na/1.png,nan\na/2.png,0.0\na/3.png,1.0\na/4.png,\n")
    source = open_source(path)
    assert (source.labels.tolist(), source.classes) == ([2, -1, 0, 1, -1], None)


def test_what_a_table_lacks_is_told(folder):
    path = write(folder, "csv")
    for config, words in (
        (TableConfig(path="file"), "--data.table.path file: .* it has path, label, split, video"),
        (TableConfig(label="kind"), "--data.table.label kind"),
    ):
        with pytest.raises(UserError, match=words):
            open_source(path, DataConfig(table=config))
    with pytest.raises(UserError, match=r"--data.split val: .* has test, train"):
        open_source(path, split="val")
    odd = folder / "odd.csv"
    odd.write_text("picture,kind\na/0.png,x\na/1.png,y\n")
    with pytest.raises(UserError, match=r"name one with --data.table.path"):
        open_source(odd)
    columns = TableConfig(path="picture", label="kind")
    assert open_source(odd, DataConfig(table=columns)).classes == ["x", "y"]
    missing = folder / "missing.csv"
    missing.write_text("path\na/0.png\na/1.png\na/9.png\n")
    with pytest.raises(UserError, match="1 of 3 images cannot be read"):
        open_source(missing, DataConfig(max_skipped=0.0))
