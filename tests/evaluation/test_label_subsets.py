"""Which images get a label: shares as published, balance, nesting, lists, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from twofold.data import ArraySource, open_source
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.evaluation.label_subsets import label_positions, labelled_part
from twofold.evaluation.parts import labelled_parts


def source_of(labels, classes=None):
    labels = np.asarray(labels)
    return ArraySource(np.zeros((len(labels), 2, 2, 1), np.uint8), labels, classes=classes, name="set")


def imagenet_like():
    """1,000 classes of 732 to 1,300 images, 1,281,167 in all, as ImageNet's training set; positions only."""
    counts = np.full(1000, 1300)
    counts[:100] = 732
    counts[100:200] = np.linspace(900, 1250, 100).astype(int)
    short = counts.sum() - 1281167
    counts[200:] -= short // 800
    counts[200 : 200 + short % 800] -= 1
    assert counts.sum() == 1281167
    return np.repeat(np.arange(1000), counts)


def test_shares_of_imagenet_are_the_published_numbers():
    """12,811 = 189 x 12 + 811 x 13 and 128,116 = 884 x 128 + 116 x 129, the smaller inside the larger."""

    class Stub:
        name, labels, classes = "imagenet", imagenet_like(), None

        def __len__(self):
            return len(self.labels)

    one, ten = label_positions(Stub(), "1%"), label_positions(Stub(), "10%")
    assert np.unique(np.bincount(Stub.labels[one]), return_counts=True)[1].tolist() == [189, 811]
    assert dict(zip(*np.unique(np.bincount(Stub.labels[ten]), return_counts=True), strict=True)) == {128: 884, 129: 116}
    assert len(one) == 12811
    assert len(ten) == 128116
    assert np.isin(one, ten).all()


def test_a_choice_is_the_same_on_every_machine():
    """Pinned: a changed generator or order would change published numbers."""
    chosen = label_positions(source_of(np.arange(500) % 7), "35", seed=5, draw=2)
    assert hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()[:16] == "2793b916ca8e9aa8"


def test_forms_agree_and_draws_differ():
    source = source_of(np.arange(200) % 4)
    each = label_positions(source, "5/class")
    assert np.bincount(source.labels[each]).tolist() == [5] * 4
    assert (label_positions(source, 20) == each).all()
    assert (label_positions(source, "10 %") == each).all()
    assert (label_positions(source, "all") == np.arange(200)).all()
    assert (label_positions(source, "10%", draw=1) != each).any()
    assert (label_positions(source, "10%", seed=1) != each).any()
    part, words = labelled_part(source, "10%", draw=1)
    assert len(part) == 20
    assert words == "20 of 200 labels (10%; seed 0, draw 1)"


@pytest.fixture
def folder(tmp_path):
    for i in range(8):
        path = tmp_path / "images" / f"n0000000{i % 2}" / f"n0000000{i % 2}_{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, i, i)).save(path)
    return tmp_path


def test_a_list_of_names_as_the_official_ones(folder):
    """One "wnid_index.JPEG" a line; folders may stand before it."""
    source = open_source(folder / "images")
    (folder / "list.txt").write_text("n00000001_5.JPEG\nn00000000/n00000000_2.JPEG\n\n")
    chosen = label_positions(source, str(folder / "list.txt"))
    assert sorted(source.path(int(i)).rsplit("_", 1)[1] for i in chosen) == ["2.JPEG", "5.JPEG"]


def test_a_list_of_positions_serves_arrays(tmp_path):
    (tmp_path / "list.txt").write_text("3\n0\n")
    assert label_positions(source_of([0, 0, 1, 1]), str(tmp_path / "list.txt")).tolist() == [0, 3]


def test_a_list_is_of_the_whole_data_also_where_some_are_held_out_for_the_score(folder):
    """By name and by position: what is listed is trained on, and never scored."""
    whole = open_source(folder / "images")
    for lines in ("n00000001_5.JPEG\nn00000000_2.JPEG\nn00000000_0.JPEG\n", "6\n1\n0\n"):
        (folder / "list.txt").write_text(lines)
        wanted = str(folder / "list.txt")
        listed = label_positions(whole, wanted)
        train, test = labelled_parts(whole, None, 0, 0.5, wanted)
        part, words = labelled_part(train, wanted)
        assert [part.path(i) for i in range(3)] == [whole.path(int(i)) for i in listed]
        assert words == f"3 of 8 labels ({wanted})", "nothing of it is random"
        held = {test.path(i) for i in range(len(test))}
        assert len(held) == len(test) == 4
        assert not held & {part.path(i) for i in range(3)}
        assert np.unique(test.labels).tolist() == [0, 1]


def test_a_part_of_a_folder_knows_its_files(folder):
    whole = open_source(folder / "images")
    part = subset(whole, [7, 0])
    assert [part.path(0), part.path(1)] == [whole.path(7), whole.path(0)]
    (folder / "list.txt").write_text("n00000000_0.JPEG\nn00000001_7.JPEG\n")
    assert label_positions(part, str(folder / "list.txt")).tolist() == [0, 1]


def test_a_list_of_all_images_of_a_class_leaves_nothing_to_score_on(folder):
    (folder / "list.txt").write_text("0\n1\n2\n3\n4\n")
    with pytest.raises(UserError, match=r"every image of class n00000000 is to be trained on.*give --test"):
        labelled_parts(open_source(folder / "images"), None, labels=str(folder / "list.txt"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("n00000001_5.JPEG\n", "no image of 1 class.*n00000000"),
        ("n00000001_5.JPEG\nn00000009_1.JPEG\n", "1 of 2 lines name no image.*n00000009_1"),
        ("n00000001_5.JPEG\nn00000001_5.JPEG\nn00000000_2.JPEG\n", "n00000001_5.JPEG more than once"),
        ("", "the list is empty"),
    ],
)
def test_lists_that_do_not_fit(folder, lines, told):
    (folder / "list.txt").write_text(lines)
    with pytest.raises(UserError, match=told):
        label_positions(open_source(folder / "images"), str(folder / "list.txt"))


def test_two_images_of_one_name_need_their_folders(folder):
    Image.new("RGB", (4, 4)).save(folder / "images" / "n00000000" / "n00000001_5.JPEG")
    (folder / "list.txt").write_text("n00000001_5.JPEG\n")
    with pytest.raises(UserError, match=r"2 images called n00000001_5\.JPEG: list them with their folders"):
        label_positions(open_source(folder / "images"), str(folder / "list.txt"))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("3", "at least one for each of the 4 classes"),
        ("201", "at most the 200"),
        ("0%", "above 0 %"),
        ("101%", "at most 100 %"),
        ("51/class", "classes with fewer images"),
        ("ten", "no such file; give all, a share"),
    ],
)
def test_what_cannot_be_had(wanted, told):
    with pytest.raises(UserError, match=told):
        label_positions(source_of(np.arange(200) % 4), wanted)


def test_many_labels_an_image_have_no_balance():
    with pytest.raises(UserError, match="several labels an image"):
        label_positions(source_of(np.eye(4, dtype=int)), "2")
    assert label_positions(source_of(np.eye(4, dtype=int)), "all").tolist() == [0, 1, 2, 3]


def test_without_labels_there_is_nothing_to_choose():
    with pytest.raises(UserError, match="has no labels"):
        label_positions(ArraySource(np.zeros((4, 2, 2, 1), np.uint8), name="set"), "2")
