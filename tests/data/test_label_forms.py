"""Labels as people have them: one a row, names, gaps between the numbers, some of them missing."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from twofold.data import open_source
from twofold.data.base import class_count
from twofold.data.labels import class_labels
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.evaluation.splits import match_classes


def pictures(n=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


class Items(Dataset):
    """Items as given; more attributes by keyword."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def of(labels, /, **attributes):
    return Items([(Image.fromarray(x), y) for x, y in zip(pictures(len(labels)), labels, strict=True)], **attributes)


@pytest.mark.parametrize(
    "wrap", [lambda y: np.array([y]), lambda y: torch.tensor([y]), lambda y: np.int64(y), lambda y: torch.tensor(y)]
)
def test_a_label_of_shape_1_is_one_label(wrap):
    """MedMNIST's way: ten classes are ten classes, and no yes or no."""
    source = open_source(of([wrap(i % 3) for i in range(12)]))
    assert source.labels.tolist() == [i % 3 for i in range(12)]
    assert class_count(source.labels, source.classes) == 3


def test_several_labels_an_item_stay_several():
    rows = [np.array([i % 2, (i + 1) % 2, 1]) for i in range(12)]
    np.testing.assert_array_equal(open_source(of(rows)).labels, np.stack(rows))


def test_what_items_say_wins_over_attributes():
    fine = list(range(12))
    source = open_source(of([i % 2 for i in fine], targets=fine, classes=[f"class {i}" for i in fine]))
    assert source.labels.tolist() == [i % 2 for i in fine]
    assert source.classes is None, "the names are of the attribute's classes"
    agreeing = open_source(of([i % 2 for i in fine], targets=[i % 2 for i in fine], classes=["even", "odd"]))
    assert agreeing.classes == ["even", "odd"]
    part = open_source(Subset(of([i % 2 for i in fine], targets=fine), [1, 2, 5]))
    assert part.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": [{"boxes": []}] * 12},
        {"labels": lambda: [0] * 12},
        {"targets": ["cat"] * 12},
        {"labels": ["a", "b"]},
    ],
)
def test_attributes_that_are_no_labels_are_passed_over(attributes):
    assert open_source(of([i % 2 for i in range(12)], **attributes)).labels.tolist() == [i % 2 for i in range(12)]


def test_names_are_labels_and_missing_ones_are_unlabelled():
    source = open_source(of(["dog", "cat", None, "dog", "", "cat"]))
    assert source.labels.tolist() == [1, 0, -1, 1, -1, 0]
    assert source.classes == ["cat", "dog"]
    array = open_source((pictures(4), np.array(["b", "a", "b", "c"])))
    assert (array.labels.tolist(), array.classes) == ([1, 0, 1, 2], ["a", "b", "c"])
    assert open_source((pictures(4), [0, None, 1, 1])).labels.tolist() == [0, -1, 1, 1]
    assert open_source((pictures(4), np.array([0, np.nan, 1, 1]))).labels.tolist() == [0, -1, 1, 1]


def test_mappings_are_items():
    items = [{"image": Image.fromarray(x), "label": i % 2} for i, x in enumerate(pictures())]
    source = open_source(Items(items))
    assert source.labels.tolist() == [i % 2 for i in range(12)]
    np.testing.assert_array_equal(source.read(3), pictures()[3])


def test_numbers_with_gaps_become_classes():
    numbers = np.array([7, 1234, 300_000, 7])
    values, classes = class_labels(numbers, 4, "x")
    assert values.tolist() == [0, 1, 2, 0]
    assert classes == ["7", "1234", "300000"]
    assert class_count(values, classes) == 3
    assert class_labels(np.array([2**63, 5, 2**63], dtype=np.uint64), 3, "x")[1] == ["5", str(2**63)]
    assert class_labels([0, 1, 2, 4], 4, "x") == (pytest.approx([0, 1, 2, 4]), None)
    # a test set with other gaps is matched by the numbers that people gave
    test, names = class_labels(np.array([300_000, 7]), 2, "test")
    assert match_classes(values, classes, test, names).tolist() == [2, 0]
    assert match_classes(np.arange(10), None, *class_labels(np.array([9, 0, 9]), 3, "t")).tolist() == [9, 0, 9]


def test_a_part_is_numbered_as_the_whole():
    whole = open_source((pictures(6), [0, 1, 2, 3, 4, 4]))
    assert subset(whole, [0, 4, 5]).labels.tolist() == [0, 4, 4]


@pytest.mark.parametrize(
    ("values", "classes", "words"),
    [
        ([0, 1, 2, -2], None, "got -2 to 2"),
        ([0, 1, 2, 3], ["a", "b", "c"], "the label 3, and names for 3 classes"),
        ([0.5, 1, 2, 3], None, "whole numbers"),
        (["a", "b", "c", "z"], ["a", "b", "c"], "the label 'z', which is none of its classes"),
        (np.full((4, 3), 2), None, "0 and 1 with one column a class"),
        ([0, 1], None, r"must be \[4\]"),
    ],
)
def test_labels_that_are_none_are_refused(values, classes, words):
    with pytest.raises(UserError, match=words):
        class_labels(values, 4, "x", classes)


@pytest.mark.parametrize(
    "missing", [None, -1, float("nan"), np.float32("nan"), torch.tensor(float("nan")), torch.tensor(-1)]
)
@pytest.mark.parametrize("known", [int, float, torch.tensor, np.int64])
def test_some_items_have_no_label(missing, known):
    source = open_source(of([known(0), missing, known(1), known(1), missing, known(2)]))
    assert source.labels.tolist() == [0, -1, 1, 1, -1, 2]
    assert source.classes is None


def test_numbers_that_are_no_classes_are_no_labels():
    assert open_source(of([0.25, 0.5, 1.0, 2.0])).labels is None


def test_huge_numbers_are_classes_and_never_wrap():
    """0 and 10**9 are two classes, not 10**9 + 1; what needs 64 bits without a sign does not become negative."""
    for values in ([0, 10**9, 0], np.array([0, 10**9, 0]), torch.tensor([0, 10**9, 0])):
        numbers, names = class_labels(values, 3, "it")
        assert (numbers.tolist(), names) == ([0, 1, 0], ["0", str(10**9)])
    for values in ([2**63, 1, 2**63], np.array([2**63, 1, 2**63], dtype=np.uint64)):
        numbers, names = class_labels(values, 3, "it")
        assert (numbers.tolist(), names) == ([1, 0, 1], ["1", str(2**63)])
    for values in ([2**63, None, 1], [2**64, 1, 0], [-1, 2**63, 1]):
        with pytest.raises(UserError, match=r"it: the label (9223372036854775808|18446744073709551616) is no class's"):
            class_labels(values, 3, "it")


def test_huge_numbers_in_tables_and_tables_cells(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "t.csv").write_text(f"path,label\n0.png,{2**63}\n1.png,0\n2.png,\n")
    with pytest.raises(UserError, match=f"the label {2**63} is no class's number"):
        open_source(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(f"path,label\n0.png,{10**9}\n1.png,0\n2.png,\n")
    source = open_source(tmp_path / "t.csv")
    assert (source.labels.tolist(), source.classes) == ([1, 0, -1], ["0", str(10**9)])


def test_huge_numbers_in_hub_data_and_archives(tmp_path):
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    cells = [{"bytes": buffer.getvalue(), "path": None}] * 2
    for kind, largest in (("int64", 10**9), ("uint64", 2**63 + 5)):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
        columns = {"image": pa.array(cells, features["image"].pa_type), "label": pa.array([0, largest], kind)}
        info = datasets.DatasetInfo(features=features)
        data = datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns)), info=info)
        source = open_source(data)
        assert (source.labels.tolist(), source.classes) == ([0, 1], ["0", str(largest)])
        assert source.facts().classes == 2
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, label in enumerate((0, 2 * 10**9)):
            for name, data in ((f"{i}.png", buffer.getvalue()), (f"{i}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    source = open_source(tmp_path)
    assert (source.labels.tolist(), source.classes) == ([0, 1], ["0", str(2 * 10**9)])
